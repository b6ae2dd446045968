"""The configuration: what the JSON says, what is made from it, and damaged ones."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODELS, run_python
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_projclust
from hf_projclust import FactorLayout, ProjClustCheckpointError, ProjClustConfig
from hf_projclust import configuration_projclust as configuration
from hf_projclust import modeling_projclust as modeling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TINY_MODELS["bert"].compressed().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_importing_registers_the_model_type_and_loads_neither_torch_nor_models() -> None:
    code = """
import sys, logging, os, transformers
before, environment, handlers = set(sys.modules), dict(os.environ), list(logging.root.handlers)
import hf_projclust
new = {name for name in set(sys.modules) - before if name.split(".")[0] in ("torch", "transformers")}
assert not new, new
assert environment == dict(os.environ) and handlers == logging.root.handlers
from transformers import AutoConfig
assert AutoConfig.for_model("projclust").model_type == "projclust"
assert len([key for key in __import__("transformers").CONFIG_MAPPING.keys() if key == "projclust"]) == 1
print("fine")
"""
    assert run_python(code) == "fine\n"


@pytest.mark.parametrize("module", ["configuration_projclust", "factoring", "options", "loading", "cli"])
def test_any_module_can_be_imported_first(module: str) -> None:
    code = f"""
import hf_projclust.{module}
from transformers import AutoConfig
print(AutoConfig.for_model("projclust").model_type)
"""
    assert run_python(code) == "projclust\n"


def test_importing_after_transformers_has_loaded_registers_too() -> None:
    code = """
from transformers import AutoConfig, AutoModel, BertModel
import hf_projclust, importlib
importlib.reload(hf_projclust)
print(AutoConfig.for_model("projclust").model_type)
"""
    assert run_python(code) == "projclust\n"


def test_registering_again_changes_nothing() -> None:
    configuration.register()
    assert CONFIG_MAPPING["projclust"] is ProjClustConfig


def test_public_names_are_there() -> None:
    for name in hf_projclust.__all__:
        assert getattr(hf_projclust, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_projclust.nothing


def test_json_names_both_types_and_memory_the_native_one(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["model_type"], fields["base_model_type"]) == ("projclust", "bert")
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "bert"
    assert not hasattr(config, "base_model_type")
    assert isinstance(config, BertConfig)
    assert type(config) is configuration.ProjClustBertConfig
    for text in (config.to_json_string(use_diff=True), config.to_json_string(use_diff=False)):
        assert json.loads(text)["model_type"] == "projclust"


@pytest.mark.parametrize("read_by", [AutoConfig, ProjClustConfig, "made"])
def test_every_reader_gives_the_same_configuration(folder: Path, read_by) -> None:
    reader = configuration.ProjClustBertConfig if read_by == "made" else read_by
    config = reader.from_pretrained(folder, num_labels=7)
    assert config.num_labels == 7
    config.save_pretrained(folder / "again")
    again = reader.from_pretrained(folder / "again")
    again.name_or_path = config.name_or_path
    assert again.to_dict() == config.to_dict()
    assert config.factor_layouts == again.factor_layouts


def test_classes_are_made_once_and_found_by_name() -> None:
    made = configuration.projclust_config_class(BertConfig)
    assert made is configuration.ProjClustBertConfig is pickle.loads(pickle.dumps(made))
    model_class = modeling.projclust_model_class(BertModel, made)
    assert model_class is modeling.ProjClustBertModel is pickle.loads(pickle.dumps(model_class))
    for module in (configuration, modeling):
        for name in ("ProjClustNothing", "ProjClustsomething", "BertModel_", "nothing"):
            with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
                getattr(module, name)


def test_models_and_configs_pickle() -> None:
    model = TINY_MODELS["gpt2"].compressed()
    copied = pickle.loads(pickle.dumps(model))
    assert type(copied) is type(model)
    assert copied.config == model.config


def test_every_auto_class_of_the_base_is_offered() -> None:
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.auto_factory import _LazyAutoMapping

    made = configuration.projclust_config_class(BertConfig)
    mappings = [value for value in vars(modeling_auto).values() if isinstance(value, _LazyAutoMapping)]
    native = [mapping for mapping in mappings if BertConfig in mapping]
    assert len(native) > 5
    for mapping in native:
        assert mapping[made].__name__ == f"ProjClust{mapping[BertConfig].__name__}"
    assert not any(made in mapping for mapping in mappings if BertConfig not in mapping)


def test_tokenizers_and_processors_of_the_base_are_offered() -> None:
    from transformers import CLIPConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    made = configuration.projclust_config_class(CLIPConfig)
    assert TOKENIZER_MAPPING[made] is TOKENIZER_MAPPING[CLIPConfig]
    assert PROCESSOR_MAPPING[made] is PROCESSOR_MAPPING[CLIPConfig]


def test_without_the_plugin_the_checkpoint_is_refused_not_loaded_as_dense(folder: Path) -> None:
    code = """
