"""How a model's activations are rounded: a plain record that training, files and runtimes share.

It says which inputs of linear layers are rounded and how, and how keys and values are held. Who cannot compute it
refuses the model: weights alone are not what was trained.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import FormatError, ModelError, QuantizerError
from lowbit.llama.config import LlamaConfig
from lowbit.llama.shapes import LAYER_PREFIX, param_shapes

META_KEY = "activations"
"""Of a packed file's `meta`; a file without it has float activations."""

LINEARS = tuple(
    f"{LAYER_PREFIX}{name}_proj" for name in ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
)
"""Paths of the linear layers of a block: whose inputs a rule table is about."""

CACHE_WIDTHS = (4, 8)

INPUT_CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": tuple(range(2, 9)),
    "symmetric": (False, True),
    "granularity": ("token", "channel", "tensor"),
    "range": ("dynamic", "static"),
    "variant": ("fixed", "reference"),
}
"""What a field of `InputRounding` may be."""

CACHE_CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": CACHE_WIDTHS,
    "symmetric": (False, True),
    "per_head": (False, True),
    "rotated": (False, True),
}
"""What a field of the `CacheKind` of an `ActivationRounding` may be."""

Ranges = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""Calibrated state by path of the linear layer, `{"scale", "zero"}`, f32 [L 1 1] or [L 1 k]."""


class CacheKind(NamedTuple):
    """How keys and values are held.

    Attributes:
      bits: 32 and 16 are floats (float32, bfloat16), 8 and 4 codes.
      symmetric: of codes: levels around 0 and a scale of max|x|; otherwise min-max with a whole zero point.
      per_head: of codes: a scale for each head of a token, or one for all of its heads together.
      rotated: whether keys are held as their positions have turned them, or before.
    """

    bits: int
    symmetric: bool = True
    per_head: bool = True
    rotated: bool = True


class InputRounding(NamedTuple):
    """How the input of a linear layer is rounded: arguments of `lowbit.numerics.activations`.

    Attributes:
      bits: 2 to 8.
      symmetric: False for min-max.
      granularity: "token", "channel" or "tensor".
      range: "dynamic", of the numbers themselves, or "static", of a calibration.
      variant: "fixed", or "reference" for LLM-QAT's code.
    """

    bits: int
    symmetric: bool = True
    granularity: str = "token"
    range: str = "dynamic"
    variant: str = "fixed"


INT8 = InputRounding(8)
"""What `lowbit.kernels.reference.quantize_activations` does."""


@dataclasses.dataclass(frozen=True)
class ActivationRounding:
    """How all activations of a model are rounded. Hashable.

    Attributes:
      inputs: (path, rounding) of those linear layers whose input is rounded.
      cache: how keys and values are held; None where they stay floats.

    Raises:
      QuantizerError: keys and values of a width that the cache cannot hold.
    """

    inputs: tuple[tuple[str, InputRounding], ...] = ()
    cache: CacheKind | None = None

    def __post_init__(self) -> None:
        if self.cache is not None and self.cache.bits not in CACHE_WIDTHS:
            raise QuantizerError(
                f"the cache cannot hold keys and values of {self.cache.bits!r} bits",
                "choose 4 or 8, or 16 to leave them as they are",
            )

    def __bool__(self) -> bool:
        """Whether anything is rounded."""
        return bool(self.inputs) or self.cache is not None

    @property
    def is_integer_path(self) -> bool:
        """Whether all linear layers round inputs as the runtimes' integer path does, and keys and values stay."""
        return self.cache is None and dict(self.inputs) == dict.fromkeys(LINEARS, INT8)

    @property
    def is_static(self) -> bool:
        """Whether some range is calibrated, so that the model has `Ranges`."""
        return any(rounding.range == "static" for _, rounding in self.inputs)

    def check_causal(self) -> None:
        """Refuses to write text by ranges that span a whole window: what a token is rounded by would come after it.

        Raises:
          ModelError: some dynamic range is of more than one token.
        """
        odd = [path for path, one in self.inputs if one.range == "dynamic" and one.granularity != "token"]
        if odd:
            raise ModelError(
                f"inputs of {', '.join(odd)} are rounded by ranges of a whole window, and text comes token by token",
                "train with activations.granularity=token, or with activations.range=static",
            )

    def described(self) -> str:
        """Returns it in a few words: "8-bit inputs, 4-bit keys and values"."""
        widths = sorted({rounding.bits for _, rounding in self.inputs})
        parts = [f"{' and '.join(f'{bits}-bit' for bits in widths)} inputs"] if widths else []
        parts += [] if self.cache is None else [f"{self.cache.bits}-bit keys and values"]
        return ", ".join(parts) or "float activations"


