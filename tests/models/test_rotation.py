"""A turned model computes what it computed, from weights without outliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ModelError
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import Transformer
from lowbit.models.rotation import random_orthogonal, rotate, rotated_config
from lowbit.tree import flatten, unflatten

EPS = float(jnp.finfo(jnp.float32).eps)


def random_model(**changes):
    cfg = LlamaConfig(50, 24, 40, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, max_positions=32, **changes)
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in param_shapes(cfg).items():
        leaf = rng.normal(0.0, 0.3, shape)
        # Norms far from 1 and of both signs, and a column of outliers, as trained models have them.
        flat[path] = (rng.normal(0.0, 2.0, shape) if path.endswith("scale") else leaf).astype(np.float32)
    flat["layers/mlp/up_proj/kernel"][:, 3] *= 20
    return cfg, unflatten(flat)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "qkv_bias": True}], ids=["tied", "untied_biased"])
def test_logits_stay(changes):
    cfg, params = random_model(**changes)
    turned = rotate(params, cfg, seed=1)
    assert {path: leaf.shape for path, leaf in flatten(turned).items()} == param_shapes(rotated_config(cfg))
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, cfg.vocab_size)
    wanted = Transformer(cfg).apply({"params": jax.tree.map(jnp.asarray, params)}, tokens)
    got = Transformer(rotated_config(cfg)).apply({"params": jax.tree.map(jnp.asarray, turned)}, tokens)
    # Sums of at most 40 terms, about 20 in a row from token to logit, twice; roundings add up like a random walk.
    # Five standard deviations, of the size of the largest logit.
    tolerance = 5 * np.sqrt(2 * 20 * 40) * EPS * float(jnp.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
    assert float(jnp.abs(wanted).max()) > 1e4 * tolerance  # or the comparison above would compare nothing


def test_norms_behind_products_are_refused():
    cfg, params = random_model(linear_norm=True)
    with pytest.raises(
        ModelError, match=r"\(linear_norm\) computes something else once it is turned\n  -> leave model"
    ):
        rotate(params, cfg, seed=1)


def test_outliers_are_spread_and_norms_are_plain():
    cfg, params = random_model()
    turned = rotate(params, cfg, seed=1)

    def peak(tree):
        w = np.abs(tree["layers"]["mlp"]["up_proj"]["kernel"])
        return float((w.max(axis=1) / np.sqrt(np.mean(w**2, axis=1))).mean())

    # Of 24 normal numbers the largest is about 2.2 deviations; one outlier among 24 can be sqrt(24) = 4.9.
    assert peak(params) > 3.5
    assert peak(turned) < 3
    for norm in (turned["norm"], turned["layers"]["attn_norm"], turned["layers"]["mlp_norm"]):
        np.testing.assert_array_equal(norm["scale"], 1.0)


def test_the_matrix_is_orthogonal_and_goes_by_its_seed():
    q = random_orthogonal(31, 0)
    # Inner products of 31 float64 terms.
    np.testing.assert_allclose(q @ q.T, np.eye(31), atol=31 * 2**-52)
    np.testing.assert_array_equal(q, random_orthogonal(31, 0))
    assert not np.allclose(q, random_orthogonal(31, 1))
