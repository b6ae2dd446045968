"""Heads of language models: tied ones share the factors, untied ones stay dense or get factors of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, VOCAB_SIZE, WIDTH, build_llava, equal_state_dicts
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from hf_projclust import ProjClustCheckpointError, cli, compress, decompress
from hf_projclust.head_projclust import ProjClustHead
from hf_projclust.table_projclust import FactoredTable


def untied_bert() -> Any:
    config = TINY_MODELS["bert"].config.to_dict() | {"tie_word_embeddings": False}
    torch.manual_seed(0)
    model = BertForMaskedLM(type(TINY_MODELS["bert"].config)(**config)).eval()
    nn.init.normal_(model.cls.predictions.decoder.bias)
    return model


def untied_bart() -> Any:
    config = TINY_MODELS["bart"].config.to_dict() | {"tie_word_embeddings": False}
    torch.manual_seed(0)
    return BartForConditionalGeneration(BartConfig(**config)).eval()


UNTIED = {
    "llama": (TINY_MODELS["llama"].build, AutoModelForCausalLM, "llama"),
    "bert with a bias": (untied_bert, AutoModelForMaskedLM, "bert"),
    "bart": (untied_bart, AutoModelForSeq2SeqLM, "bart"),
    "llava's nested text model": (build_llava, AutoModelForImageTextToText, "llama"),
}
SWITCHES = {"table": (True, False), "head": (False, True), "both": (True, True)}


@torch.no_grad()
@pytest.mark.parametrize(("embedding", "head"), SWITCHES.values(), ids=SWITCHES.keys())
@pytest.mark.parametrize(("build", "auto", "inputs"), UNTIED.values(), ids=UNTIED.keys())
def test_table_and_head_are_factored_as_asked(build, auto, inputs: str, embedding: bool, head: bool, tmp_path) -> None:
    dense = build()
    model = compress(dense, **COMPRESSED, embedding=embedding, head=head)
    assert isinstance(model.get_input_embeddings(), FactoredTable) is embedding
    assert isinstance(model.get_output_embeddings(), ProjClustHead) is head
    assert set(model.config.factor_layouts) == set_of("embedding", embedding) | set_of("head", head)
    for kept, factored in ((model.get_input_embeddings(), embedding), (model.get_output_embeddings(), head)):
        if not factored:
            native = (
                dense.get_input_embeddings() if kept is model.get_input_embeddings() else dense.get_output_embeddings()
            )
            assert torch.equal(kept.weight, native.weight)
    back = decompress(model)
    given = TINY_MODELS[inputs].inputs()
    torch.testing.assert_close(model(**given).logits, back(**given).logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    reloaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert equal_state_dicts(model, reloaded)
    assert not any(report.values())


def set_of(name: str, wanted: bool) -> set[str]:
    return {name} if wanted else set()


def test_head_and_table_have_factors_and_records_of_their_own() -> None:
    dense = TINY_MODELS["llama"].build()
    model = compress(dense, **COMPRESSED, head=True)
    alone = {
        "embedding": compress(dense, **COMPRESSED).get_input_embeddings(),
        "head": compress(dense, **COMPRESSED, embedding=False, head=True).get_output_embeddings(),
    }
    for name, table in (("embedding", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        assert torch.equal(table.coefficients, alone[name].coefficients)
        original = dense.get_submodule({"embedding": "model.embed_tokens", "head": "lm_head"}[name]).weight.detach()
        error = (table.weight.detach() - original).square().sum() / original.square().sum()
        record = model.config.projclust["solver"][name]
        assert record["relative_squared_error"] == pytest.approx(float(error), rel=1e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "gemma3"])
def test_a_tied_head_shares_the_factors_whatever_is_asked_of_it(name: str) -> None:
    model = compress(TINY_MODELS[name].build(), **COMPRESSED)
    asked = compress(TINY_MODELS[name].build(), **COMPRESSED, head=True)
    assert equal_state_dicts(model, asked)
    assert set(asked.config.factor_layouts) == {"embedding"}
    assert asked.get_output_embeddings().coefficients is asked.get_input_embeddings().coefficients


def test_a_body_of_a_model_with_a_factored_head_loads_and_goes_back(tmp_path: Path) -> None:
    model = compress(TINY_MODELS["llama"].build(), **COMPRESSED, head=True)
    model.save_pretrained(tmp_path / "whole")
    body, report = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert torch.equal(body.embed_tokens.coefficients, model.model.embed_tokens.coefficients)
    assert {key.rpartition(".")[2] for key in report["unexpected_keys"]} == {"coefficients", "bases", "rows", "weight"}
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "whole", num_labels=3, output_loading_info=True
    )
    assert report["missing_keys"] == {"score.weight"}
    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert equal_state_dicts(classifier, again)
    with pytest.raises(ProjClustCheckpointError, match="has no lm_head.bases, lm_head.coefficients, lm_head.rows"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "classifier")


def test_a_model_with_a_factored_head_alone_loads_as_a_body(tmp_path: Path) -> None:
    compress(TINY_MODELS["llama"].build(), **COMPRESSED, embedding=False, head=True).save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body.embed_tokens.weight, TINY_MODELS["llama"].build().model.embed_tokens.weight)


@pytest.mark.parametrize("head", [False, True], ids=["dense", "factored"])
def test_a_head_of_its_own_is_not_lost_in_a_tie_that_the_file_does_not_have(head: bool, tmp_path: Path) -> None:
    model = compress(TINY_MODELS["llama"].build(), **COMPRESSED, head=head)
    model.save_pretrained(tmp_path)
    assert equal_state_dicts(model, AutoModelForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=True))


def test_a_configuration_that_forgets_that_the_head_is_not_tied_is_refused(tmp_path: Path) -> None:
    compress(TINY_MODELS["llama"].build(), **COMPRESSED, head=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["projclust"]["tied_head"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(
        ProjClustCheckpointError, match="ties its head .*; expected one or the other. The config.json is"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.fixture
def like_flan_t5(tmp_path: Path) -> Path:
    """A folder that holds a head of its own, which the configuration class ties whatever its file says."""
    model = TINY_MODELS["t5"].build()
    model.save_pretrained(tmp_path / "dense")
    tensors = load_file(tmp_path / "dense/model.safetensors")
    tensors["lm_head.weight"] = torch.randn(VOCAB_SIZE, WIDTH)
    save_file(tensors, tmp_path / "dense/model.safetensors", metadata={"format": "pt"})
    return tmp_path / "dense"


@torch.no_grad()
@pytest.mark.parametrize("head", [False, True], ids=["dense", "factored"])
def test_a_head_that_its_configuration_ties_but_its_file_does_not_stays_apart(
    like_flan_t5: Path, head: bool, tmp_path: Path
) -> None:
    dense, inputs = T5ForConditionalGeneration.from_pretrained(like_flan_t5), TINY_MODELS["t5"].inputs()
    model = compress(like_flan_t5, **COMPRESSED, head=head)
    assert isinstance(model.lm_head, ProjClustHead) is head
    if not head:
        assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    assert model.encoder.embed_tokens.coefficients is model.shared.coefficients
    model.tie_weights()
    model.save_pretrained(tmp_path / "compressed")
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "compressed")
    assert equal_state_dicts(model, reloaded)
    back = decompress(reloaded)
    back.save_pretrained(tmp_path / "back")
    back = T5ForConditionalGeneration.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(reloaded(**inputs).logits, back(**inputs).logits, atol=1e-5, rtol=0)
    assert (back.lm_head.weight - back.shared.weight).abs().max() > 0.1
    before = model.lm_head.weight[:] + 0
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert torch.equal(model.lm_head.weight[:VOCAB_SIZE], before)


def test_two_tables_in_a_file_that_are_tied_are_not_read_in_blocks(like_flan_t5: Path) -> None:
    with pytest.raises(ValueError, match="which its configuration ties, with other numbers; .* Leave memory_limit out"):
        compress(like_flan_t5, **COMPRESSED, memory_limit="1MB")


REPLACED = {
    "an input embedding": lambda model: model.set_input_embeddings(nn.Embedding(VOCAB_SIZE, WIDTH)),
    "a tied head": lambda model: model.set_output_embeddings(nn.Linear(WIDTH, VOCAB_SIZE, bias=False)),
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED.keys())
def test_a_model_with_a_factored_module_replaced_is_not_saved(replace, tmp_path: Path) -> None:
    model = compress(TINY_MODELS["gpt2"].build(), **COMPRESSED)
    replace(model)
    with pytest.raises(ValueError, match=r"stands where ProjClustGPT2LMHeadModel had a factored table; .* Put it back"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["coefficients", "bases", "rows"])
def test_a_missing_factor_of_the_head_is_named(part: str, tmp_path: Path) -> None:
    compress(TINY_MODELS["llama"].build(), **COMPRESSED, head=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"lm_head.{part}"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProjClustCheckpointError, match=f"has no lm_head.{part}; expected every factor"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_frozen_table_and_a_trained_head_stay_so() -> None:
    dense = TINY_MODELS["llama"].build()
    dense.model.embed_tokens.weight.requires_grad_(False)
    model = compress(dense, **COMPRESSED, head=True)
    assert [part.requires_grad for part in model.model.embed_tokens.parameters()] == [False, False]
    assert [part.requires_grad for part in model.lm_head.parameters()] == [True, True]
    back = decompress(model)
    assert not back.model.embed_tokens.weight.requires_grad
    assert back.lm_head.weight.requires_grad


def test_a_checkpoint_of_the_clustering_holds_both_runs(tmp_path: Path) -> None:
    dense = TINY_MODELS["llama"].build()
    model = compress(dense, **COMPRESSED, head=True, checkpoint=tmp_path)
    runs = {path.name for path in (tmp_path / "head").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == runs | {"head"}
    assert equal_state_dicts(model, compress(dense, **COMPRESSED, head=True, checkpoint=tmp_path))


def test_both_tables_are_read_from_their_file_in_blocks(tmp_path: Path) -> None:
    dense = TINY_MODELS["llama"].build()
    dense.save_pretrained(tmp_path)
    whole = compress(dense, **COMPRESSED, head=True)
    blocks = compress(tmp_path, **COMPRESSED, head=True, memory_limit="1MB")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(blocks.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


BAD = [
    ("llama", {"embedding": False}, "embedding=False and head=False leave nothing to factor"),
    ("distilbert", {"head": True}, "head=True, but DistilBertForSequenceClassification has no head of tokens"),
    ("gpt2", {"embedding": False, "head": True}, "embedding=False, but the head of GPT2LMHeadModel is tied"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_heads_that_the_model_has_not_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(TINY_MODELS[name].build(), **COMPRESSED, **options)


def test_a_head_of_another_kind_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = TINY_MODELS["llama"].build()
    dense.lm_head = nn.Sequential(nn.Linear(WIDTH, VOCAB_SIZE))
    monkeypatch.setattr("hf_projclust.compression.factor_table", lambda *_: pytest.fail("the solver was run"))
    with pytest.raises(ValueError, match="the vocabulary table is in a Sequential; expected an nn.Embedding or nn.Li"):
        compress(dense, **COMPRESSED, head=True)


def test_the_command_line_factors_head_and_table_and_shows_both(tmp_path: Path) -> None:
    TINY_MODELS["llama"].build().save_pretrained(tmp_path / "dense")
    options = ["--compression", "0.4", "--num-clusters", "3", "--token-counts", "uniform", "--head"]
    command = ["compress", str(tmp_path / "dense"), *options, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())  # titles wrap
    assert f"embedding: {VOCAB_SIZE} tokens" in output
    assert f"head: {VOCAB_SIZE} tokens" in output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert f"{sum(layout.num_parameters for layout in model.config.factor_layouts.values()):,}" in output


def test_the_command_line_factors_the_head_alone(tmp_path: Path) -> None:
    dense = TINY_MODELS["llama"].build()
    dense.save_pretrained(tmp_path / "dense")
    options = ["--compression", "0.4", "--num-clusters", "3", "--token-counts", "uniform", "--no-embedding", "--head"]
    command = ["compress", str(tmp_path / "dense"), *options, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    expected = compress(dense, **COMPRESSED, embedding=False, head=True)
    assert equal_state_dicts(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), expected)
