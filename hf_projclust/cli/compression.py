"""``hf-projclust compress``: a model in, one folder out for each rate, tokenizer and card included."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from .information import show_info
from .messages import errors_as_messages
from .options import Device, Force, Output, Seed
from .processes import all_processes

_RATES = "--compression"


def compress(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a dense model.", show_default=False)],
    output: Output,
    embedding: Annotated[
        bool, typer.Option("--embedding/--no-embedding", help="Factor the input embedding, and what is tied to it.")
    ] = True,
    head: Annotated[
        bool, typer.Option("--head/--no-head", help="Factor an untied head too; a tied one shares the factors.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help="adaptive, messi (subspaces of one rank), svd (one) or robust (one, l_1).")
    ] = "adaptive",
    num_clusters: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Number of subspaces, or auto; by preset: auto, 5, 1, 1.", metavar="INTEGER|auto"),
    ] = None,
    compression: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(
            help="Share of the table to save, 0 to 1. Give this, --rank, --ratio or --table-bytes. Of several shares "
            "each gets a folder, named after OUTPUT and the share in percent.",
            metavar="FLOAT...",
        ),
    ] = None,
    rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Coordinates that each row keeps."),
    ] = None,
    ratio: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Times smaller than each table is in MODEL, in few bits that are chosen with the ranks."),
    ] = None,
    table_bytes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The same as the size of each table, such as 3MB.", metavar="SIZE"),
    ] = None,
    coefficient_bits: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Bits of coordinates, 8, 4, 3 or 2, with --compression or --rank.", metavar="8|4|3|2"),
    ] = None,
    basis_bits: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Bits of the numbers of bases beside these; by default 8.", metavar="16|8"),
    ] = None,
    adaptive_ranks: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--adaptive-ranks/--no-adaptive-ranks", help="A rank for each cluster; by preset: yes, no, no, no."
        ),
    ] = None,
    p: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Power of distances, 1 (robust) to 2; by preset: 2, 2, 2, 1."),
    ] = None,
    token_counts: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Use of tokens: uniform, tokenizer, words:en,zh, dataset:NAME, prompt:TEXT, or a text file; 0.3* in "
            "front weighs it. May be repeated. By preset: tokenizer, uniform, uniform, uniform."
        ),
    ] = None,
    count_exponent: Annotated[float, typer.Option(help="Power of the use of a token in its weight.")] = 0.5,
    norm_exponent: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Errors count by norm to minus this power; by preset: 1, 0, 0, 0."),
    ] = None,
    seed: Seed = 0,
    num_starts: Annotated[int, typer.Option(help="Starts that race.")] = 2,
    max_rounds: Annotated[int, typer.Option(help="Rounds of clustering of a start, at most.")] = 100,
    tolerance: Annotated[float, typer.Option(help="Stop when rounds gain a smaller share than this.")] = 3e-4,
    device: Device = None,
    memory_limit: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Memory for the clustering, such as 1GB; the table then stays in its file."),
    ] = None,
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to save the clustering in after each round, and to go on from."),
    ] = None,
    base_model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Hub id of the model that the folder MODEL is a copy of, for the card."),
    ] = None,
    standalone: Annotated[
        bool,
        typer.Option(
            "--standalone", help="Add the code that loads the model by trust_remote_code, without hf_projclust."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Factor the vocabulary table of MODEL and write the model to a folder, with its tokenizer and a model card."""
    with errors_as_messages(), all_processes(device) as is_main, contextlib.ExitStack() as stack:
        from ..cards import add_comparison
        from ..compression import compress as compress_model
        from ..folders import check_apart, check_output
        from ..locks import locked
        from ..saving import save_compressed

        outputs = _folder_of_each(compression or [None], output)
        checkpoints = dict.fromkeys(outputs, checkpoint)
        if checkpoint is not None:
            if len(outputs) > 1:
                checkpoints = {rate: checkpoint / folder.name for rate, folder in outputs.items()}
            check_output(checkpoint, model, force=True)
        for folder in outputs.values():
            check_output(folder, model, force=force)
            if checkpoint is not None:
                check_apart(folder, checkpoint)
        stack.enter_context(locked(*outputs.values()))
        for rate, folder in outputs.items():
            compressed = compress_model(
                model,
                embedding=embedding,
                head=head,
                preset=preset,  # type: ignore[arg-type]
                num_clusters=int(num_clusters) if num_clusters and num_clusters.isdecimal() else num_clusters,  # type: ignore[arg-type]
                compression=rate,
                rank=rank,
                ratio=ratio,
                table_bytes=table_bytes,
                coefficient_bits=coefficient_bits,  # type: ignore[arg-type]
                basis_bits=basis_bits,  # type: ignore[arg-type]
                adaptive_ranks=adaptive_ranks,
                p=p,
                token_counts=token_counts,
                count_exponent=count_exponent,
                norm_exponent=norm_exponent,
                seed=seed,
                num_starts=num_starts,
                max_rounds=max_rounds,
                tolerance=tolerance,
                device=device,
                memory_limit=memory_limit,
                checkpoint=checkpoints[rate],
                base_model=base_model,
            )
            if is_main:
                # Under a limit on memory there may be no room for the dense model beside the compressed one.
                save_compressed(
                    compressed, model, folder, compare=memory_limit is None, standalone=standalone, force=force
                )
                show_info(folder)
        if is_main and len(outputs) > 1:
            add_comparison(list(outputs.values())[::-1])


def _folder_of_each(rates: Sequence[float | None], output: Path) -> dict[float | None, Path]:
    """The folder for each rate: the output itself for a single one."""
    if len(rates) == 1:
        return {rates[0]: output}
    shares = [rate for rate in rates if rate is not None]
    name = output.name or output.resolve().name
    # The largest first: what leaves too little of a table is found out before anything is written.
    folders = {share: output.resolve().with_name(f"{name}-{100 * share:g}") for share in sorted(shares, reverse=True)}
    if len(set(folders.values())) < len(rates) or not all(0 < share < 1 for share in shares):
        raise ValueError(
            f"--compression {' '.join(map(str, rates))}; expected shares of the table to save that differ in percent, "
            "each above 0 and below 1. To save 40 %, 60 % and 80 %, give 0.4 0.6 0.8."
        )
    return folders  # type: ignore[return-value]


class RatesCommand(TyperCommand):
    """A command whose ``--compression`` takes several numbers, as in ``--compression 0.4 0.6 0.8``.

    Attributes:
        several: The options that do; a subclass has others.
    """

    several: tuple[str, ...] = (_RATES,)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the option before each of its numbers, which is how click reads several."""
        spread: list[str] = []
        taking = ""  # the option that takes the numbers which come next
        for arg in args:
            if taking and _is_number(arg) and spread[-1] != taking:
                spread.append(taking)
            if (name := arg.partition("=")[0]) in self.several:
                taking = name
            elif not _is_number(arg):
                taking = ""
            spread.append(arg)
        return super().parse_args(ctx, spread)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
