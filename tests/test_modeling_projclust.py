"""Loading and saving compressed models: every stock way round, and damaged checkpoints."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import COMPRESSED, SMALL_SIZES, TINY_MODELS, VOCAB_SIZE, equal_state_dicts, run_python
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    conversion_mapping,
    pipeline,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from hf_projclust import ProjClustCheckpointError, compress, decompress, modeling_projclust
from hf_projclust.table_projclust import FactoredTable

TABLE = "bert.embeddings.word_embeddings"


@pytest.fixture
def model():
    return TINY_MODELS["bert"].compressed()


def test_a_sharded_save_reloads_bit_equal(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert equal_state_dicts(model, AutoModelForMaskedLM.from_pretrained(tmp_path))


def test_a_state_dict_that_is_given_is_what_is_saved(model, tmp_path: Path) -> None:
    given = {name: tensor + 1 for name, tensor in model.state_dict().items() if not name.endswith(".rows")}
    model.save_pretrained(tmp_path, state_dict=model.state_dict() | given)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    model.load_state_dict(model.state_dict() | given)
    assert equal_state_dicts(model, reloaded)


def test_a_fresh_process_that_only_imports_the_plugin_reloads_bit_equal(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    code = """
import sys
import hf_projclust
from transformers import AutoModelForMaskedLM
AutoModelForMaskedLM.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""
    run_python(code, str(tmp_path / "model"), str(tmp_path / "again"))
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert json.loads((tmp_path / "model/config.json").read_text()) == json.loads(
        (tmp_path / "again/config.json").read_text()
    )


def test_compressing_saving_and_loading_warn_of_nothing(tiny, tmp_path: Path, upstream_log) -> None:
    model = tiny.compressed()
    model.save_pretrained(tmp_path)
    type(model).from_pretrained(tmp_path)
    decompress(model)
    assert [record.message for record in upstream_log.records if record.levelname != "INFO"] == []


def test_tied_factors_stay_tied_after_a_reload(tmp_path: Path) -> None:
    for name in ("bert", "gpt2", "t5"):
        tiny = TINY_MODELS[name]
        tiny.compressed().save_pretrained(tmp_path / name)
        reloaded = type(tiny.compressed()).from_pretrained(tmp_path / name)
        first, *others = [reloaded.get_submodule(table) for table in tiny.tables]
        assert others
        for other in others:
            assert other.coefficients is first.coefficients
            assert other.bases is first.bases
            assert torch.equal(other.rows, first.rows)
            assert other.rows.data_ptr() != first.rows.data_ptr()  # which what saves in shards refuses


def test_a_generic_head_takes_a_factored_body(tmp_path: Path) -> None:
    llama = TINY_MODELS["llama"]
    model = llama.compressed()
    model.save_pretrained(tmp_path)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert isinstance(classifier, LlamaForSequenceClassification)
    assert report["missing_keys"] == {"score.weight"}
    assert torch.equal(classifier.model.embed_tokens.coefficients, model.model.embed_tokens.coefficients)
    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert equal_state_dicts(classifier, again)


def test_made_classes_count_as_native_ones(model) -> None:
    """Transformers initialises and converts what it takes for custom code by other rules."""
    assert not type(model).is_custom_code()


def test_checkpoint_conversions_hold_as_in_the_native_class(tmp_path: Path) -> None:
    """A Mixtral file has one tensor an expert, which the classifier must merge again."""
    config = MixtralConfig(**SMALL_SIZES, num_key_value_heads=1, num_local_experts=3, tie_word_embeddings=False)
    model = compress(MixtralForCausalLM(config).eval(), **COMPRESSED)
    model.save_pretrained(tmp_path)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert report["missing_keys"] == {"score.weight"}
    body, native_body = classifier.model.state_dict(), model.model.state_dict()
    assert all(torch.equal(body[key], native_body[key]) for key in body)
    assert set(native_body) - set(body) == {"embed_tokens.weight"}  # the byte in place of the dense weight


def test_conversions_that_are_keyed_by_class_are_found_under_the_made_class() -> None:
    by_class = [name for name in _conversions() if isinstance(getattr(transformers, name, None), type)]
    assert by_class
    for name in by_class:
        made = getattr(modeling_projclust, f"ProjClust{name}")
        found = get_checkpoint_conversion_mapping(made.__name__)
        assert [repr(entry) for entry in found] == [repr(entry) for entry in get_checkpoint_conversion_mapping(name)]


def _conversions() -> list[str]:
    get_checkpoint_conversion_mapping("bert")  # fills the table
    return [name for name in conversion_mapping._checkpoint_conversion_mapping_cache if not name.startswith("Proj")]


def test_a_head_with_its_own_bias_starts_like_a_native_one() -> None:
    distilbert = TINY_MODELS["distilbert"]
    config = distilbert.compressed().config
    fresh = AutoModelForMaskedLM.from_config(config)
    assert isinstance(fresh.vocab_projector, FactoredTable)
    assert torch.count_nonzero(fresh.vocab_projector.bias) == 0


