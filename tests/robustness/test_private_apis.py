"""Every private or undocumented name of other libraries that this package relies on: what of it, and what for.

One entry a name; when a version of a library changes it, the entry's test fails and says what breaks here. A name that
the package uses and that has no entry fails too, and so does an entry that nothing uses. What is documented is not
here: the rest of the suite uses it.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from conftest import TINY_MODELS
from huggingface_hub.errors import HFValidationError
from source_names import LIBRARIES, overridden_names, used_names
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModel, BertConfig, LlavaConfig, PreTrainedConfig, PreTrainedModel, Trainer, initialization
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from watched_models import BERT, build, calls, has_parameters, reload, save

from hf_projclust.configuration_projclust import ProjClustConfigMixin
from hf_projclust.modeling_projclust import ProjClustModelMixin

NO_TABLE = "no table is factored: compress() and every load fail"
NO_LOAD = "compressed checkpoints do not load, or load with random factors"
NO_SAVE = "what is saved of a compressed model is not what is loaded"
NO_CHECK = "files and configurations that do not fit reserve memory before they are refused"
NO_RESIZE = "resize_token_embeddings() of a compressed model"
NO_AUTO = "the Auto classes do not know compressed models, or their tokenizers and processors"
NO_CARD = "cards that are pushed are those of Transformers, and say nothing of the compression"
NO_CONFIG = "config.json has another model type, or none of the shapes of the factors"
NO_WEIGHT = "`.weight` of a factored module builds the dense table, or does not work at all"
NO_CONVERSION = "classes whose files have other names or tensors than their models (Mixtral) load or save them wrongly"
NO_CONTENDER = "`benchmark layers` leaves a rival out, or counts its bytes wrongly"


@dataclass(frozen=True)
class Reliance:
    """What this package relies on of one name."""

    name: str  # the dotted path of what is imported, or owner and attribute
    behaviour: str
    breaks: str
    holds: Callable[[], Any]

    @property
    def key(self) -> str:
        """The name as the source of the package has it."""
        return self.name if self.name.split(".")[0] in LIBRARIES else self.name.rpartition(".")[2]


RELIANCES: list[Reliance] = []


def relies_on(name: str, behaviour: str, *, breaks: str) -> Callable[[Callable[[], Any]], Any]:
    """Enter a name, with the function that says whether it still is what it was."""
    return lambda holds: RELIANCES.append(Reliance(name, behaviour, breaks, holds))


def resolve(path: str) -> Any:
    """What ``from module import name`` gives, or a module."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# Transformers: models are built and loaded


@relies_on("PreTrainedModel.post_init", "called when all modules of a model are there", breaks=NO_TABLE)
def _() -> Any:
    return calls("post_init", build)


@relies_on("PreTrainedModel.get_expanded_tied_weights_keys", "ties of an instance, target to source", breaks=NO_TABLE)
def _() -> Any:
    ties = TINY_MODELS["gpt2"].build().get_expanded_tied_weights_keys(all_submodels=True)
    return ties == {"lm_head.weight": "transformer.wte.weight"}


@relies_on("PreTrainedModel._tied_weights_keys", "what ties are found from; an instance may set it", breaks=NO_SAVE)
def _() -> Any:
    model = TINY_MODELS["gpt2"].build()
    model._tied_weights_keys = {"transformer.wte.weight": "lm_head.weight"}
    return model.get_expanded_tied_weights_keys(all_submodels=False) == model._tied_weights_keys


@relies_on("PreTrainedModel.all_tied_weights_keys", "ties of the whole model, set by post_init", breaks=NO_SAVE)
def _() -> Any:
    return TINY_MODELS["gpt2"].build().all_tied_weights_keys == {"lm_head.weight": "transformer.wte.weight"}


