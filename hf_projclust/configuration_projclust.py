"""Configuration of a compressed model: the native configuration plus the shapes of its factored tables.

One model type, "projclust", is registered with Transformers. Its JSON names the native type in
``base_model_type``; reading it makes, on demand, a subclass of the native configuration
(``ProjClustBertConfig`` for BERT), so that every native field, default and property holds. In memory
``model_type`` stays the native one, which tokenizers, PEFT and generation read; only the JSON says
"projclust", so that a Transformers without this plugin refuses the checkpoint instead of loading a random
table.

This file travels with a checkpoint: it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FORMAT_VERSION = 1  # of tables of floating numbers
PACKED_FORMAT_VERSION = 2  # of tables in few bits
TABLE_NAMES = ("embedding", "head")
PREFIX = "ProjClust"
PER_BYTE = (1, 2, 3, 4, 6, 8, 16)
BASIS_BITS = (16, 8, 4)
CODEBOOK_WORDS = 256
MOST_PACKED_CLUSTERS = 256
PACKED_NAMES = ("coefficients", "bases", "codebooks", "clusters")
CODE_FILES = (
    "configuration_projclust.py",
    "embedding_projclust.py",
    "head_projclust.py",
    "modeling_projclust.py",
    "table_projclust.py",
    "weight_projclust.py",
)
_AUTO_MAP = {"AutoConfig": "configuration_projclust.ProjClustConfig"}  # making the config registers its models
_MADE_CLASSES: dict[type, Any] = {}
_BAND_FIELDS = {"num_coordinates", "per_byte", "basis_bits"}
_DAMAGED = "The config.json is damaged: fetch the checkpoint again."

if TYPE_CHECKING:
    _NativeConfig = PreTrainedConfig
else:
    _NativeConfig = object


class ProjClustCheckpointError(ValueError):
    """A compressed checkpoint is damaged, incomplete, or not one that this version can read."""


@dataclass(frozen=True)
class FactorLayout:
    """Shapes of a factored table: the rows of cluster i have ``cluster_ranks[i]`` coordinates each.

    A cluster of rank ``dim`` keeps its rows as they are and has no basis; a cluster of rank 0 holds zero rows
    and stores nothing.

    Args:
        dim: Width of the table, d.
        cluster_sizes: Number of tokens in each cluster, n_1..n_k.
        cluster_ranks: Number of coordinates of a row in each cluster, j_1..j_k.

    Raises:
        ProjClustCheckpointError: If the numbers do not describe a table.
    """

    dim: int
    cluster_sizes: tuple[int, ...]
    cluster_ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the numbers before any memory is reserved for them."""
        object.__setattr__(self, "cluster_sizes", tuple(self.cluster_sizes))
        object.__setattr__(self, "cluster_ranks", tuple(self.cluster_ranks))
        numbers = (self.dim, *self.cluster_sizes, *self.cluster_ranks)
        if not all(type(number) is int for number in numbers) or self.dim < 1:
            raise ProjClustCheckpointError(
                f"the factored table has dim={self.dim!r}, cluster_sizes={self.cluster_sizes!r} and "
                f"cluster_ranks={self.cluster_ranks!r}; expected whole numbers and dim >= 1. "
                f"{_DAMAGED}"
            )
        if not self.cluster_sizes or len(self.cluster_sizes) != len(self.cluster_ranks):
            raise ProjClustCheckpointError(
                f"the factored table has {len(self.cluster_sizes)} cluster_sizes and {len(self.cluster_ranks)} "
                "cluster_ranks; expected as many of each, and at least one. "
                f"{_DAMAGED}"
            )
        if min(self.cluster_sizes) < 0 or not all(0 <= rank <= self.dim for rank in self.cluster_ranks):
            raise ProjClustCheckpointError(
                f"the factored table has cluster_sizes={self.cluster_sizes} and "
                f"cluster_ranks={self.cluster_ranks}; "
                f"expected sizes >= 0 and ranks from 0 to dim={self.dim}. "
                f"{_DAMAGED}"
            )

    @staticmethod
    def from_dict(fields: Any) -> FactorLayout:
        """The layout that ``to_dict`` described, refusing anything else."""
        if isinstance(fields, dict) and "cluster_bands" in fields:
            return PackedLayout.from_packed(fields)
        expected = {"dim", "cluster_sizes", "cluster_ranks"}
        if (
            not isinstance(fields, dict)
            or set(fields) != expected
            or not all(isinstance(fields[key], list | tuple) for key in ("cluster_sizes", "cluster_ranks"))
        ):
            raise ProjClustCheckpointError(
                f"the checkpoint's factored table is described by {fields!r}; expected {sorted(expected)}, the "
                "last two as lists. The config.json is damaged: fetch the checkpoint again."
            )
        return FactorLayout(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {
            "dim": self.dim,
            "cluster_sizes": list(self.cluster_sizes),
            "cluster_ranks": list(self.cluster_ranks),
        }

    @property
    def num_clusters(self) -> int:
        """Number of clusters, k."""
        return len(self.cluster_sizes)

    @property
    def num_embeddings(self) -> int:
        """Number of tokens, n."""
        return sum(self.cluster_sizes)

    @property
    def coefficient_counts(self) -> list[int]:
        """Stored coordinates of each cluster, n_i * j_i."""
        return [size * rank for size, rank in zip(self.cluster_sizes, self.cluster_ranks, strict=True)]

    @property
    def basis_ranks(self) -> list[int]:
        """Stored basis vectors of each cluster: j_i, and none where the rows are kept as they are."""
        return [rank if rank < self.dim else 0 for rank in self.cluster_ranks]

    @property
    def num_parameters(self) -> int:
        """Stored numbers of the whole table, the sum of j_i * (n_i + d)."""
        return sum(self.coefficient_counts) + sum(self.basis_ranks) * self.dim


@dataclass(frozen=True)
class Band:
    """Coordinates of the rows of a cluster that are stored alike.

    Args:
        num_coordinates: How many there are, 1 or more.
        per_byte: Coordinates that one byte stands for, so that each takes 8 / per_byte bits.
        basis_bits: Bits of a number in the basis vectors of these coordinates, one of ``BASIS_BITS``.
    """

    num_coordinates: int
    per_byte: int
    basis_bits: int

    @property
    def num_bytes(self) -> int:
        """Bytes of a row that stand for these coordinates."""
        return -(-self.num_coordinates // self.per_byte)

    def vector_bytes(self, dim: int) -> int:
        """Bytes of a basis vector of width ``dim``."""
        return -(-dim * self.basis_bits // 8)


@dataclass(frozen=True)
class PackedLayout(FactorLayout):
    """Shapes of a factored table in few bits: the rows of cluster i are a scale of one byte, and bands of coordinates.

    Args:
        dim: Width of the table, d.
        cluster_sizes: Number of tokens in each cluster, n_1..n_k, at most 256 clusters.
        cluster_ranks: Number of coordinates of a row in each cluster, those of its bands together.
        cluster_bands: Bands of each cluster, in the order of their coordinates; a cluster of rank 0 has none.
        checksums: CRC-32 of each packed tensor, by name.

    Raises:
        ProjClustCheckpointError: If the numbers do not describe a table.
    """

    cluster_bands: tuple[tuple[Band, ...], ...]
    checksums: dict[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check the numbers before any memory is reserved for them."""
        super().__post_init__()
        object.__setattr__(self, "cluster_bands", tuple(map(tuple, self.cluster_bands)))
        if len(self.cluster_sizes) > MOST_PACKED_CLUSTERS:
            raise ProjClustCheckpointError(
                f"the factored table in few bits has {len(self.cluster_sizes)} clusters; expected at most "
                f"{MOST_PACKED_CLUSTERS}. {_DAMAGED}"
            )
        for band in (band for bands in self.cluster_bands for band in bands):
            is_whole = all(type(number) is int for number in (band.num_coordinates, band.per_byte, band.basis_bits))
            if not is_whole or band.num_coordinates < 1:
                raise ProjClustCheckpointError(
                    f"the factored table has {band}; expected whole numbers >= 1. {_DAMAGED}"
                )
            if band.per_byte not in PER_BYTE:
                raise ProjClustCheckpointError(
                    f"a cluster_bands entry has per_byte={band.per_byte}; expected one of {PER_BYTE} coordinates a "
                    f"byte. {_DAMAGED}"
                )
            if band.basis_bits not in BASIS_BITS:
                raise ProjClustCheckpointError(
                    f"a cluster_bands entry has basis_bits={band.basis_bits}; expected one of {BASIS_BITS}. {_DAMAGED}"
                )

    @staticmethod
    def of_bands(
        dim: int,
        cluster_sizes: Sequence[int],
        cluster_bands: Sequence[Sequence[Band]],
        checksums: dict[str, int] | None = None,
    ) -> PackedLayout:
        """The layout whose ranks are those that the bands add up to."""
        ranks = tuple(sum(band.num_coordinates for band in bands) for bands in cluster_bands)
        return PackedLayout(dim, tuple(cluster_sizes), ranks, tuple(map(tuple, cluster_bands)), checksums or {})

    @staticmethod
    def from_packed(fields: dict[str, Any]) -> PackedLayout:
        """The layout that ``to_dict`` described, refusing anything else."""
        bands, checksums = fields.get("cluster_bands"), fields.get("checksums")
        is_described = (
            set(fields) == {"dim", "cluster_sizes", "cluster_bands", "checksums"}
            and isinstance(fields["cluster_sizes"], list)
            and isinstance(bands, list)
            and all(isinstance(cluster, list) for cluster in bands)
            and all(isinstance(band, dict) and set(band) == _BAND_FIELDS for cluster in bands for band in cluster)
            and all(type(band["num_coordinates"]) is int for cluster in bands for band in cluster)
            and isinstance(checksums, dict)
            and set(checksums) == set(PACKED_NAMES)
            and all(type(checksum) is int for checksum in checksums.values())
        )
        if not is_described:
            raise ProjClustCheckpointError(
                f"the checkpoint's factored table in few bits is described by {fields!r}; expected dim, cluster_sizes, "
                f"cluster_bands with {sorted(_BAND_FIELDS)} of each, and checksums of {', '.join(PACKED_NAMES)}. "
                f"{_DAMAGED}"
            )
        made = [[Band(**band) for band in cluster] for cluster in fields["cluster_bands"]]
        return PackedLayout.of_bands(fields["dim"], fields["cluster_sizes"], made, checksums)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {
            "dim": self.dim,
            "cluster_sizes": list(self.cluster_sizes),
            "cluster_bands": [[asdict(band) for band in bands] for bands in self.cluster_bands],
            "checksums": dict(self.checksums),
        }

    @property
    def row_bytes(self) -> list[int]:
        """Bytes of a row in each cluster: its scale and its bands; 0 where the rank is 0."""
        return [sum(band.num_bytes for band in bands) + 1 if bands else 0 for bands in self.cluster_bands]

    @property
    def basis_bytes(self) -> list[int]:
        """Bytes of the basis of each cluster; 0 where the rows are kept as they are."""
        return [
            sum(band.num_coordinates * band.vector_bytes(self.dim) for band in bands) if rank < self.dim else 0
            for bands, rank in zip(self.cluster_bands, self.cluster_ranks, strict=True)
        ]

    @property
    def codebooks(self) -> list[tuple[str, int]]:
        """The codebooks in use, in the order in which they are stored: what they are of, and numbers in a word.

        One number a byte needs no codebook. Of bases the codebook is that of 4 bits, two numbers a byte.
        """
        bands = [band for cluster in self.cluster_bands for band in cluster]
        of_rows = sorted({band.per_byte for band in bands} - {1})
        of_bases = any(
            band.basis_bits == 4
            for cluster, rank in zip(self.cluster_bands, self.cluster_ranks, strict=True)
            for band in cluster
            if rank < self.dim
        )
        return [("rows", width) for width in of_rows] + ([("bases", 2)] if of_bases else [])

    def num_bytes(self, item_bytes: int) -> dict[str, int]:
        """Bytes of each tensor of the table as it is stored, with floating numbers of ``item_bytes``."""
        rows = sum(size * width for size, width in zip(self.cluster_sizes, self.row_bytes, strict=True))
        return {
            "coefficients": rows,
            "bases": sum(self.basis_bytes),
            "codebooks": CODEBOOK_WORDS * sum(width for _, width in self.codebooks),
            "clusters": self.num_embeddings,
            "scales": sum(self.cluster_ranks) * item_bytes,
        }


class ProjClustConfigMixin(_NativeConfig):
    """What a made configuration adds to its native base: ``projclust``, the JSON's two names, and code on demand."""

    native_class: ClassVar[Any]

    @property
    def factor_layouts(self) -> dict[str, FactorLayout]:
        """Shapes of the factored tables: of the "embedding" with all that is tied to it, of an untied "head", or both.

        Raises:
            ProjClustCheckpointError: If the configuration carries none, or is of another format.
        """
        section = getattr(self, "projclust", None)
        if not isinstance(section, dict) or not any(isinstance(section.get(name), dict) for name in TABLE_NAMES):
            raise ProjClustCheckpointError(
                f"{type(self).__name__} has projclust={section!r}; expected a dictionary with the shapes of a "
                "factored table under 'embedding' or 'head'. Make such a model with hf_projclust.compress(), or fetch "
                "the checkpoint again."
            )
        if section.get("format_version") not in (FORMAT_VERSION, PACKED_FORMAT_VERSION):
            raise ProjClustCheckpointError(
                f"the checkpoint has format_version={section.get('format_version')!r}; this hf_projclust reads "
                f"{FORMAT_VERSION} and {PACKED_FORMAT_VERSION}. Install the hf_projclust that wrote it, or a newer one."
            )
        return {name: FactorLayout.from_dict(section[name]) for name in TABLE_NAMES if name in section}

    def set_factor_layouts(self, layouts: dict[str, FactorLayout]) -> None:
        """Put other shapes in place of all of these; configurations that were copied from this one keep theirs."""
        rest = {key: value for key, value in self.projclust.items() if key not in TABLE_NAMES}
        rest["format_version"] = format_version(layouts)
        self.projclust: dict[str, Any] = rest | {name: layout.to_dict() for name, layout in layouts.items()}

    @property
    def has_untied_head(self) -> bool:
        """Whether the head has a table of its own, whatever the native configuration says of ties."""
        return self.projclust.get("tied_head") is False

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the JSON, with the native model type in its place."""
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        return _with_native_type(config_dict), unused

    def to_json_string(self, use_diff: bool = True) -> str:
        """Write the JSON, with "projclust" as the model type."""
        fields = json.loads(super().to_json_string(use_diff=use_diff))
        fields["base_model_type"], fields["model_type"] = fields["model_type"], ProjClustConfig.model_type
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON, and beside it the code that its ``auto_map`` names, so that no copy is without it."""
        super().to_json_file(json_file_path, use_diff=use_diff)
        if getattr(self, "auto_map", None):
            for name in CODE_FILES:
                shutil.copyfile(Path(__file__).with_name(name), Path(json_file_path).with_name(name))

    @contextlib.contextmanager
    def standalone(self, wanted: bool | None) -> Iterator[None]:
        """Within the block, save with the code that loads the model, or without it; None leaves it as it is."""
        if wanted is None:
            yield
            return
        before = vars(self).pop("auto_map", None)
        if wanted:
            self.auto_map = dict(_AUTO_MAP)
        try:
            yield
        finally:
            vars(self).pop("auto_map", None)
            if before is not None:
                self.auto_map = before


class ProjClustConfig(PreTrainedConfig):
    """The registered entry: reading a "projclust" JSON gives a configuration made for its base model type."""

    model_type = "projclust"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the configuration that ``base_model_type`` asks for.

        Args:
            config_dict: The content of a compressed model's config.json.
            **kwargs: As in ``PreTrainedConfig.from_dict``.

        Returns:
            An instance of the made class, or a pair with the unused arguments if ``return_unused_kwargs``.

        Raises:
            ProjClustCheckpointError: If the base type is missing or unknown, or the table's shapes are damaged.
        """
        base_model_type: Any = config_dict.get("base_model_type")
        known = isinstance(base_model_type, str) and base_model_type in CONFIG_MAPPING
        if not known or base_model_type == cls.model_type:
            raise ProjClustCheckpointError(
                f"the checkpoint's base_model_type is {base_model_type!r}; expected a model type of the installed "
                "Transformers, such as 'bert'. Upgrade transformers, or fetch the checkpoint again."
            )
        config_class = projclust_config_class(CONFIG_MAPPING[base_model_type])
        result = config_class.from_dict(_with_native_type(config_dict), **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        _ = config.factor_layouts
        return result


def projclust_config_class(native_class: type[PreTrainedConfig]) -> type[ProjClustConfigMixin]:
    """Make and register the compressed counterpart of a native configuration class.

    Args:
        native_class: A configuration class, such as ``BertConfig``.

    Returns:
        Its subclass, ``ProjClustBertConfig``: the same object for the same argument.
    """
    from .modeling_projclust import register_auto_classes

    if native_class not in _MADE_CLASSES:
        attributes = {"__module__": __name__, "native_class": native_class}
        bases = (ProjClustConfigMixin, native_class)
        made = _MADE_CLASSES[native_class] = type(f"{PREFIX}{native_class.__name__}", bases, attributes)
        register_auto_classes(made)
    return _MADE_CLASSES[native_class]


def format_version(layouts: dict[str, FactorLayout]) -> int:
    """The version that a reader must know for these tables."""
    is_packed = any(isinstance(layout, PackedLayout) for layout in layouts.values())
    return PACKED_FORMAT_VERSION if is_packed else FORMAT_VERSION


def register() -> None:
    """Tell ``AutoConfig`` of the model type "projclust". Calling it again changes nothing."""
    AutoConfig.register(ProjClustConfig.model_type, ProjClustConfig, exist_ok=True)


def _with_native_type(config_dict: dict[str, Any]) -> dict[str, Any]:
    native = {key: value for key, value in config_dict.items() if key != "base_model_type"}
    return {**native, "model_type": config_dict.get("base_model_type", config_dict.get("model_type"))}


def __getattr__(name: str) -> type[ProjClustConfigMixin]:
    """Resolve ``ProjClustBertConfig`` and the like, which pickle and users look up by name (PEP 562)."""
    import transformers

    native_class = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not (isinstance(native_class, type) and issubclass(native_class, PreTrainedConfig)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return projclust_config_class(native_class)
