"""Pickles and Python files in a checkpoint: refused or passed over, and never run without trust_remote_code.

Each would make a file, by which a run is seen.
"""

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, save
from damage import config
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from hf_projclust import ProjClustCheckpointError, compress, configuration_projclust, modeling_projclust
from hf_projclust.loading import load_model

CODE_FILES = ("configuration_projclust.py", "modeling_projclust.py", "evil.py")


class Opener:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Take the path."""
        self.path = path

    def __reduce__(self) -> Any:
        """Say what is to be called."""
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What is there once code has run."""
    return tmp_path / "has_run"


@pytest.fixture
def pickled(trace: Path, tmp_path: Path) -> Path:
    path = tmp_path / "pickled"
    path.write_bytes(pickle.dumps(Opener(trace)))
    pickle.loads(path.read_bytes())
    trace.rmdir()  # it works
    return path


def folder_of(kind: str, tmp_path: Path) -> Path:
    model = TINY_MODELS["bert"].build()
    return save(compress(model, **COMPRESSED) if kind == "compressed" else model, tmp_path / kind)


def load(folder: Path) -> Any:
    return AutoModelForMaskedLM.from_pretrained(folder)


def compress_in_blocks(folder: Path) -> Any:
    return compress(folder, **COMPRESSED, memory_limit="10MB")


def compress_whole(folder: Path) -> Any:
    return compress(folder, **COMPRESSED)


LOADERS = [("compressed", load), ("compressed", load_model), ("dense", load_model), ("dense", compress_whole)]
LOADERS.append(("dense", compress_in_blocks))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.fp16.bin", "pytorch_model-00001-of-00002.bin"])
@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_pickled_weights_are_refused_unopened(
    tmp_path: Path, pickled: Path, trace: Path, kind: str, loader: Any, name: str
) -> None:
    folder = folder_of(kind, tmp_path)
    (folder / "model.safetensors").unlink()
    shutil.copy(pickled, folder / name)
    with pytest.raises(ProjClustCheckpointError, match=rf"has {name}; expected safetensors.*run code"):
        loader(folder)
    assert not trace.exists()


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_a_pickle_under_the_name_of_safetensors_is_refused_unopened(
    tmp_path: Path, pickled: Path, trace: Path, kind: str, loader: Any
) -> None:
    folder = folder_of(kind, tmp_path)
    shutil.copy(pickled, folder / "model.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=r"safetensors|could not be loaded; expected") as caught:
        loader(folder)
    assert not trace.exists()
    if kind == "compressed" and loader is load:
        assert isinstance(caught.value, ProjClustCheckpointError)


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_an_index_that_names_a_pickle_is_refused_unopened(
    tmp_path: Path, pickled: Path, trace: Path, kind: str, loader: Any, dtype: str | None
) -> None:
    """Where the configuration has no dtype, Transformers opens the first file to find it."""
    folder = folder_of(kind, tmp_path)
    weights = folder / "model.safetensors"
    shutil.copy(pickled, folder / "x.bin")
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "x.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights.unlink()
    config(dtype=dtype)(folder)
    with pytest.raises(ProjClustCheckpointError, match="index.json' names the file 'x.bin'; expected safetensors"):
        loader(folder)
    assert not trace.exists()


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_a_pickled_adapter_is_refused_unopened(
    tmp_path: Path, pickled: Path, trace: Path, kind: str, loader: Any
) -> None:
    folder = folder_of(kind, tmp_path)
    shutil.copy(pickled, folder / "adapter_model.bin")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ProjClustCheckpointError, match=r"has adapter_model.bin; expected safetensors"):
        loader(folder)
    config(transformers_weights="adapter_model.bin")(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ProjClustCheckpointError, match=r"transformers_weights='adapter_model.bin'; expected the name"):
        loader(folder)
    assert not trace.exists()


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"weights_only": False}])
def test_pickles_are_not_opened_on_demand_either(
    tmp_path: Path, pickled: Path, trace: Path, options: dict[str, bool]
) -> None:
    folder = folder_of("compressed", tmp_path)
    shutil.copy(pickled, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="from pickled weights .*; expected safetensors. Leave the argument out"):
        AutoModel.from_pretrained(folder, **options)
    AutoModel.from_pretrained(folder)
    assert not trace.exists()


def test_code_in_a_folder_is_not_run_by_any_loader(tmp_path: Path, trace: Path) -> None:
    folder = folder_of("compressed", tmp_path)
    for name in CODE_FILES:
        (folder / name).write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    auto_map = {"AutoConfig": "configuration_projclust.ProjClustConfig", "AutoModel": "evil.Model"}
    config(auto_map=auto_map)(folder)
    for loader in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        made = loader(folder, trust_remote_code=False)
        assert type(made).__module__ in (configuration_projclust.__name__, modeling_projclust.__name__)
    load_model(folder)
    assert not trace.exists()


@pytest.mark.parametrize("value", ["evil/kernel", "kernels-community/flash-attn@main:f", {"": "evil/kernel"}])
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_attention_code_on_the_hub_is_not_fetched_at_the_word_of_a_file(tmp_path: Path, name: str, value: Any) -> None:
    folder = folder_of("compressed", tmp_path)
    config(**{name: value})(folder)
    for loader in (AutoConfig, AutoModel):
        with pytest.raises(ProjClustCheckpointError, match=rf"has {name}=.*, code on the Hub; expected none"):
            loader.from_pretrained(folder)
    config(**{name: None, "text_config": {name: value}})(folder)
    with pytest.raises(ProjClustCheckpointError, match="code on the Hub; expected none"):
        AutoModel.from_pretrained(folder)


def test_tensors_are_read_without_the_unpickler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("compressed", tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an unpickler was called")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load(folder)
    load_model(folder)


def test_nothing_in_the_package_unpickles() -> None:
    sources = {path.name: path.read_text("utf-8") for path in Path(modeling_projclust.__file__).parent.rglob("*.py")}
    readers = re.compile(r"^\s*(import|from)\s+(pickle|joblib|dill|shelve)\b|\b(torch|numpy|np)\.load\(", re.MULTILINE)
    assert len(sources) > 100
    assert [name for name, source in sources.items() if readers.search(source)] == []
