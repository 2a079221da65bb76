"""What checks annotations in all tests: it tells signatures apart, and objects to what does not fit."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped
from typecheck import once_a_signature, spelled

from lowbit.numerics.quantizers import rtn


def product(shape, default=0):
    """Returns a function that is defined anew, as a quantizer's are."""

    @jaxtyped(typechecker=once_a_signature)
    def multiply(a: Float[Array, shape], b: Float[Array, " n"], times: int = default) -> Float[Array, ""]:
        return jnp.sum(a @ b) * times

    return multiply


def test_functions_with_one_signature_share_a_checker_and_others_do_not():
    def define(shape, default=0):
        def function(a: Float[Array, shape], times: int = default) -> tuple[Float[Array, shape], ...] | None: ...

        return once_a_signature(function)

    assert define("m n") is define("m n")
    assert len({define("m n"), define("n"), define("n", 1)}) == 3
    assert spelled(Float[Array, "n"]) != spelled(Float[np.ndarray, "n"])


def test_what_does_not_fit_is_refused_by_every_definition():
    a, b = jnp.ones((2, 3)), jnp.ones(3)
    for multiply in (product("m n"), product("m n"), product("n n")):
        with pytest.raises(TypeCheckError, match=r"parameters of .*multiply"):
            multiply(a, jnp.ones(2))
        with pytest.raises(TypeCheckError, match=r"parameters of .*multiply"):
            multiply(a, b, "twice")
    assert product("m n")(a, b, 2) == 12
    with pytest.raises(TypeCheckError, match=r"parameters of .*multiply"):
        product("n n")(a, b)


def test_the_package_is_checked():
    for quantizer in (rtn(4), rtn(4)):
        with pytest.raises(TypeCheckError, match="parameters of lowbit"):
            quantizer.init("weights")
