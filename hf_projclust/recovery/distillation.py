"""A compressed model trained to give the outputs of its dense teacher: the loss, the batches, the stock Trainer.

Nothing is checked, copied or recorded here; ``recovery`` does that. Only factors are trained, by Adam, with a step that
is relative to the size of each: tables of different models differ in scale by hundreds, bases and coordinates too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging

from ..outputs import shifted, states_of
from ..vocabulary_projclust import factored_tables

_TOKEN_ID = "input_ids"
_GROUPED_BATCHES = 50  # whose texts are ordered by length together


class DistillationTrainer(Trainer):
    """The stock Trainer with another loss: the distance to a teacher.

    Args:
        teacher: The dense model, on the device of the training, in evaluation mode.
        learning_rate: Step of Adam as a share of the root mean square of each factor.
        model: The compressed model; the factors alone require gradients after this.
        **kwargs: As for the Trainer.
    """

    def __init__(self, *, model: Any, teacher: Any, learning_rate: float, **kwargs: Any) -> None:
        """Freeze the body, and give each factor its step."""
        model.requires_grad_(False)
        factors = [
            factor.requires_grad_(True)
            for table in factored_tables(model).values()
            for factor in (table.coefficients, table.bases)
            if factor.numel()
        ]
        groups = [
            {"params": [factor], "lr": learning_rate * float(factor.detach().square().mean().sqrt())}
            for factor in dict.fromkeys(factors)  # those of tied modules once
        ]
        self.teacher = teacher
        super().__init__(model=model, optimizers=(torch.optim.Adam(groups), None), **kwargs)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_Progress())

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The distance of a batch: a scalar.

        Raises:
            ValueError: If it is NaN or infinite.
        """
        # Dropout in one of the two alone would be an error that no factor can mend.
        model.eval()
        with torch.no_grad():
            wanted = self.teacher(**inputs, output_hidden_states=True)
        has_head = self.teacher.get_output_embeddings() is not None
        loss = distance(model(**inputs, output_hidden_states=True), wanted, inputs, has_head=has_head)
        if not bool(loss.isfinite()):
            alone = distance(wanted, wanted, inputs, has_head=has_head)
            raise ValueError(
                f"the distance is {float(loss.detach())} at step {self.state.global_step + 1}; expected a finite one: "
                + (
                    "the compressed model gives NaN or infinite numbers. Train again with a smaller learning_rate."
                    if bool(alone.isfinite())
                    else "the teacher, the dense model, gives NaN or infinite numbers. Check its weights."
                )
            )
        return loss


def distance(outputs: Any, wanted: Any, inputs: dict[str, Tensor], *, has_head: bool) -> Tensor:
    """How far outputs are from those of a teacher, at the tokens that are attended to.

    Args:
        outputs: Outputs of the compressed model, with its hidden states.
        wanted: Those of the teacher.
        inputs: What both were given, with masks of shape (batch, length).
        has_head: Whether there are logits of tokens, shape (batch, length, vocabulary).

    Returns:
        The squared error of the last hidden states as a share of the teacher's energy, of encoder and decoder where
        there are both; with a head plus the Kullback-Leibler divergence from the teacher's distribution of tokens, in
        nats a token.
    """
    mask = inputs["attention_mask"].bool()
    total = sum(
        (
            relative_squared_error(own[mask], other[mask])
            for own, other in zip(*map(states_of, (outputs, wanted)), strict=True)
        ),
        mask.new_zeros((), dtype=torch.float32),
    )
    logits = getattr(outputs, "logits", None) if has_head else None
    if logits is not None:
        own, other = (scores[mask].float().log_softmax(dim=-1) for scores in (logits, wanted.logits))  # (tokens, n)
        total = total + kl_div(own, other, reduction="batchmean", log_target=True)
    return total


def relative_squared_error(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of vectors (m, d) as a share of the energy of the wanted ones, a scalar in float32."""
    wanted = wanted.float()
    return (vectors.float() - wanted).square().sum() / wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def reading_order(lengths: Sequence[int], num_texts: int, batch_size: int, seed: int) -> list[int]:
    """Order texts so that those of a batch are about equally long, which leaves little to pad.

    The order of a whole run is made at once: a run that is resumed has the same one, which the Trainer's own grouping
    by length does not give.

    Args:
        lengths: Tokens of each text.
        num_texts: Texts of the run; each comes again only when all have come.
        batch_size: Texts of a batch.
        seed: Seed of the order.

    Returns:
        Numbers of texts, shape (num_texts,); each ``batch_size`` of them are a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-num_texts // len(lengths))
    shuffled = torch.cat([torch.randperm(len(lengths), generator=generator) for _ in range(epochs)])[:num_texts]
    batches: list[list[int]] = []
    for group in shuffled.split(batch_size * _GROUPED_BATCHES):
        ordered = sorted(group.tolist(), key=lambda number: lengths[number])
        batches += [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
    smaller = [batch for batch in batches if len(batch) < batch_size]  # the last one at most, which ends the run
    whole = batches[: len(batches) - len(smaller)]
    mixed = [whole[place] for place in torch.randperm(len(whole), generator=generator).tolist()]
    return [number for batch in mixed + smaller for number in batch]


class Batches:
    """Token ids put together to batches, padded at the end; for a decoder beside an encoder shifted by one.

    Args:
        padding: Id of the padding token.
        decoder_start: First token of the decoder, or None where there is no decoder beside an encoder.
    """

    def __init__(self, padding: int, decoder_start: int | None) -> None:
        """Keep the two tokens."""
        self.padding, self.decoder_start = padding, decoder_start

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Inputs of a model, each of shape (batch, length)."""
        texts = [torch.tensor(row[_TOKEN_ID]) for row in rows]
        ids = pad_sequence(texts, batch_first=True, padding_value=self.padding)
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        batch = {_TOKEN_ID: ids, "attention_mask": mask}
        if self.decoder_start is not None:
            batch |= {"decoder_input_ids": shifted(ids, self.decoder_start), "decoder_attention_mask": mask}
        return batch


class _Progress(TrainerCallback):
    """One bar of steps, with the last loss that was logged, by the switches of Transformers."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin where the run does."""
        if state.is_world_process_zero:
            self.bar = logging.tqdm(total=state.max_steps, initial=state.global_step, desc="Recovering", unit=" steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        if state.is_world_process_zero:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if state.is_world_process_zero and "loss" in (logs or {}):
            self.bar.set_postfix_str(f"distance {logs['loss']}", refresh=False)  # type: ignore[index]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the bar."""
        if state.is_world_process_zero:
            self.bar.close()
