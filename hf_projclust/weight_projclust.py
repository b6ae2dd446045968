"""The stand-in for a dense weight: what ``.weight`` of a factored module gives.

It answers for shape, dtype and device, and builds the dense table where anything is computed with it. It knows of a
table only that it has ``coefficients``, a ``layout`` and a ``dense_weight()``. This file travels with a checkpoint: it
imports torch and its siblings only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from .table_projclust import FactoredTable


class FactoredWeight(torch.Tensor):
    """What ``.weight`` of a factored module gives: shape, dtype and device at no cost, the dense table on use.

    Any torch operation on it builds the table from the factors, differentiably. It cannot be changed: an
    in-place operation on it, or on its ``.data`` or ``.detach()``, raises, since the factors would not follow. What is
    computed from it (a row, a sum) is a dense copy, and writing to that changes the copy only.
    """

    # Transformers' initialisers pass over tensors with this mark; the factors are initialised by their module.
    _is_hf_initialized = True
    _table: FactoredTable
    _detached: bool

    @staticmethod
    def __new__(cls: type[FactoredWeight], table: FactoredTable, detached: bool = False) -> FactoredWeight:
        """Stand in for the dense weight of ``table``."""
        weight: FactoredWeight = torch.Tensor._make_wrapper_subclass(
            cls,
            (table.layout.num_embeddings, table.layout.dim),
            dtype=table.dtype,
            device=table.coefficients.device,
            requires_grad=table.requires_grad and not detached,
        )
        weight._table, weight._detached = table, detached
        return weight

    def _stands_for(self, factors: Tensor) -> bool:
        """Whether this was made for these coefficients, and as they are now."""
        table = self._table
        now = (table.dtype, factors.device, table.requires_grad, table.layout.num_embeddings)
        as_made = (self.dtype, self.device, self.requires_grad, len(self))
        return table.coefficients is factors and as_made == now

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer questions about the table from the stand-in, and everything else from the dense table."""
        if func is torch.Tensor.data_ptr:  # tied modules share their factors, and so must seem to share a weight
            return args[0]._table.coefficients.data_ptr()
        if func in (torch.Tensor.detach, torch.Tensor.data.__get__):  # type: ignore[attr-defined]
            return cls(args[0]._table, detached=True)
        if func in _ANSWERED_BY_STAND_IN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if isinstance(_changed_by(func, args, kwargs), cls):
            raise AttributeError(WEIGHT_IS_READ_ONLY)
        args, kwargs = tree_map(_to_dense, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Serve the callers that switch __torch_function__ off."""
        args, kwargs = tree_map(_to_dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def stand_in(table: FactoredTable) -> FactoredWeight:
    """The stand-in for the dense weight of a table: one object, as long as it is in use, for all that share factors."""
    with _ONE_AT_A_TIME:
        weight = _STAND_INS.get(id(table.coefficients))
        if weight is None or not weight._stands_for(table.coefficients):
            weight = _STAND_INS[id(table.coefficients)] = FactoredWeight(table)
        return weight


# The stand-ins in use, by the identity of the coefficients that they stand for.
_STAND_INS: WeakValueDictionary[int, FactoredWeight] = WeakValueDictionary()
_ONE_AT_A_TIME = threading.RLock()  # which a collection of garbage may enter again

_ANSWERED_BY_STAND_IN = {
    torch.Tensor.__len__,
    torch.Tensor.dim,
    torch.Tensor.element_size,
    torch.Tensor.is_floating_point,
    torch.Tensor.nelement,
    torch.Tensor.numel,
    torch.Tensor.size,
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "layout", "ndim")
    ),
    torch.Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
}

_OPERATORS = ("add", "and", "div", "floordiv", "lshift", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor")
_WRITING_OPERATORS = {"__set__", "__setitem__", *(f"__i{name}__" for name in _OPERATORS)}

WEIGHT_IS_READ_ONLY = (
    "the dense weight of a factored table was to be changed, or made a parameter; it is built from the factors at each "
    "use and can only be read (.clone() gives a dense tensor). Give the module's set_rows(token_ids, vectors) the rows "
    "of tokens that were added, or change the parameters `coefficients` and `bases`, or get a dense model with "
    "hf_projclust.decompress(model) first; an adapter of the table can be loaded on that one and merged there, if it "
    "was saved with save_embedding_layers=False."
)


def _changed_by(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that a torch function writes to, or None."""
    if "out" in kwargs:
        return kwargs["out"]
    name = getattr(func, "__name__", "")
    if name in _WRITING_OPERATORS or (name.endswith("_") and not name.startswith("_")):
        return next(iter((*args, *kwargs.values())), None)
    return None


def _to_dense(value: Any) -> Any:
    if not isinstance(value, FactoredWeight):
        return value
    return value._table.dense_weight().detach() if value._detached else value._table.dense_weight()