@relies_on("PreTrainedModel.tie_weights", "given the missing keys of a load, as a set", breaks=NO_LOAD)
def _() -> Any:
    given = [value for values in calls("tie_weights", reload) for value in values]
    is_same = has_parameters(PreTrainedModel.tie_weights, "self missing_keys recompute_mapping")
    return is_same and any(isinstance(value, set) for value in given)


@relies_on("PreTrainedModel.initialize_weights", "called when a model is built", breaks=NO_LOAD)
def _() -> Any:
    return calls("initialize_weights", build)


@relies_on("Tensor._is_hf_initialized", "the mark of a filled tensor or module, over which init passes", breaks=NO_LOAD)
def _() -> Any:
    marked, plain = torch.zeros(4), torch.zeros(4)
    marked._is_hf_initialized = True
    for tensor in (marked, plain):
        initialization.normal_(tensor, std=1.0)
    return not marked.any() and plain.any() and build().bert.embeddings._is_hf_initialized


@relies_on("initialization", "copy_, constant_ and zeros_ fill tensors without that mark", breaks=NO_LOAD)
def _() -> Any:
    tensor = initialization.constant_(torch.zeros(3), 3)
    initialization.zeros_(tensor[:1])
    initialization.copy_(tensor[1:2], torch.tensor([5.0]))
    return tensor.tolist() == [0, 5, 3]


@relies_on(
    "PreTrainedModel._adjust_missing_and_unexpected_keys",
    "called in a load with the sets missing_keys, unexpected_keys and mismatched_keys",
    breaks="damaged checkpoints load with random factors",
)
def _() -> Any:
    ((report,),) = calls("_adjust_missing_and_unexpected_keys", reload)
    return all(isinstance(getattr(report, f"{kind}_keys"), set) for kind in ("missing", "unexpected", "mismatched"))


@relies_on(
    "PreTrainedModel._keys_to_ignore_on_load_unexpected",
    "patterns of keys of a file that are not reported",
    breaks="every load warns of the byte that stands for a dense weight",
)
def _() -> Any:
    quiet = type("Quiet", (BERT,), {"_keys_to_ignore_on_load_unexpected": [r"(^|\.)extra\.weight$"]})
    found = [reload(each, extra=nn.Linear(1, 1, bias=False))[1]["unexpected_keys"] for each in (BERT, quiet)]
    return found == [{"extra.weight"}, set()]


@relies_on(
    "PreTrainedModel.is_custom_code",
    "a class method: true of classes outside Transformers, of which native parts are not initialised",
    breaks="native parts of compressed models are not initialised (NaN in FalconH1)",
)
def _() -> Any:
    return not BERT.is_custom_code() and type("Made", (BERT,), {"__module__": __name__}).is_custom_code()


@relies_on("PreTrainedModel._tp_plan", "of an instance, what tp_plan gives", breaks="tensor parallelism splits factors")
def _() -> Any:
    model = build()
    model._tp_plan = {"made": "colwise"}
    return model.tp_plan.get("made") == "colwise"


@relies_on(
    "PreTrainedModel.from_pretrained", "of None, loads a state_dict in memory", breaks="compress() and decompress()"
)
def _() -> Any:
    weights = build().state_dict()
    model, report = BERT.from_pretrained(None, config=build().config, state_dict=weights, output_loading_info=True)
    return not any(report.values()) and all(
        torch.equal(weights[key], value) for key, value in model.state_dict().items()
    )


# Transformers: models are saved, pushed and resized


@relies_on("PreTrainedModel.save_pretrained", "its first four parameters, by their places", breaks=NO_SAVE)
def _() -> Any:
    return has_parameters(BERT.save_pretrained, "self save_directory is_main_process state_dict push_to_hub")


@relies_on("PreTrainedModel.state_dict", "what is saved; parts of a model are given a destination", breaks=NO_SAVE)
def _() -> Any:
    is_same = has_parameters(nn.Module.state_dict, "self args destination prefix keep_vars")
    return is_same and calls("state_dict", save)


