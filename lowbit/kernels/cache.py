"""The keys and values of the tokens seen so far."""

import numpy as np

from lowbit.errors import DataError
from lowbit.llama import LlamaConfig

INITIAL_CAPACITY = 256


class KVCache:
    """Keys and values of every layer, `[L b kv_heads capacity head_dim]`, float32.

    The arrays are allocated ahead and doubled when full, up to the model's `max_positions`: a token costs no
    allocation. A forward pass that fails leaves `length` where it was.

    Attributes:
      length: tokens that all layers have seen.
    """

    def __init__(self, config: LlamaConfig, batch: int = 1, capacity: int = INITIAL_CAPACITY):
        self._limit = config.max_positions
        capacity = min(max(capacity, 1), self._limit)
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self._keys = np.zeros(shape, np.float32)
        self._values = np.zeros(shape, np.float32)
        self.length = 0

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return self._keys.shape[1]

    @property
    def capacity(self) -> int:
        """Positions allocated."""
        return self._keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._keys.nbytes + self._values.nbytes

    def reserve(self, tokens: int) -> None:
        """Makes room for more tokens.

        Raises:
          DataError: more tokens than the model has positions.
        """
        needed = self.length + tokens
        if needed > self._limit:
            raise DataError(
                f"{needed} tokens do not fit the model's {self._limit} positions",
                "shorten the prompt, ask for fewer tokens, or start a new cache",
            )
        if needed > self.capacity:
            capacity = min(max(needed, 2 * self.capacity), self._limit)
            self._keys = self._grown(self._keys, capacity)
            self._values = self._grown(self._values, capacity)

    def store(self, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Writes keys and values [b t kv_heads head_dim] of one layer behind the known tokens.

        Returns:
          Keys and values of all tokens of that layer, new ones included: views [b kv_heads length+t head_dim].
        """
        end = self.length + keys.shape[1]
        self._keys[layer, :, :, self.length : end] = keys.swapaxes(1, 2)
        self._values[layer, :, :, self.length : end] = values.swapaxes(1, 2)
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns keys and values as they lie in memory, until `reserve` moves them."""
        return self._keys, self._values

    def advance(self, tokens: int) -> None:
        """Counts tokens that every layer has stored."""
        self.length += tokens

    def _grown(self, array: np.ndarray, capacity: int) -> np.ndarray:
        grown = np.zeros((*array.shape[:3], capacity, array.shape[4]), np.float32)
        grown[:, :, :, : self.length] = array[:, :, :, : self.length]
        return grown
