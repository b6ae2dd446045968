"""The model card of a compressed model: written from its folder, and kept by what else writes cards.

A card has metadata, a title, and a part between two marks that is written from the checkpoint. Whatever else stands in
a card that is there, by a person or by Transformers' Trainer, is kept. What the card says is found in ``card_facts``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging
from yaml import YAMLError

from .card_facts import card_facts, cell, comparison
from .card_metadata import card_metadata, is_trained, licence_text, other_scores
from .configuration_projclust import ProjClustConfigMixin
from .evaluation.plots import plot_record
from .evaluation.record import noted_evaluation
from .evaluation.whole_files import whole_file
from .sizes import read_config

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)

PLOT_NAME = "clusters.png"
_CARD_NAME = "README.md"
# In an installed package the template lies beside this file; in a clone it lies with the cards.
_PLACES = (Path(__file__).parent, Path(__file__).parent.parent / "model_cards")
_TEMPLATE = next(path for place in _PLACES if (path := place / "card.md.jinja").is_file())
_BEGIN = r"<!-- hf_projclust:[^\n]*-->"
_PART = re.compile(rf"{_BEGIN}(?:(?!{_BEGIN}).)*?<!-- /hf_projclust -->", re.DOTALL)
_TITLE = re.compile(rf"\A\s*# ([^\n]*)\n\n(?={_BEGIN})")
_DESCRIPTION_BY_TRANSFORMERS = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


def render_card(folder: str | Path, *, repo_id: str | None = None, existing: bytes | None = None) -> ModelCard:
    """Render the card of a compressed model, without writing anything.

    Args:
        folder: Folder of the model.
        repo_id: Id on the Hub that the card's code loads the model by; by default the name of the folder.
        existing: Content of a card to keep, in which the part that describes the compression is replaced or added. Its
            licence, languages, task, library, base model and scores stay. By default the README.md of the folder.

    Returns:
        The card.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
        ProjClustCheckpointError: If the folder holds no compressed model, or its files are damaged.
        ValueError: If the metadata of the card that is there cannot be read.
    """
    folder = Path(folder)
    config = read_config(folder)
    if existing is None and (folder / _CARD_NAME).is_file():
        existing = (folder / _CARD_NAME).read_bytes()
    card = _read(existing or b"---\n{}\n---\n")
    repo_id = repo_id or folder.resolve().name
    title = repo_id.rpartition("/")[2]
    figures, evaluated_on = noted_evaluation(folder, config) or ((), None)
    data = card_metadata(config, card.data.to_dict(), title=title, former_title=folder.resolve().name, figures=figures)
    rendered = ModelCard.from_template(
        data,
        str(_TEMPLATE),
        title=title,
        scores=other_scores(data),
        evaluated_on=evaluated_on,
        figures=[{name: cell(text) for name, text in figure.cells().items()} for figure in figures],
        is_scored=any(figure.kind.is_score for figure in figures),
        licence_text=licence_text(config, data),
        is_trained=is_trained(config, data.to_dict()),
        **card_facts(folder, config, repo_id),
    )
    if not card.text.strip():
        return rendered
    part = _PART.search(rendered.text).group()  # type: ignore[union-attr]
    card.data = rendered.data
    card.text = _PART.sub(lambda _: part, card.text) if _PART.search(card.text) else f"{card.text.rstrip()}\n\n{part}\n"
    made = _TITLE.match(card.text)
    if made and made[1] == folder.resolve().name:
        card.text = f"\n# {title}\n\n{card.text[made.end() :]}"
    return card


def write_card(folder: str | Path, *, repo_id: str | None = None, existing: bytes | None = None) -> None:
    """Write the card of a compressed model, README.md, and its plot, clusters.png, into the model's folder.

    Args:
        folder: As for ``render_card``.
        repo_id: As for ``render_card``.
        existing: As for ``render_card``.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
        ProjClustCheckpointError: If the folder holds no compressed model, or its files are damaged.
        ValueError: If the metadata of the card that is there cannot be read.
    """
    card = render_card(folder, repo_id=repo_id, existing=existing)
    with whole_file(Path(folder, PLOT_NAME)) as partial:
        plot_record(read_config(folder), partial)
    with whole_file(Path(folder, _CARD_NAME)) as partial:
        card.save(partial)


def add_comparison(folders: Sequence[Path]) -> None:
    """Add to the card of each folder a table that compares all of them.

    Args:
        folders: Folders of compressed models of one base, each with its card.
    """
    lines = comparison(folders)
    headings = next(iter(lines.values())).keys()
    table = [f"| | {' | '.join(headings)} |", "|---|" + "---:|" * len(headings)]
    table += [f"| {cell(name)} | {' | '.join(cells.values())} |" for name, cells in lines.items()]
    for folder in folders:
        card = ModelCard.load(folder / _CARD_NAME)
        card.text = "\n".join([card.text.rstrip(), "", "## Other sizes of this model", "", *table, ""])
        with whole_file(folder / _CARD_NAME) as partial:
            card.save(partial)


def keep_in_trainer_card(
    create: Callable[..., None], trainer: Trainer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Let a Trainer write its card, then add what the card of a compressed model has.

    Args:
        create: The Trainer's ``create_model_card``.
        trainer: The Trainer.
        args: Arguments of the call.
        kwargs: Keyword arguments of the call.
    """
    create(*args, **kwargs)
    folder = Path(str(trainer.args.output_dir))
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    # An adapter has a folder without a configuration, and a card that PEFT writes.
    if (
        isinstance(config, ProjClustConfigMixin)
        and trainer.is_world_process_zero()
        and (folder / "config.json").is_file()
    ):
        with or_warning("the Trainer's card says nothing of the compression"):
            write_card(folder, repo_id=getattr(trainer, "hub_model_id", None))


@contextlib.contextmanager
def or_warning(missing: str) -> Iterator[None]:
    """Run what a model is not to be lost for: a failure, whatever it is, becomes a warning.

    Args:
        missing: What there is not if it fails.
    """
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s (%s)", missing[0].upper() + missing[1:], error, type(error).__name__)


def _read(content: bytes) -> ModelCard:
    """A card; of the one that Transformers pushes where there is none, the tags alone, unless it was filled in."""
    try:
        card = ModelCard(content.decode("utf-8-sig"))
    except (ValueError, TypeError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the card {_CARD_NAME} cannot be read ({reason}); expected text in UTF-8, and above it YAML with keys of "
            "text between two lines of ---. Mend it, or delete the file to have it written anew."
        ) from error
    empty = ModelCard.from_template(ModelCardData(), model_description=_DESCRIPTION_BY_TRANSFORMERS)
    if card.text.split() == empty.text.split():
        card.text, card.data = "", ModelCardData(tags=card.data.get("tags"))
    return card