@relies_on("PreTrainedModel._keys_to_ignore_on_save", "names that are not saved, as a set", breaks=NO_SAVE)
def _() -> Any:
    name = "bert.embeddings.position_embeddings.weight"
    return name in reload()[2] and name not in reload(_keys_to_ignore_on_save={name})[2]


@relies_on("PreTrainedModel._weight_conversions", "how a file was read, by which it is written", breaks=NO_CONVERSION)
def _() -> Any:
    return hasattr(reload()[0], "_weight_conversions")


@relies_on("PreTrainedModel._upload_modified_files", "what sends a saved folder, with its card", breaks=NO_CARD)
def _() -> Any:
    senders = [inspect.getsource(each) for each in (PreTrainedModel.save_pretrained, PreTrainedModel.push_to_hub)]
    is_called = any("self._upload_modified_files(" in sender for sender in senders)
    return is_called and has_parameters(PreTrainedModel._upload_modified_files, "self working_dir repo_id")


@relies_on(
    "PreTrainedModel.barrier_after_gathered_checkpoint_save",
    "called last in a save, when all is written",
    breaks=NO_SAVE,
)
def _() -> Any:
    at_the_end = calls("barrier_after_gathered_checkpoint_save", save)
    source = inspect.getsource(PreTrainedModel.save_pretrained)
    return len(at_the_end) == 1 and source.rstrip().endswith(
        "self.barrier_after_gathered_checkpoint_save(distributed_config)"
    )