import sys
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1])
except (ValueError, KeyError) as error:
    print("projclust" in str(error))
"""
    assert run_python(code, str(folder)) == "True\n"


DAMAGES = [
    (lambda f: f.pop("projclust"), "projclust=None; expected a dictionary"),
    (lambda f: f.update(projclust=[1]), r"projclust=\[1\]; expected a dictionary"),
    (lambda f: f["projclust"].pop("embedding"), "expected a dictionary"),
    (lambda f: f["projclust"].update(format_version=99), "format_version=99; this hf_projclust reads 1 and 2. Install"),
    (lambda f: f["projclust"].pop("format_version"), "format_version=None; this"),
    (lambda f: f["projclust"]["embedding"].pop("dim"), "is described by .*; expected .*'dim'.* fetch"),
    (lambda f: f["projclust"]["embedding"].update(more=1), "is described by .*; expected"),
    (lambda f: f["projclust"]["embedding"].update(cluster_ranks=3), "is described by .*; expected"),
    (lambda f: f["projclust"]["embedding"].update(dim=16.0), "dim=16.0.*expected whole numbers"),
    (lambda f: f["projclust"]["embedding"].update(dim=True), "dim=True.*expected whole numbers"),
    (lambda f: f["projclust"]["embedding"].update(dim=0), "dim=0.*dim >= 1"),
    (lambda f: f["projclust"]["embedding"].update(cluster_sizes=[97, "0", 0]), "expected whole numbers"),
    (lambda f: f["projclust"]["embedding"].update(cluster_sizes=[]), "0 cluster_sizes and 3 cluster_ranks"),
    (lambda f: f["projclust"]["embedding"].update(cluster_sizes=[99, -2, 0]), "expected sizes >= 0"),
    (lambda f: f["projclust"]["embedding"].update(cluster_ranks=[17, 1, 1]), "ranks from 0 to dim=16"),
    (lambda f: f["projclust"]["embedding"].update(cluster_ranks=[-1, 1, 1]), "ranks from 0 to dim=16"),
    (lambda f: f.pop("base_model_type"), "base_model_type is None; expected a model type.*Upgrade"),
    (lambda f: f.update(base_model_type="nonesuch"), "base_model_type is 'nonesuch'; expected"),
    (lambda f: f.update(base_model_type="projclust"), "base_model_type is 'projclust'; expected"),
    (lambda f: f.update(base_model_type=["bert"]), "base_model_type is .*; expected"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_configuration_is_refused(folder: Path, damage, message: str) -> None:
    rewrite(folder, damage)
    with pytest.raises(ProjClustCheckpointError, match=message):
        AutoConfig.from_pretrained(folder)


def test_layout_counts_by_hand() -> None:
    layout = FactorLayout(dim=4, cluster_sizes=(5, 3, 2), cluster_ranks=(2, 4, 0))
    assert layout.num_embeddings == 10
    assert layout.num_clusters == 3
    assert layout.coefficient_counts == [10, 12, 0]
    assert layout.basis_ranks == [2, 0, 0]
    assert layout.num_parameters == 10 + 12 + 2 * 4


@pytest.mark.parametrize("native_class", [BertModel, BertForMaskedLM, BertForSequenceClassification])
def test_a_native_class_named_directly_refuses_the_folder(folder: Path, native_class: Any, upstream_log) -> None:
    """It looks for a dense table, and finds something of another shape under that name, where it would fill in none."""
    with pytest.raises(RuntimeError, match="raising an error"):
        native_class.from_pretrained(folder)
    assert re.search(r"word_embeddings.weight\W+MISMATCH", upstream_log.text)


def test_what_stands_in_for_the_dense_table_is_not_noticed_otherwise(folder: Path, upstream_log) -> None:
    state_dict = load_file(folder / "model.safetensors")
    [mark] = [key for key in state_dict if key.endswith("word_embeddings.weight")]
    assert state_dict[mark].nbytes == 1
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert mark not in model.state_dict()
    assert model.load_state_dict(state_dict, strict=False).unexpected_keys == []
    assert [record.message for record in upstream_log.records if record.levelname == "WARNING"] == []
