"""A model from a folder or a Hub id, with the head that it was saved with, dense or compressed.

``AutoModel`` would drop the head; the class to load is the one that the checkpoint names in ``architectures``.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from . import modeling_projclust
from .checks_projclust import check_weight_names
from .configuration_projclust import PREFIX, SHARED_STATE, ProjClustConfigMixin, check_native_fields
from .missing_weights import check_nothing_is_missing
from .tables import TableFile, find_table


def load_model(path: str | Path, *, as_class: Any = None) -> PreTrainedModel:
    """Load a model in the dtype and with the head of its checkpoint.

    Args:
        path: A folder, or a model id on the Hub.
        as_class: Model class to load it by, with the head that this class has, whose weights must be there.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such folder and the Hub gives no such model.
        ProjClustCheckpointError: If its weights are pickled, or it is compressed and damaged.
        ValueError: If the checkpoint lacks its vocabulary table, needs code that is not part of Transformers, or is not
            of the class that was asked for or lacks weights that the outputs of that class depend on.
    """
    check_source(path)
    try:
        config = AutoConfig.from_pretrained(path)
        check_weight_names(path)
        check_native_fields(config)
        found = as_class or model_class(config)
        if as_class is not None and type(config) is not as_class.config_class:
            raise ValueError(
                f"{str(path)!r} has a {type(config).__name__}; expected the {as_class.config_class.__name__} of a "
                f"{as_class.__name__}, which is a dense model. Give that one, or load it yourself and pass the model."
            )
        safe = {"use_safetensors": True, "dtype": "auto", "output_loading_info": True}
        with SHARED_STATE:
            model, report = found.from_pretrained(path, config=config, **safe)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise FileNotFoundError(
            f"model {str(path)!r} could not be loaded; expected a folder with a config.json and weights, or the id "
            f"of a model on the Hub that can be reached from here. Check the spelling. ({error})"
        ) from error
    _check_table_was_loaded(model, set(report["missing_keys"]), path)
    if as_class is not None:
        check_nothing_is_missing(model, report["missing_keys"], path)
    return model


def load_model_without_tables(
    path: str | Path, choose: Callable[[Any], dict[str, list[Any]]]
) -> tuple[PreTrainedModel, dict[str, TableFile]]:
    """Load a model whose vocabulary tables stay in their files.

    Args:
        path: A folder, or a model id on the Hub, with safetensors files.
        choose: Gives, for a model, the modules of each table, as ``vocabulary_modules`` does.

    Returns:
        The model, on the CPU but for those tables, which are on the meta device; and the tables.

    Raises:
        FileNotFoundError: If there is no such folder and the Hub gives no such model.
        ValueError: If the table is not found in the files, or the model needs code that is not part of Transformers.
    """
    check_source(path)
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(str(path)))
    config = AutoConfig.from_pretrained(folder)
    check_weight_names(folder)
    check_native_fields(config)
    found = model_class(config)
    if isinstance(config, ProjClustConfigMixin):
        raise ValueError(
            f"{str(path)!r} is compressed already; expected a dense model. Compress the dense model that it was made "
            "from, or hf_projclust.decompress() it first."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{str(path)!r} is quantised; expected float weights. Compress the model that it was made from, and "
            "quantise the result."
        )
    with torch.device("meta"):
        skeleton = found.from_config(config) if found is AutoModel else found(config)
    groups = choose(skeleton)
    group_of = {id(module): name for name, modules in groups.items() for module in modules}
    places: dict[str, str] = {}
    names: dict[str, list[str]] = {name: [] for name in groups}
    for module_name, module in skeleton.named_modules(remove_duplicate=False):
        for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            group = group_of.get(id(module)) if name == "weight" else None
            full_name = f"{module_name}.{name}".removeprefix(".")
            places[full_name] = "cpu" if group is None else "disk"
            if group is not None:
                names[group].append(full_name)
    tables = {name: find_table(folder, names[name], modules[0].weight.shape[0]) for name, modules in groups.items()}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as unused, SHARED_STATE:
        warnings.filterwarnings("ignore", "The following device_map keys do not match")
        placed = {"device_map": places, "offload_folder": unused}
        model = found.from_pretrained(folder, config=config, dtype="auto", use_safetensors=True, **placed)
    model.name_or_path = model.config.name_or_path = str(path)
    return model, tables


def load_tokenizer(name_or_path: str | Path | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name_or_path: A folder, a model id on the Hub, or nothing.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If there is none, or none that Transformers can read.
    """
    reason = "it has no name_or_path"
    if name_or_path:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            # Of a folder without a tokenizer Transformers makes one that knows its special tokens alone.
            if len(tokenizer.get_vocab()) > len(tokenizer.all_special_ids):
                return tokenizer
            reason = "its files have no vocabulary"
        except Exception as error:  # which is all that the tokenizers library says of a file that it cannot read
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise ValueError(
        f"no tokenizer can be read for {str(name_or_path or 'the model')!r} ({reason}); expected one whose ids are the "
        "rows of the table. Pass tokenizer=..., or token_counts='uniform' if all tokens are meant to count alike."
    )


def check_source(path: str | Path) -> None:
    """Refuse what can be neither a model's folder nor a Hub id, before anything is asked of the network.

    Args:
        path: A folder, or a model id on the Hub.

    Raises:
        FileNotFoundError: If it is neither, or the folder holds no model.
    """
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            if (Path(path) / "modules.json").is_file():
                raise FileNotFoundError(
                    f"folder {str(path)!r} is one of sentence-transformers without a config.json at its top; expected "
                    "the Transformers model there, not in a subfolder. Save it again by SentenceTransformer(folder)"
                    ".save_pretrained(new_folder), or compress the model inside: st[0].model = compress(st[0].model, "
                    "...)."
                )
            raise FileNotFoundError(
                f"folder {str(path)!r} has no config.json; expected one, and weights beside it, as "
                "save_pretrained() writes them. Check the path; of a PEFT adapter, merge it and save the whole model."
            )
        return
    try:
        validate_repo_id(str(path))
        is_hub_id = not Path(path).exists() and not str(path).startswith(".")
    except HFValidationError:
        is_hub_id = False
    if not is_hub_id:
        raise FileNotFoundError(
            f"model {str(path)!r} is not a folder; expected a folder with a config.json and weights, or the id of a "
            "model on the Hub, such as 'distilbert/distilbert-base-uncased'. Check the spelling."
        )


def _check_table_was_loaded(model: PreTrainedModel, missing: set[str], path: str | Path) -> None:
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # which is for those to refuse who need one
        return
    for name, module in model.named_modules():
        if module is embedding and f"{name}.weight" in missing:
            raise ValueError(
                f"{str(path)!r} has no {name}.weight; expected the vocabulary table among its weights. Without it the "
                "table would be random: fetch or save the checkpoint again."
            )


def model_class(config: Any) -> Any:
    """The class that a checkpoint was saved with; ``AutoModel`` where it names none.

    Args:
        config: The checkpoint's configuration.

    Returns:
        A ``PreTrainedModel`` subclass, or ``AutoModel``.

    Raises:
        ValueError: If the class is not part of Transformers.
    """
    if not config.architectures:
        return AutoModel
    name = config.architectures[0]
    found = getattr(modeling_projclust if name.startswith(PREFIX) else transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(
            f"the checkpoint was saved by the class {name}; expected a class of Transformers "
            f"{transformers.__version__}. Upgrade transformers; if the model brings its own code, load it "
            "yourself and pass the model to hf_projclust.compress()."
        )
    return found
