"""Tiny models with tables large enough for codebooks, and what the tests of tables in few bits ask of them."""

import copy
from typing import Any

import torch
from conftest import TINY_MODELS

from hf_projclust import compress
from hf_projclust.layout_projclust import PACKED_NAMES
from hf_projclust.packed_projclust import PackedTable
from hf_projclust.vocabulary_projclust import factored_tables

NUM_TOKENS, DIM = 2003, 32  # prime, so that no cluster size divides it
STORED_NAMES = (*PACKED_NAMES, "scales")
OPTIONS: dict[str, Any] = {"token_counts": "uniform", "max_rounds": 6, "num_clusters": 2}
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


def falling_table(num_rows: int = NUM_TOKENS, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    """A random table whose coordinates along its axes fall by a third, in two halves with axes of their own."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dim, generator=generator) * 0.7 ** torch.arange(dim)
    halves = rows.split([num_rows // 2, num_rows - num_rows // 2])
    axes = [torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q for _ in halves]
    table = torch.cat([half @ axis for half, axis in zip(halves, axes, strict=True)])
    return table[torch.randperm(num_rows, generator=generator)]


def dense_model(name: str, seed: int = 0) -> Any:
    """A tiny model of the shared table, with more tokens, whose tables have spectra that fall."""
    tiny = TINY_MODELS[name]
    config = copy.deepcopy(tiny.config)
    config.vocab_size = NUM_TOKENS
    setattr(config, next(width for width in _WIDTHS if width in vars(config)), DIM)
    torch.manual_seed(seed)
    model = tiny.model_class(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(falling_table(seed=seed))
        if name == "llama":
            model.lm_head.weight.copy_(falling_table(seed=seed + 1))
    return model


def packed_model(name: str, **options: Any) -> Any:
    """The same in few bits: a sixth of the bytes, unless the options say otherwise."""
    size = {} if {"ratio", "table_bytes", "compression", "rank"} & options.keys() else {"ratio": 6}
    return compress(dense_model(name), **(OPTIONS | size | options))


def inputs(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids, the first and the last among them."""
    ids = torch.randint(NUM_TOKENS, (4, 12), generator=torch.Generator().manual_seed(seed))
    ids[0, 0], ids[0, 1] = NUM_TOKENS - 1, 0
    return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(0)} if name == "t5" else {})


@torch.no_grad()
def logits(model: Any, name: str) -> torch.Tensor:
    return model.eval()(**inputs(name)).logits


def packed_tables(model: Any) -> dict[str, PackedTable]:
    """The tables in few bits that a file has, by name."""
    found = {name: table for name, table in factored_tables(model).items() if isinstance(table, PackedTable)}
    return {name: table for name, table in found.items() if f"{name}.rows" not in model._tied_rows}
