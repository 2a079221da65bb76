"""Turning the residual stream of a decoder by an orthogonal matrix, without changing what it computes.

Weights of a turned model are mixtures of many: outliers are spread, and a grid fits them better (QuaRot, arXiv
2404.00456; SpinQuant, arXiv 2405.16406). Nothing is left to do at run time.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64

from lowbit.errors import ModelError
from lowbit.llama import LlamaConfig
from lowbit.tree import flatten, unflatten
from lowbit.tree.paths import Tree

READERS = ("attn/q_proj", "attn/k_proj", "attn/v_proj", "mlp/gate_proj", "mlp/up_proj")
"""What multiplies the normed residual stream; `attn/o_proj` and `mlp/down_proj` add to the stream."""


def rotated_config(cfg: LlamaConfig) -> LlamaConfig:
    """Returns the sizes of a turned model: it has a head of its own, as the last norm's scale is folded into that.

    Raises:
      ModelError: the model has LayerNorms behind its products: these do not commute with a rotation.
    """
    if cfg.linear_norm:
        raise ModelError(
            "a model with LayerNorms behind its products (linear_norm) computes something else once it is turned",
            "leave model.rotate out, or take model.linear_norm=false and a source without them",
        )
    return dataclasses.replace(cfg, tie_embeddings=False)


def rotate(params: Tree, cfg: LlamaConfig, seed: int) -> dict[str, Any]:
    """Returns the parameters of `rotated_config(cfg)` whose residual stream is that of `params` times Q.

    A norm's scale s is folded into the kernels that read from it first: a norm without a scale commutes with Q.

      embedding E Q,  readers Q^T diag(s) W,  writers W Q,  head Q^T diag(s) H (H = E^T in a tied model),  all s = 1

    The arithmetic is float64, so that logits differ by the float32 rounding of the result alone. A model that was tied
    grows by V d numbers.

    Args:
      params: nested dict of float32 arrays, stacked layers, as `lowbit.llama.param_shapes(cfg)` says.
      cfg: its sizes.
      seed: of Q [d d], uniform among the orthogonal matrices.

    Raises:
      ModelError: as `rotated_config`.
    """
    rotated_config(cfg)
    q = random_orthogonal(cfg.hidden_size, seed)
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    head = flat["embed/embedding"].T if cfg.tie_embeddings else flat["lm_head/kernel"]
    turned = dict(flat)
    turned["embed/embedding"] = flat["embed/embedding"] @ q
    turned["lm_head/kernel"] = q.T @ (flat["norm/scale"][:, None] * head)
    for reader in READERS:
        scale = flat[f"layers/{reader.split('/')[0]}_norm/scale"]
        turned[f"layers/{reader}/kernel"] = q.T @ (scale[:, :, None] * flat[f"layers/{reader}/kernel"])
    for writer in ("attn/o_proj", "mlp/down_proj"):
        turned[f"layers/{writer}/kernel"] = flat[f"layers/{writer}/kernel"] @ q
    for norm in ("layers/attn_norm/scale", "layers/mlp_norm/scale", "norm/scale"):
        turned[norm] = np.ones_like(flat[norm])
    return unflatten({path: leaf.astype(np.float32) for path, leaf in turned.items()})


def random_orthogonal(size: int, seed: int) -> Float64[np.ndarray, "d d"]:
    """Returns an orthogonal matrix, uniform over all (QR of a normal matrix, signs fixed; arXiv math-ph/0609050)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q * np.sign(np.diag(r))
