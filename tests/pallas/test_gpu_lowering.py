"""The kernels as Triton gets them, made without a GPU: what jax.numpy runs in other tests is lowered as well."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from lowbit import pallas
from lowbit.bench.random_model import LEVELS
from lowbit.pallas.tiles import GemvTile, Tile

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
H100 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"))


@pytest.mark.parametrize("tile", [Tile(16, 1, 2, 2), GemvTile(8, 128, 1, False), GemvTile(8, 128, 1, True)])
@pytest.mark.parametrize("bits", LEVELS)
def test_each_width_becomes_a_triton_program(bits, tile):
    levels = tuple(map(float, LEVELS[bits]))
    codes, scale = (jax.ShapeDtypeStruct(*form) for form in (((64, 1024), jnp.uint8), ((1, 64), jnp.float16)))
    weight = jax.eval_shape(lambda codes, scale: pallas.prepack(codes, scale, levels), codes, scale)
    x = jax.ShapeDtypeStruct((2, 1024), jnp.bfloat16)
    with use_abstract_mesh(H100):
        product = jax.jit(lambda x, w: pallas.matmul(x, w, "kernel", tile))
        text = product.trace(x, weight).lower(lowering_platforms=("cuda",)).as_text()
    assert "__gpu$xla.gpu.triton" in text
