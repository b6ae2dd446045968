"""``hf-projclust decompress``: a compressed model as a dense one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from .messages import errors_as_messages
from .options import Force, Output


def decompress(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of a compressed model.", show_default=False)],
    output: Output,
    force: Force = False,
) -> None:
    """Write a compressed model as a dense one, for servers that know only native classes."""
    with errors_as_messages():
        from ..compression import decompress as decompress_model
        from ..folders import check_output, copy_companions, new_folder

        check_output(output, folder, force=force)
        dense = decompress_model(folder)
        with new_folder(output, force=force) as target:
            dense.save_pretrained(target)
            copy_companions(folder, target)
        Console().print(f"Wrote the dense model to {output}", soft_wrap=True)