@relies_on(
    "PreTrainedModel._load_pretrained_model",
    "given a model on the meta device and the files, before it fills",
    breaks=NO_CHECK,
)
def _() -> Any:
    seen: list[Any] = []

    def watched(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((state_dict, checkpoint_files, {parameter.device.type for parameter in model.parameters()}))
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    reload(type(BERT.__name__, (BERT,), {"_load_pretrained_model": staticmethod(watched)}))
    [(state_dict, files, devices)] = seen
    return state_dict is None and all(file.endswith(".safetensors") for file in files) and devices == {"meta"}


@relies_on("PreTrainedModel._from_config", "what from_config of the Auto classes builds by", breaks=NO_CHECK)
def _() -> Any:
    return "model_class._from_config(config" in inspect.getsource(_BaseAutoModelClass.from_config)


@relies_on("Trainer.create_model_card", "what writes README.md before a Trainer pushes", breaks=NO_CARD)
def _() -> Any:
    return "self.create_model_card(" in inspect.getsource(Trainer.push_to_hub)


@relies_on("PreTrainedModel._hf_peft_config_loaded", "true when Transformers has added an adapter", breaks=NO_SAVE)
def _() -> Any:
    model = build()
    before = model._hf_peft_config_loaded
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    return before is False and model._hf_peft_config_loaded is True


@relies_on("PreTrainedModel._resize_token_embeddings", "called by resize_token_embeddings()", breaks=NO_RESIZE)
def _() -> Any:
    is_same = has_parameters(
        PreTrainedModel._resize_token_embeddings, "self new_num_tokens pad_to_multiple_of mean_resizing"
    )
    return is_same and calls("_resize_token_embeddings", lambda made: build(made).resize_token_embeddings(99))


@relies_on("PreTrainedModel._get_resized_embeddings", "gives a resized nn.Embedding", breaks=NO_RESIZE)
def _() -> Any:
    return build()._get_resized_embeddings(nn.Embedding(9, 2), 12, None, False).weight.shape == (12, 2)


@relies_on("PreTrainedModel._get_resized_lm_head", "gives a resized nn.Linear", breaks=NO_RESIZE)
def _() -> Any:
    return build()._get_resized_lm_head(nn.Linear(2, 9), 12, mean_resizing=False).weight.shape == (12, 2)


# Transformers: configurations and Auto classes


@relies_on("PreTrainedConfig.get_config_dict", "reads the JSON for from_pretrained of a config class", breaks=NO_CONFIG)
def _() -> Any:
    return "cls.get_config_dict(" in inspect.getsource(PreTrainedConfig.from_pretrained)


@relies_on("PreTrainedConfig.from_dict", "makes the configuration, for AutoConfig too", breaks=NO_CONFIG)
def _() -> Any:
    return has_parameters(PreTrainedConfig.from_dict, "config_dict kwargs")


@relies_on("PreTrainedConfig.to_json_file", "(json_file_path, use_diff) writes config.json", breaks=NO_CONFIG)
def _() -> Any:
    is_same = has_parameters(PreTrainedConfig.to_json_file, "self json_file_path use_diff")
    return is_same and "self.to_json_file(" in inspect.getsource(PreTrainedConfig.save_pretrained)


@relies_on("PreTrainedConfig.to_json_string", "(use_diff) is what to_json_file writes", breaks=NO_CONFIG)
def _() -> Any:
    is_same = has_parameters(PreTrainedConfig.to_json_string, "self use_diff")
    return is_same and "self.to_json_string(" in inspect.getsource(PreTrainedConfig.to_json_file)


@relies_on(
    "PreTrainedConfig._attn_implementation", "set by from_dict(attn_implementation={})", breaks="compress() changes it"
)
def _() -> Any:
    made = BertConfig.from_dict(BertConfig().to_dict(), attn_implementation={"": "eager"})
    return made._attn_implementation == "eager"


@relies_on("PreTrainedConfig.sub_configs", "classes of the parts of a composite", breaks="text parts of composites")
def _() -> Any:
    return "text_config" in LlavaConfig.sub_configs


@relies_on("transformers.models.auto.configuration_auto.CONFIG_MAPPING", "class by model type", breaks=NO_AUTO)
def _() -> Any:
    mapping = resolve("transformers.models.auto.configuration_auto.CONFIG_MAPPING")
    return "bert" in mapping and mapping["bert"] is BertConfig and "no such type" not in mapping


@relies_on(
    "transformers.models.auto.auto_factory._LazyAutoMapping",
    "a mapping by configuration class, with `in`, `[]` and register(key, value, exist_ok)",
    breaks=NO_AUTO,
)
def _() -> Any:
    lazy = resolve("transformers.models.auto.auto_factory._LazyAutoMapping")
    mapping = resolve("transformers.models.auto.modeling_auto").MODEL_MAPPING
    is_mapping = isinstance(mapping, lazy) and BertConfig in mapping and mapping[BertConfig].config_class is BertConfig
    return is_mapping and has_parameters(lazy.register, "self key value exist_ok")


def _holds_mappings(path: str) -> Callable[[], bool]:
    lazy = "transformers.models.auto.auto_factory._LazyAutoMapping"
    return lambda: any(isinstance(value, resolve(lazy)) for value in vars(resolve(path)).values())


for _part in ("feature_extraction", "image_processing", "modeling", "processing", "tokenization", "video_processing"):
    _path = f"transformers.models.auto.{_part}_auto"
    relies_on(_path, "Auto mappings are among its globals", breaks=NO_AUTO)(_holds_mappings(_path))


@relies_on("AutoModel._model_mapping", "the mapping of an Auto class", breaks="cards name AutoModel for every model")
def _() -> Any:
    return BertConfig in AutoModel._model_mapping


@relies_on("transformers.conversion_mapping.get_checkpoint_conversion_mapping", "None if unknown", breaks=NO_CONVERSION)
def _() -> Any:
    get = resolve("transformers.conversion_mapping.get_checkpoint_conversion_mapping")
    return get("NoSuchClass") is None and get("mixtral")


@relies_on(
    "transformers.conversion_mapping.register_checkpoint_conversion_mapping",
    "takes the name of a class, and overwrite",
    breaks=NO_CONVERSION,
)
def _() -> Any:
    get = resolve("transformers.conversion_mapping.get_checkpoint_conversion_mapping")
    register = resolve("transformers.conversion_mapping.register_checkpoint_conversion_mapping")
    register("ClassOfThisTest", get("mixtral"), overwrite=True)
    return len(get("ClassOfThisTest")) == len(get("mixtral"))


# Transformers: helpers


@relies_on(
    "transformers.utils.generic.maybe_autocast", "can switch autocast off", breaks="look-ups round under autocast"
)
def _() -> Any:
    with torch.autocast("cpu"), resolve("transformers.utils.generic.maybe_autocast")("cpu", enabled=False):
        return not torch.is_autocast_enabled("cpu")


@relies_on("transformers.utils.hub.cached_file", "the path of a file of a model", breaks="`evaluate --sts`")
def _() -> Any:
    return (
        resolve("transformers.utils.hub.cached_file")(__file__.rpartition("/")[0], "test_private_apis.py") == __file__
    )


@relies_on("cached_file._raise_exceptions_for_missing_entries", "None for no such file", breaks="`evaluate --sts`")
def _() -> Any:
    find = resolve("transformers.utils.hub.cached_file")
    return find(__file__.rpartition("/")[0], "none", _raise_exceptions_for_missing_entries=False) is None


# torch


@relies_on(
    "Module.get_submodule", "AttributeError for a name that is not there", breaks="ties that a class names in vain"
)
def _() -> Any:
    with pytest.raises(AttributeError):
        build().get_submodule("bert.none")
    return True


@relies_on("Module._save_to_state_dict", "(destination, prefix, keep_vars)", breaks=NO_SAVE)
def _() -> Any:
    return has_parameters(nn.Module._save_to_state_dict, "self destination prefix keep_vars")


@relies_on(
    "Module._load_from_state_dict", "(state_dict, prefix, ...)", breaks="load_state_dict() of a compressed model"
)
def _() -> Any:
    return has_parameters(nn.Module._load_from_state_dict, "self state_dict prefix")


@relies_on("Module.register_parameter", "called where an attribute is set", breaks="a dense weight beside the factors")
def _() -> Any:
    return calls("register_parameter", lambda made: setattr(build(made), "extra", nn.Parameter(torch.ones(1))))


@relies_on("Module.train", "called for each child", breaks="tables in few bits do not say that they are frozen")
def _() -> Any:
    return [True] in calls("train", lambda made: nn.Sequential(build(made)).train())


@relies_on("Module.requires_grad_", "(requires_grad)", breaks="unfreezing a model with a table in few bits raises")
def _() -> Any:
    return has_parameters(nn.Module.requires_grad_, "self requires_grad")


@relies_on("Module._parameters", "by name, without what a parametrization keeps", breaks="look-ups of one token")
def _() -> Any:
    module = nn.Linear(2, 2)
    is_there = module._parameters.get("weight") is module.weight
    parametrize.register_parametrization(module, "weight", nn.Identity())
    return is_there and module._parameters.get("weight") is None


@relies_on("Tensor._make_wrapper_subclass", "a tensor of any size without storage", breaks=NO_WEIGHT)
def _() -> Any:
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError

    made = torch.Tensor._make_wrapper_subclass(Wrapper, (10**9, 10**3), dtype=torch.bfloat16, device="cpu")
    return isinstance(made, Wrapper) and made.shape == (10**9, 10**3) and made.dtype == torch.bfloat16


@relies_on("PyTorch._C", "DisableTorchFunctionSubclass passes over __torch_function__", breaks=NO_WEIGHT)
def _() -> Any:
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError

    with torch._C.DisableTorchFunctionSubclass():
        return torch.ones(2).as_subclass(Refusing).size() == (2,)


@relies_on("torch.utils._pytree.tree_map", "maps the leaves of tuples, lists and dictionaries", breaks=NO_WEIGHT)
def _() -> Any:
    return resolve("torch.utils._pytree.tree_map")(lambda leaf: leaf + 1, (1, {"a": [2]})) == (2, {"a": [3]})


@relies_on("torch.utils._python_dispatch.is_traceable_wrapper_subclass", "false of a plain tensor", breaks=NO_CONTENDER)
def _() -> Any:
    return resolve("torch.utils._python_dispatch.is_traceable_wrapper_subclass")(torch.ones(1)) is False


# PEFT, accelerate, huggingface_hub, torchao, typer


@relies_on("PeftModel.embeddings.word_embeddings", "the name that prompts ask a model for", breaks="prompt tuning")
def _() -> Any:
    prompt = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
    return ["embeddings.word_embeddings"] in calls(
        "get_submodule", lambda made: peft.get_peft_model(build(made), prompt)
    )


@relies_on("accelerate.utils.convert_file_size_to_int", "'1GB' is 10**9", breaks="--memory-limit and --table-bytes")
def _() -> Any:
    return resolve("accelerate.utils.convert_file_size_to_int")("1GB") == 10**9


@relies_on("huggingface_hub.utils.validate_repo_id", "HFValidationError for a path", breaks="paths are taken for ids")
def _() -> Any:
    with pytest.raises(HFValidationError):
        resolve("huggingface_hub.utils.validate_repo_id")("/a/path")
    return resolve("huggingface_hub.utils.validate_repo_id")("org/name") is None


@relies_on(
    "huggingface_hub.utils.httpx", "the module whose errors its client raises", breaks="no message without network"
)
def _() -> Any:
    return issubclass(resolve("huggingface_hub.utils.httpx").HTTPError, Exception)


def _imports(path: str) -> Callable[[], Any]:
    """Torchao's names are those of 0.18, which torch 2.8 cannot import; `benchmark layers` lists what is not there."""
    return lambda: pytest.importorskip("torchao", minversion="0.18") and resolve(path)


for _path in (
    "torchao.prototype.quantization.embedding.api.EmbeddingQuantizer",
    "torchao.prototype.quantization.int4.PrototypeInt4WeightOnlyConfig",
):
    relies_on(_path, "there", breaks=NO_CONTENDER)(_imports(_path))


@relies_on(
    "typer.core.TyperCommand", "the class of a command", breaks="`compress` and `benchmark rivals` with many rates"
)
def _() -> Any:
    return has_parameters(resolve("typer.core.TyperCommand").parse_args, "self ctx args")


@relies_on("TyperCommand.parse_args", "is given all arguments as a list", breaks="`--compression 0.4 0.6` is refused")
def _() -> Any:
    return has_parameters(resolve("typer.core.TyperCommand").make_context, "self info_name args")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("reliance", RELIANCES, ids=lambda reliance: reliance.name)
def test_what_is_relied_on_holds(reliance: Reliance) -> None:
    try:
        holds = reliance.holds()
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        holds, error_text = False, f" ({type(error).__name__}: {error})"
    else:
        error_text = ""
    assert holds, (
        f"{reliance.name} is no longer what hf_projclust relies on: {reliance.behaviour}{error_text}. "
        f"What breaks here: {reliance.breaks}."
    )


def test_every_private_name_that_the_package_uses_is_listed_and_none_that_it_does_not() -> None:
    loaded = reload()[0]
    theirs = {name for each in (loaded, loaded.config, *loaded.modules(), *loaded.parameters()) for name in dir(each)}
    used = used_names(theirs) | overridden_names(
        {ProjClustModelMixin: PreTrainedModel, ProjClustConfigMixin: PreTrainedConfig}
    )
    listed = {reliance.key for reliance in RELIANCES}
    assert {name: place for name, place in used.items() if name not in listed} == {}, (
        "enter these names above, with what is relied on and what breaks"
    )
    private = {name for name in listed if name.startswith("_") or name in used or "." in name}
    assert sorted(private - used.keys()) == [], "nothing uses these names any more: take them out of the list"
