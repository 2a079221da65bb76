"""The kernel of attention in CUDA C++, compiled for a processor, against a softmax in float64."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from processor import run_here

from lowbit.cuda import AttentionShape, AttentionTile, attention_fits, attention_tile
from lowbit.cuda import attention as cuda_attention

BF16 = ml_dtypes.bfloat16


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Heads [b n h], rounded before and after they are turned, in float32."""
    x = x.astype(BF16).astype(np.float32)
    half = x.shape[-1] // 2
    lower, upper = x[..., :half], x[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    both = np.concatenate([lower * cos + upper * -sin, upper * cos + lower * sin], axis=-1)
    return both.astype(BF16).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "tile", "length", "starts"),
    [
        # Heads of 2 and 8 threads; chunks that warps take in turn, more than once; slots that no chunk divides.
        (AttentionShape(2, 2, 3, 16, 150), AttentionTile(2, 1, 16), 131, (0, 37)),
        (AttentionShape(1, 2, 4, 64, 40), AttentionTile(2, 2, 8), 39, (3,)),
        # Nothing before the new token, and a block of a cluster that sees nothing.
        (AttentionShape(2, 1, 1, 32, 64), AttentionTile(1, 4, 16), 5, (0, 5)),
        (AttentionShape(1, 1, 2, 128, 16), AttentionTile(1, 1, 8), 0, (0,)),
    ],
)
def test_attends_to_what_is_seen_and_keeps_the_token(
    tmp_path: Path, shape: AttentionShape, tile: AttentionTile, length: int, starts: tuple[int, ...]
) -> None:
    assert attention_fits(shape)
    b, heads, group, h, slots = shape
    rng = np.random.default_rng(h)
    qkv = rng.normal(size=(b, (group + 2) * heads * h)).astype(np.float32)
    angles = rng.uniform(0, 6, (b, h // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    keys, values = (rng.normal(size=(b, heads, slots, h)).astype(BF16) for _ in range(2))
    for row, start in enumerate(starts):  # what is not seen may be anything
        for part in (keys, values):
            part[row, :, :start] = np.nan
            part[row, :, length:] = np.inf
    before = keys.copy(), values.copy()
    mixed = np.zeros((b, heads, group, h), BF16)
    filled = np.asarray([length, *starts], np.int32)
    defines = cuda_attention.defines(shape, tile)
    sizes = b * heads * tile.blocks, tile.blocks, 32 * tile.warps, defines["SHARED"]
    run_here(cuda_attention.SOURCE, defines, tmp_path, [qkv, cos, sin, filled, keys, values, mixed], sizes)

    split = qkv.reshape(b, -1, h)
    queries = turned(split[:, : group * heads], cos, sin).reshape(b, heads, group, h)
    key = turned(split[:, group * heads : -heads], cos, sin)
    value = split[:, -heads:].astype(BF16)
    for part, old, new in ((keys, before[0], key.astype(BF16)), (values, before[1], value)):
        np.testing.assert_array_equal(part[:, :, length], new)
        others = np.arange(slots) != length
        np.testing.assert_array_equal(part[:, :, others].view(np.uint16), old[:, :, others].view(np.uint16))
    for row, start in enumerate(starts):
        seen = slice(start, length + 1)
        k, v = (part[row, :, seen].astype(np.float64) for part in (keys, values))
        scores = np.einsum("ngh,nth->ngt", queries[row], k) / np.sqrt(h)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        expected = np.einsum("ngt,nth->ngh", shares, v)
        # Rounded to bfloat16; scores are float32 sums of h terms of order 1, and exponentials take what they lose.
        lost = 2.0**-24 * (h * np.abs(scores).max() + slots) * np.einsum("ngt,nth->ngh", shares, np.abs(v))
        assert (np.abs(mixed[row].astype(np.float64) - expected) <= 2.0**-8 * np.abs(expected) + 8 * lost).all()


def test_a_cluster_has_no_more_blocks_than_slots_and_processors_for_them() -> None:
    assert attention_tile(AttentionShape(1, 8, 4, 64, 192)).blocks == 1
    assert attention_tile(AttentionShape(1, 8, 4, 64, 1024)).blocks == 4
    assert attention_tile(AttentionShape(1, 8, 4, 64, 1025)).blocks == 8
    assert attention_tile(AttentionShape(5, 8, 4, 64, 1025)).blocks == 2
    assert attention_tile(AttentionShape(1, 8, 4, 64, 1 << 20)).blocks == 8
    assert attention_tile(AttentionShape(16, 8, 4, 64, 1 << 20)).blocks == 1
    assert attention_tile(AttentionShape(1, 8, 8, 128, 64)).chunk == 8
    assert not attention_fits(AttentionShape(1, 1, 9, 64, 64))
    assert not attention_fits(AttentionShape(1, 1, 1, 80, 64))


def test_shared_memory_is_what_every_block_may_have() -> None:
    """More than 48 KiB would have to be asked for."""
    shape = AttentionShape(1, 8, cuda_attention.MOST_QUERIES, 128, 4096)
    assert cuda_attention.shared_bytes(shape, attention_tile(shape)) <= 48 << 10
