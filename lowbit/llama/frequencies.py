"""Rotary frequencies, plain and stretched."""

import math

import numpy as np

from lowbit.llama.config import LlamaConfig
from lowbit.llama.scaling import RopeScaling


def rope_frequencies(cfg: LlamaConfig, sequence_length: int | None = None) -> tuple[np.ndarray, float]:
    """Returns the frequencies in radians per position, f32[head_dim/2], and what multiplies cos and sin.

    Dimension i turns with i + head_dim/2 (the half-split form). Computed in float64 and rounded once.

    Args:
      cfg: the model.
      sequence_length: tokens in the sequence; only "dynamic" scaling reads it, and only past `max_positions`.
    """
    base, dim, scaling = cfg.rope_theta, cfg.head_dim, cfg.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        stretch = max(sequence_length or 0, cfg.max_positions) / cfg.max_positions
        base *= (scaling.factor * stretch - (scaling.factor - 1)) ** (dim / (dim - 2))
    plain = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return plain.astype(np.float32), 1.0
    if scaling.kind == "linear":
        return (plain / scaling.factor).astype(np.float32), 1.0

    original = scaling.original_max_positions
    assert original is not None  # RopeScaling refuses to exist without it
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        assert low is not None
        assert high is not None
        turns = original * plain / (2 * math.pi)  # within the context of pretraining
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32), 1.0

    kept = 1.0 - _yarn_ramp(scaling, original, base, dim)
    return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32), _yarn_attention_factor(scaling)


def _yarn_ramp(scaling: RopeScaling, original: int, base: float, dim: int) -> np.ndarray:
    """Share of position interpolation per frequency, f64[dim/2]: 0 for fast turns, 1 for slow ones."""

    def dimension_with(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_with(scaling.beta_fast), dimension_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # 0.001 wide where both ends fall together, as in the reference code of the paper.
    return np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """Temperature of YaRN (arXiv 2309.00071, eq. 22): 0.1 ln(factor) + 1 unless the config states another."""

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)
