"""Learning from a teacher: losses against its logits, and objectives for the one training loop."""

from lowbit.distill.losses import distillation
from lowbit.distill.objectives import distill_from

__all__ = ["distill_from", "distillation"]
