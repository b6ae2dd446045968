"""How to factor a table: the options, the presets that name combinations of them, and their checks.

What an option means stands with ``hf_projclust.compress``. Nothing is computed here.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .resources import number_of_bytes
from .token_counts import check_sources, describe_sources
from .token_counts.sources import written_sources
from .whole_numbers import check_whole

# Coordinates that a byte stands for, by their bits; 3 bits are a little less.
COEFFICIENT_BITS = {8: 1, 4: 2, 3: 3, 2: 4}
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
    ratio: float | None = None
    table_bytes: int | str | None = None
    coefficient_bits: int | None = None
    basis_bits: int | None = None

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
        self._check_bits()
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if isinstance(self.token_counts, list | tuple) and [type(value) for value in self.token_counts] == [str]:
            object.__setattr__(self, "token_counts", self.token_counts[0])
        check_sources(self.token_counts)
        if self.has_byte_budget and not (self.adaptive_ranks and self.p == 2):
            raise ValueError(
                f"{self._budget} with preset={self.preset!r}, adaptive_ranks={self.adaptive_ranks} and p={self.p:g}; "
                "expected ranks that are chosen under the budget, and squared errors. Use preset='adaptive', or give "
                "compression and coefficient_bits in place of the bytes."
            )

    @property
    def has_byte_budget(self) -> bool:
        """Whether ranks and bits are chosen under a budget of bytes."""
        return self.ratio is not None or self.table_bytes is not None

    @property
    def is_packed(self) -> bool:
        """Whether the table is stored in few bits."""
        return self.has_byte_budget or self.coefficient_bits is not None

    @property
    def _budget(self) -> str:
        return f"table_bytes={self.table_bytes}" if self.ratio is None else f"ratio={self.ratio:g}"

    @property
    def needs_no_tokenizer(self) -> bool:
        """Whether the use of tokens is known without one."""
        written = written_sources(self.token_counts)
        return written is None or all(source == "uniform" for source in written)

    def record(self) -> dict[str, Any]:
        """The options as a configuration keeps them, of JSON types."""
        return {**vars(self), "token_counts": describe_sources(self.token_counts)}

    def _check_size(self) -> None:
        given = [self.compression, self.rank, self.ratio, self.table_bytes]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                f"compression={self.compression}, rank={self.rank}, ratio={self.ratio} and "
                f"table_bytes={self.table_bytes}; expected exactly one of them. Give the share of the table to save, "
                "such as compression=0.4, the coordinates to keep of each row, such as rank=200, or the size in few "
                "bits, such as ratio=16 (times smaller) or table_bytes='3MB'."
            )
        if self.compression is not None:
            self._check_share(
                "compression", "above 0 and below 1, the share of the table to save. To save 40 %, give 0.4"
            )
        if self.rank is not None:
            self._check_count("rank", 1, "Give the coordinates to keep of each row")
        if self.ratio is not None:
            ratio: Any = self.ratio
            if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 1 < float(ratio) < math.inf:
                raise ValueError(
                    f"ratio={ratio!r}; expected a number above 1, by which the table is to be smaller. For a "
                    "sixteenth of its bytes, give 16."
                )
            object.__setattr__(self, "ratio", float(ratio))
        if self.table_bytes is not None:
            object.__setattr__(self, "table_bytes", number_of_bytes("table_bytes", self.table_bytes))

    def _check_bits(self) -> None:
        for name, known in (("coefficient_bits", COEFFICIENT_BITS), ("basis_bits", (16, 8))):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value not in known:
                raise ValueError(
                    f"{name}={value!r}; expected one of {', '.join(map(str, known))}. Leave it out for the default."
                )
            if self.has_byte_budget:
                raise ValueError(
                    f"{name}={value} with {self._budget}; expected one or the other, since bits are chosen under a "
                    "budget of bytes. Leave the bits out, or give compression in place of the bytes."
                )
            object.__setattr__(self, name, int(value))
        if self.basis_bits is not None and self.coefficient_bits is None:
            raise ValueError(
                f"basis_bits={self.basis_bits} without coefficient_bits; expected both, or the second alone. Give "
                "coefficient_bits too."
            )

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
        check_whole(name, value, least, way_out=f"{way_out}.")
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
