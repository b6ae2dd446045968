"""Compress a model's vocabulary table, and make a compressed model dense again.

Model in, model out: neither function changes its input, and the result shares no memory with it. How a table
is factored is decided in ``factoring`` and ``solvers``; files are written elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .configuration_projclust import format_version, projclust_config_class
from .factoring import factor_table
from .inputs import check_config_class, dense_tables, own_model, tables_to_factor
from .loading import load_model_without_tables, load_tokenizer
from .locks import locked
from .modeling_projclust import ProjClustModelMixin, projclust_model_class
from .options import FactoringOptions, Preset, TokenCounts
from .packed_projclust import PackedTable
from .provenance import check_base_model, provenance
from .resources import Resources
from .solvers import Table
from .token_counts import check_tokenizer
from .vocabulary_projclust import factored_tables, freeze_packed_tables

logger = logging.get_logger(__name__)


def compress(
    model_or_path: PreTrainedModel | str | Path,
    *,
    embedding: bool = True,
    head: bool = False,
    preset: Preset = "adaptive",
    num_clusters: int | Literal["auto"] | None = None,
    compression: float | None = None,
    rank: int | None = None,
    ratio: float | None = None,
    table_bytes: int | str | None = None,
    coefficient_bits: Literal[8, 4, 3, 2] | None = None,
    basis_bits: Literal[16, 8] | None = None,
    adaptive_ranks: bool | None = None,
    p: float | None = None,
    token_counts: TokenCounts | None = None,
    count_exponent: float = 0.5,
    norm_exponent: float | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    num_starts: int = 2,
    max_rounds: int = 100,
    tolerance: float = 3e-4,
    device: str | torch.device | None = None,
    memory_limit: int | str | None = None,
    checkpoint: str | Path | None = None,
    base_model: str | None = None,
) -> Any:
    """Factor the vocabulary table of a model by projective clustering.

    The input embedding, and every module tied to it, is factored; an untied head stays dense unless asked for. The
    result keeps the task head, dtype, device, generation config and ``name_or_path`` of the input.

    A preset names a combination of the options that are None by default; each may be given instead.

    ========  ============  ==============  ===  ============  =============
    preset    num_clusters  adaptive_ranks  p    token_counts  norm_exponent
    ========  ============  ==============  ===  ============  =============
    adaptive  "auto"        yes             2    "tokenizer"   1
    messi     5             no              2    "uniform"     0
    svd       1             no              2    "uniform"     0
    robust    1             no              1    "uniform"     0
    ========  ============  ==============  ===  ============  =============

    Args:
        model_or_path: A dense model, which is left untouched, or a folder or Hub id to load one from.
        embedding: Whether to factor the input embedding, and every module tied to it.
        head: Whether to factor an untied head (the output embedding) too, by a run of its own with equal options. A
            tied head shares the factors of the embedding whatever this says.
        preset: "adaptive"; "messi" (arXiv 2010.04290); "svd"; or "robust" (arXiv 2009.05647).
        num_clusters: Number of subspaces, k, 1 to the number of tokens. "auto" takes, of 1, 2, 4, 8, ..., the number
            of the least weighted error at equal stored size after a few rounds; with ``rank`` the default is 5.
        compression: Share of the table's numbers to save, between 0 and 1. Give this, ``rank``, ``ratio`` or
            ``table_bytes``.
        rank: Coordinates that each row keeps, j, 1 to the width of the table.
        ratio: How many times smaller each table is to be than it is in its dtype (that of the checkpoint, if a path is
            given), in few bits: ranks, the bits of each coordinate and the clusters are chosen under one budget of
            bytes. For the preset "adaptive". Below about 4 times (of float32) little is left to gain.
        table_bytes: The same budget, for each table, as bytes or as a size such as "3MB".
        coefficient_bits: Bits in which coordinates are stored, after a clustering by ``compression`` or ``rank``: 8, 4,
            3 (three in a byte, 2.67 bits) or 2, by product quantisation. By default they are floating numbers.
        basis_bits: Bits of the numbers of bases beside ``coefficient_bits``, 16 or 8, the default.
        adaptive_ranks: Whether each cluster gets a rank of its own under one budget; not with ``rank``.
        p: Power of the distance that is summed, 1 (outlying rows count least) to 2 (least squares). Below 2 the
            coordinates of a row are those of the least entrywise l_p error, and one subspace starts from Lewis weights.
        token_counts: How often tokens are used: a tensor of one number a token, or one or more sources, which are
            "uniform"; "tokenizer", a guess from the vocabulary's scores or order; "words:en,zh", word frequencies of
            languages; "dataset:NAME" or "dataset:NAME,CONFIG"; "prompt:TEXT", which stands in front of every text; or
            a text file or a folder of them. "0.3*" in front of a source weighs it. The default "tokenizer" gives way
            to "uniform", with a warning, where no tokenizer is found, or one that has more tokens than the table rows.
        count_exponent: Power of the use of a token in the weight of its row; 0 lets all tokens count alike.
        norm_exponent: The squared error of a row counts by its norm to the power of minus this: 0 for absolute
            errors, 2 for relative ones.
        tokenizer: The model's tokenizer; by default that of ``model_or_path``, or of the model's ``name_or_path``.
        seed: Seed of the random starts. Equal arguments on one machine give equal results.
        num_starts: Starts that race: by norm, neighbourhoods of random rows, a random split, and so on; the best one
            is finished.
        max_rounds: Rounds of clustering of a start, at most.
        tolerance: Stop when several rounds in a row lower the error by a smaller share than this.
        device: Where to compute; by default where the model is.
        memory_limit: Bytes, or a size such as "1GB", that the clustering may take beyond the result; for p < 2 and in
            few bits the coordinates may take about twice as much. With a path the table then stays in its safetensors
            files and is read in blocks.
        checkpoint: Folder in which the clustering is saved after each round; a run that was interrupted goes on from
            it. It is kept when the run is done: delete it then.
        base_model: Id on the Hub of the model that a folder, or a model in memory, is a copy of, for the model card; of
            what was loaded from the Hub it is known.

    Returns:
        A ``PreTrainedModel`` of the compressed counterpart of the input's class, such as ``ProjClustBertModel``.

    Raises:
        ValueError: If an option is out of its range, or the model cannot be compressed.
        TypeError: If the input is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.
        BlockingIOError: If another run writes the checkpoint.

    Example:
        model = compress("distilbert/distilbert-base-uncased", compression=0.6, token_counts="words:en")
        model.save_pretrained("distilbert-pc60")
    """
    options = FactoringOptions(
        preset=preset,
        num_clusters=num_clusters,
        compression=compression,
        rank=rank,
        ratio=ratio,
        table_bytes=table_bytes,
        coefficient_bits=coefficient_bits,
        basis_bits=basis_bits,
        adaptive_ranks=adaptive_ranks,
        p=p,
        token_counts=token_counts,
        count_exponent=count_exponent,
        norm_exponent=norm_exponent,
        seed=seed,
        num_starts=num_starts,
        max_rounds=max_rounds,
        tolerance=tolerance,
    )
    resources = Resources(device=device, memory_limit=memory_limit, checkpoint=checkpoint)
    check_base_model(base_model)
    choose = partial(tables_to_factor, embedding=embedding, head=head)
    tables: Mapping[str, Table] = {}
    if memory_limit is not None and isinstance(model_or_path, str | Path):
        model, tables = load_model_without_tables(model_or_path, choose)
    else:
        model = own_model(model_or_path)
    if isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is compressed already; expected a dense model. Compress the dense model that "
            "it was made from, or hf_projclust.decompress() it first."
        )
    check_config_class(model.config)
    groups = choose(model)
    if tokenizer is None and not options.needs_no_tokenizer:
        try:
            tokenizer = load_tokenizer(model.name_or_path)
            check_tokenizer(tokenizer, min(modules[0].weight.shape[0] for modules in groups.values()))
        except ValueError as error:
            if token_counts is not None:
                raise
            logger.warning(
                "%s All tokens count alike now; frequent ones would lose less if their use was known.", error
            )
            options = replace(options, token_counts="uniform")
    factors = {}
    with locked(checkpoint):
        for name, modules in groups.items():
            table = tables.get(name, modules[0].weight.detach())
            if name == "head" and checkpoint is not None:  # it has a checkpoint of its own within that of the embedding
                resources = replace(resources, checkpoint=Path(checkpoint) / "head")
            factors[name] = factor_table(table, options, resources, tokenizer)

    config_class = projclust_config_class(type(model.config))
    config = _with_class(model.config, config_class)
    config.projclust = {
        "format_version": format_version({name: found.layout for name, found in factors.items()}),
        **{name: found.layout.to_dict() for name, found in factors.items()},
        "solver": {name: found.record for name, found in factors.items()},
        "provenance": provenance(
            type(model).__name__,
            model.name_or_path,
            base_model=base_model,
            loaded_here=not isinstance(model_or_path, PreTrainedModel),
        ),
    }
    if dense_tables(model)["head"]:
        config.projclust["tied_head"] = False  # some native configurations say otherwise
    replaced: set[str] = set()
    stored: dict[str, Tensor] = {}
    for group, modules in groups.items():
        names = [name for name, module in model.named_modules(remove_duplicate=False) if module in modules]
        first = next(name for name in names if model.get_submodule(name) is modules[0])
        replaced |= {f"{name}.weight" for name in names}
        stored |= {f"{first}.{part}": tensor for part, tensor in factors[group].tensors.items()}
    state_dict = {key: tensor.clone() for key, tensor in model.state_dict().items() if key not in replaced} | stored
    return _build(projclust_model_class(type(model), config_class), config, state_dict, like=model)


def decompress(model_or_path: PreTrainedModel | str | Path) -> Any:
    """Make a compressed model dense again: the native class, with the table that the factors describe.

    Args:
        model_or_path: A compressed model, which is left untouched, or a folder or Hub id to load one from.

    Returns:
        A ``PreTrainedModel`` of the native class, such as ``BertModel``, with equal outputs up to rounding.

    Raises:
        ValueError: If the model is not compressed.
        TypeError: If the input is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.
    """
    model = own_model(model_or_path)
    if not isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is not compressed; expected a model made by hf_projclust.compress(). "
            "Use the model as it is."
        )
    tables = factored_tables(model)
    names_of_factors = {f"{name}.{part}" for name, table in tables.items() for part in (*table.stored_names, "rows")}
    state_dict = {key: tensor.clone() for key, tensor in model.state_dict().items() if key not in names_of_factors}
    dense: dict[int, Tensor] = {}
    for name, table in tables.items():
        shared = id(table.coefficients)  # tied modules get one dense weight
        dense[shared] = dense[shared] if shared in dense else table.dense_weight().detach()
        state_dict[f"{name}.weight"] = dense[shared]
    config_class: Any = type(model).config_class
    config = _with_class(model.config, config_class.native_class)
    del config.projclust
    return _build(type(model).native_class, config, state_dict, like=model)


def _with_class(config: Any, config_class: Any) -> Any:
    """The same configuration in another class, by the round trip that a save and a load would make."""
    fields = config.to_dict()
    fields.pop("auto_map", None)  # code that comes with a checkpoint is that of the other class
    made = config_class.from_dict(fields, attn_implementation=_attention(config))
    made.name_or_path = config.name_or_path
    return made


def _attention(config: Any) -> dict[str, Any]:
    """The attention implementation of each part of a composite: not every part knows that of the whole."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation} | {name: _attention(part) for name, part in parts.items() if part}


