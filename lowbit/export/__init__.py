"""The bridge from trained parameters to files that run without jax, and the proof that both are the same model."""

from lowbit.export.packed import pack_model, pack_tensor
from lowbit.export.verify import Verification, verify

__all__ = ["Verification", "pack_model", "pack_tensor", "verify"]
