"""The widths of least loss under a budget of bytes, and what each kernel takes of it."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lowbit.errors import AllocationError
from lowbit.formats.packing import packing_for, row_bytes
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.mixed.knapsack import choose
from lowbit.mixed.trial import Sensitivities, kernel_weights
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.numerics.qtensor import QTensor
from lowbit.ptq import Target
from lowbit.ptq.widths import Widths


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A width for each kernel, and what that comes to.

    Attributes:
      widths: of every kernel of every layer.
      target: grid, granularity and range; its width is the widest one.
      nbytes: of all kernels as a packed file holds them: codes in whole bytes a row, scales and zero points.
      weights: how many they hold.
      loss: the sum of their losses.
    """

    widths: Widths
    target: Target
    nbytes: int
    weights: int
    loss: float

    @property
    def bits(self) -> float:
        """Bits/weight of the kernels, scales included."""
        return 8 * self.nbytes / self.weights


def allocate(cfg: LlamaConfig, target: Target, sensitivities: Sensitivities, budget: float) -> Allocation:
    """Returns the widths of least summed loss whose kernels take at most `budget` bits a weight.

    Exact (`lowbit.mixed.knapsack.choose`); of equal losses the smaller file, and always the same.

    Args:
      cfg: the model's sizes.
      target: grid and granularity; its width does not count.
      sensitivities: of this model.
      budget: bits/weight of the layers' kernels, their scales included; a packed file's other tensors do not count.

    Raises:
      AllocationError: a budget that even the narrowest widths exceed.
    """
    paths = [(path, layer) for path, losses in sensitivities.losses.items() for layer in range(len(losses))]
    costs = [[kernel_bytes(cfg, target.at(bits), path) for bits in sensitivities.widths] for path, _ in paths]
    losses = [list(sensitivities.losses[path][layer]) for path, layer in paths]
    found = choose(costs, losses, allowed_bytes(cfg, target, sensitivities.widths, budget))
    chosen: dict[str, list[float]] = {}
    for (path, _), option in zip(paths, found.options, strict=True):
        chosen.setdefault(path, []).append(sensitivities.widths[option])
    widths = Widths({path: tuple(of_layers) for path, of_layers in chosen.items()})
    return Allocation(widths, target.at(sensitivities.widths[-1]), found.cost, kernel_weights(cfg), found.loss)


def allowed_bytes(cfg: LlamaConfig, target: Target, candidates: Sequence[float], budget: float) -> int:
    """Returns the bytes that a budget allows all kernels; args and raises as `allocate`."""
    weights, narrowest = kernel_weights(cfg), target.at(min(candidates))
    least = cfg.num_layers * sum(kernel_bytes(cfg, narrowest, path) for stage in LINEAR_STAGES for path in stage)
    allowed = int(budget * weights / 8 + 1e-6)  # bits/weight of so many bytes are to hold so many bytes
    if least > allowed:
        # Rounded up, so that what is said to be possible is.
        bits = -(-8000 * least // weights) / 1000
        raise AllocationError(
            f"a budget of {budget:g} bits/weight is {allowed:,} bytes, and the narrowest widths take {least:,}, scales "
            "included",
            f"give {bits:.3f} bits/weight or more, or narrower widths or larger groups",
        )
    return allowed


def uniform(cfg: LlamaConfig, target: Target, sensitivities: Sensitivities) -> dict[float, Allocation]:
    """Returns what one width for all kernels comes to, for each width."""
    found = {}
    for index, bits in enumerate(sensitivities.widths):
        widths = Widths({path: (bits,) * len(losses) for path, losses in sensitivities.losses.items()})
        loss = float(sum(losses[:, index].sum() for losses in sensitivities.losses.values()))
        nbytes = allocated_bytes(cfg, target, widths)
        found[bits] = Allocation(widths, target.at(bits), nbytes, kernel_weights(cfg), loss)
    return found


def allocated_bytes(cfg: LlamaConfig, target: Target, widths: Widths) -> int:
    """Returns the bytes of all kernels at these widths."""
    return sum(kernel_bytes(cfg, target.at(bits), path) for path, row in widths.by_path.items() for bits in row)


def kernel_bytes(cfg: LlamaConfig, target: Target, path: str) -> int:
    """Returns the bytes of one kernel in a packed file: rows of codes in whole bytes, scales and zero points."""
    _, k, n = param_shapes(cfg)[LAYER_PREFIX + path]
    return _packed_bytes(target, k, n)


@functools.cache
def _packed_bytes(target: Target, k: int, n: int) -> int:
    quantizer = target.quantizer
    assert quantizer is not None
    kept = jax.eval_shape(lambda w: quantizer.encode(w, quantizer.init(w)), jax.ShapeDtypeStruct((k, n), jnp.float32))
    assert isinstance(kept, QTensor)
    scales = [part for part in (kept.scale, kept.zero, kept.in_scale) if part is not None]
    codes = n * row_bytes(packing_for(len(kept.grid.levels)), k)
    return codes + sum(part.size * part.dtype.itemsize for part in scales)
