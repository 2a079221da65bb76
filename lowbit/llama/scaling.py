"""How rotary frequencies are stretched past the context of pretraining: the kinds, and what each needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.errors import ModelError, nearest
from lowbit.llama.fields import Fields

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")

# What each kind of rope scaling cannot do without.
_SCALING_NEEDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "llama3": ("original_max_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_positions",),
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched past the context of pretraining; names as in `rope_scaling`.

    Attributes:
      kind: "linear" (positions divided by `factor`), "dynamic" (NTK: the base grows with the sequence),
        "llama3" (low frequencies divided, high ones kept, a ramp between) or "yarn" (arXiv 2309.00071).
      factor: how many times longer the context gets, at least 1.
      original_max_positions: context of pretraining in tokens; "llama3" and "yarn" need it.
      low_freq_factor: "llama3": waves longer than original_max_positions / this are divided by `factor`.
      high_freq_factor: "llama3": waves shorter than original_max_positions / this are kept.
      beta_fast: "yarn": frequencies that turn more often than this within the context are kept.
      beta_slow: "yarn": frequencies that turn less often than this are divided by `factor`.
      attention_factor: "yarn": what multiplies cos and sin; None computes it from `factor`.
      mscale: "yarn": with `mscale_all_dim`, DeepSeek's form of the attention factor.
      mscale_all_dim: see `mscale`.
      truncate: "yarn": whether the ends of the ramp are rounded to whole dimensions.
    """

    kind: str
    factor: float
    original_max_positions: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _SCALING_NEEDS:
            raise ModelError(
                f"rope scaling {self.kind!r} is not supported: {nearest(self.kind, ROPE_KINDS)}",
                "take a model whose rope_scaling is one of " + ", ".join(ROPE_KINDS),
            )
        absent = [name for name in _SCALING_NEEDS[self.kind] if getattr(self, name) is None]
        if absent or not 1 <= self.factor < math.inf:
            lack = ", ".join(absent) or "a factor of at least 1"
            raise ModelError(
                f"rope scaling {self.kind!r} with factor {self.factor} lacks {lack}",
                "complete `rope_scaling` (`rope_parameters`) in config.json",
            )
        for name in ("original_max_positions", "attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ModelError(f"{name} of rope scaling is {value}", f"set {name} above 0, or leave it out")
        if self.kind == "llama3":
            self._check_ends("low_freq_factor", "high_freq_factor")
        if self.kind == "yarn":
            self._check_ends("beta_slow", "beta_fast")

    def _check_ends(self, low: str, high: str) -> None:
        """Raises ModelError where the ramp between kept and divided frequencies does not rise from low to high."""
        if not 0 < getattr(self, low) < getattr(self, high) < math.inf:
            raise ModelError(
                f"rope scaling {self.kind!r} goes from {low} {getattr(self, low)} to {high} {getattr(self, high)}",
                f"set {high} above {low}, and both above 0",
            )

    @classmethod
    def from_hf(cls, rope: Mapping[str, Any], max_positions: int) -> "RopeScaling | None":
        """Returns the scaling that a `rope_scaling` or `rope_parameters` entry describes; None for none.

        Raises:
          ModelError: unknown kind, a missing key, a value of another kind, or rotation of only a part of each head.
        """
        fields = Fields(rope, "rope_scaling")
        kind = fields.text("rope_type") or fields.text("type") or "default"
        if fields.number("partial_rotary_factor") not in (None, 1.0):
            raise ModelError(
                f"partial_rotary_factor {rope['partial_rotary_factor']} rotates only a part of each head",
                "take a model that rotates whole heads",
            )
        if kind == "default":
            return None
        original = fields.integer("original_max_position_embeddings") or max_positions
        factor = fields.number("factor")
        if factor is None and kind == "yarn":
            factor = max_positions / original
        if factor is None and kind in ROPE_KINDS:
            raise ModelError(f"rope scaling {kind!r} has no factor", "set rope_scaling.factor in config.json")
        return cls(
            kind=kind,
            factor=factor or 1.0,
            original_max_positions=original if _SCALING_NEEDS.get(kind) else None,
            low_freq_factor=fields.number("low_freq_factor"),
            high_freq_factor=fields.number("high_freq_factor"),
            beta_fast=fields.number("beta_fast") or 32.0,
            beta_slow=fields.number("beta_slow") or 1.0,
            attention_factor=fields.number("attention_factor"),
            mscale=fields.number("mscale"),
            mscale_all_dim=fields.number("mscale_all_dim"),
            truncate=fields.flag("truncate") if fields.has("truncate") else True,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the `rope_scaling` entry of config.json: only the keys that this kind reads."""
        entry: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind in ("llama3", "yarn"):
            entry["original_max_position_embeddings"] = self.original_max_positions
        if self.kind == "llama3":
            entry |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.kind == "yarn":
            entry |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow, "truncate": self.truncate}
            optional = ("attention_factor", "mscale", "mscale_all_dim")
            entry |= {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        return entry
