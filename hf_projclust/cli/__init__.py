"""The command line ``hf-projclust``: compress, push, info, evaluate, recover, decompress, demo, benchmark.

Each command does what the Python function of the same name does, with the same options, and writes folders
that are whole or absent. Errors are one message on standard error and exit code 1.
"""

from __future__ import annotations

import typer

from .benchmarks import LayersCommand, layers, solvers
from .compression import RatesCommand, compress
from .decompression import decompress
from .demonstration import demo
from .evaluation import evaluate
from .glue import GlueCommand, glue
from .information import info
from .publishing import push
from .recovery import recover
from .rivals import RivalsCommand, rivals

__all__ = [
    "app",
    "compress",
    "decompress",
    "demo",
    "evaluate",
    "glue",
    "info",
    "layers",
    "push",
    "recover",
    "rivals",
    "solvers",
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # among which a token may be
    help="Shrink the vocabulary table of any Transformers model by projective clustering.",
)
benchmark_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
app.add_typer(benchmark_app, name="benchmark")

app.command(
    cls=RatesCommand,
    epilog="Example: `hf-projclust compress distilbert/distilbert-base-uncased --compression 0.6 "
    "--token-counts words:en --output distilbert-pc60`",
)(compress)
app.command(epilog="Example: `hf-projclust info distilbert-pc60`")(info)
app.command(epilog="Example: `hf-projclust push distilbert-pc60 org/distilbert-pc60 --private`")(push)
app.command(epilog="Example: `hf-projclust decompress distilbert-pc60 --output distilbert-dense`")(decompress)
app.command(
    epilog="Example: `hf-projclust evaluate distilbert-pc60 --against distilbert/distilbert-base-uncased --card`"
)(evaluate)
app.command(
    epilog="Example: `hf-projclust recover distilbert-pc60 --teacher distilbert/distilbert-base-uncased "
    "--text corpus.txt --output distilbert-pc60-recovered`"
)(recover)
app.command(epilog="Example: `hf-projclust demo --output projclust-demo`")(demo)
benchmark_app.command(epilog="Example: `hf-projclust benchmark solvers --output solvers.png`")(solvers)
benchmark_app.command(
    cls=LayersCommand, epilog="Example: `hf-projclust benchmark layers --vocabulary 30522 --output layers.json`"
)(layers)
benchmark_app.command(
    cls=RivalsCommand,
    epilog="Example: `hf-projclust benchmark rivals sentence-transformers/all-MiniLM-L6-v2 --token-counts words:en "
    "--ratio 4 8 16 --output rivals.png --json rivals.json`",
)(rivals)
benchmark_app.command(
    cls=GlueCommand,
    epilog="Example: `hf-projclust benchmark glue bert-base-uncased --tasks rte mrpc --bf16 --output glue`",
)(glue)
