"""How to factor a table: the options, the presets that name combinations of them, and their checks.

What an option means stands with ``hf_projclust.compress``. Nothing is computed here.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .token_counts import check_sources, describe_sources
from .token_counts.sources import written_sources

Preset = Literal["adaptive", "messi", "svd", "robust"]
TokenCounts = str | Sequence[str] | Sequence[float] | Tensor

_PLAIN = {"adaptive_ranks": False, "p": 2.0, "token_counts": "uniform", "norm_exponent": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    "adaptive": {
        "num_clusters": "auto",
        "adaptive_ranks": True,
        "p": 2.0,
        "token_counts": "tokenizer",
        "norm_exponent": 1.0,
    },
    "messi": {**_PLAIN, "num_clusters": 5},
    "svd": {**_PLAIN, "num_clusters": 1},
    "robust": {**_PLAIN, "num_clusters": 1, "p": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class FactoringOptions:
    """How to factor a table; an option that is None gets the value of the preset.

    Raises:
        ValueError: If an option is out of the range that any table could need.
    """

    preset: str
    num_clusters: int | str | None
    compression: float | None
    rank: int | None
    adaptive_ranks: bool | None
    p: float | None
    token_counts: Any
    count_exponent: float
    norm_exponent: float | None
    seed: int
    num_starts: int
    max_rounds: int
    tolerance: float

    def __post_init__(self) -> None:
        """Refuse options that no table could make right, before a model is loaded."""
        if not isinstance(self.preset, str) or self.preset not in PRESETS:
            known = ", ".join(repr(name) for name in PRESETS)
            raise ValueError(f"preset={self.preset!r}; expected one of {known}. Check the spelling.")
        self._check_size()
        if self.num_clusters is not None and self.num_clusters != "auto":
            self._check_count("num_clusters", 1, "Leave it out for the default of the preset, or give 'auto'")
        if self.preset == "svd" and self.num_clusters not in (None, 1):
            raise ValueError(
                f"num_clusters={self.num_clusters} with preset='svd'; expected 1, since SVD is one subspace. "
                "Use preset='messi' for several."
            )
        self._check_count("seed", 0, "Any such number up to 2**32 will do")
        if self.seed > 2**32:
            raise ValueError(f"seed={self.seed}; expected at most 2**32. Any smaller number will do.")
        for name in ("num_starts", "max_rounds"):
            self._check_count(name, 1, "Leave it out for the default")
        self._check_share("tolerance", "above 0 and below 1. Leave it out for the default")
        if self.adaptive_ranks is not None and not isinstance(self.adaptive_ranks, bool):
            raise ValueError(f"adaptive_ranks={self.adaptive_ranks!r}; expected True or False.")
        if self.p is not None:
            self._check_number("p", 1, 2, "from 1 (robust) to 2 (least squares)")
        self._check_number("count_exponent", 0, 2, "from 0 (every token alike) to 2")
        if self.norm_exponent is not None:
            self._check_number("norm_exponent", 0, 4, "from 0 (errors count as they are) to 4")
        if self.rank is not None:
            self._settle_given_rank()
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if isinstance(self.token_counts, list | tuple) and [type(value) for value in self.token_counts] == [str]:
            object.__setattr__(self, "token_counts", self.token_counts[0])
        check_sources(self.token_counts)

    @property
    def needs_no_tokenizer(self) -> bool:
        """Whether the use of tokens is known without one."""
        written = written_sources(self.token_counts)
        return written is None or all(source == "uniform" for source in written)

    def record(self) -> dict[str, Any]:
        """The options as a configuration keeps them, of JSON types."""
        return {**vars(self), "token_counts": describe_sources(self.token_counts)}

    def _check_size(self) -> None:
        if (self.compression is None) == (self.rank is None):
            raise ValueError(
                f"compression={self.compression} and rank={self.rank}; expected exactly one of the two. Give the share "
                "of the table to save, such as compression=0.4, or the coordinates to keep of each row, such as "
                "rank=200."
            )
        if self.compression is not None:
            self._check_share(
                "compression", "above 0 and below 1, the share of the table to save. To save 40 %, give 0.4"
            )
        if self.rank is not None:
            self._check_count("rank", 1, "Give the coordinates to keep of each row")

    def _settle_given_rank(self) -> None:
        """A rank that is given is that of every cluster; then there is no budget to choose their number by."""
        if self.num_clusters == "auto" or self.adaptive_ranks:
            raise ValueError(
                f"rank={self.rank} with num_clusters={self.num_clusters!r} and adaptive_ranks={self.adaptive_ranks}; "
                "expected a number of clusters and equal ranks, since both are chosen under a budget. Give compression "
                "in place of rank."
            )
        object.__setattr__(self, "adaptive_ranks", False)
        if self.num_clusters is None and self.preset == "adaptive":
            object.__setattr__(self, "num_clusters", PRESETS["messi"]["num_clusters"])

    def _check_count(self, name: str, least: int, way_out: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
            raise ValueError(f"{name}={value!r}; expected a whole number, {least} or more. {way_out}.")
        object.__setattr__(self, name, int(value))

    def _check_share(self, name: str, expected: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < 1:
            raise ValueError(f"{name}={value!r}; expected a number {expected}.")
        object.__setattr__(self, name, float(value))

    def _check_number(self, name: str, least: float, most: float, expected: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= float(value) <= most:
            raise ValueError(f"{name}={value!r}; expected a number {expected}. Leave it out for the default.")
        object.__setattr__(self, name, float(value))
