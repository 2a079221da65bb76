"""A small, reproducible set of sequences that methods look at, and its way through a model."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from lowbit.data import TokenWindows
from lowbit.errors import DataError
from lowbit.llama import LlamaConfig

BATCH_TOKENS = 4096
"""Tokens of calibration that one device works on at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Sequences of tokens.

    Attributes:
      tokens: i32[n t].
      seed: by which they were drawn.
      source: where they are from, for the record.
    """

    tokens: NDArray[np.int32]
    seed: int
    source: str

    def record(self) -> dict[str, Any]:
        """Returns what a result says of its calibration."""
        sequences, length = self.tokens.shape
        return {
            "source": self.source,
            "sequences": sequences,
            "length": length,
            "seed": self.seed,
            "sha256": hashlib.sha256(np.ascontiguousarray(self.tokens).tobytes()).hexdigest(),
        }

    def check(self, cfg: LlamaConfig) -> None:
        """Refuses a set that cannot say how the inputs of every kernel vary.

        Raises:
          DataError: sequences beyond the model's positions, or fewer tokens than the widest kernel has inputs.
        """
        sequences, length = self.tokens.shape
        if length > cfg.max_positions:
            raise DataError(
                f"calibration sequences of {length:,} tokens, and the model has {cfg.max_positions:,} positions",
                "ask for shorter sequences",
            )
        widest = max(cfg.hidden_size, cfg.intermediate_size, cfg.num_heads * cfg.head_dim)
        if self.tokens.size < widest:
            raise DataError(
                f"{sequences} x {length} = {self.tokens.size:,} calibration tokens are too few for a kernel of "
                f"{widest:,} inputs, whose second moments they must show",
                f"ask for more or longer sequences: {8 * widest:,} tokens or more do well",
            )


def draw(windows: TokenWindows, count: int, seed: int, source: str) -> Calibration:
    """Returns `count` different windows (without the last token of each), in the order of the text.

    Raises:
      DataError: there are fewer.
    """
    if not 1 <= count <= len(windows):
        raise DataError(
            f"{count} calibration sequences were asked for, and {source} has {len(windows)} of {windows.length} tokens",
            "ask for fewer or shorter sequences, or give more text",
        )
    chosen = np.sort(np.random.default_rng(seed).choice(len(windows), count, replace=False))
    return Calibration(np.ascontiguousarray(windows[chosen][:, :-1]), seed, source)


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where calibration runs: its rows over all devices, everything else on the first.

    Attributes:
      rows: of hidden states `[batches b t d]`.
      everywhere: of parameters.
      first: of what methods compute.
    """

    rows: NamedSharding
    everywhere: NamedSharding
    first: jax.Device

    @classmethod
    def of(cls, devices: Sequence[jax.Device]) -> "Devices":
        """Returns the places on these devices."""
        mesh = Mesh(np.asarray(devices), ("data",))
        return cls(NamedSharding(mesh, PartitionSpec(None, "data")), NamedSharding(mesh, PartitionSpec()), devices[0])


def embedded(embedding: NDArray[np.float32], calibration: Calibration, devices: Devices) -> jax.Array:
    """Returns the inputs of the first layer, f32[batches b t d], the b rows of a batch spread over the devices.

    Where rows do not divide by the devices, every device holds all of them.
    """
    tokens = calibration.tokens
    sequences, length = tokens.shape
    count = devices.rows.mesh.size
    most = max(1, BATCH_TOKENS // length) * count
    sizes = [size for size in range(1, most + 1) if sequences % size == 0]
    even = [size for size in sizes if size % count == 0]
    size = max(even or sizes)
    hidden = embedding[tokens.reshape(-1, size, length)]
    return jax.device_put(hidden, devices.rows if even else devices.everywhere)
