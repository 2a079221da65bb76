"""llama.cpp's arithmetic in numpy: the same weights, with activations rounded as its kernels round them.

On a CPU llama.cpp multiplies quantized weights with 8-bit activations: blocks of 32 with an fp16 scale (Q8_0), or of
256 with a float32 scale (Q8_K), as the type of the weights asks; F16 weights meet fp16 activations, BF16 ones bf16
(ggml-quants.c: quantize_row_q8_0_ref, quantize_row_q8_K_ref; `vec_dot_type` in ggml-cpu.c). So its logits differ from
those of float activations, and what differs is nothing of the weights. Here the same is computed from the GGUF file.
Compared with llama.cpp it leaves float32 rounding alone, and the codes of activations that such a rounding tips over.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lowbit.export.gguf_layout import slots
from lowbit.formats import PackedModel
from lowbit.gguf import read
from lowbit.kernels import Runtime
from lowbit.models import load
from lowbit.models.packed import packed_name
from lowbit.models.stacking import layer_names
from lowbit.tree import flatten

Array = NDArray[np.float32]
Rounding = Callable[[Array], Array]

SAMPLES = 8
SAFETY = 2.0
"""Two evaluations each err (sqrt 2), and what is not a product with weights rounds as well but gets no noise here:
norms, and llama.cpp's own exponential (sqrt 2)."""

_UNIT_ROUNDOFF = 2.0**-24
_Q8_0_BLOCK, _Q8_K_BLOCK = 32, 256
_LARGEST = np.float32(127)


def q8_0(x: Array) -> Array:
    """Rounds f32[... k] in blocks of 32: `round(x / d) * fp16(d)` with d = max|x| / 127, halves away from zero."""
    blocks = x.reshape(*x.shape[:-1], -1, _Q8_0_BLOCK)
    d = np.abs(blocks).max(axis=-1, keepdims=True) / _LARGEST
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    scaled = blocks * inverse
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return (codes * d.astype(np.float16).astype(np.float32)).reshape(x.shape)


def q8_k(x: Array) -> Array:
    """Rounds f32[... k] in blocks of 256, in units of the element of largest size, which becomes -127."""
    blocks = x.reshape(*x.shape[:-1], -1, _Q8_K_BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    scale = np.divide(-_LARGEST, largest, out=np.zeros_like(largest), where=largest != 0)
    codes = np.minimum(np.rint(blocks * scale), _LARGEST)
    back = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return (codes * back).reshape(x.shape)


def _half(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float32)


def _bfloat16(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def _as_it_is(x: Array) -> Array:
    return x


_ROUNDING: dict[str, Rounding] = {
    **dict.fromkeys(("Q1_0", "Q2_0", "Q4_0", "Q8_0"), q8_0),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_K", "Q3_K"), q8_k),
    "F16": _half,
    "BF16": _bfloat16,
    "F32": _as_it_is,
}
"""Type of the weights to what happens to the activations that meet them."""


class Distance(NamedTuple):
    """How far logits lie apart.

    Attributes:
      rms: root mean square over positions and vocabulary.
      largest: of one logit.
    """

    rms: float
    largest: float


def distance(a: Array, b: Array) -> Distance:
    """Returns the distance of logits of equal shape."""
    return Distance(float(np.sqrt(np.mean(np.square(a - b)))), float(np.abs(a - b).max()))


class LlamaCpp:
    """A GGUF file that lowbit's export wrote, computed as llama.cpp does.

    Args:
      path: the file.
      activations: False leaves activations in float32.

    Raises:
      ModelError: as `load`.
    """

    def __init__(self, path: Path, activations: bool = True):
        loaded = load(path)
        kinds = {name: tensor.kind.name for name, tensor in read(path).tensors.items()}
        flat = flatten(loaded.params)
        arrays: dict[str, Array] = {}
        for parameter, values in flat.items():
            names = layer_names(loaded.cfg, parameter, packed_name)
            arrays |= dict(zip(names, values if len(names) > 1 or "layers" in names[0] else [values], strict=True))
        self.runtime = Runtime(PackedModel(dict(arrays), loaded.cfg.to_hf()))
        rounding = {
            slot.packed: _ROUNDING[kinds[slot.gguf]] if activations else _as_it_is for slot in slots(loaded.cfg)
        }
        self._weights = _Weights(arrays, rounding)
        # The runtime asks its weights for vectors, rows and products only; these answer all three.
        self.runtime.weights = self._weights  # type: ignore[assignment]

    def logits(self, tokens: NDArray[np.integer]) -> Array:
        """Returns f32[b t V]."""
        return self.runtime.forward(tokens)

    def scatter(self, tokens: NDArray[np.integer], logits: Array) -> Distance:
        """Returns how far logits may lie from those of llama.cpp by float32 rounding, estimated by Monte Carlo.

        As in `rounding_error`, every product gets noise of the size of its rounding. Here that also tips activations
        from one 8-bit code to the next, which moves the logits much further than the rounding itself.
        """
        samples = []
        try:
            for seed in range(SAMPLES):
                self._weights.noise = np.random.default_rng(seed)
                samples.append(distance(self.logits(tokens), logits))
        finally:
            self._weights.noise = None
        return Distance(*(SAFETY * max(values) for values in zip(*samples, strict=True)))


class _Weights:
    """Float weights whose products round their activations."""

    def __init__(self, arrays: dict[str, Array], rounding: dict[str, Rounding]):
        self._arrays = arrays
        self._rounding = rounding
        self._norms = {name: np.linalg.norm(array, axis=0) for name, array in arrays.items() if array.ndim == 2}
        self.noise: np.random.Generator | None = None

    def vector(self, name: str) -> Array:
        return self._arrays[name]

    def rows(self, name: str, index: NDArray[np.integer]) -> Array:
        return self._arrays[name][index]

    def matmul(self, x: Array, name: str, *, transposed: bool = False) -> Array:
        matrix = self._arrays[name]
        rounded = self._rounding[name](x)
        product: Array = rounded @ (matrix.T if transposed else matrix)
        if self.noise is None:
            return product
        norms = np.linalg.norm(matrix, axis=1) if transposed else self._norms[name]
        size = _UNIT_ROUNDOFF * np.linalg.norm(rounded, axis=-1, keepdims=True) * norms
        noisy: Array = product + (size * self.noise.standard_normal(product.shape)).astype(np.float32)
        return noisy
