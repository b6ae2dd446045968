"""Solvers: a table in, an assignment of rows to subspaces out. Pure tensors, no Transformers."""

from .checkpoints import Checkpoint
from .projective import ProjectiveClustering, cluster
from .ranks import RankRule, adaptive_ranks, equal_ranks
from .robust import lp_coefficients
from .rows import Rows, Table

__all__ = [
    "Checkpoint",
    "ProjectiveClustering",
    "RankRule",
    "Rows",
    "Table",
    "adaptive_ranks",
    "cluster",
    "equal_ranks",
    "lp_coefficients",
]
