"""Adapters of PEFT on compressed models: what trains, saves, merges and reloads, and what is refused."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, VOCAB_SIZE, equal_state_dicts
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_projclust import compress, decompress
from hf_projclust.modeling_projclust import ProjClustModelMixin
from hf_projclust.vocabulary_projclust import factored_tables

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
]
# What PEFT says of any tied model whose table or head is named `embed_tokens` or `lm_head`.
warns_of_ties = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
saves_the_table = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")

# name, auto class, PEFT's auto class, task, name of the table
MODELS = {
    "gpt2": (AutoModelForCausalLM, AutoPeftModelForCausalLM, "CAUSAL_LM", "wte"),  # tied head
    "gemma3": (AutoModelForCausalLM, AutoPeftModelForCausalLM, "CAUSAL_LM", "embed_tokens"),  # tied head, scaled table
    "llama": (AutoModelForCausalLM, AutoPeftModelForCausalLM, "CAUSAL_LM", "embed_tokens"),  # untied dense head
    "t5": (AutoModelForSeq2SeqLM, AutoPeftModelForSeq2SeqLM, "SEQ_2_SEQ_LM", "embed_tokens"),  # encoder and decoder
    "bert": (  # a head of its own
        AutoModelForSequenceClassification,
        AutoPeftModelForSequenceClassification,
        "SEQ_CLS",
        "word_embeddings",
    ),
}


def saved(name: str, folder: Path) -> Path:
    """A folder of a compressed tiny model."""
    TINY_MODELS[name].compressed().save_pretrained(folder)
    if name == "bert":  # with a classifier, so that each load has the same
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(folder)
    return folder


def rows(name: str) -> list[dict[str, Any]]:
    rng = random.Random(0)
    examples = []
    for number in range(16):
        ids = [rng.randrange(1, VOCAB_SIZE) for _ in range(6)]
        examples.append({"input_ids": ids, "labels": number % 3 if name == "bert" else ids})
    return examples


def train(model: Any, name: str, output: Path) -> Any:
    set_seed(1)
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=3,
        learning_rate=0.05,
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows(name)).train()
    return model.eval()


def logits(model: Any, name: str) -> torch.Tensor:
    inputs = TINY_MODELS[name].inputs()
    with torch.no_grad():
        return model.eval()(**inputs).logits


def adapted(name: str, folder: Path, **options: Any) -> Any:
    """A compressed model with a LoRA whose weights are random, as after training."""
    auto, _, task, _ = MODELS[name]
    torch.manual_seed(0)
    model = get_peft_model(auto.from_pretrained(folder), LoraConfig(task_type=task, r=2, **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_lora_trains_saves_merges_and_reloads_as_a_compressed_model(name: str, tmp_path: Path) -> None:
    auto, peft_auto, task, _ = MODELS[name]
    folder = saved(name, tmp_path / "base")
    base = auto.from_pretrained(folder)
    before, before_logits = {key: value.clone() for key, value in base.state_dict().items()}, logits(base, name)
    config = LoraConfig(task_type=task, r=2, target_modules=None if name != "bert" else ["query", "value"])
    model = train(get_peft_model(base, config), name, tmp_path / "run")
    trained = logits(model, name)
    assert not torch.allclose(trained, before_logits, atol=1e-3)

    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    assert not [key for key in load_file(tmp_path / "adapter/adapter_model.safetensors") if "coefficients" in key]
    reloaded = peft_auto.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(reloaded, name), trained)

    merged = reloaded.merge_and_unload()
    assert isinstance(merged, ProjClustModelMixin)
    assert merged.config.tie_word_embeddings == base.config.tie_word_embeddings
    after = merged.state_dict()
    for table in factored_tables(merged):
        assert all(
            torch.equal(after[f"{table}.{part}"], before[f"{table}.{part}"]) for part in ("coefficients", "bases")
        )
    merged.save_pretrained(tmp_path / "merged")
    again = auto.from_pretrained(tmp_path / "merged")
    assert equal_state_dicts(again, merged)
    torch.testing.assert_close(logits(again, name), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_all_linear_takes_the_dense_layers_and_no_factored_one(name: str, tmp_path: Path) -> None:
    auto, _, task, _ = MODELS[name]
    model = auto.from_pretrained(saved(name, tmp_path))
    native_targets = get_peft_model(TINY_MODELS[name].build(), LoraConfig(task_type=task, target_modules="all-linear"))
    model = get_peft_model(model, LoraConfig(task_type=task, target_modules="all-linear"))
    assert sorted(model.targeted_module_names) == sorted(native_targets.targeted_module_names)
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in key for key in trainable)


def test_adapters_that_transformers_adds_itself_reload_on_their_base(tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter/model.safetensors").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert isinstance(again, ProjClustModelMixin)
    assert torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))


def test_a_classifier_head_trains_and_travels_with_the_adapter(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    before = base.classifier.weight.detach().clone()
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"])
    model = train(get_peft_model(base, config), "bert", tmp_path / "run")
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again, "bert"), logits(model, "bert"))
    assert not torch.equal(again.merge_and_unload().classifier.weight, before)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_table_without_a_tied_head_can_be_saved_with_the_adapter(name: str, tmp_path: Path) -> None:
    auto, peft_auto, task, table = MODELS[name]
    base = auto.from_pretrained(saved(name, tmp_path / "base"))
    before = base.get_input_embeddings().coefficients.detach().clone()
    config = LoraConfig(task_type=task, r=2, target_modules=["q_proj", "query"], modules_to_save=[table])
    model = train(get_peft_model(base, config), name, tmp_path / "run")
    model.save_pretrained(tmp_path / "adapter")
    again = peft_auto.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again, name), logits(model, name))
    merged = again.merge_and_unload()
    assert not torch.equal(merged.get_input_embeddings().coefficients, before)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(auto.from_pretrained(tmp_path / "merged"), name), logits(model, name))


@warns_of_ties
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_a_merged_table_that_left_its_tied_head_is_not_saved(name: str, tmp_path: Path) -> None:
    """A file holds shared factors once: the reload would be another model."""
    folder = saved(name, tmp_path / "base")
    model = adapted(name, folder, modules_to_save=[MODELS[name][3]])
    expected = logits(model, name)
    model.save_pretrained(tmp_path / "adapter")  # unmerged it is whole
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(logits(again, name), expected)
    merged = model.merge_and_unload()
    with pytest.raises(
        ValueError, match="lm_head is tied .* factors of its own now.*out of modules_to_save.* PeftModel"
    ):
        merged.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_prepare_for_kbit_training_of_float_weights_freezes_the_factors(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("gpt2", tmp_path), dtype=torch.bfloat16)
    model = prepare_model_for_kbit_training(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.transformer.wte.coefficients.dtype == torch.float32
    assert model.lm_head.coefficients is model.transformer.wte.coefficients
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2))
    inputs = TINY_MODELS["gpt2"].inputs()
    peft(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert peft.base_model.model.transformer.wte.coefficients.grad is None


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Merge lora module to .-bit linear may get different:UserWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_lora_trains_on_a_quantised_body_with_factors_in_float(bits: int, tmp_path: Path) -> None:
    config = copy.deepcopy(TINY_MODELS["gemma3"].config)
    config.update({"hidden_size": 64, "head_dim": 32, "intermediate_size": 64})  # what 4 bits on a CPU ask for
    dense = replace(TINY_MODELS["gemma3"], config=config).build()
    compress(dense, **COMPRESSED).save_pretrained(tmp_path / "base")
    quantised = {"quantization_config": BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **quantised)
    before = base.model.embed_tokens.coefficients.detach().clone()
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}  # needs a gradient of the look-up's output
    model = get_peft_model(prepare_model_for_kbit_training(base, **options), LoraConfig(task_type="CAUSAL_LM", r=2))
    train(model, "gemma3", tmp_path / "run")  # no evaluation before it: that packs 4 bits on a CPU for good
    untrained = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base", **quantised), "gemma3")
    assert not torch.allclose(logits(model, "gemma3"), untrained, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", **quantised)
    torch.testing.assert_close(logits(again, "gemma3"), logits(model, "gemma3"))
    merged = again.merge_and_unload()
    assert merged.lm_head.coefficients is merged.model.embed_tokens.coefficients
    assert torch.equal(merged.model.embed_tokens.coefficients, before)


# Aimed at the table itself.


@warns_of_ties
@saves_the_table
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True` and the tied_target_modules:UserWarning")
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "llama", "bert"])
def test_lora_of_the_table_works_unmerged_and_its_merge_is_refused_with_nothing_lost(name: str, tmp_path: Path) -> None:
    auto, peft_auto, _, table = MODELS[name]
    folder = saved(name, tmp_path / "base")
    attention = {"gpt2": "c_attn", "bert": "query"}.get(name, "q_proj")
    model = adapted(name, folder, target_modules=[table, attention])
    expected = logits(model, name)
    assert not torch.allclose(expected, logits(auto.from_pretrained(folder), name), atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(peft_auto.from_pretrained(tmp_path / "adapter"), name), expected)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for safe in (False, True):
        with pytest.raises(AttributeError, match="dense weight of a factored table .*decompress.* merged there"):
            model.merge_and_unload(safe_merge=safe)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert torch.equal(logits(model, name), expected)


def test_lora_of_the_table_merges_on_the_dense_model(tmp_path: Path) -> None:
    """The way out that the refusal names."""
    folder = saved("llama", tmp_path / "base")
    model = adapted("llama", folder, target_modules=["embed_tokens", "q_proj"])
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = PeftModel.from_pretrained(decompress(folder), tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(logits(merged, "llama"), logits(model, "llama"), atol=1e-4, rtol=1e-4)


@warns_of_ties
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_lora_of_a_tied_factored_head_is_refused(name: str, tmp_path: Path) -> None:
    auto, _, task, _ = MODELS[name]
    model = auto.from_pretrained(saved(name, tmp_path))
    with pytest.raises(
        ValueError, match=r"Target module ProjClustHead\(in_features=16, out_features=97, bias=False\) is"
    ):
        get_peft_model(model, LoraConfig(task_type=task, target_modules=["lm_head"]))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_trainable_tokens_train_without_a_tied_head_and_their_merge_is_refused(name: str, tmp_path: Path) -> None:
    auto, peft_auto, task, table = MODELS[name]
    folder = saved(name, tmp_path / "base")
    base = auto.from_pretrained(folder)
    dense = base.get_input_embeddings().dense_weight().detach()
    tokens = sorted(rows(name)[0]["input_ids"][:2])
    options = {"target_modules": ["q_proj", "query"], "trainable_token_indices": {table: tokens}}
    model = train(get_peft_model(base, LoraConfig(task_type=task, r=2, **options)), name, tmp_path / "run")
    ids = torch.arange(VOCAB_SIZE)
    changed = (model.get_input_embeddings()(ids) != dense).any(dim=1).nonzero().flatten()
    assert changed.tolist() == tokens
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(peft_auto.from_pretrained(tmp_path / "adapter"), name), logits(model, name))
    with pytest.raises(AttributeError, match="dense weight of a factored table"):
        model.merge_and_unload()


@pytest.mark.filterwarnings("ignore:Unsupported layer type '<class 'hf_projclust:UserWarning")
def test_trainable_tokens_of_a_tied_head_are_refused_before_the_first_step(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(saved("gpt2", tmp_path))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", trainable_token_indices={"wte": [3]}))
    with pytest.raises(ValueError, match="TrainableTokensLayer wraps an unknown layer type"):
        model(**TINY_MODELS["gpt2"].inputs())


@pytest.mark.parametrize(
    ("config", "message"),
    [(LoHaConfig, "ProjClustEmbedding'> not supported"), (VeraConfig, "No layers types compatible with VeRA")],
)
def test_methods_that_know_no_embeddings_refuse_the_table(config: Any, message: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("llama", tmp_path))
    with pytest.raises((TypeError, ValueError), match=message):
        get_peft_model(model, config(task_type="CAUSAL_LM", target_modules=["embed_tokens"]))


# Prompts: PEFT looks the table up by a name of BERT's, or by a parameter with as many rows as the vocabulary.


@pytest.mark.parametrize("name", MODELS)
def test_prompt_tuning_reads_the_factored_table(name: str, tmp_path: Path) -> None:
    auto, _, task, _ = MODELS[name]
    base = auto.from_pretrained(saved(name, tmp_path / "base"))
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB")
    model = get_peft_model(base, config)
    vectors = base.get_input_embeddings()(torch.arange(VOCAB_SIZE)).detach()
    prompt = model.prompt_encoder["default"].embedding.weight.detach().clone()
    assert torch.cdist(prompt, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values.max() < 1e-5
    trained = train(model, name, tmp_path / "run")
    assert not torch.equal(trained.prompt_encoder["default"].embedding.weight, prompt)
    trained.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again, name), logits(trained, name))


def test_a_prompt_equals_the_one_of_the_dense_model(tmp_path: Path) -> None:
    folder = saved("gemma3", tmp_path)
    outputs = []
    for base in (AutoModelForCausalLM.from_pretrained(folder), decompress(folder)):
        torch.manual_seed(0)
        config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8)
        outputs.append(logits(get_peft_model(base, config), "gemma3"))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_other_names_of_modules_are_found_or_missing_as_natively(tmp_path: Path) -> None:
    model = TINY_MODELS["gpt2"].compressed()
    assert model.get_submodule("transformer.wte") is model.get_input_embeddings()
    with pytest.raises(AttributeError, match="no attribute"):
        model.get_submodule("embeddings.position_embeddings")