FLOAT_ACTIVATIONS = ActivationRounding()


def range_shapes(rounding: ActivationRounding, cfg: LlamaConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of the `Ranges` that a model needs."""
    inputs = {path: param_shapes(cfg)[f"{path}/kernel"][1] for path in LINEARS}
    return {
        path: dict.fromkeys(
            ("scale",) if one.symmetric else ("scale", "zero"),
            (cfg.num_layers, 1, inputs[path] if one.granularity == "channel" else 1),
        )
        for path, one in rounding.inputs
        if one.range == "static"
    }


def to_meta(rounding: ActivationRounding, ranges: Ranges) -> dict[str, Any]:
    """Returns what a packed file's `meta` says of activations: {} of float ones. `from_meta` is its inverse."""
    if not rounding:
        return {}
    return {
        META_KEY: {
            "inputs": {path: one._asdict() for path, one in rounding.inputs},
            "cache": None if rounding.cache is None else rounding.cache._asdict(),
            "ranges": {path: {key: values.tolist() for key, values in own.items()} for path, own in ranges.items()},
        }
    }


def from_meta(meta: Mapping[str, Any], cfg: LlamaConfig) -> tuple[ActivationRounding, Ranges]:
    """Returns how the activations of a packed model are rounded.

    Raises:
      FormatError: a record of another form, of what nothing computes, or with ranges that are not those of the model.
    """
    if META_KEY not in meta:
        return FLOAT_ACTIVATIONS, {}
    try:
        record = dict(meta[META_KEY])
        inputs, cache, ranges = (record.pop(name) for name in ("inputs", "cache", "ranges"))
        rounding = ActivationRounding(
            tuple((path, InputRounding(**inputs[path])) for path in LINEARS if path in inputs),
            None if cache is None else CacheKind(**cache),
        )
        for one, choices in (*((one, INPUT_CHOICES) for _, one in rounding.inputs), (rounding.cache, CACHE_CHOICES)):
            _check_choices({} if one is None else one._asdict(), choices)
        with np.errstate(over="ignore"):  # an infinite scale is refused below
            found = {
                path: {key: np.asarray(values, np.float32) for key, values in own.items()}
                for path, own in ranges.items()
            }
        shapes = {path: {key: values.shape for key, values in own.items()} for path, own in found.items()}
        whole = not record and not inputs.keys() - set(LINEARS)
    except (AttributeError, KeyError, TypeError, ValueError, QuantizerError) as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    static = [one for _, one in rounding.inputs if one.range == "static"]
    if any(one.granularity == "token" or one.variant != "fixed" for one in static):
        raise _unreadable("static ranges of tokens, or of LLM-QAT's code")
    if not whole or shapes != range_shapes(rounding, cfg):
        raise _unreadable("its parts do not fit the model")
    if not all(_can_be(key, values) for own in found.values() for key, values in own.items()):
        raise _unreadable("scales or zero points that cannot be")
    return rounding, found


def _check_choices(fields: Mapping[str, Any], choices: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in fields.items():
        # 8.0 equals 8, and 1 equals True: neither is how it was written.
        if value not in choices[name] or type(value) is not type(choices[name][0]):
            raise ValueError(f"{name}={value!r}")


def _can_be(key: str, values: NDArray[np.float32]) -> bool:
    """Whether a calibration can have found this: finite scales of 0 or more, whole zero points."""
    return bool(np.isfinite(values).all() and (values >= 0 if key == "scale" else values == np.rint(values)).all())


def _unreadable(why: str) -> FormatError:
    return FormatError(
        f"the record of how activations are rounded cannot be read ({why})",
        "use the version of lowbit that wrote the file, or export it again",
    )
