"""Compress a model's vocabulary table, and make a compressed model dense again.

Model in, model out: neither function changes its input, and the result shares no memory with it. How a table
is factored is decided in ``solvers``; files are written elsewhere.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration_projclust import FORMAT_VERSION, FactorLayout, projclust_config_class
from .loading import load_model
from .modeling_projclust import (
    ProjClustModelMixin,
    factored_tables,
    projclust_model_class,
    vocabulary_modules,
)
from .solvers import ProjectiveClustering, messi
from .solvers.ranks import uniform_rank

Preset = Literal["messi", "svd"]
_NUM_CLUSTERS_OF_PRESET = {"messi": 5, "svd": 1}


def compress(
    model_or_path: PreTrainedModel | str | Path,
    *,
    preset: Preset = "messi",
    num_clusters: int | None = None,
    compression: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    num_starts: int = 4,
    max_rounds: int = 100,
    tolerance: float = 1e-5,
) -> Any:
    """Factor the vocabulary table of a model by projective clustering.

    The input embedding, and every module tied to it, is factored; an untied head stays dense. The result keeps
    the task head, dtype, device, generation config and ``name_or_path`` of the input.

    Args:
        model_or_path: A dense model, which is left untouched, or a folder or Hub id to load one from.
        preset: "messi", k subspaces of one rank (arXiv 2010.04290), or "svd", which is one subspace.
        num_clusters: Number of subspaces, k, 1 to the number of tokens. By default 5 for "messi".
        compression: Share of the table's numbers to save, between 0 and 1. Give this or ``rank``.
        rank: Coordinates that each row keeps, j, 1 to the width of the table. Give this or ``compression``.
        seed: Seed of the random starts. Equal arguments on one machine give equal results.
        num_starts: Random starts that race; the best one is finished.
        max_rounds: Rounds of clustering, at most.
        tolerance: Stop when a round lowers the error by a smaller share than this.

    Returns:
        A ``PreTrainedModel`` of the compressed counterpart of the input's class, such as ``ProjClustBertModel``.

    Raises:
        ValueError: If an option is out of its range, or the model cannot be compressed.
        TypeError: If the input is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.

    Example:
        model = compress("distilbert/distilbert-base-uncased", num_clusters=5, compression=0.4)
        model.save_pretrained("distilbert-pc-k5")
    """
    num_clusters = _check_options(preset, num_clusters, compression, rank)
    _check_search(seed, num_starts, max_rounds, tolerance)
    model = _own_model(model_or_path)
    if isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is compressed already; expected a dense model. Compress the dense model that "
            "it was made from, or hf_projclust.decompress() it first."
        )
    modules = vocabulary_modules(model)
    table: Tensor = modules[0].weight.detach()
    rank = _check_table(table, num_clusters, compression, rank)

    energy = float(torch.linalg.vector_norm(table, dtype=torch.float64)) ** 2
    with logging.tqdm(desc=f"Clustering {len(table):,} tokens", unit=" rounds") as progress:

        def show(cost: float) -> None:
            progress.set_postfix_str(f"relative squared error {_share(cost, energy):.4f}", refresh=False)
            progress.update()

        clustering = messi(
            table,
            num_clusters=num_clusters,
            rank=rank,
            seed=seed,
            num_starts=num_starts,
            max_rounds=max_rounds,
            tolerance=tolerance,
            on_round=show,
        )
    layout, factors, kept = _factor(table, clustering)

    config_class = projclust_config_class(type(model.config))
    config = _with_class(model.config, config_class)
    config.projclust = {
        "format_version": FORMAT_VERSION,
        "embedding": {
            "dim": layout.dim,
            "cluster_sizes": list(layout.cluster_sizes),
            "cluster_ranks": list(layout.cluster_ranks),
        },
        "solver": {
            "preset": preset,
            "num_clusters": num_clusters,
            "compression": compression,
            "rank": rank,
            "seed": seed,
            **kept,
        },
    }
    named_modules = list(model.named_modules(remove_duplicate=False))
    replaced = {f"{name}.weight" for name, module in named_modules if module in modules}
    embedding_name = next(name for name, module in named_modules if module is modules[0])
    state_dict = {key: tensor for key, tensor in model.state_dict().items() if key not in replaced}
    state_dict |= {f"{embedding_name}.{part}": tensor for part, tensor in factors.items()}
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
    model = _own_model(model_or_path)
    if not isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is not compressed; expected a model made by hf_projclust.compress(). "
            "Use the model as it is."
        )
    tables = factored_tables(model)
    names_of_factors = {f"{name}.{part}" for name in tables for part in ("coefficients", "bases", "rows")}
    state_dict = {key: tensor for key, tensor in model.state_dict().items() if key not in names_of_factors}
    dense = next(iter(tables.values())).dense_weight().detach()
    state_dict |= {f"{name}.weight": dense for name in tables}
    config_class: Any = type(model.config)
    config = _with_class(model.config, config_class.native_class)
    del config.projclust
    return _build(type(model).native_class, config, state_dict, like=model)


def _check_options(preset: str, num_clusters: int | None, compression: float | None, rank: int | None) -> int:
    """Refuse options that no model could make right, before one is loaded. Returns the number of clusters."""
    if preset not in _NUM_CLUSTERS_OF_PRESET:
        known = ", ".join(repr(name) for name in _NUM_CLUSTERS_OF_PRESET)
        raise ValueError(f"preset={preset!r}; expected one of {known}. Check the spelling.")
    if (compression is None) == (rank is None):
        raise ValueError(
            f"compression={compression} and rank={rank}; expected exactly one of the two. Give the share of the "
            "table to save, such as compression=0.4, or the coordinates to keep of each row, such as rank=200."
        )
    if compression is not None and not 0 < compression < 1:
        raise ValueError(
            f"compression={compression}; expected a share of the table's numbers to save, above 0 and below 1. "
            "To save 40 %, give 0.4."
        )
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}; expected 1 or more. Give the coordinates to keep of each row.")
    if num_clusters is None:
        return _NUM_CLUSTERS_OF_PRESET[preset]
    if num_clusters < 1:
        raise ValueError(f"num_clusters={num_clusters}; expected 1 or more. Five is a good first choice.")
    if preset == "svd" and num_clusters != 1:
        raise ValueError(
            f"num_clusters={num_clusters} with preset='svd'; expected 1, since SVD is one subspace. "
            "Use preset='messi' for several."
        )
    return num_clusters


def _check_search(seed: int, num_starts: int, max_rounds: int, tolerance: float) -> None:
    if seed < 0:
        raise ValueError(f"seed={seed}; expected 0 or more. Give any such number.")
    if num_starts < 1 or max_rounds < 1:
        raise ValueError(
            f"num_starts={num_starts} and max_rounds={max_rounds}; expected 1 or more of each. "
            "Leave them out for the defaults."
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance}; expected a share from 0 to below 1. Leave it out for the default.")


def _own_model(model_or_path: Any) -> Any:
    """The model to read from: as given, or loaded from a path."""
    if isinstance(model_or_path, str | Path):
        return load_model(model_or_path)
    model = model_or_path
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"got a {type(model).__name__}; expected a Transformers model (PreTrainedModel), a folder, or a Hub id. "
            "Of a wrapper (PEFT, DDP, sentence-transformers), pass the model inside, with adapters merged."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} has PEFT adapters; expected a plain model. Merge or unload them first."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"{type(model).__name__} is quantised; expected float weights. Load it without quantization_config, or "
            "dequantize() it first."
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(
            f"{type(model).__name__} has weights that are not in memory (offloaded, or on the meta device); "
            "expected all of them on one device. Load the model without a device_map first."
        )
    return model


def _check_table(table: Tensor, num_clusters: int, compression: float | None, rank: int | None) -> int:
    """Refuse a table that cannot be factored as asked. Returns the rank."""
    num_tokens, dim = table.shape
    is_finite = table.isfinite().all(dim=1)
    if not is_finite.all():
        bad = (~is_finite).nonzero().flatten()
        raise ValueError(
            f"the vocabulary table has NaN or infinity in {len(bad):,} of {num_tokens:,} rows, the first at token id "
            f"{int(bad[0])}; expected finite numbers. Repair the model, or load it in float32 if it overflowed."
        )
    if num_clusters > num_tokens:
        raise ValueError(
            f"num_clusters={num_clusters:,} for a vocabulary of {num_tokens:,} tokens; expected 1 to "
            f"{num_tokens:,}. Use fewer clusters."
        )
    if compression is not None:
        return uniform_rank(num_tokens, dim, num_clusters, compression)
    if rank is None or rank > dim:
        raise ValueError(
            f"rank={rank} for a table of width {dim}; expected 1 to {dim}. Use a smaller rank, or give "
            "compression instead."
        )
    return rank


def _factor(table: Tensor, clustering: ProjectiveClustering) -> tuple[FactorLayout, dict[str, Tensor], dict[str, Any]]:
    """The stored tensors of a clustering, in the table's dtype, and the energy that they keep."""
    dim, order = table.shape[1], clustering.assignment.argsort(stable=True)
    sizes = torch.bincount(clustering.assignment, minlength=len(clustering.bases)).tolist()
    coefficients, bases, energies, residuals = [], [], [], []
    for members, basis in zip(order.split(sizes), clustering.bases, strict=True):
        rows = table[members].to(basis.dtype)  # (n_i, d)
        is_whole = len(basis) == dim
        stored = (rows if is_whole else rows @ basis.T).to(table.dtype)  # (n_i, j_i)
        stored_basis = basis[:0].to(table.dtype) if is_whole else basis.to(table.dtype)
        rebuilt = stored if is_whole else stored @ stored_basis
        energies.append(float(rows.double().square().sum()))
        residuals.append(float((rows - rebuilt).double().square().sum()))
        coefficients.append(stored.flatten())
        bases.append(stored_basis)
    factors = {
        "coefficients": torch.cat(coefficients),
        "bases": torch.cat(bases).contiguous(),
        "rows": order.argsort().to(torch.int32),
    }
    layout = FactorLayout(
        dim=dim, cluster_sizes=tuple(sizes), cluster_ranks=tuple(len(basis) for basis in clustering.bases)
    )
    kept = {
        "energy_kept": [1 - _share(left, of) for left, of in zip(residuals, energies, strict=True)],
        "relative_squared_error": _share(sum(residuals), sum(energies)),
    }
    return layout, factors, kept


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _with_class(config: Any, config_class: Any) -> Any:
    """The same configuration in another class, by the round trip that a save and a load would make."""
    made = config_class.from_dict(config.to_dict(), attn_implementation=config._attn_implementation)
    made.name_or_path = config.name_or_path
    return made


def _build(model_class: Any, config: Any, state_dict: dict[str, Tensor], *, like: nn.Module | Any) -> Any:
    """A model of a class from tensors, each copied, with what ``like`` has beyond its weights."""
    state_dict = {key: tensor.detach().clone() for key, tensor in state_dict.items()}
    model = model_class.from_pretrained(None, config=config, state_dict=state_dict, dtype=like.dtype)
    model.name_or_path = model.config.name_or_path = like.name_or_path
    if model.can_generate():
        model.generation_config = copy.deepcopy(like.generation_config)
    return model.to(like.device).train(like.training)
