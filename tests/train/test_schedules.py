"""Learning-rate shapes: the ends, the climb, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError
from lowbit.train.schedules import make_schedule


def values(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps, dtype=jnp.int32)))


def test_warm_up_climbs_from_one_part_to_the_peak_and_cosine_falls_to_its_end():
    got = values(make_schedule("cosine", 100, warmup=0.05, final=0.1), 101)
    np.testing.assert_allclose(got[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(got[5], 1.0)
    assert (np.diff(got[5:]) < 0).all()
    np.testing.assert_allclose(got[100], 0.1, rtol=1e-6)
    # Half-way in angle is half-way between peak and end.
    np.testing.assert_allclose(values(make_schedule("cosine", 10), 10)[5], 0.5, rtol=1e-6)


def test_linear_and_constant():
    np.testing.assert_allclose(values(make_schedule("linear", 4), 5), [1, 0.75, 0.5, 0.25, 0], atol=1e-7)
    np.testing.assert_array_equal(values(make_schedule("constant", 4), 6), np.ones(6, np.float32))


def test_the_end_is_held():
    assert values(make_schedule("linear", 4, final=0.25), 9)[-1] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 10), "unknown schedule 'cosin'\n  -> did you mean 'cosine'"),
        (("cosine", 0), "0 steps"),
        (("cosine", 10, 1.0), r"warmup 1.0 is no share"),
        (("cosine", 10, 0.1, -0.5), r"final -0.5 is no share"),
        (("constant", 10, 0.1, 0.5), "cannot end at 0.5"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(*arguments)
