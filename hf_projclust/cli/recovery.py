"""``hf-projclust recover``: a compressed folder and texts in, a folder closer to the dense model out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from .messages import errors_as_messages
from .options import Device, Force, Output
from .processes import all_processes


def recover(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.", show_default=False)],
    teacher: Annotated[
        str, typer.Option(help="Hub id or folder of the dense model that it was made from.", show_default=False)
    ],
    text: Annotated[
        list[Path],
        typer.Option(
            help="Text file, a text a line, or a folder of *.txt. May be repeated. The last tenth, 200 texts at most, "
            "is kept back to compare by.",
            show_default=False,
        ),
    ],
    output: Output,
    num_epochs: Annotated[float, typer.Option("--epochs", help="How often all texts are read.")] = 1.0,
    max_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Batches to train on, in place of --epochs."),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Largest step, as a share of the size of the factors.")] = 1e-2,
    batch_size: Annotated[int, typer.Option(help="Texts of a batch.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a text, at most.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the order of the texts.")] = 0,
    device: Device = None,
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for checkpoints of the training, to go on from; delete it afterwards."),
    ] = None,
    force: Force = False,
) -> None:
    """Train the factors of a compressed model to give the outputs of the dense one, on texts without labels."""
    with errors_as_messages(), all_processes(device) as is_main, contextlib.ExitStack() as stack:
        from ..evaluation.fidelity import bundled_sentences, embed_sentences, mean_cosine
        from ..evaluation.texts import read_texts
        from ..folders import check_apart, check_output
        from ..loading import load_model, load_tokenizer
        from ..locks import locked
        from ..recovery import hold_out
        from ..recovery import recover as recover_model
        from ..saving import save_compressed

        check_output(output, folder, force=force)
        for used in (teacher, checkpoint, *text):
            if used is not None:
                check_output(output, used, force=True)
        if checkpoint is not None:
            check_output(checkpoint, folder, force=True)
            check_apart(output, checkpoint)
        stack.enter_context(locked(output))
        texts, held_out = hold_out([line for path in text for line in read_texts(path).lines], bundled_sentences())
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        recovered = recover_model(
            model,
            teacher,
            tokenizer,
            texts,
            num_epochs=num_epochs,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
        )
        if not is_main:
            return
        dense = load_model(teacher, as_class=type(recovered).native_class)
        save_compressed(recovered, folder, output, dense=dense, compare=True, standalone=None, force=force)
        dense, model, recovered = (part.cpu() for part in (dense, model, recovered))
        wanted, before, after = (
            embed_sentences(part, tokenizer, held_out, max_length=max_length) for part in (dense, model, recovered)
        )
        cosines = mean_cosine(before, wanted), mean_cosine(after, wanted)
        Console().print(
            f"Mean cosine to the dense model on {len(held_out)} texts that were not trained on: "
            f"{cosines[0]:.4f} before, {cosines[1]:.4f} after. The model is in {output}",
            soft_wrap=True,
        )
        if not cosines[1] >= cosines[0]:  # NaN among them
            Console(stderr=True).print(
                f"Warning: the sentence embeddings became worse. {folder} is as it was: use that, or train again on "
                "more text of the kind that the model is for, or with a smaller --learning-rate.",
                soft_wrap=True,
            )
