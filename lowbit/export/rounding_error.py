"""How far two float32 evaluations of one model may lie apart: estimated from the arithmetic, by Monte Carlo.

A float32 dot product of k terms, summed in any order, differs from the exact one by a sum of k roundings. Modelled as
independent (Higham and Mary, SIAM J. Sci. Comput. 41, 2019), its size is at most about `u * |x| * |w|` with
u = 2^-24 and |.| the Euclidean norm. Adding noise of that size to every product of a whole forward pass, and looking
at what reaches the logits, gives the error that the model itself makes of rounding: no Lipschitz constant needs to be
guessed. The technique is Monte Carlo arithmetic (Parker, 1997).
"""

import numpy as np
from numpy.typing import NDArray

from lowbit.formats import PackedModel, decode
from lowbit.kernels import Runtime, Weights

UNIT_ROUNDOFF = 2.0**-24
SAMPLES = 8
SAFETY = 8.0
"""Two evaluations each err (2), the largest of 8 samples is no maximum (2), and what is not a product with weights
(attention, softmax, norms, rotation) rounds as well but gets no noise here (2)."""


class _NoisyWeights:
    """Weights whose every product carries noise of the size of its rounding error."""

    def __init__(self, packed: PackedModel, weights: Weights):
        self._packed = packed
        self._weights = weights
        self.rng = np.random.default_rng()  # the samples set it; the norms are theirs in common
        self._norms: dict[tuple[str, bool], NDArray[np.float32]] = {}

    def vector(self, name: str) -> NDArray[np.float32]:
        return self._weights.vector(name)

    def rows(self, name: str, index: NDArray[np.integer]) -> NDArray[np.float32]:
        return self._weights.rows(name, index)

    def matmul(self, x: NDArray[np.float32], name: str, *, transposed: bool = False) -> NDArray[np.float32]:
        product = self._weights.matmul(x, name, transposed=transposed)
        size = UNIT_ROUNDOFF * np.linalg.norm(x, axis=-1, keepdims=True) * self._column_norms(name, transposed)
        return product + (size * self.rng.standard_normal(product.shape)).astype(np.float32)

    def _column_norms(self, name: str, transposed: bool) -> NDArray[np.float32]:
        """|w| of each output."""
        key = (name, transposed)
        if key not in self._norms:
            matrix = decode(self._packed.tensors[name])
            self._norms[key] = np.linalg.norm(matrix, axis=1 if transposed else 0)
        return self._norms[key]


def logits_bound(
    packed: PackedModel, runtime: Runtime, tokens: NDArray[np.integer], logits: NDArray[np.float32]
) -> float:
    """Returns the largest distance in a logit that rounding explains between two float32 evaluations.

    Args:
      packed: the model.
      runtime: of that model; its weights are exchanged for noisy ones meanwhile.
      tokens: int[b t].
      logits: f32[b t V], what the runtime gives for them.
    """
    exact = runtime.weights
    assert isinstance(exact, Weights)  # noise is put on numpy's products; compiled kernels have no place for it
    noisy = _NoisyWeights(packed, exact)
    # The runtime asks its weights for vectors, rows and products only; the noisy ones answer all three.
    runtime.weights = noisy  # type: ignore[assignment]
    largest = 0.0
    try:
        for seed in range(SAMPLES):
            noisy.rng = np.random.default_rng(seed)
            largest = max(largest, float(np.max(np.abs(runtime.forward(tokens) - logits))))
    finally:
        runtime.weights = exact
    return SAFETY * largest
