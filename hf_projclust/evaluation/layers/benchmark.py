"""The factored vocabulary table against the dense one and what other libraries offer: time and memory of a layer.

Who takes part is in ``contenders``. Times are compared within a round, in which the dense layer is timed and then
every contender, so that a machine whose speed changes harms no ratio. Nothing here says what a contender's error costs
a model; one whose outputs are further from those of the dense table than its format explains takes no part.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ...resources import Resources
from ...whole_numbers import check_whole
from .contenders import EMBEDDINGS, HEADS, Contender
from .memory import peak_bytes, resident_bytes
from .rounds import Call, time_in_rounds
from .tables import LEAST_FACTORS, DrawnTable, draw_table, layout_of

TOKENS = (1, 16, 128, 1024, 8192)
VOCABULARY = (30_522, 128_000)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMBEDDING, TRAINING, HEAD = "embedding forward", "embedding forward and backward", "head forward"
HEAD_TOKENS = 16  # at most: a head that generates computes the last token of each sequence only
_BATCHES = 16  # of ids, taken in turn, so that no few rows are always in the processor's cache


@dataclass(frozen=True)
class LayerRow:
    """What was measured of one contender in one operation.

    Attributes:
        operation: ``EMBEDDING``, ``TRAINING`` or ``HEAD``.
        vocabulary: Rows of the table, n.
        dim: Width of the table, d.
        tokens: Tokens of a call.
        contender: Its name; the first, "dense", is what the others are compared to.
        calls: Calls that were timed together in a round.
        seconds: Of one call, in each round that it took part in: the first ones.
        dense_seconds: Of one call of the dense layer, in the same rounds.
        ratio: Median over rounds of ``seconds`` over ``dense_seconds``.
        ratio_low: Lower quartile.
        ratio_high: Upper quartile.
        peak_bytes: The most memory that a call took, its outputs among it, beyond what was held before.
        resident_bytes: Memory that the layer holds.
        relative_error: Distance of its outputs from those of the dense layer, over their norm.
    """

    operation: str
    vocabulary: int
    dim: int
    tokens: int
    contender: str
    calls: int
    seconds: tuple[float, ...]
    dense_seconds: tuple[float, ...]
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_bytes: int
    resident_bytes: int
    relative_error: float


@dataclass(frozen=True)
class Absence:
    """A contender that took no part.

    Attributes:
        operation: As of ``LayerRow``.
        vocabulary: Rows of the table.
        tokens: Tokens of a call; None for any number of them.
        contender: Its name.
        reason: Why.
    """

    operation: str
    vocabulary: int
    tokens: int | None
    contender: str
    reason: str


@dataclass(frozen=True)
class _Entrant:
    """A contender that was built, and what was found of it before any operation."""

    contender: Contender
    module: nn.Module
    relative_error: float
    resident_bytes: int


def benchmark_layers(
    *,
    tokens: Sequence[int] = TOKENS,
    vocabulary: Sequence[int] = VOCABULARY,
    dim: int = 768,
    rounds: int = 20,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
) -> tuple[list[LayerRow], list[Absence]]:
    """Measure every contender on tables drawn at random, with a progress bar.

    Args:
        tokens: Tokens of a call, drawn by Zipf's law; the head computes those numbers that are 16 or less.
        vocabulary: Rows of the tables.
        dim: Width of the tables.
        rounds: Rounds of each measurement; fewer, but five, of what would take more than half a second in all.
        seed: Seed of tables and tokens.
        device: Where to compute; by default the CPU.
        dtype: Of the dense table and the factors: "float32", "bfloat16" or "float16".

    Returns:
        What was measured, and the contenders that took no part.

    Raises:
        ValueError: If an option is out of its range, or a table is too small.
    """
    for name, numbers in (("tokens", tokens), ("vocabulary", vocabulary), ("dim", [dim]), ("rounds", [rounds])):
        _check_numbers(name, numbers, least=1)
    _check_numbers("seed", [seed], least=0)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; expected one of {', '.join(map(repr, DTYPES))}.")
    for num_rows in vocabulary:
        layout_of(num_rows, dim, LEAST_FACTORS)
    Resources(device=device, memory_limit=None, checkpoint=None)
    few = [count for count in tokens if count <= HEAD_TOKENS]
    layers = [(EMBEDDINGS, (EMBEDDING, TRAINING), list(tokens)), (HEADS, (HEAD,), few)]
    rows: list[LayerRow] = []
    absences: list[Absence] = []
    total = len(vocabulary) * sum(len(operations) * len(counts) for _, operations, counts in layers)
    with logging.tqdm(desc="Benchmark", total=total, miniters=0) as progress:
        for num_rows in vocabulary:
            table = draw_table(num_rows, dim, seed=seed, device=torch.device(device or "cpu"), dtype=DTYPES[dtype])
            for contenders, operations, counts in layers if few else layers[:1]:
                progress.set_postfix_str(f"making layers of {num_rows:,} x {dim}")
                inputs = table.hidden_states if contenders is HEADS else table.token_ids
                entrants, reasons = _enter(contenders, table, inputs)
                for operation in operations:
                    idle = {} if operation != TRAINING else _without_training(entrants)
                    absences += [Absence(operation, num_rows, None, *item) for item in {**reasons, **idle}.items()]
                    for count in counts:
                        progress.set_postfix_str(f"{operation}, {count:,} of {num_rows:,} x {dim}")
                        found, failed = _measure(operation, count, entrants, table, rounds, seed)
                        rows += found
                        absences += [Absence(operation, num_rows, count, *item) for item in failed.items()]
                        progress.update()
                del entrants
    return rows, absences


def _without_training(entrants: Sequence[_Entrant]) -> dict[str, str]:
    names = [entrant.contender.name for entrant in entrants if not entrant.contender.trains]
    return dict.fromkeys(names, "it does not train the table")


def _check_numbers(name: str, numbers: Sequence[int], *, least: int) -> None:
    for number in numbers:
        check_whole(name, number, least)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}={list(numbers)}; expected one number or several that differ. Give each once.")


def _enter(contenders: Sequence[Contender], table: DrawnTable, inputs: Tensor) -> tuple[list[_Entrant], dict[str, str]]:
    """Build the contenders, the dense one first, and say why some cannot run, or compute something else."""
    entrants: list[_Entrant] = []
    reasons: dict[str, str] = {}
    expected = torch.empty(0)
    for contender in contenders:
        # Libraries raise errors of any kind where they do not support a device, a dtype or a width.
        with _listing(reasons, contender.name, catch=bool(entrants)), torch.no_grad():
            module = contender.build(table)
            outputs = module(inputs).float()
            expected = expected if entrants else outputs
            error = float((outputs - expected).norm() / expected.norm())
            most = contender.tolerance + 8 * torch.finfo(table.dense.dtype).eps
            if not error <= most:
                raise ValueError(
                    f"its outputs are {error:.2g} from those of the dense layer, relative to their norm; expected "
                    f"{most:.2g} or less"
                )
            entrants.append(_Entrant(contender, module, error, resident_bytes(module)))
    return entrants, reasons


def _measure(
    operation: str, tokens: int, entrants: Sequence[_Entrant], table: DrawnTable, rounds: int, seed: int
) -> tuple[list[LayerRow], dict[str, str]]:
    """Measure one operation with one number of tokens; say which contenders it fails for."""
    device, (num_rows, dim) = table.dense.device, table.dense.shape
    batches = _batches(table, operation, tokens, seed)
    reasons: dict[str, str] = {}
    calls: dict[str, Call] = {}
    peaks: dict[str, int] = {}
    taking_part = [entrant for entrant in entrants if operation != TRAINING or entrant.contender.trains]
    for entrant in taking_part:
        name, call = entrant.contender.name, _call(operation, entrant.module, batches)
        with _listing(reasons, name, catch=bool(calls)):
            peaks[name] = peak_bytes(functools.partial(call, 0), device)
            calls[name] = call
    timed = time_in_rounds(calls, rounds, device)
    rows = []
    for entrant in taking_part:
        if (name := entrant.contender.name) in timed:
            seconds = timed[name].seconds
            dense_seconds = next(iter(timed.values())).seconds[: len(seconds)]
            ratios = torch.tensor(seconds, dtype=torch.float64) / torch.tensor(dense_seconds, dtype=torch.float64)
            low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
            rows.append(
                LayerRow(
                    operation=operation,
                    vocabulary=num_rows,
                    dim=dim,
                    tokens=tokens,
                    contender=name,
                    calls=timed[name].calls,
                    seconds=seconds,
                    dense_seconds=dense_seconds,
                    ratio=middle,
                    ratio_low=low,
                    ratio_high=high,
                    peak_bytes=peaks[name],
                    resident_bytes=entrant.resident_bytes,
                    relative_error=entrant.relative_error,
                )
            )
    return rows, reasons


def _batches(table: DrawnTable, operation: str, tokens: int, seed: int) -> list[Tensor]:
    """Inputs of calls that follow one another: hidden states of a head, else ids by Zipf's law, each (tokens, ...)."""
    device = table.dense.device
    if operation == HEAD:
        return [table.hidden_states[:tokens]] * _BATCHES
    generator = torch.Generator().manual_seed(seed)
    use = 1 / torch.arange(1.0, len(table.dense) + 1)
    ids = torch.multinomial(use, _BATCHES * tokens, replacement=True, generator=generator)
    return list(ids.to(device).view(_BATCHES, tokens))


def _call(operation: str, module: nn.Module, batches: list[Tensor]) -> Call:
    """What is timed; the number of a call says which batch it takes."""

    @torch.no_grad()
    def forward(number: int) -> Any:
        return module(batches[number % _BATCHES])

    if operation != TRAINING:
        return forward
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.no_grad():
        gradient = torch.ones_like(module(batches[0]))
    return lambda number: torch.autograd.grad(module(batches[number % _BATCHES]), parameters, gradient)


@contextlib.contextmanager
def _listing(reasons: dict[str, str], name: str, *, catch: bool) -> Iterator[None]:
    """Note an error as the reason why a contender takes no part; the dense layer's is raised."""
    try:
        yield
    except Exception as error:
        if not catch:
            raise
        first_line = next(iter(str(error).splitlines()), "")
        reasons[name] = f"{type(error).__name__}: {first_line}".removeprefix("ValueError: ")
