"""Learning from a cache: batches that carry what the teacher thought of them, and the objective that reads it."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32
from numpy.typing import NDArray

from lowbit.data import TokenDataset
from lowbit.distill.buckets import Kept, bucket_distillation
from lowbit.distill.cache import TeacherCache
from lowbit.distill.objectives import Mix, Objective, Tree
from lowbit.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TaughtDataset(TokenDataset):
    """A `TokenDataset` whose rows go on, behind their t + 1 tokens, with the record of `TeacherCache.rows`.

    Everything that carries batches to devices then carries the teacher as well; `untangle` takes the two apart.
    """

    cache: TeacherCache

    def batch(self, step: int) -> NDArray[np.int32]:
        """Returns this process's rows of batch `step`, int32 `[B/process_count, (2k+2) t + 1]`."""
        count = self.batch_size // self.process_count
        first = self.process_index * count
        own = self.indices(step)[first : first + count]
        return np.concatenate([self.windows[own], self.cache.rows(own)], axis=1)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of tokens, order and cache."""
        return hashlib.sha256(f"{super().fingerprint()} {self.cache.fingerprint()}".encode()).hexdigest()


def untangle(batch: Int32[Array, "b columns"], k: int) -> tuple[jax.Array, Kept]:
    """Returns the tokens i32[b t+1] of a row of `TaughtDataset`, and what the teacher thought of them."""
    b, columns = batch.shape
    t = (columns - 1) // (2 * k + 2)
    tokens, ids, log_probs, tail = jnp.split(batch, [t + 1, t + 1 + t * k, t + 1 + 2 * t * k], axis=1)
    floats = (jax.lax.bitcast_convert_type(part, jnp.float32) for part in (log_probs, tail))
    of_kept, of_tail = floats
    return tokens, Kept(ids.reshape(b, t, k), of_kept.reshape(b, t, k), of_tail)


def distill_from_cache(student: Any, mix: Mix, k: int, chunks: int = 8) -> Objective:
    """Returns `(1-weight) CE + weight T^2 D` with D as `buckets.bucket_distillation` has it; no teacher runs.

    Args:
      student: the quantized `Transformer`.
      mix: the losses and their weights.
      k: tokens that the cache keeps.
      chunks: see `bucket_distillation`.

    Raises:
      ConfigError: a divergence or a loss that needs the whole teacher.
    """
    check_needs_no_teacher(mix)

    def objective(variables: Tree, batch: Int32[Array, "b columns"]) -> tuple[jax.Array, dict[str, jax.Array]]:
        tokens, kept = untangle(batch, k)
        targets = tokens[:, 1:]
        hidden, head = student.apply(variables, tokens[:, :-1], method="hidden_and_head")
        with jax.named_scope("loss"):  # a name in profiles
            loss, cross_entropy, divergence = bucket_distillation(
                hidden, head, kept, targets, mix.weight, mix.temperature, chunks
            )
        parts = {"cross_entropy": cross_entropy, "divergence": divergence}
        return loss, {"tokens": jnp.float32(targets.size), **parts}

    return objective


def check_needs_no_teacher(mix: Mix) -> None:
    """Raises ConfigError for a mix that a cache cannot serve."""
    if mix.divergence != "forward":
        raise ConfigError(
            f"the divergence {mix.divergence!r} needs the teacher's whole distribution, and a cache keeps its top",
            "set distill.divergence=forward, or leave distill.cache out",
        )
    if mix.hidden_weight or mix.attention_weight:
        raise ConfigError(
            "hidden states or attention are to be matched, and a cache keeps the teacher's logits alone",
            "set distill.hidden_weight=0 and distill.attention_weight=0, or leave distill.cache out",
        )
