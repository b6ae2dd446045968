"""What a model card says of a compressed model: facts from its configuration and its files, in words and tables.

The template decides where each of them stands; ``cards`` puts the two together. Nothing is measured here but sizes.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers.models.auto import modeling_auto

from .compression import compress
from .configuration_projclust import PREFIX
from .layout_projclust import PackedLayout
from .options import PRESETS
from .sizes import Sizes, bits_of_clusters, measure, megabytes, read_config

_SOURCES = {"messi": " (MESSI, arXiv 2010.04290)", "robust": " (arXiv 2009.05647)"}
_COUNTS_TEXTS = {
    "uniform": "all alike (`uniform`)",
    "tokenizer": "a guess from the vocabulary (`tokenizer`)",
    "tensor": "numbers given in Python",
}
_TABLE_TITLES = {"embedding": "vocabulary table", "head": "head"}
_ROWS_BYTES = 4  # the stored row of a token, int32


def card_facts(folder: Path, config: Any, repo_id: str) -> dict[str, Any]:
    """All that the template asks for beyond the metadata of the card.

    Args:
        folder: Folder of a compressed model.
        config: Its configuration.
        repo_id: What to load the model by, in the card's code.

    Returns:
        Values by the names that the template uses.

    Raises:
        ProjClustCheckpointError: If the folder's files are damaged.
    """
    records, layouts = config.projclust["solver"], config.factor_layouts
    record = {"token_counts": "uniform"} | next(iter(records.values()))
    provenance = config.projclust.get("provenance", {})
    return {
        "quoted_id": json.dumps(repo_id, ensure_ascii=False),
        "shell_id": shlex.quote(repo_id),
        "is_quantised": getattr(config, "quantization_config", None) is not None,
        "is_packed": _is_packed(layouts),
        "auto_class": _auto_class(config),
        "processor": "AutoProcessor" if _has_any(folder, "*processor_config.json") else "AutoTokenizer",
        "is_sentence_transformer": _has_any(folder, "modules.json"),
        "is_standalone": bool(getattr(config, "auto_map", None)),
        "tables": [_table(name, layout, records[name], config.dtype) for name, layout in layouts.items()],
        **_sizes(folder, config),
        "fidelity": config.projclust.get("fidelity"),
        "recoveries": config.projclust.get("recovery", []),
        "record": record,
        "source": _SOURCES.get(record["preset"], ""),
        "method_text": _method_text(record, layouts),
        "counts_text": _counts_text(record["token_counts"]),
        "weighs_use": _weighs_use(record),
        "provenance": provenance,
        "versions_text": ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items()),
        "base_model": provenance.get("base_model"),
        "base_text": _base_text(provenance),
        "command": _command(config, record, provenance, repo_id.rpartition("/")[2]),
    }


def comparison(folders: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Figures of compressed models of one base beside those of the dense one: what each keeps, and what it loses.

    Args:
        folders: Folders of the models.

    Returns:
        A line for each, by its name, with a cell for each heading.

    Raises:
        ProjClustCheckpointError: If the files of a folder are damaged.
    """
    lines: dict[str, dict[str, str]] = {}
    for folder in folders:
        (dense, compressed), config = measure(folder), read_config(folder)
        fidelity = config.projclust.get("fidelity")
        errors = [record["relative_squared_error"] for record in config.projclust["solver"].values()]
        lines.setdefault("dense", _comparison_line(dense, dense, "0", "1"))
        lines[folder.name] = _comparison_line(
            dense,
            compressed,
            " and ".join(f"{error:.4f}" for error in errors),
            f"{fidelity['mean_cosine']:.4f}" if fidelity else "not measured",
        )
    return lines


def _comparison_line(dense: Sizes, sizes: Sizes, error: str, cosine: str) -> dict[str, str]:
    return {
        "table parameters": f"{sizes.table_parameters:,}",
        "model file": megabytes(sizes.model_disk_bytes),
        "times smaller": _times(dense.model_disk_bytes, sizes.model_disk_bytes),
        "relative squared error": error,
        "mean cosine": cosine,
    }


def _auto_class(config: Any) -> str:
    """The Auto class that loads the class that the checkpoint was saved with."""
    native = (config.architectures or [""])[0].removeprefix(PREFIX)
    found = []
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", {})
        if name.startswith("Auto") and type(config) in mapping:
            models = mapping[type(config)]
            names = [model.native_class.__name__ for model in (models if isinstance(models, tuple) else (models,))]
            found += [name] if native in names else []
    # A model stands in several lists: a body also as a text encoder, what was made for a task also for pretraining.
    preferred = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    return min(found, default="AutoModel", key=lambda name: (name not in preferred, name == "AutoModelForPreTraining"))


def _has_any(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _table(name: str, layout: Any, record: dict[str, Any], dtype: Any) -> dict[str, Any]:
    ranks = sorted(layout.cluster_ranks)
    bits = bits_of_clusters(layout, dtype)
    clusters = zip_longest(layout.cluster_sizes, layout.cluster_ranks, bits, record["energy_kept"])
    return {
        "name": name,
        "title": _TABLE_TITLES[name],
        "record": record,
        "source": _SOURCES.get(record["preset"], ""),
        "tokens": f"{layout.num_embeddings:,}",
        "dim": layout.dim,
        "ranks": f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}",
        "clusters": [
            {
                "tokens": f"{size:,}",
                "rank": rank,
                "bits": bit,
                "error": "added since" if kept is None else f"{1 - kept:.4f}",
            }
            for size, rank, bit, kept in clusters
        ],
    }


