"""The command line as ``python -m hf_projclust``, which torchrun and accelerate launch need."""

from .cli import app

app(prog_name="hf-projclust")
