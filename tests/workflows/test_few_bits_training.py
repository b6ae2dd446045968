"""Training around a table in few bits, which stays as it is, and training of the float factors that it gives."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import equal_state_dicts, save
from few_bits import NUM_TOKENS, dense_model, inputs, logits, packed_model, packed_tables
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_projclust import decompress
from hf_projclust.layout_projclust import PackedLayout
from hf_projclust.packed_projclust import PackedTable
from hf_projclust.vocabulary_projclust import factored_tables

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
MODELS = {
    "bert": AutoModelForMaskedLM,
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "gemma3": AutoModelForCausalLM,
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of the models in few bits, saved; that of llama with a head of its own."""
    options = {"llama": {"head": True}}
    return {
        name: save(packed_model(name, **options.get(name, {})), tmp_path_factory.mktemp(name) / "out")
        for name in MODELS
    }


def state(model: Any) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def of_tables(model: Any) -> dict[str, torch.Tensor]:
    """What is stored of the tables in few bits, by the names of a state dict."""
    return {
        f"{path}.{name}": getattr(table, name).clone()
        for path, table in packed_tables(model).items()
        for name in table.stored_names
    }


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def trained(model: Any, output: Path, **options: Any) -> Any:
    set_seed(1)
    settings = {"max_steps": 3, "learning_rate": 0.01, "save_strategy": "no", "disable_tqdm": True} | options
    arguments = TrainingArguments(str(output), report_to=[], use_cpu=True, dataloader_pin_memory=False, **settings)
    ids = inputs("bert")["input_ids"].tolist()
    Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids]).train()
    return model


