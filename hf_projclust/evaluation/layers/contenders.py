"""Who takes part in the benchmark of layers: the dense layer, the factored one, and what other libraries offer.

A contender is an entry of ``EMBEDDINGS`` or ``HEADS``: a name, a function from the table to a module, how far its
outputs may be from those of the dense table, and whether it trains. To add one, add an entry. The first entry is the
dense layer, to which all others are compared. A function imports the library that it needs, and raises where it cannot
run: the benchmark lists it with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .tables import DrawnTable

_INT8_ERROR, _INT4_ERROR = 0.02, 0.15
_INT4: Any = vars(torch)["int4"]


@dataclass(frozen=True)
class Contender:
    """One way to keep a vocabulary table.

    Attributes:
        name: What tables and JSON call it.
        build: Makes the module, on the device of the table and for its dtype.
        tolerance: Distance of its outputs from the dense ones over their norm that its format explains, beyond
            rounding in the dtype of the table.
        trains: Whether the table's parameters have gradients.
    """

    name: str
    build: Callable[[DrawnTable], nn.Module]
    tolerance: float = 0.0
    trains: bool = False


def _torchao(module: nn.Module, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    inside = nn.Sequential(module.requires_grad_(False))
    quantize_(inside, config, lambda layer, _: isinstance(layer, nn.Embedding | nn.Linear))
    if type(inside[0].weight) is nn.Parameter:
        raise ValueError("torchao left the layer dense: its width is no multiple of the group size of 32")
    return inside[0]


def _torchao_int8(module: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig

    return _torchao(module, Int8WeightOnlyConfig(set_inductor_config=False))


def _torchao_int4_embedding(table: DrawnTable) -> nn.Module:
    """Its numbers have four bits each, and eight in memory."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=_INT4, granularity=PerGroup(32))
    return _torchao(table.embedding(), config)


def _torchao_packed_embedding(table: DrawnTable) -> nn.Module:
    """Four bits each in memory too, where torchao was built with its kernels for that."""
    from torchao.prototype.quantization.embedding.api import EmbeddingQuantizer
    from torchao.quantization.granularity import PerGroup

    inside = nn.Sequential(table.embedding().requires_grad_(False))
    return EmbeddingQuantizer(_INT4, PerGroup(32)).quantize(inside)[0]


def _torchao_int4_head(table: DrawnTable) -> nn.Module:
    """The layout that runs without a further library: of a prototype on the CPU, of tinygemm on CUDA (bfloat16)."""
    if table.dense.device.type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return _torchao(table.head(), PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))
    from torchao.quantization import Int4WeightOnlyConfig

    config = Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)
    return _torchao(table.head(), config)


class _InHalf(nn.Module):
    """A layer given float16, as bitsandbytes computes in eight bits, with a warning at each call that it was not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layer(hidden_states.half()).to(hidden_states.dtype)


def _bitsandbytes() -> Any:
    return importlib.import_module("bitsandbytes")


def _quantised(table: DrawnTable, module: nn.Module, weight: nn.Parameter) -> nn.Module:
    """A weight of bitsandbytes that is on the CPU is quantised when its module is moved."""
    module.weight = weight
    return module.to(table.dense.device).eval()


def _bitsandbytes_8bit_embedding(table: DrawnTable) -> nn.Module:
    bnb = _bitsandbytes()
    module = bnb.nn.Embedding8bit(*table.dense.shape, device="meta", dtype=table.dense.dtype)
    return _quantised(table, module, _int8_weight(table))


def _bitsandbytes_4bit_embedding(table: DrawnTable) -> nn.Module:
    bnb = _bitsandbytes()
    module = bnb.nn.EmbeddingNF4(*table.dense.shape, device="meta", dtype=table.dense.dtype)
    return _quantised(table, module, _nf4_weight(table, module))


def _bitsandbytes_8bit_head(table: DrawnTable) -> nn.Module:
    bnb = _bitsandbytes()
    num_rows, dim = table.dense.shape
    module = bnb.nn.Linear8bitLt(dim, num_rows, bias=False, has_fp16_weights=False, device="meta")
    return _InHalf(_quantised(table, module, _int8_weight(table)))


def _bitsandbytes_4bit_head(table: DrawnTable) -> nn.Module:
    bnb = _bitsandbytes()
    num_rows, dim = table.dense.shape
    module = bnb.nn.Linear4bit(
        dim, num_rows, bias=False, compute_dtype=table.dense.dtype, quant_type="nf4", device="meta"
    )
    return _quantised(table, module, _nf4_weight(table, module))


def _int8_weight(table: DrawnTable) -> Any:
    bnb = _bitsandbytes()
    return bnb.nn.Int8Params(table.dense.cpu(), requires_grad=False, has_fp16_weights=False)


def _nf4_weight(table: DrawnTable, module: nn.Module) -> Any:
    bnb = _bitsandbytes()
    return bnb.nn.Params4bit(
        table.dense.cpu(), requires_grad=False, compress_statistics=False, quant_type="nf4", module=module
    )


EMBEDDINGS: tuple[Contender, ...] = (
    Contender("dense", DrawnTable.embedding, trains=True),
    Contender("factored 80 %", lambda table: table.factor(table.embedding(), 0.8), trains=True),
    Contender("factored 40 %", lambda table: table.factor(table.embedding(), 0.4), trains=True),
    Contender("factored 80 % int4", lambda table: table.pack(table.embedding(), 0.8, 4), _INT4_ERROR),
    Contender("torchao int8", lambda table: _torchao_int8(table.embedding()), _INT8_ERROR),
    Contender("torchao int4", _torchao_int4_embedding, _INT4_ERROR),
    Contender("torchao int4 packed", _torchao_packed_embedding, _INT4_ERROR),
    Contender("bitsandbytes int8", _bitsandbytes_8bit_embedding, _INT8_ERROR),
    Contender("bitsandbytes nf4", _bitsandbytes_4bit_embedding, _INT4_ERROR),
)

HEADS: tuple[Contender, ...] = (
    Contender("dense", DrawnTable.head),
    Contender("factored 60 %", lambda table: table.factor(table.head(), 0.6)),
    Contender("factored 60 % int4", lambda table: table.pack(table.head(), 0.6, 4), _INT4_ERROR),
    Contender("torchao int8", lambda table: _torchao_int8(table.head()), _INT8_ERROR),
    Contender("torchao int4", _torchao_int4_head, _INT4_ERROR),
    Contender("bitsandbytes int8", _bitsandbytes_8bit_head, _INT8_ERROR),
    Contender("bitsandbytes nf4", _bitsandbytes_4bit_head, _INT4_ERROR),
)
