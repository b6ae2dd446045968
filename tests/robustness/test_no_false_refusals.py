"""What looks damaged and is not: checkpoints that load, though the checks of damaged ones come near to them."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, equal_state_dicts
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_projclust.configuration_projclust import _check_counts
from hf_projclust.loading import load_model
from hf_projclust.outputs import first_of_decoder


def test_an_adapter_that_is_smaller_than_the_table_loads(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    TINY_MODELS["llama"].compressed().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(adapter)
    loaded = AutoModelForCausalLM.from_pretrained(base)
    loaded.load_adapter(str(adapter))
    inputs = TINY_MODELS["llama"].inputs()
    assert torch.equal(loaded.eval()(**inputs).logits, model.eval()(**inputs).logits)


def test_a_class_that_leaves_its_pooler_out_loads_what_it_saved(tmp_path: Path) -> None:
    TINY_MODELS["bert"].compressed().save_pretrained(tmp_path / "whole")
    bare = AutoModel.from_pretrained(tmp_path / "whole", add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "bare")
    for loaded in (AutoModel.from_pretrained(tmp_path / "bare"), load_model(tmp_path / "bare")):
        assert bare.state_dict().keys() < loaded.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in bare.state_dict().items())


@pytest.mark.parametrize("name", ["consolidated.safetensors.index.json", "model.safetensors.index.json"])
def test_an_index_that_is_not_read_may_name_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    model = TINY_MODELS["bert"].compressed()
    model.save_pretrained(tmp_path)
    (tmp_path / name).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.complex64], ids=str)
def test_a_tensor_of_a_rare_dtype_beside_the_weights_is_no_damage(dtype: torch.dtype, tmp_path: Path) -> None:
    model = TINY_MODELS["bert"].compressed()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"extra": torch.ones(3).to(dtype)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained(tmp_path), model)


def test_dense_and_compressed_models_load_in_threads(tmp_path: Path) -> None:
    tiny = TINY_MODELS["gpt2"]
    models = {"dense": tiny.build(), "compressed": tiny.compressed()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)

    def load(number: int) -> bool:
        name = ("dense", "compressed")[number % 2]
        loaded: Any = load_model(tmp_path / name)
        table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
        return equal_state_dicts(loaded, models[name]) and table.weight is head.weight

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(16)))


def test_the_first_token_of_a_decoder_may_be_in_the_generation_config() -> None:
    model: Any = TINY_MODELS["t5"].build()
    model.config.decoder_start_token_id = None
    model.generation_config.decoder_start_token_id = 7
    assert first_of_decoder(model) == 7


def test_the_counts_of_native_configurations_are_within_the_bounds() -> None:
    made = []
    for native_class in CONFIG_MAPPING.values():
        with contextlib.suppress(ValueError, OSError, StrictDataclassClassValidationError):  # few need arguments
            made.append((native_class().to_dict(), native_class))
    assert len(made) > 0.95 * len(CONFIG_MAPPING)
    for fields, native_class in made:
        _check_counts(fields, native_class)


def test_fields_of_ones_own_are_no_counts(tmp_path: Path) -> None:
    model = TINY_MODELS["bert"].compressed()
    model.config.update({"tokens_per_layer": 65536, "my_labels": 20_000_000})
    model.config.label2id, model.config.id2label = {"a layer": 20_000, "b": 0}, {20_000: "a layer", 0: "b"}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert equal_state_dicts(loaded, model)
    assert loaded.config.tokens_per_layer == 65536
