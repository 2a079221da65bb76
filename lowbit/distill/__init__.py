"""Learning from a teacher: losses against its logits and its insides, and objectives for the one training loop."""

from lowbit.distill.losses import distillation
from lowbit.distill.objectives import Mix, distill, distill_from

__all__ = ["Mix", "distill", "distill_from", "distillation"]
