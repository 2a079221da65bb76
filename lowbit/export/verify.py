"""verify: is the packed model the model that was trained?"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lowbit.export.packed import unpack_params
from lowbit.export.rounding_error import logits_bound
from lowbit.formats import PackedModel
from lowbit.kernels import Runtime
from lowbit.linen import quantize
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer
from lowbit.tree import fake_quant, flatten
from lowbit.tree.apply import QuantizerRule
from lowbit.tree.paths import Tree


@dataclasses.dataclass(frozen=True)
class Verification:
    """What the comparison found.

    Attributes:
      weights: how many weights were compared, all parameters of the model.
      differing: path -> how many weights are not equal bit for bit; empty where all are.
      max_logit_error: largest distance of a logit, trained model in jax against packed model in numpy, both float32.
      logit_bound: the largest distance that rounding explains (`rounding_error.logits_bound`).
      positions: how many positions the logits were compared at.
    """

    weights: int
    differing: dict[str, int]
    max_logit_error: float
    logit_bound: float
    positions: int

    @property
    def ok(self) -> bool:
        """Weights equal bit for bit, and logits within the bound."""
        return not self.differing and self.max_logit_error <= self.logit_bound

    def __str__(self) -> str:
        lines = [
            f"weights  {self.weights:,} compared, "
            + ("all equal bit for bit" if not self.differing else f"{sum(self.differing.values()):,} DIFFER"),
            *(f"         {path}: {count:,} differ" for path, count in self.differing.items()),
            f"logits   {self.positions} positions, largest distance {self.max_logit_error:.2e}, "
            f"rounding explains {self.logit_bound:.2e}"
            + ("" if self.max_logit_error <= self.logit_bound else ": TOO FAR"),
            "the packed file is the trained model" if self.ok else "the packed file is NOT the trained model",
        ]
        return "\n".join(lines)


def verify(
    packed: PackedModel,
    cfg: LlamaConfig,
    params: Tree,
    rules: Sequence[QuantizerRule],
    state: Mapping[str, Tree],
    tokens: NDArray[np.integer],
) -> Verification:
    """Compares every weight bit for bit, and logits within what rounding explains.

    The trained side is training's own forward pass: masters and quantizer state through `quantize` in the Flax model,
    in float32. The packed side is the numpy runtime, which knows only the file. Activations are floats on both sides,
    whatever the model was made for.

    Args:
      packed: what was exported.
      cfg: the trained model's sizes.
      params: float32 masters.
      rules: as trained.
      state: `{"quant", "grid"}` as trained.
      tokens: int[b t], to compare logits at.

    Raises:
      FormatError: a packed model whose tensors do not fit its config, or are damaged.
    """
    quantized = jax.jit(functools.partial(fake_quant, rules))(params, state)
    trained = flatten(jax.tree.map(np.asarray, quantized))
    shipped = unpack_params(cfg, packed)
    differing = {}
    for path, w in trained.items():
        other = shipped.get(path)
        if other is None or other.shape != w.shape:
            differing[path] = w.size
        elif count := int(np.sum(w.view(np.uint32) != other.view(np.uint32))):
            differing[path] = count
    for path in shipped.keys() - trained.keys():
        differing[path] = shipped[path].size

    model = Transformer(cfg, jnp.float32, attention="xla", transform=lambda cls, prefix: quantize(cls, rules, prefix))
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(model.apply)
        ours = np.asarray(forward({"params": params, **state}, jnp.asarray(tokens, jnp.int32)))
    # With float activations on both sides: a rounding error before a rounded activation may move it by a whole step.
    floats = dataclasses.replace(packed, meta={})
    runtime = Runtime(floats)
    theirs = runtime.forward(tokens)
    return Verification(
        weights=sum(w.size for w in trained.values()),
        differing=differing,
        max_logit_error=float(np.max(np.abs(ours - theirs))),
        logit_bound=logits_bound(floats, runtime, tokens, theirs),
        positions=int(tokens.size),
    )
