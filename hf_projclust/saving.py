"""A compressed model as a folder: weights, what goes along with its base, how close it comes, and the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cards import or_warning, write_card
from .evaluation.fidelity import measure_fidelity
from .evaluation.record import note_in_config
from .folders import copy_companions, new_folder
from .loading import load_model, load_tokenizer


def save_compressed(
    compressed: Any,
    source: str | Path,
    output: Path,
    *,
    dense: Any = None,
    compare: bool,
    standalone: bool | None,
    force: bool,
) -> None:
    """Write a compressed model to a folder that is whole or absent; then compare, and write the card into the folder.

    The model is safe before the dense one is loaded again beside it, for which the memory may not be enough.

    Args:
        compressed: What ``compress`` made of the source.
        source: Folder or Hub id of the model that tokenizer and other files go along with.
        output: The folder to be made.
        dense: The dense model; by default it is loaded from the source.
        compare: Whether to measure how close the compressed model comes to the dense one, for the card.
        standalone: Whether to add the code that loads the model; None adds it if the compressed model came with it.
        force: Whether a folder that holds something may be replaced.
    """
    with new_folder(output, force=force) as folder:
        compressed.save_pretrained(folder, standalone=standalone)
        copy_companions(source, folder)
    if compare and "embedding" in compressed.config.factor_layouts:
        with or_warning("how close the outputs come to those of the dense model was not measured"):
            fidelity = measure_fidelity(dense or load_model(source), compressed, load_tokenizer(source))
            note_in_config(output, "fidelity", fidelity)
    with or_warning("the model card was not written"):
        write_card(output)
