"""How large a compressed checkpoint is, and how large the dense one would be: numbers, disk, memory.

Disk sizes are those of the files. Memory is that of the model built without storage, so that a checkpoint
larger than memory can be described. The dense sizes follow by putting a dense table in the factors' place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from transformers import AutoConfig

from .configuration_projclust import ProjClustConfigMixin
from .layout_projclust import FactorLayout, PackedLayout, ProjClustCheckpointError
from .loading import check_source, model_class
from .table_projclust import FACTOR_NAMES
from .vocabulary_projclust import factored_tables


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and, within it, of its factored tables: the embedding's, and the head's if it has its own.

    Attributes:
        table_parameters: Numbers of the tables: those of their factors, in few bits or not.
        model_parameters: Numbers of the model, tied ones once.
        table_disk_bytes: Bytes of the tables' tensors in the weight files.
        model_disk_bytes: Bytes of the weight files.
        table_memory_bytes: Bytes of the tables' tensors in memory.
        model_memory_bytes: Bytes of all parameters and buffers in memory.
    """

    table_parameters: int
    model_parameters: int
    table_disk_bytes: int
    model_disk_bytes: int
    table_memory_bytes: int
    model_memory_bytes: int


def read_config(folder: str | Path) -> Any:
    """Read the configuration of a compressed model.

    Args:
        folder: Folder of the checkpoint.

    Returns:
        A configuration with ``factor_layouts`` and ``projclust``, which has the record of each.

    Raises:
        FileNotFoundError: If there is no such folder, or no config.json in it.
        ProjClustCheckpointError: If the checkpoint is not compressed.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} is not a folder; expected the folder of a compressed model. Check the spelling."
        )
    check_source(folder)
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, ProjClustConfigMixin):
        raise ProjClustCheckpointError(
            f"{str(folder)!r} holds a dense model of type {config.model_type!r}; expected a compressed one. Make it "
            "with hf-projclust compress."
        )
    records = config.projclust.get("solver")
    for name, layout in config.factor_layouts.items():
        record = records.get(name) if isinstance(records, dict) else None
        # Fewer where tokens were added since, in a cluster of their own.
        if (
            not isinstance(record, dict)
            or not {"preset", "relative_squared_error", "energy_kept"} <= record.keys()
            or not 0 < len(record["energy_kept"]) <= layout.num_clusters
        ):
            raise ProjClustCheckpointError(
                f"{str(folder)!r} has solver={records!r} in its config.json; expected under {name!r} the record of "
                "how it was compressed, with the energy that each cluster kept. The file is damaged: fetch or save "
                "the checkpoint again."
            )
    return config


def measure(folder: str | Path) -> tuple[Sizes, Sizes]:
    """Measure a compressed checkpoint.

    Args:
        folder: Folder of the checkpoint.

    Returns:
        Sizes of the dense model that it stands for, and of the compressed one.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
        ProjClustCheckpointError: If the checkpoint is not compressed, or its files are damaged.
    """
    config = read_config(folder)
    with torch.device("meta"):
        model = model_class(config)(config).to(config.dtype)
    tables = factored_tables(model).values()
    stored_once = list({id(table.coefficients): table for table in tables}.values())
    layouts = [table.layout for table in stored_once]
    parameters = sum(layout.num_parameters for layout in layouts)
    stored_numbers = sum(getattr(table, name).numel() for table in stored_once for name in table.factor_names)
    # Tied modules share their factors, and each has copies of the rest.
    tensors = [getattr(table, name) for table in tables for name in {*table.factor_names, *table.copied_names}]
    memory_bytes = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
    item_bytes = config.dtype.itemsize

    try:
        files = get_local_safetensors_metadata(folder).files_metadata
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ProjClustCheckpointError(
            f"{str(folder)!r} has no readable weights ({error}); expected model.safetensors, whole or in shards. "
            "Fetch or save the checkpoint again."
        ) from error
    stored = {name: info for metadata in files.values() for name, info in metadata.tensors.items()}
    places = {name.removesuffix(FACTOR_NAMES[0]) for name in stored if name.endswith(f".{FACTOR_NAMES[0]}")}
    names = {place + name for place in places for table in tables for name in table.stored_names}
    factors = [info for name, info in stored.items() if name in names]
    compressed = Sizes(
        table_parameters=parameters,
        model_parameters=model.num_parameters() - stored_numbers + parameters,
        table_disk_bytes=sum(info.data_offsets[1] - info.data_offsets[0] for info in factors),
        model_disk_bytes=sum((Path(folder) / name).stat().st_size for name in files),
        table_memory_bytes=memory_bytes,
        model_memory_bytes=model.get_memory_footprint(),
    )
    numbers = sum(layout.num_embeddings * layout.dim for layout in layouts)
    dense = Sizes(
        table_parameters=numbers,
        model_parameters=compressed.model_parameters - parameters + numbers,
        table_disk_bytes=numbers * item_bytes,
        model_disk_bytes=compressed.model_disk_bytes - compressed.table_disk_bytes + numbers * item_bytes,
        table_memory_bytes=numbers * item_bytes,
        model_memory_bytes=compressed.model_memory_bytes - memory_bytes + numbers * item_bytes,
    )
    return dense, compressed


def megabytes(size_bytes: int) -> str:
    """A size as people read it, such as "72.2 MB", of 1,000,000 bytes."""
    return f"{size_bytes / 1e6:,.1f} MB"


def bits_of_clusters(layout: FactorLayout, dtype: torch.dtype) -> list[str]:
    """Bits of a coordinate of each cluster, on average, such as "2.7"; of floating numbers those of their dtype."""
    if not isinstance(layout, PackedLayout):
        return [str(8 * dtype.itemsize)] * layout.num_clusters
    found = zip(layout.row_bytes, layout.cluster_ranks, strict=True)
    return [f"{8 * (width - 1) / rank:.1f}" if rank else "0" for width, rank in found]
