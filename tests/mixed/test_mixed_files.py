"""A packed file whose matrices differ in width: engines compute it, and other files hold it."""

import numpy as np
import pytest

from lowbit.export.gguf import to_gguf, write_gguf
from lowbit.export.hf import to_hf
from lowbit.export.packed import unpack_params
from lowbit.export.rounding_error import logits_bound
from lowbit.formats import PackedModel, PackedTensor, decode, read, write
from lowbit.gguf import read as read_gguf
from lowbit.kernels import Runtime, unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.models import load
from lowbit.numerics.grids import paretoq_grid
from lowbit.tree import unflatten

CFG = LlamaConfig(40, 256, 256, 2, 2, 1, 32, max_positions=64, tie_embeddings=True, bos_token_id=0, eos_token_ids=(0,))
TOKENS = np.random.default_rng(0).integers(0, 40, (1, 9))


@pytest.fixture(scope="module")
def packed():
    """Each matrix of another width in its two layers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in unstacked_shapes(CFG).items():
        if name.endswith("_proj.kernel"):
            _, layer, *_, kind, _ = name.split(".")
            grid, _ = paretoq_grid((1, 2, 3, 4)[(len(kind) + int(layer)) % 4])
            codes = rng.integers(0, len(grid.levels), shape).astype(np.uint8)
            scale = rng.uniform(0.01, 0.1, (1, shape[1])).astype(np.float16)
            tensors[name] = PackedTensor.from_codes(codes, scale, grid.table(), grid.name)
        else:
            tensors[name] = rng.normal(size=shape).astype(np.float16)
    return PackedModel(tensors, CFG.to_hf(), {}, {})


def test_the_numpy_and_the_compiled_runtime_compute_it(packed):
    """As a file of the same weights in float32, within what rounding explains."""
    plain = {name: np.asarray(decode(tensor), np.float32) for name, tensor in packed.tensors.items()}
    exact = Runtime(PackedModel(plain, packed.config, {}, {}))
    logits = exact.forward(TOKENS)
    runtime = Runtime(packed)
    bound = logits_bound(packed, runtime, TOKENS, logits)
    assert np.abs(runtime.forward(TOKENS) - logits).max() <= bound
    compiled = Runtime(packed, kernels="auto", activations="float32")
    assert compiled.kernels != "numpy"
    assert np.abs(compiled.forward(TOKENS) - logits).max() <= bound


def test_the_file_gguf_and_transformers_hold_each_weight(packed, tmp_path):
    write(tmp_path / "m.lowbit", packed)
    again = read(tmp_path / "m.lowbit", verify=True)
    to_hf(packed, tmp_path / "hf")
    hf = load(tmp_path / "hf").params
    write_gguf(tmp_path / "m.gguf", to_gguf(packed, "mixed"))
    kinds = {
        t.kind.name
        for name, t in read_gguf(tmp_path / "m.gguf").tensors.items()
        if "blk" in name and "norm" not in name
    }
    assert len(kinds) >= 3  # each tensor in the smallest type of its own
    gguf = load(tmp_path / "m.gguf").params
    wanted = unflatten(unpack_params(CFG, packed))
    for found in (unflatten(unpack_params(CFG, again)), hf, gguf):
        for kind in ("attn/q_proj", "mlp/down_proj"):
            part, name = kind.split("/")
            ours, theirs = wanted["layers"][part][name]["kernel"], found["layers"][part][name]["kernel"]
            np.testing.assert_array_equal(ours, theirs)