def test_initialising_again_keeps_what_was_loaded() -> None:
    model = TINY_MODELS["bert"].compressed()
    copied = copy.deepcopy(model)
    copied.init_weights()
    assert equal_state_dicts(model, copied)


def test_factors_without_a_place_in_the_model_are_refused(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    damaged(tmp_path, lambda t: t.update({"cls.predictions.decoder.coefficients": torch.zeros(3)}))
    with pytest.raises(
        ProjClustCheckpointError, match="decoder.coefficients, for which .* no factored table; expected"
    ):
        AutoModelForMaskedLM.from_pretrained(tmp_path, tie_word_embeddings=False)


def test_tensor_parallel_plan_leaves_the_factors_out() -> None:
    dense = TINY_MODELS["llama"].build()
    dense_plan = {"model.embed_tokens": "embedding_rowwise"} | dense.tp_plan
    model = compress(dense, **COMPRESSED)
    assert {"model.embed_tokens": "embedding_rowwise"} | model.tp_plan == dense_plan  # the rest stands
    assert "model.embed_tokens" not in model.tp_plan


def test_auto_tokenizer_and_pipelines_work_without_a_warning(tokenizer, tmp_path: Path, upstream_log) -> None:
    dense = TINY_MODELS["distilbert"].build()
    compress(dense, num_clusters=3, compression=0.4, tokenizer=tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("good film")["input_ids"] == tokenizer("good film")["input_ids"]
    [answer] = pipeline("text-classification", model=str(tmp_path), device="cpu")("good film")
    assert answer["label"] in ("LABEL_0", "LABEL_1")
    dense = decompress(str(tmp_path))
    features = pipeline("feature-extraction", model=str(tmp_path), device="cpu")("good film", return_tensors=True)
    expected = dense.distilbert(**tokenizer("good film", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    warnings = [record.message for record in upstream_log.records if record.levelname in ("WARNING", "ERROR")]
    assert [text for text in warnings if "UNEXPECTED" not in text] == []  # a body drops the classifier, as natively


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_an_input_output_model_runs_a_forward_after_reload(auto, tmp_path: Path) -> None:
    TINY_MODELS["gpt2"].compressed().save_pretrained(tmp_path)
    reloaded = auto.from_pretrained(tmp_path, pad_token_id=0)
    assert reloaded(torch.tensor([[VOCAB_SIZE - 1, 3, 5]])).logits.isfinite().all()


# Damaged checkpoints: file, key, found, expected.


def damaged(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def set_row(tensors: dict, value: int) -> None:
    tensors[f"{TABLE}.rows"][5] = value


DAMAGES = [
    (lambda t: t.pop(f"{TABLE}.coefficients"), f"has no .*{TABLE}.coefficients.*expected every factor.*fetch"),
    (lambda t: t.pop(f"{TABLE}.bases"), f"has no .*{TABLE}.bases.*expected every factor.*fetch"),
    (lambda t: t.pop(f"{TABLE}.rows"), f"has no {TABLE}.rows; expected every factor.*fetch"),
    (
        lambda t: t.update({f"{TABLE}.coefficients": t[f"{TABLE}.coefficients"][:-1]}),
        rf"{TABLE}.coefficients has shape \(\d+,\) in the checkpoint; expected \(\d+,\).*damaged",
    ),
    (
        lambda t: t.update({f"{TABLE}.bases": t[f"{TABLE}.bases"][:, 1:].contiguous()}),
        rf"{TABLE}.bases has shape \(\d+, 15\) in the checkpoint; expected \(\d+, 16\).*damaged",
    ),
    (
        lambda t: t.update({f"{TABLE}.rows": t[f"{TABLE}.rows"][:50]}),
        rf"{TABLE}.rows has shape \(50,\) in the checkpoint; expected \(97,\).*damaged",
    ),
    (lambda t: set_row(t, 97), f"{TABLE}.rows assigns tokens to stored rows 0 to 97; expected each of 0 to 96 once"),
    (lambda t: set_row(t, -1), f"{TABLE}.rows assigns tokens to stored rows -1 to 96; expected each of 0 to 96 once"),
    (
        lambda t: set_row(t, int(t[f"{TABLE}.rows"][6])),
        f"{TABLE}.rows assigns tokens .*; expected each of 0 to 96 once",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModel])
def test_a_damaged_checkpoint_is_refused_by_key(model, tmp_path: Path, auto, damage, message: str) -> None:
    model.save_pretrained(tmp_path)
    damaged(tmp_path, damage)
    if auto is AutoModel:  # a body's names have no prefix
        message = message.replace("bert.embeddings", "embeddings")
    with pytest.raises(ProjClustCheckpointError, match=message):
        auto.from_pretrained(tmp_path)


def test_a_wrong_shape_is_refused_even_where_mismatches_are_ignored(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    damaged(tmp_path, DAMAGES[3][0])
    with pytest.raises(ProjClustCheckpointError, match="has shape"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)


def test_dense_weights_under_a_compressed_config_are_refused(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    decompress(model).save_pretrained(tmp_path / "dense")
    shutil.copy(tmp_path / "dense/model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ProjClustCheckpointError, match="has no .*coefficients"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
