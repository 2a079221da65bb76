"""Programs here run once on tiny arrays: their time is compilation, so they are compiled without optimization."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _unoptimized_programs():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
