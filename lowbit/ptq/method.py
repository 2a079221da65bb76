"""What a post-training method is: how one kernel is rounded, perhaps after scales are folded through its layer."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from lowbit.llama import LlamaConfig
from lowbit.numerics.quantizers import Quantizer
from lowbit.ptq.moments import Hidden, Moments
from lowbit.ptq.target import Target


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of single methods; each is read by the methods it names.

    Attributes:
      damping: gptq: what is added to the Hessian's diagonal, as a share of its mean.
      act_order: gptq: inputs of largest second moment first.
      static_groups: gptq: scales of all groups from the weights at the start, not as compensated so far.
      token_weights: gptq: of `moments.TOKEN_WEIGHTS`: how much each token of calibration counts.
      alpha: smoothquant: how much of the activations' range moves into the weights, 0 to 1.
      threshold: int8_outliers: inputs that exceed it keep 16-bit weights.
      seed: kmeans, product, residual: of the first centroids; block_ap: of the order of sequences.
      epochs: block_ap: how often it sees each sequence of calibration.
      batch_size: block_ap: sequences in a step, or all where there are fewer.
      weight_rate: block_ap: Adam's rate for masters, at its peak; 0 leaves them.
      scale_rate: block_ap: the same for scales and zero points.
    """

    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    token_weights: str = "even"
    alpha: float = 0.5
    threshold: float = 6.0
    seed: int = 0
    epochs: int = 10
    batch_size: int = 8
    weight_rate: float = 1e-3
    scale_rate: float = 1e-3


class Rounded(NamedTuple):
    """One rounded kernel.

    Attributes:
      w_hat: what the model computes with, f32[k n].
      masters: weights that `quantizer` rounds to `w_hat`, where QAT can go on; f32[k n].
      state: of the quantizer.
      quantizer: whose codes a packed file holds; None where no grid of one code a weight gives `w_hat`.
      bits: bits/weight of all that has to be stored; None where the quantizer says it.
      valid: bool[], False where the method failed in its arithmetic; None where it cannot.
    """

    w_hat: Any
    masters: Any
    state: dict[str, Any]
    quantizer: Quantizer | None
    bits: float | None = None
    valid: Any = None


Round = Callable[[str, Float[Array, "k n"], Moments | None, Target, Options], Rounded]
"""`(path in the layer, w [k n], moments of its inputs or None, target, options) -> Rounded`."""

Fold = Callable[[dict[str, Array], dict[str, Moments], Mapping[str, Target], Options, bool], dict[str, Array]]
"""`(flat layer, moments by the first path of each stage, targets of its kernels, options, whether each query head has
its value head) -> flat layer` of equal function."""

Learn = Callable[
    [LlamaConfig, str, dict[str, Array], Hidden, Hidden, Mapping[str, Target], Options], dict[str, Rounded]
]
"""`(sizes, name of the layer, flat layer, its inputs, those in the float model, targets of its kernels, options) ->
kernels by path`."""

Check = Callable[[Target, Options, Sequence[int]], None]
"""Raises QuantizerError for what the method cannot do; the sequence holds the inputs k of all kernels."""


def anything(target: Target, options: Options, inputs: Sequence[int]) -> None:
    """The check of a method that refuses nothing."""
    del target, options, inputs


class Method(NamedTuple):
    """A row of the table of methods.

    Attributes:
      name: as the command line has it.
      round: rounds one kernel; where a method learns, this is what it starts from.
      grids: names of `lowbit.ptq.target.GRIDS` that it can do, the usual one first.
      ranges: of `lowbit.ptq.ranges.RANGES`, the usual one first; how scales begin.
      fold: what it does to a layer first; None for nothing.
      learn: makes all kernels of a layer at once, in place of one after another; None for the latter. Such a method
        follows the float model.
      reads_moments: whether `round` looks at its kernel's inputs; `fold` always does.
      follows_float: whether it compares with the float model's inputs (`Moments.cross`).
      options: fields of `Options` that it reads.
      check: what else it refuses, before any work.
    """

    name: str
    round: Round
    grids: tuple[str, ...]
    ranges: tuple[str, ...]
    fold: Fold | None = None
    learn: Learn | None = None
    reads_moments: bool = True
    follows_float: bool = False
    options: tuple[str, ...] = ()
    check: Check = anything

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without calibration."""
        return self.reads_moments or self.fold is not None