def _sizes(folder: Path, config: Any) -> dict[str, Any]:
    """Lines of the table of sizes: numbers, the file as it is, and the model in each precision."""
    dense, compressed = measure(folder)
    dtype = str(config.dtype).removeprefix("torch.")
    lines = [
        ("Factored tables, parameters", dense.table_parameters, compressed.table_parameters, "{:,}".format),
        ("Model, parameters", dense.model_parameters, compressed.model_parameters, "{:,}".format),
        ("Factored tables in the file, bytes", dense.table_disk_bytes, compressed.table_disk_bytes, "{:,}".format),
        ("Model file", dense.model_disk_bytes, compressed.model_disk_bytes, megabytes),
    ]
    layouts = config.factor_layouts
    rows_bytes = _ROWS_BYTES * sum(layout.num_embeddings for layout in layouts.values())
    quantised = getattr(config, "quantization_config", None) is not None
    is_packed = _is_packed(layouts)
    for name, item_bytes in [] if quantised or is_packed else [("float32", 4), ("float16 or bfloat16", 2)]:
        sizes = dense.model_parameters * item_bytes, compressed.model_parameters * item_bytes + rows_bytes
        lines.append((f"Model in {name}", *sizes, megabytes))
    return {
        "sizes": [
            {"label": label, "dense": show(before), "compressed": show(after), "times": _times(before, after)}
            for label, before, after, show in lines
        ],
        "summary": (
            f"Stored in few bits: {dense.table_disk_bytes / compressed.table_disk_bytes:.1f} times smaller. "
            if is_packed
            else f"{1 - compressed.table_parameters / dense.table_parameters:.1%} of the parameters are saved. "
        )
        + f"The model file has {megabytes(compressed.model_disk_bytes)} in place of "
        f"{megabytes(dense.model_disk_bytes)}.",
        "sizes_note": f"The file is in {'few bits, its factors in ' if quantised else ''}{dtype}"
        + (", but for what is in few bits" if is_packed else "")
        + ". The dense sizes"
        + ("" if quantised or is_packed else " and those by precision")
        + " are computed; MB are 1,000,000 bytes.",
    }


def cell(text: str) -> str:
    """Text as it stands in a cell of a table."""
    return text.replace("|", "\\|")


def _times(before: int, after: int) -> str:
    return f"{before / after:.2f}"


def _method_text(record: dict[str, Any], layouts: dict[str, Any]) -> str:
    """How a table was factored, in words: the subspaces, the errors that were minimised, and what rows count."""
    if all(layout.num_clusters == 1 for layout in layouts.values()):
        subspaces = "one subspace"
    else:
        subspaces = (
            "subspaces of ranks chosen under one budget" if record["adaptive_ranks"] else "subspaces of one rank"
        )
    errors = "least squares" if record["p"] == 2 else f"least l_{record['p']:g} error"
    if record.get("ratio") or record.get("table_bytes"):
        subspaces = (
            "subspaces whose ranks and bits were chosen under one budget of bytes, product quantised coordinates"
        )
    elif record.get("coefficient_bits"):
        subspaces += f", product quantised coordinates of {record['coefficient_bits']} bits"
    if _asks_for_bits(record) and not _is_packed(layouts):
        subspaces += ", which were made floating numbers later"
    weights = [
        *(["by the use of their tokens"] if _weighs_use(record) else []),
        *(["against their norms"] if record["norm_exponent"] else []),
    ]
    return f"{subspaces}, {errors}, rows weighted {' and '.join(weights) or 'alike'}"


def _asks_for_bits(record: dict[str, Any]) -> bool:
    return any(record.get(name) for name in ("ratio", "table_bytes", "coefficient_bits"))


def _is_packed(layouts: dict[str, Any]) -> bool:
    """Whether a table is in few bits."""
    return any(isinstance(layout, PackedLayout) for layout in layouts.values())


def _weighs_use(record: dict[str, Any]) -> bool:
    return record["token_counts"] != "uniform" and record["count_exponent"] > 0


def _counts_text(counts: str | list[str]) -> str:
    """Where the use of tokens is known from."""
    sources = [counts] if isinstance(counts, str) else counts
    return ", ".join(_COUNTS_TEXTS.get(source, f"`{source}`") for source in sources)


def _base_text(provenance: dict[str, Any]) -> str:
    if "base_model" not in provenance:
        return "none on the Hub; MODEL in the command stands for its folder"
    if not provenance["is_copy"]:
        return f"`{provenance['base_model']}`, as it was in memory; MODEL in the command stands for it"
    return f"`{provenance['base_model']}`" + (
        f" at revision `{provenance['base_revision']}`" if "base_revision" in provenance else ""
    )


def _command(config: Any, record: dict[str, Any], provenance: dict[str, Any], output: str) -> str | None:
    """The command that makes the model again; None where the counts of tokens were given as numbers."""
    if record["token_counts"] == "tensor":
        return None
    defaults = {name: parameter.default for name, parameter in inspect.signature(compress).parameters.items()}
    defaults |= PRESETS[record["preset"]]
    words = ["hf-projclust", "compress", provenance["base_model"] if provenance.get("is_copy") else "MODEL"]
    words += [] if "embedding" in config.factor_layouts else ["--no-embedding"]
    words += ["--head"] if "head" in config.factor_layouts else []
    for name, default in defaults.items():
        value, flag = record.get(name), f"--{name.replace('_', '-')}"
        if value is None or (value == default and name != "seed"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [word for part in (value if isinstance(value, list) else [value]) for word in (flag, str(part))]
    words += ["--standalone"] if getattr(config, "auto_map", None) else []
    return shlex.join([*words, "--output", output])
