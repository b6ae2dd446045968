"""What compression lost, recovered in part by a short distillation on unlabelled texts."""

from .run import hold_out, recover

__all__ = ["hold_out", "recover"]
