"""Codes and scales that stay, beside a product of low rank that learns (QLoRA, LoftQ)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lowbit.errors import QuantizerError, nearest
from lowbit.numerics import low_rank
from lowbit.numerics.low_rank import Factors
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers.base import Quantizer, State

ADAPTER_STARTS = ("zero", "loftq")
"""What the product of the factors begins with: nothing, or what rounding loses of the weights."""


def adapted(
    quantizer: Quantizer, rank: int, alpha: float, start: str = "zero", rounds: int = 5, seed: int = 0
) -> Quantizer:
    """Returns the quantizer with codes and scales that stay, beside two factors that learn.

    Example:
      >>> quantizer = adapted(nf4(64), rank=16, alpha=16.0)
      >>> state = quantizer.init(w)            # {"a": f32[*s k r], "b": f32[*s r n], "grid": what the codes stand on}
      >>> codes = quantizer.masters(w, state)  # u8[*s k n]: all that is kept of the weights
      >>> w_hat = quantizer.fake(codes, state)

    The weights are

      w_hat = decode(codes) + a' b'        a' = half(a), b' = half(alpha / r * b)

    half(x) being x as float16 holds it, and a' b' summed in the order of `low_rank.product`. So a file of codes, a' and
    b' has these weights bit for bit. Backward, with the incoming gradient c, to a: `c b'^T`, and to b:
    `alpha / r * a'^T c`; codes and scales have none. Factors meet weights, not activations: `x (W + a' b')` is
    `(x W) + (x a') b'` up to rounding, and costs k r n products a step in place of r (k + n) a token, which is less
    from k n / (k + n) tokens on; in return the gradient of the weights of one matrix at a time is formed.

    "zero" is QLoRA's start: a is uniform within +-1/sqrt(k), b is 0. "loftq" alternates, `rounds` times,

      codes = quantize(w - a' b')
      (a', b') = factors of the matrix of rank r nearest to w - decode(codes), in float16

    from a' b' = 0 on; with alpha = r this is the paper's, and the start is as good with any other alpha, as b begins as
    r / alpha times what the singular value decomposition gives.

    Sources: arXiv 2305.14314, section 3 (QLoRA); 2106.09685, section 4.1 (LoRA, whose A and B are b^T and a^T here);
    2310.08659, algorithm 1 (LoftQ).

    Args:
      quantizer: of matrices `[*s k n]`, with codes; not `transposed`.
      rank: r, at most the smaller side of the matrix.
      alpha: a' b' is alpha / r times the product of a and b.
      start: of `ADAPTER_STARTS`.
      rounds: of "loftq", at least 1.
      seed: of the a of "zero"; give each matrix one of its own.

    Raises:
      QuantizerError: another rank, alpha, start or number of rounds; a quantizer without codes, with codes fixed under
        scales that learn, with other masters, or of layers that differ. `init` raises for a rank beyond the matrix.
    """
    if quantizer.granularity is None:
        raise QuantizerError(
            f"an adapter stands beside codes, and {quantizer.name} has none",
            "set quant.method to a method with codes, or leave this matrix out (adapters.overrides, rank 0)",
        )
    if quantizer.fixed:
        raise QuantizerError(
            f"{quantizer.name} has fixed codes under scales that learn, and an adapter keeps scales too",
            "set quant.codes=moving: codes stay beside an adapter anyway",
        )
    if quantizer.at_layer is not None:
        raise QuantizerError(
            f"the layers of {quantizer.name} differ in width, and adapters stand beside a stack of one",
            "give all layers of a matrix one width, or leave the matrix out (adapters.overrides, rank 0)",
        )
    if quantizer.masters is not None:
        raise QuantizerError(
            f"{quantizer.name} puts other weights in the place of its masters, which an adapter does not keep",
            "set quant.latent=0",
        )
    if rank < 1:
        raise QuantizerError(f"an adapter of rank {rank}", "give a whole number of at least 1")
    if not 0.0 < alpha < math.inf:
        raise QuantizerError(f"an adapter with alpha={alpha}", "give a finite number above 0")
    if start not in ADAPTER_STARTS:
        raise QuantizerError(f"unknown start {start!r} of an adapter", nearest(start, ADAPTER_STARTS))
    if rounds < 1:
        raise QuantizerError(f"{rounds} rounds of LoftQ", "give a whole number of at least 1")
    settled = _Adapter(quantizer, rank, float(alpha) / rank, start, rounds, seed)
    return Quantizer(
        f"{quantizer.name}_{start}{rank}",
        quantizer.grid,
        settled.init,
        settled.encode,
        settled.fake,
        quantizer.granularity,
        masters=settled.masters,
        scale_dtype=quantizer.scale_dtype,
        fixed=True,
        adapter=rank,
        doubled=quantizer.doubled,
    )


class LoftQ(NamedTuple):
    """What the rounds of LoftQ end with.

    Attributes:
      state: of the quantizer.
      kept: `QTensor` of codes, scales and factors.
      errors: f32 `[rounds *s]`, `|w - decode(codes) - a b|` after each round; more rounds need not be better.
    """

    # Not annotated as arrays: jax rebuilds tuples around stand-ins for them.
    state: Any
    kept: Any
    errors: Any


def loftq(quantizer: Quantizer, w: Float[Array, "*s k n"], rank: int, rounds: int) -> LoftQ:
    """Returns codes and factors of weights, by LoftQ (arXiv 2310.08659, algorithm 1); see `adapted`."""
    wide = w.astype(jnp.float32)

    def after(left: Array) -> tuple[State, QTensor]:
        state = quantizer.init(left)
        kept = quantizer.encode(left, state)
        assert isinstance(kept, QTensor)
        factors = Factors(*map(low_rank.half, low_rank.principal(wide - kept.decode(), rank)))
        return state, dataclasses.replace(kept, adapter=factors)

    def once(carry: Any, _: None) -> tuple[Any, Array]:
        _, last = carry
        state, kept = after(wide - low_rank.product(*last.adapter))
        return (state, kept), jnp.linalg.norm(wide - kept.decode(), axis=(-2, -1))

    # One program of all rounds: a singular value decomposition takes long to compile.
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(after, wide))
    (state, kept), errors = jax.lax.scan(once, nothing, None, length=rounds)
    return LoftQ(state, kept, errors)


@dataclasses.dataclass(frozen=True)
class _Adapter:
    base: Quantizer
    rank: int
    scaling: float
    start: str
    rounds: int
    seed: int

    def init(self, w: Float[Array, "..."]) -> State:
        if w.ndim < 2 or self.rank > min(w.shape[-2:]):
            raise QuantizerError(
                f"an adapter of rank {self.rank} does not fit shape {tuple(w.shape)}",
                f"choose a rank of at most {min(w.shape[-2:], default=0)}, or leave the matrix out",
            )
        if self.start == "loftq":
            found = self._loftq(w)
            a, b = (factor.astype(jnp.float32) for factor in found.kept.adapter)
            return {"a": a, "b": b * (1.0 / self.scaling), "grid": found.state}
        *stacked, k, n = w.shape
        bound = 1.0 / math.sqrt(k)
        a = jax.random.uniform(jax.random.key(self.seed), (*stacked, k, self.rank), jnp.float32, -bound, bound)
        return {"a": a, "b": jnp.zeros((*stacked, self.rank, n), jnp.float32), "grid": self.base.init(w)}

    def masters(self, w: Shaped[Array, "*s k n"], state: State) -> Array:
        """The codes u8[*s k n] of float weights, or of what an earlier run has made codes of."""
        if w.dtype == jnp.uint8:
            return w
        if self.start == "loftq":
            return self._loftq(w).kept.codes
        kept = self.base.encode(w.astype(jnp.float32), state["grid"])
        assert isinstance(kept, QTensor)
        return kept.codes

    def fake(self, w: Shaped[Array, "*s k n"], state: State) -> Float[Array, "*s k n"]:
        base = jax.lax.stop_gradient(self._codes_alone(w, state).decode())
        return low_rank.plus(base, *self._factors(state))

    def encode(self, w: Shaped[Array, "*s k n"], state: State) -> QTensor:
        factors = Factors(*map(low_rank.half, self._factors(state)))
        return dataclasses.replace(self._codes_alone(w, state), adapter=factors)

    def _factors(self, state: State) -> Factors:
        """As the file holds them, in float32."""
        return Factors(low_rank.halved(state["a"]), low_rank.halved(state["b"] * self.scaling))

    def _codes_alone(self, w: Array, state: State) -> QTensor:
        # Scales are functions of the state: of any weights, zeros too, `encode` makes them as the file holds them.
        kept = self.base.encode(jnp.zeros(w.shape, jnp.float32), state["grid"])
        assert isinstance(kept, QTensor)
        assert not kept.transposed
        return dataclasses.replace(kept, codes=self.masters(w, state))

    def _loftq(self, w: Array) -> LoftQ:
        return loftq(self.base, w, self.rank, self.rounds)