def _build(model_class: Any, config: Any, state_dict: dict[str, Tensor], *, like: Any) -> Any:
    """A model of a class from tensors, which become its own, with what ``like`` has beyond its weights."""
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=state_dict, dtype=like.dtype, output_loading_info=True
    )
    if left := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
        raise ValueError(
            f"{type(like).__name__} does not fit {model_class.__name__}: {left}; expected the modules of the native "
            "class. Undo what was added or replaced in the model (adapters, quantised layers) first; of a part of "
            "another model, compress the whole."
        )
    requires_grad = {name: parameter.requires_grad for name, parameter in like.named_parameters()}
    for name, parameter in model.named_parameters():
        if name in state_dict and parameter.dtype != state_dict[name].dtype:
            parameter.data = state_dict[name]
        if name not in requires_grad:  # factors follow the dense weight that they stand for, and the other way round
            stood_for = like.get_submodule(name.rpartition(".")[0])
            # That a table in few bits is frozen is nobody's choice.
            requires_grad[name] = isinstance(stood_for, PackedTable) or next(stood_for.parameters()).requires_grad
        parameter.requires_grad_(requires_grad[name] and parameter.is_floating_point())
    freeze_packed_tables(model)
    model.name_or_path = model.config.name_or_path = like.name_or_path
    # How the names and tensors of the file differ from those in memory, which a load from memory cannot know.
    model._weight_conversions = getattr(like, "_weight_conversions", None)
    if model.can_generate():
        model.generation_config = copy.deepcopy(like.generation_config)
    device = next((parameter.device for parameter in like.parameters() if not parameter.is_meta), model.device)
    return model.to(device).train(like.training)
