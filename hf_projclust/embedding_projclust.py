"""The factored vocabulary table: embedding look-up, tied head, and a stand-in for the dense weight.

A table A (n, d) whose rows lie in k clusters is kept as

    coefficients   all coordinates, cluster after cluster, flat: cluster i is a block (n_i, j_i)
    bases          all bases stacked: cluster i is a block (j_i, d); clusters of rank d have none
    rows           int32 (n,): the stored row of each token; the cluster follows from the sizes

In arXiv 2010.04290 the blocks of ``coefficients`` are the k parallel layers U^i and ``bases`` is the one
recombining layer V. Two parameters whatever k is: no cluster can be without a gradient, and the head needs
one product with all bases.

``factor_in_place`` turns an existing embedding or linear layer into its factored counterpart. This file knows
nothing of models or of how factors are found. It travels with a checkpoint: it imports torch, transformers
and its siblings only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .configuration_projclust import PREFIX, FactorLayout

FACTOR_NAMES = ("coefficients", "bases")
_MADE_CLASSES: dict[type, Any] = {}


class FactoredTable(nn.Module):
    """Parameters and buffer of a factored table, and what embedding and head share."""

    layout: FactorLayout
    coefficients: nn.Parameter
    bases: nn.Parameter
    rows: Tensor
    _is_hf_initialized: bool  # Transformers' mark of a module whose weights are filled

    def _set_factors(self, layout: FactorLayout, device: torch.device, dtype: torch.dtype) -> None:
        num_coefficients, num_basis_rows = sum(layout.coefficient_counts), sum(layout.basis_ranks)
        self.layout = layout
        self._is_hf_initialized = False  # a dense weight that was filled before is gone
        self.coefficients = nn.Parameter(torch.empty(num_coefficients, device=device, dtype=dtype))
        self.bases = nn.Parameter(torch.empty(num_basis_rows, layout.dim, device=device, dtype=dtype))
        self.register_buffer(
            "rows", torch.arange(layout.num_embeddings, device=device, dtype=torch.int32), persistent=True
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Add what stands in a file in place of the dense weight."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = in_place_of_dense_weight()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Pass over it."""
        state_dict.pop(f"{prefix}weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_factors(self, std: float) -> None:
        """Fill what no checkpoint has filled, so that entries of the dense table have deviation ``std``."""
        scales = [
            torch.full((count,), std * (self.layout.dim / max(rank, 1)) ** 0.5)
            for count, rank in zip(self.layout.coefficient_counts, self.layout.cluster_ranks, strict=True)
        ]
        if not getattr(self.coefficients, "_is_hf_initialized", False):
            init.normal_(self.coefficients)
            with torch.no_grad():
                self.coefficients.mul_(torch.cat(scales).to(self.coefficients))
        init.normal_(self.bases, std=self.layout.dim**-0.5)

    def blocks(self) -> list[tuple[Tensor, Tensor | None]]:
        """Coefficients (n_i, j_i) and basis (j_i, d) of each cluster; the basis is None where j_i = d."""
        layout = self.layout
        # One split for all clusters: its backward joins the gradients once, where slices would pad each to full size.
        coefficients = self.coefficients.split(layout.coefficient_counts)
        bases = self.bases.split(layout.basis_ranks)
        shapes = zip(layout.cluster_sizes, layout.cluster_ranks, strict=True)
        return [
            (flat.view(size, rank), basis if rank < layout.dim else None)
            for (size, rank), flat, basis in zip(shapes, coefficients, bases, strict=True)
        ]

    def resize(self, num_embeddings: int, new_rows: Tensor) -> None:
        """Keep the first tokens and add new ones, whose rows are stored as they are, in a last cluster of rank d.

        Args:
            num_embeddings: Number of tokens after it.
            new_rows: Vectors of the tokens beyond the present ones, shape (added, d).
        """
        layout, kept = self.layout, self.rows[:num_embeddings].long()
        is_kept = torch.zeros(layout.num_embeddings, dtype=torch.bool, device=kept.device)
        is_kept[kept] = True
        masks = is_kept.split(layout.cluster_sizes)
        blocks = [coefficients[mask] for (coefficients, _), mask in zip(self.blocks(), masks, strict=True)]
        sizes, ranks = [len(block) for block in blocks], list(layout.cluster_ranks)
        if len(new_rows) and ranks[-1] < layout.dim:
            sizes, ranks = [*sizes, 0], [*ranks, layout.dim]
        sizes[-1] += len(new_rows)
        flat = torch.cat([block.detach().flatten() for block in (*blocks, new_rows.to(self.coefficients))])
        added = torch.arange(len(kept), len(kept) + len(new_rows), device=kept.device)
        self.layout = FactorLayout(layout.dim, tuple(sizes), tuple(ranks))
        self.coefficients = nn.Parameter(flat, requires_grad=self.coefficients.requires_grad)
        self.rows = torch.cat([(is_kept.cumsum(0) - 1)[kept], added]).int()

    @torch.no_grad()
    def set_rows(self, token_ids: Tensor, vectors: Tensor) -> None:
        """Write the vectors of tokens that are stored as they are: those that were added by a resize.

        Args:
            token_ids: Tokens, shape (m,).
            vectors: Their vectors, shape (m, d).

        Raises:
            ValueError: If one of the tokens is in a cluster of a smaller rank, which cannot hold every vector, or there
                is no such token, or not one vector for each.
        """
        layout, device = self.layout, self.rows.device
        token_ids, vectors = torch.as_tensor(token_ids, device=device), torch.as_tensor(vectors)
        if vectors.shape != (*token_ids.shape, layout.dim) or token_ids.dim() != 1:
            raise ValueError(
                f"token_ids have shape {tuple(token_ids.shape)} and vectors {tuple(vectors.shape)}; expected (m,) and "
                f"(m, {layout.dim}). Give one vector for each token."
            )
        if len(missing := token_ids[(token_ids < 0) | (token_ids >= layout.num_embeddings)]):
            raise ValueError(
                f"there is no token {int(missing[0])}; expected 0 to {layout.num_embeddings - 1}. Call "
                "resize_token_embeddings() first."
            )
        stored = self.rows[token_ids].long()
        row_ends = torch.tensor(layout.cluster_sizes, device=device).cumsum(0)
        clusters = torch.searchsorted(row_ends, stored, right=True)
        ranks = torch.tensor(layout.cluster_ranks, device=device)[clusters]
        if len(bad := (ranks < layout.dim).nonzero().flatten()):
            raise ValueError(
                f"token {int(token_ids[bad[0]])} is in a cluster of rank {int(ranks[bad[0]])}, of "
                f"{layout.dim}; expected tokens that resize_token_embeddings() added, whose rows are stored as they "
                "are. Set rows of other tokens in the dense model, hf_projclust.decompress(model), and compress that."
            )
        ends = torch.tensor(layout.coefficient_counts, device=device).cumsum(0)[clusters]
        first = ends - (row_ends[clusters] - stored) * layout.dim  # from the end of its cluster
        places = first.unsqueeze(1) + torch.arange(layout.dim, device=device)  # (m, d)
        self.coefficients[places] = vectors.to(self.coefficients)

    def dense_weight(self) -> Tensor:
        """Build the dense table, shape (n, d), differentiably."""
        stored = torch.cat([_reconstruct(coefficients, basis) for coefficients, basis in self.blocks()])
        return stored.index_select(0, self.rows)

    @property
    def weight(self) -> Any:
        """A stand-in for the dense table: its shape costs nothing, any operation on it builds the table.

        Modules that share their factors give one object as long as it is in use, by which callers see that they are
        tied. A compiled graph gets the table itself, of which it drops what it does not use.
        """
        if torch.compiler.is_compiling():
            return self.dense_weight()
        factors = self.coefficients
        weight = _STAND_INS.get(id(factors))
        if weight is None or not weight._stands_for(factors):
            weight = _STAND_INS[id(factors)] = FactoredWeight(self)
        return weight

    @weight.setter
    def weight(self, _: Any) -> None:
        raise AttributeError(_WEIGHT_IS_READ_ONLY)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a dense weight, which the factors would not follow."""
        if name == "weight":
            raise AttributeError(_WEIGHT_IS_READ_ONLY)
        super().register_parameter(name, param)


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
        # nn.Embedding gives vectors of full precision under autocast; a matrix product would not.
        with maybe_autocast(input.device.type, enabled=False):
            vectors = self._look_up(input.flatten()).view(*input.shape, self.layout.dim)
        # A trace is checked by a second one without gradients, which must be the same.
        if self.padding_idx is not None and (torch.is_grad_enabled() or torch.jit.is_tracing()):
            is_padding = (input == self.padding_idx).unsqueeze(-1)  # (...) -> (..., 1)
            vectors = torch.where(is_padding, vectors.detach(), vectors)
        return vectors

    def _look_up(self, token_ids: Tensor) -> Tensor:
        stored_rows = self.rows.index_select(0, token_ids)  # (m,)
        # The number of tokens in a cluster is data: a compiled or traced graph must not hold it.
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or token_ids.is_meta:
            return self._look_up_all_clusters(stored_rows)
        return self._look_up_grouped(stored_rows)

    def _look_up_grouped(self, stored_rows: Tensor) -> Tensor:
        """One product a cluster, with the tokens of that cluster only."""
        layout = self.layout
        cluster_ends = torch.tensor(layout.cluster_sizes, device=stored_rows.device).cumsum(0)
        in_order, order = stored_rows.long().sort()
        group_ends = torch.searchsorted(in_order, cluster_ends).tolist()
        vectors, first, first_row = [], 0, 0
        for (coefficients, basis), last, size in zip(self.blocks(), group_ends, layout.cluster_sizes, strict=True):
            local_rows = in_order[first:last] - first_row
            vectors.append(_reconstruct(coefficients.index_select(0, local_rows), basis))  # (m_i, d)
            first, first_row = last, first_row + size
        return torch.cat(vectors).index_select(0, order.argsort())  # (m, d)

    def _look_up_all_clusters(self, stored_rows: Tensor) -> Tensor:
        """Static shapes for compilers: every cluster looks up every token, and the right one is kept."""
        total = self.bases.new_zeros(stored_rows.shape[0], self.layout.dim)
        first_row = 0
        for (coefficients, basis), size in zip(self.blocks(), self.layout.cluster_sizes, strict=True):
            if size:
                local_rows = stored_rows - first_row
                inside = ((local_rows >= 0) & (local_rows < size)).unsqueeze(-1)  # (m, 1)
                # A look-up in one number is more than inductor can turn into threaded code; one row needs none.
                candidates = (
                    coefficients.expand(local_rows.shape[0], -1)
                    if size == 1
                    else coefficients.index_select(0, local_rows.clamp(0, size - 1))
                )
                total = torch.where(inside, _reconstruct(candidates, basis), total)
            first_row += size
        return total

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

    def __reduce__(self) -> tuple[Callable[..., ProjClustEmbedding], tuple[type], dict[str, Any]]:
        """Pickle by the native class: the made subclass cannot be found by name."""
        return _empty_embedding, (self.native_class,), self.__dict__


class ProjClustHead(FactoredTable):
    """Logits from a factored table, in place of an ``nn.Linear``: (h basis^T) coefficients^T, plus the bias.

    Not an ``nn.Linear``: what looks for linear layers to replace (LoRA targets, quantisers) must leave it alone.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """Map hidden states to logits.

        Args:
            input: Hidden states, shape (..., dim).

        Returns:
            Logits in the order of the vocabulary, shape (..., num_embeddings).
        """
        projected = (input @ self.bases.T).split(self.layout.basis_ranks, dim=-1)  # k of (..., j_i)
        stored = torch.cat(
            [
                (input if basis is None else coordinates) @ coefficients.T  # (..., n_i)
                for (coefficients, basis), coordinates in zip(self.blocks(), projected, strict=True)
            ],
            dim=-1,
        )
        logits = stored.index_select(-1, self.rows)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)  # as under autocast in nn.Linear

    def resize(self, num_embeddings: int, new_rows: Tensor) -> None:
        """As in the base; the bias is for the model to resize."""
        super().resize(num_embeddings, new_rows)
        self.out_features = num_embeddings

    def extra_repr(self) -> str:
        """Shape and bias, as ``nn.Linear`` shows them."""
        return f"in_features={self.layout.dim}, out_features={self.layout.num_embeddings}, bias={self.bias is not None}"

    def init_factors(self, std: float) -> None:
        """As in the base, with a bias of zeros."""
        super().init_factors(std)
        if self.bias is not None:
            init.zeros_(self.bias)


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
        factors = table.coefficients
        weight: FactoredWeight = torch.Tensor._make_wrapper_subclass(
            cls,
            (table.layout.num_embeddings, table.layout.dim),
            dtype=factors.dtype,
            device=factors.device,
            requires_grad=factors.requires_grad and not detached,
        )
        weight._table, weight._detached = table, detached
        return weight

    def _stands_for(self, factors: Tensor) -> bool:
        """Whether this was made for these coefficients, and as they are now."""
        now = (factors.dtype, factors.device, factors.requires_grad, self._table.layout.num_embeddings)
        as_made = (self.dtype, self.device, self.requires_grad, len(self))
        return self._table.coefficients is factors and as_made == now

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
            raise AttributeError(_WEIGHT_IS_READ_ONLY)
        args, kwargs = tree_map(_to_dense, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Serve the callers that switch __torch_function__ off."""
        args, kwargs = tree_map(_to_dense, (args, kwargs or {}))
        return func(*args, **kwargs)


# The stand-ins in use, by the identity of the coefficients that they stand for.
_STAND_INS: WeakValueDictionary[int, FactoredWeight] = WeakValueDictionary()

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

_WEIGHT_IS_READ_ONLY = (
    "the dense weight of a factored table was to be changed, or made a parameter; it is built from the factors at each "
    "use and can only be read (.clone() gives a dense tensor). Give the module's set_rows(token_ids, vectors) the rows "
    "of tokens that were added, or change the parameters `coefficients` and `bases`, or get a dense model with "
    "hf_projclust.decompress(model) first; an adapter of the table can be loaded on that one and merged there, if it "
    "was saved with save_embedding_layers=False."
)


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
    counterpart: type[FactoredTable] = (
        _embedding_class(type(module)) if isinstance(module, nn.Embedding) else ProjClustHead
    )
    del module.weight
    module.__class__ = counterpart
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


def in_place_of_dense_weight() -> Tensor:
    """What a file has under the name of a dense weight that is not in it.

    A native class that is pointed at the file refuses the shape, where it would fill in at random what is missing.
    """
    return torch.zeros(1, dtype=torch.uint8)


def _embedding_class(native_class: type[nn.Embedding]) -> type[ProjClustEmbedding]:
    if native_class is nn.Embedding:
        return ProjClustEmbedding
    if native_class not in _MADE_CLASSES:
        attributes = {"__module__": __name__, "native_class": native_class}
        bases = (native_class, ProjClustEmbedding)
        _MADE_CLASSES[native_class] = type(f"{PREFIX}{native_class.__name__}", bases, attributes)
    return _MADE_CLASSES[native_class]


def _empty_embedding(native_class: type[nn.Embedding]) -> ProjClustEmbedding:
    embedding_class = _embedding_class(native_class)
    return embedding_class.__new__(embedding_class)


def _reconstruct(coefficients: Tensor, basis: Tensor | None) -> Tensor:
    """Map coordinates (rows, rank) in a basis (rank, dim) back to rows (rows, dim)."""
    return coefficients if basis is None else coefficients @ basis


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
