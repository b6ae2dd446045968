"""The figures of an evaluation: what each is called, how it is written, and how a card's metadata name it.

Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """What is the same for all figures of a name.

    Attributes:
        title: What people read.
        digits: Decimal places that are shown.
        metric: Name of the metric in a card's metadata.
        task: The Hub's name of the task in a card's metadata.
        is_score: Whether it says how well a task is done, which needs labels.
    """

    title: str
    digits: int
    metric: str
    task: str
    is_score: bool = False


KINDS = {
    "mean_cosine": Kind("mean cosine of embeddings to the dense ones", 4, "cosine_similarity", "feature-extraction"),
    "hidden_error": Kind("relative squared error of hidden states", 4, "relative_squared_error", "feature-extraction"),
    "kl": Kind("KL divergence from the dense predictions, nats a token", 4, "kl_divergence", "text-generation"),
    "masked_kl": Kind("KL divergence from the dense predictions, nats a masked token", 4, "kl_divergence", "fill-mask"),
    "top1_agreement": Kind("most likely token is the dense model's, %", 2, "top1_agreement", "text-generation"),
    "masked_top1_agreement": Kind(
        "most likely token is the dense model's, % of masked tokens", 2, "top1_agreement", "fill-mask"
    ),
    "perplexity": Kind("perplexity", 2, "perplexity", "text-generation", True),
    "masked_perplexity": Kind("perplexity of masked tokens", 2, "perplexity", "fill-mask", True),
    "spearman": Kind("Spearman correlation, %", 2, "spearmanr", "sentence-similarity", True),
    "task_accuracy": Kind("accuracy, %", 2, "accuracy", "text-classification", True),
    "task_f1": Kind("F1, %", 2, "f1", "text-classification", True),
    "task_matthews": Kind("Matthews correlation, %", 2, "matthews_correlation", "text-classification", True),
    "task_pearson": Kind("Pearson correlation, %", 2, "pearsonr", "text-classification", True),
    "task_spearman": Kind("Spearman correlation, %", 2, "spearmanr", "text-classification", True),
}


@dataclass(frozen=True)
class Figure:
    """One figure of two models.

    Attributes:
        name: One of ``KINDS``.
        on: What it was measured on, in words, without the folder that it is in.
        dataset: The same as the name of a data set in a card's metadata.
        config: Its part, of a data set that has some.
        dense: The figure of the dense model; of one that compares two models, what a model has to itself.
        compressed: The figure of the compressed model.
    """

    name: str
    on: str
    dataset: str
    config: str | None
    dense: float
    compressed: float

    @property
    def kind(self) -> Kind:
        """What is the same for all figures of this name."""
        return KINDS[self.name]

    @property
    def difference(self) -> float:
        """The figure of the compressed model less that of the dense one."""
        return self.compressed - self.dense

    def cells(self) -> dict[str, str]:
        """The figure as a line of a table: a cell for each heading."""
        digits = self.kind.digits
        return {
            "figure": self.kind.title,
            "on": self.on,
            "dense": f"{self.dense:,.{digits}f}",
            "compressed": f"{self.compressed:,.{digits}f}",
            # Of what is shown, so that the three numbers of a line agree.
            "difference": f"{round(self.compressed, digits) - round(self.dense, digits):+,.{digits}f}",
        }
