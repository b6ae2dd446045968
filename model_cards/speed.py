"""How long a look-up, a head and a compiled encoder of a compressed model take, beside the dense ones, as ratios.

    OMP_NUM_THREADS=1 python model_cards/speed.py > model_cards/speed.md

The table is that of DistilBERT's shape, 30,522 x 768 of random numbers, in five clusters of equal sizes and ranks; 40 %
of it are saved for the look-ups, 60 % for the head and the encoder. What is compared is timed in turns, in one
process: the median of the ratios in each round, with the quartiles. "Products" are the matrix products alone that the
tokens of a look-up need, given as tensors. Run it when nothing else does: the last line says what else took time.
"""

from __future__ import annotations

import copy
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel

from hf_projclust.embedding_projclust import factor_in_place
from hf_projclust.evaluation.layers.rounds import time_in_rounds
from hf_projclust.evaluation.machine import busy_share, describe_machine
from hf_projclust.layout_projclust import FactorLayout

TOKENS, DIM, CLUSTERS = 30522, 768, 5
ROUNDS = 100
CPU = torch.device("cpu")


def factored(module: Any, saved: float) -> Any:
    """A dense layer of the table's shape, with random factors in its place."""
    size = TOKENS // CLUSTERS
    sizes = (*[size] * (CLUSTERS - 1), TOKENS - (CLUSTERS - 1) * size)
    rank = int((1 - saved) * TOKENS * DIM / (TOKENS + CLUSTERS * DIM))
    factor_in_place(module, FactorLayout(DIM, sizes, (rank,) * CLUSTERS))
    nn.init.normal_(module.coefficients, std=0.05)
    nn.init.normal_(module.bases, std=0.05)
    module.rows.copy_(torch.randperm(TOKENS))
    return module.requires_grad_(False).eval()


def products(table: Any, batches: list[torch.Tensor]) -> Callable[[int], Any]:
    """The products alone of each batch: the rows of each cluster's tokens, side by side, with its basis."""
    ends, blocks = table.layout.row_ends, table.blocks()
    needed = []
    for ids in batches:
        rows_of: list[list[int]] = [[] for _ in ends]
        for row in table.rows[ids.flatten()].tolist():
            cluster = bisect_right(ends, row)
            rows_of[cluster].append(row - (ends[cluster] - table.layout.cluster_sizes[cluster]))
        needed.append([(block[0][rows], block[1]) for rows, block in zip(rows_of, blocks, strict=True) if rows])
    return lambda number: [rows @ basis for rows, basis in needed[number % len(needed)]]


def of_batches(layer: nn.Module, batches: list[torch.Tensor]) -> Callable[[int], Any]:
    """What a layer gives of each batch in turn."""
    return lambda number: layer(batches[number % len(batches)])


def line(what: str, over: str, calls: dict[str, Callable[[int], Any]]) -> str:
    """The first call over the second, timed in turns."""
    for call in calls.values():
        call(0)
    timed = list(time_in_rounds(calls, ROUNDS, CPU).values())
    ratios = [ours / base for ours, base in zip(timed[0].seconds, timed[1].seconds, strict=False)]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    milliseconds = 1e3 * statistics.median(timed[0].seconds)
    return f"| {what} | {over} | {middle:.2f} ({lower:.2f} to {upper:.2f}) | {milliseconds:.3f} ms | {len(ratios)} |"


def look_ups(dense: nn.Embedding) -> Iterator[str]:
    """One token, as in decoding, and 1,024 distinct ones."""
    table = factored(copy.deepcopy(dense), 0.4)
    for number, name in ((1, "look-up of 1 token"), (1024, "look-up of 1,024 tokens")):
        batches = [torch.randperm(TOKENS)[:number].view(1, number) for _ in range(256 if number == 1 else 8)]
        ours, theirs = of_batches(table, batches), of_batches(dense, batches)
        yield line(name, "its products", {"ours": ours, "products": products(table, batches)})
        yield line(name, "the dense look-up", {"ours": ours, "dense": theirs})


def heads(dense: nn.Embedding) -> Iterator[str]:
    """Logits of one position."""
    head = nn.Linear(DIM, TOKENS, bias=False)
    head.weight = dense.weight
    ours, hidden = factored(copy.deepcopy(head), 0.6), torch.randn(1, DIM)
    yield line(
        "head, one position", "the dense head", {"ours": lambda _: ours(hidden), "dense": lambda _: head(hidden)}
    )


def encoders() -> Iterator[str]:
    """All of DistilBERT, compiled into one graph."""
    dense = DistilBertModel(DistilBertConfig()).eval()
    ours = copy.deepcopy(dense)
    factored(ours.get_input_embeddings(), 0.6)
    models = {name: torch.compile(model, fullgraph=True) for name, model in (("ours", ours), ("dense", dense))}
    for shape in ((8, 64), (32, 128)):
        torch.compiler.reset()
        ids = torch.randint(TOKENS, shape)
        calls = {name: (lambda _, model=model, ids=ids: model(input_ids=ids)) for name, model in models.items()}
        yield line(f"compiled encoder, {shape[0]} x {shape[1]} tokens", "the dense one, compiled", calls)


def main() -> None:
    """Measure, and print a table in Markdown."""
    torch.manual_seed(0)
    busy = busy_share()
    dense = nn.Embedding(TOKENS, DIM).requires_grad_(False)
    with torch.inference_mode():
        lines = [*look_ups(dense), *heads(dense), *encoders()]
    print("# Time of what a compressed model does\n")  # noqa: T201
    print("| what | over | ratio (quartiles) | takes | rounds |")  # noqa: T201
    print("|---|---|---:|---:|---:|", *lines, sep="\n")  # noqa: T201
    print(f"\nSeed 0. {describe_machine()}. Before it began, other work took {busy:.0%} of the processors.")  # noqa: T201


if __name__ == "__main__":
    main()
