"""``hf-projclust push``: the folder of a compressed model to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from .messages import errors_as_messages, escaped


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="Repository, such as org/distilbert-pc60.", show_default=False)],
    private: Annotated[
        Optional[bool],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Option(
            "--private/--public", help="Whether a new repository is private; by default as its owner has set."
        ),
    ] = None,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Branch to push to, made if need be; by default main."),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    token: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Token with the right to write; by default that of `hf auth login` or HF_TOKEN."),
    ] = None,
    commit_message: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Title of the commit."),
    ] = None,
) -> None:
    """Push FOLDER to the Hub in one commit: weights, tokenizer, card and plot. The folder is not changed."""
    with errors_as_messages():
        from ..publishing import files_to_push, push_folder
        from ..sizes import read_config

        read_config(folder)
        names = [path.relative_to(folder).as_posix() for path in files_to_push(folder)]
        console = Console()
        console.print(f"Pushing README.md, clusters.png, {escaped(', '.join(names))}", soft_wrap=True, highlight=False)
        commit = push_folder(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
        )
        console.print(commit.pr_url or commit.commit_url, soft_wrap=True, highlight=False)