@every_model
def test_float_factors_give_equal_outputs_train_and_reload_by_the_first_format(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = MODELS[name].from_pretrained(folders[name])
    expected, packed = logits(model, name), copy.deepcopy(model)
    assert model.dequantize_factors() is model
    torch.testing.assert_close(logits(model, name), expected, atol=1e-5, rtol=1e-5)
    tables = factored_tables(model)
    assert not any(isinstance(table, PackedTable) for table in tables.values())
    assert len({id(table.coefficients) for table in tables.values()}) == (2 if name == "llama" else 1)
    assert all(table.coefficients.requires_grad and table.bases.requires_grad for table in tables.values())
    assert not any(isinstance(layout, PackedLayout) for layout in model.config.factor_layouts.values())
    assert isinstance(packed.get_input_embeddings(), PackedTable)
    assert all(isinstance(layout, PackedLayout) for layout in packed.config.factor_layouts.values())

    before = [table.coefficients.detach().clone() for table in tables.values()]
    trained(model, tmp_path / "run")
    assert not any(torch.equal(old, table.coefficients) for old, table in zip(before, tables.values(), strict=True))
    save(model, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["projclust"]["format_version"] == 1
    assert json.loads((folders[name] / "config.json").read_text())["projclust"]["format_version"] == 2
    assert equal_state_dicts(MODELS[name].from_pretrained(tmp_path / "out"), model)


def test_float_factors_are_resized_and_written_as_others_are(folders: dict[str, Path], tmp_path: Path) -> None:
    model = MODELS["gpt2"].from_pretrained(folders["gpt2"]).dequantize_factors()
    before = logits(model, "gpt2")
    model.resize_token_embeddings(NUM_TOKENS + 3)
    torch.testing.assert_close(logits(model, "gpt2")[..., :NUM_TOKENS], before)
    rows = torch.randn(1, 32)
    model.get_input_embeddings().set_rows(torch.tensor([NUM_TOKENS + 1]), rows)
    assert torch.equal(model.get_input_embeddings()(torch.tensor([NUM_TOKENS + 1])), rows)
    assert equal_state_dicts(MODELS["gpt2"].from_pretrained(save(model, tmp_path)), model)


def test_float_factors_of_float_factors_are_the_same(folders: dict[str, Path]) -> None:
    model = MODELS["bert"].from_pretrained(folders["bert"]).dequantize_factors()
    before, layouts = state(model), model.config.factor_layouts
    assert equal(state(model.dequantize_factors()), before)
    assert model.config.factor_layouts == layouts


@every_model
def test_the_trainer_trains_the_rest_and_leaves_the_table(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = MODELS[name].from_pretrained(folders[name])
    tables, before = of_tables(model), state(model)
    trained(model, tmp_path / "run")
    assert equal(of_tables(model), tables)
    assert sum(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()) > 3
    for path, table in factored_tables(model).items():
        assert torch.equal(table.rows, factored_tables(MODELS[name].from_pretrained(folders[name]))[path].rows)
    reloaded = MODELS[name].from_pretrained(save(model, tmp_path / "out"))
    assert equal_state_dicts(reloaded, model)
    assert torch.equal(logits(reloaded, name), logits(model, name))
    torch.testing.assert_close(logits(decompress(model), name), logits(model, name), atol=1e-4, rtol=1e-4)


def test_a_resumed_run_and_the_best_model_end_as_without_interruption(folders: dict[str, Path], tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trained(MODELS["gpt2"].from_pretrained(folders["gpt2"]), tmp_path / "whole", **options)
    model = MODELS["gpt2"].from_pretrained(folders["gpt2"])
    arguments = TrainingArguments(
        str(tmp_path / "again"),
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        learning_rate=0.01,
        disable_tqdm=True,
        **options,
    )
    ids = inputs("bert")["input_ids"].tolist()
    resumed = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert equal_state_dicts(resumed.model, whole)
    assert equal_state_dicts(MODELS["gpt2"].from_pretrained(tmp_path / "whole/checkpoint-4"), whole)


def test_gradients_of_the_rest_are_those_of_the_dense_copy(folders: dict[str, Path]) -> None:
    model = MODELS["llama"].from_pretrained(folders["llama"])
    dense, ids = decompress(model), inputs("llama")["input_ids"]
    for one in (model, dense):
        one(input_ids=ids, labels=ids).loss.backward()
    ours = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    theirs = {key: parameter.grad for key, parameter in dense.named_parameters() if parameter.grad is not None}
    assert theirs.keys() - ours.keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[key], atol=1e-5, rtol=1e-3)


@every_model
def test_requires_grad_of_the_model_reaches_all_but_the_table(name: str, folders: dict[str, Path]) -> None:
    model = MODELS[name].from_pretrained(folders[name])
    is_trained = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    tables = tuple(f"{name}." for name in factored_tables(model))
    of_tables = ("scales", "coefficients", "bases")
    expected = {key: not (key.startswith(tables) and key.endswith(of_tables)) for key, _ in model.named_parameters()}
    assert is_trained == expected
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == expected


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        pytest.param("llama", marks=pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning")
def test_lora_beside_a_table_in_few_bits_trains_saves_merges_and_reloads(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = MODELS[name].from_pretrained(folders[name])
    tables, before = of_tables(base), logits(base, name)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    peft = get_peft_model(
        prepare_model_for_kbit_training(base, use_gradient_checkpointing=False),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets),
    )
    after = logits(trained(peft, tmp_path / "run", learning_rate=0.1), name)
    assert not torch.allclose(before, after, atol=1e-3)
    assert equal(of_tables(base), tables)
    peft.save_pretrained(tmp_path / "adapter")
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(reloaded, name), after)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, name), after, atol=1e-4, rtol=1e-4)
    assert equal(of_tables(merged), tables)
    assert equal_state_dicts(MODELS[name].from_pretrained(save(merged, tmp_path / "merged")), merged)


def test_all_linear_leaves_heads_in_few_bits_out(folders: dict[str, Path]) -> None:
    model = get_peft_model(
        MODELS["llama"].from_pretrained(folders["llama"]),
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    names = [key for key, _ in model.named_parameters() if "lora" in key]
    assert names
    assert not any("lm_head" in key or "embed_tokens" in key for key in names)


def test_a_resize_is_refused_and_leaves_the_model_as_it_was(folders: dict[str, Path]) -> None:
    for name in ("gpt2", "llama"):
        model = MODELS[name].from_pretrained(folders[name])
        before = state(model)
        with pytest.raises(ValueError, match=r"of 2,003 tokens is in few bits, .* to 2,010; .*dequantize_factors\(\)"):
            model.resize_token_embeddings(2010)
        assert equal(state(model), before)
        assert model.config.vocab_size == NUM_TOKENS
        assert model.resize_token_embeddings(NUM_TOKENS) is model.get_input_embeddings()


def test_a_resize_that_a_head_in_few_bits_refuses_leaves_the_dense_table_as_it_was() -> None:
    model = packed_model("llama", embedding=False, head=True)
    assert torch.equal(model.get_input_embeddings().weight, dense_model("llama").get_input_embeddings().weight)
    with pytest.raises(ValueError, match="is in few bits"):
        model.resize_token_embeddings(2010)
    assert model.get_input_embeddings().weight.shape == (NUM_TOKENS, 32)
    assert model.get_input_embeddings().num_embeddings == NUM_TOKENS
    assert logits(model, "llama").shape[-1] == NUM_TOKENS
