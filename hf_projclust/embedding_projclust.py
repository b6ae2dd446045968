"""Look-up in a factored vocabulary table, and how dense modules become factored ones.

``factor_in_place`` turns an existing embedding or linear layer into its factored counterpart. This file knows
nothing of models or of how factors are found. It travels with a checkpoint: it imports torch, transformers
and its siblings only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_projclust import PREFIX
from .head_projclust import ProjClustHead
from .layout_projclust import FactorLayout, PackedLayout
from .lookup_projclust import look_up
from .packed_projclust import PackedTable
from .table_projclust import FactoredTable

_MADE_CLASSES: dict[tuple[type, bool], type[FactoredTable]] = {}


class ProjClustEmbedding(FactoredTable, nn.Embedding):
    """Look-up in a factored table, in place of ``nn.Embedding``.

    Subclasses are made for native embedding classes (scaled, normed), whose own forward ends in this one.
    """

    native_class: type[nn.Embedding] = nn.Embedding

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Embedding)
        """Look up embedding vectors.

        Args:
            input: Token ids, any shape.

        Returns:
            Vectors in the dtype of the factors, shape (*input.shape, dim).
        """
        vectors = look_up(self, input.flatten()).view(*input.shape, self.layout.dim)
        # A trace is checked by a second one without gradients, which must be the same.
        if self.padding_idx is not None and (torch.is_grad_enabled() or torch.jit.is_tracing()):
            is_padding = (input == self.padding_idx).unsqueeze(-1)  # (...) -> (..., 1)
            vectors = torch.where(is_padding, vectors.detach(), vectors)
        return vectors

    def resize(self, num_embeddings: int, new_rows: Tensor) -> None:
        """As in the base; a padding token that is dropped is one no more."""
        super().resize(num_embeddings, new_rows)
        self.num_embeddings = num_embeddings
        if self.padding_idx is not None and self.padding_idx >= num_embeddings:
            self.padding_idx = None

    def init_factors(self, std: float) -> None:
        """As in the base, with a padding row of zeros, as nn.Embedding has it."""
        fresh = not getattr(self.coefficients, "_is_hf_initialized", False)
        super().init_factors(std)
        if fresh and self.padding_idx is not None:
            layout, row = self.layout, int(self.rows[self.padding_idx])
            with torch.no_grad():
                for (coefficients, _), size in zip(self.blocks(), layout.cluster_sizes, strict=True):
                    if 0 <= row < size:
                        coefficients[row] = 0
                    row -= size


def factor_in_place(module: nn.Module, layout: FactorLayout) -> None:
    """Turn a dense embedding or linear layer into its factored counterpart, with factors yet to be filled.

    The object stays the same, so that every name it is reached by, its hooks and its attributes hold.

    Args:
        module: An ``nn.Embedding`` or ``nn.Linear`` with a weight of shape (n, d), or a subclass of one.
        layout: Shapes of the factors.

    Raises:
        ValueError: If the module is of another kind, or looks up in a way that a factored table does not.
    """
    check_factorable(module)
    weight: Any = module.weight
    is_packed = isinstance(layout, PackedLayout)
    del module.weight
    module.__class__ = _counterpart(type(module), is_packed)
    module._set_factors(layout, weight.device, weight.dtype)  # type: ignore[operator]


def check_factorable(module: nn.Module) -> None:
    """Refuse a module that no factored table can stand in for.

    Args:
        module: A module that holds a vocabulary table.

    Raises:
        ValueError: If it is neither an ``nn.Embedding`` nor an ``nn.Linear``, or looks up in a way of its own.
    """
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise ValueError(
                f"{type(module).__name__} has max_norm={module.max_norm}, "
                f"scale_grad_by_freq={module.scale_grad_by_freq} and sparse={module.sparse}; a factored table "
                "offers none of these. Leave this model dense."
            )
    elif not isinstance(module, nn.Linear):
        raise ValueError(
            f"the vocabulary table is in a {type(module).__name__}; expected an nn.Embedding or nn.Linear. "
            "Leave this model dense."
        )


def dense_counterpart(module: Any) -> Any:
    """A plain ``nn.Embedding`` or ``nn.Linear`` of a factored module's dense weight; a dense module as it is."""
    if not isinstance(module, FactoredTable):
        return module
    weight = module.dense_weight().detach()
    if isinstance(module, nn.Embedding):
        return nn.Embedding.from_pretrained(weight)
    dense: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    dense.weight, dense.bias = nn.Parameter(weight), module.bias
    return dense


def unpack_in_place(module: Any, factors: dict[str, nn.Parameter]) -> None:
    """Turn a factored module in few bits into one of floating numbers.

    Args:
        module: A factored module in few bits.
        factors: Its ``coefficients`` and ``bases`` as floating numbers: the same objects for modules that are tied.
    """
    layout, rows = module.layout, module.rows
    native: type[nn.Module] = getattr(module, "native_class", nn.Linear)
    for name in (*module.stored_names, "rows"):
        delattr(module, name)
    module.__class__ = _counterpart(native, is_packed=False)
    module.layout = FactorLayout(layout.dim, layout.cluster_sizes, layout.cluster_ranks)
    for name, factor in factors.items():
        module.register_parameter(name, factor)
    module.register_buffer("rows", rows)


def _counterpart(native_class: type[nn.Module], is_packed: bool) -> type[FactoredTable]:
    """The class that stands in for a native one: look-up or head, of floating numbers or in few bits."""
    key = (native_class, is_packed)
    if key not in _MADE_CLASSES:
        layer: type[FactoredTable] = ProjClustEmbedding if issubclass(native_class, nn.Embedding) else ProjClustHead
        bases = (PackedTable, layer) if is_packed else (layer,)
        attributes = {"__module__": __name__, "__reduce__": _reduce, "native_class": native_class}
        if layer is ProjClustEmbedding and native_class is not nn.Embedding:
            bases = (native_class, *bases)
        name = f"{PREFIX}{'Packed' if is_packed else ''}{native_class.__name__}"
        _MADE_CLASSES[key] = layer if bases == (layer,) else type(name, bases, attributes)
    return _MADE_CLASSES[key]


def _reduce(module: Any) -> tuple[Callable[..., Any], tuple[type, bool], dict[str, Any]]:
    """Pickle by the native class: a made subclass cannot be found by name."""
    return _empty, (module.native_class, isinstance(module, PackedTable)), module.__dict__


def _empty(native_class: type[nn.Module], is_packed: bool) -> Any:
    made_class = _counterpart(native_class, is_packed)
    return made_class.__new__(made_class)
