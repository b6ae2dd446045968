"""Solvers: a table in, an assignment of rows to subspaces out. Pure tensors, no Transformers."""

from .projective import ProjectiveClustering, messi, svd

__all__ = ["ProjectiveClustering", "messi", "svd"]
