"""Every model type builds compressed, from its default configuration, without any weights in memory."""

from typing import Any

import pytest
import torch
from architectures import AUTO_CLASSES, PINNED, classes, every_model_class, no_skip, tiny_model
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _LazyAutoMapping

from hf_projclust.configuration_projclust import FORMAT_VERSION, projclust_config_class
from hf_projclust.modeling_projclust import projclust_model_class
from hf_projclust.vocabulary_projclust import factored_tables, vocabulary_modules


@pytest.mark.parametrize(("model_type", "class_name"), PINNED)
def test_all_of_the_table_is_factored(model_type: str, class_name: str) -> None:
    with no_skip():
        check(model_type, class_name)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "class_name"), every_model_class())
def test_every_class_has_all_of_its_table_factored(model_type: str, class_name: str) -> None:
    check(model_type, class_name)


def check(model_type: str, class_name: str) -> None:
    native = native_model(model_type, class_name)
    native_class, native_config = type(native), type(native.config)
    try:
        modules = vocabulary_modules(native)["embedding"]
    except ValueError:
        pytest.skip("no token embedding")
    if native_config.model_type not in CONFIG_MAPPING:
        pytest.skip("refused by compress()")
    num_tokens, dim = modules[0].weight.shape
    made_config = projclust_config_class(native_config)
    config: Any = made_config.from_dict(native.config.to_dict())
    sizes = {"dim": dim, "cluster_sizes": [num_tokens // 2, num_tokens - num_tokens // 2]}
    config.projclust = {
        "format_version": FORMAT_VERSION,
        "embedding": {**sizes, "cluster_ranks": [max(1, dim // 2)] * 2},
    }
    made_class = projclust_model_class(native_class, made_config)
    with torch.device("meta"):
        model = made_class(config)

    names = {name for name, module in native.named_modules(remove_duplicate=False) if module in modules}
    factored = {name for name, _ in model.named_modules(remove_duplicate=False) if name in names}
    assert factored == names
    assert set(factored_tables(model)) <= names
    tied = {f"{name}.weight" for name in names}
    assert tables_of_shape(model, (num_tokens, dim)) == tables_of_shape(native, (num_tokens, dim)) - tied
    if (model_type, class_name) in AUTO_CLASSES:
        auto_config = CONFIG_MAPPING[model_type]
        registered = sum(native_class in found for found in auto_classes(auto_config))
        assert sum(made_class in found for found in auto_classes(projclust_config_class(auto_config))) == registered


def native_model(model_type: str, class_name: str) -> Any:
    """The native model on the meta device, from its default configuration where that can be built."""
    config_class, native_class = classes(model_type, class_name)
    try:
        with torch.device("meta"):
            return native_class(config_class()).eval()
    except Exception:  # noqa: BLE001 (whatever the class raises)
        return tiny_model(model_type, class_name, "meta")


def tables_of_shape(model: Any, shape: tuple[int, int]) -> set[str]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if tuple(parameter.shape) == shape}


def auto_classes(config_class: type) -> list[Any]:
    """What each Auto mapping has for a configuration class."""
    mappings = [value for value in vars(modeling_auto).values() if isinstance(value, _LazyAutoMapping)]
    found = [mapping[config_class] for mapping in mappings if config_class in mapping]
    return [models if isinstance(models, list | tuple) else (models,) for models in found]
