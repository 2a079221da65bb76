"""What a packed file holds and how it is named: the model, the header's keys, the version.

`docs/format.md` describes the same bytes for somebody who reads them from C.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import FormatError
from lowbit.formats.adapter import Adapter
from lowbit.formats.tensors import (
    BFloat16,
    PackedTensor,
    StoredTensor,
    check_float,
    check_float_contents,
    located,
)

FORMAT = "lowbit"
VERSION = 1
METADATA = "__metadata__"
METADATA_KEYS = frozenset({"format", "version", "config", "grids", "packed", "checksums", "meta", "header_sha256"})
"""Every key of the header's metadata; each value is a string, as safetensors demands."""

TOKENIZER_PREFIX = "tokenizer/"
DIGEST_FIELD = b'"header_sha256":"'
"""Stands once in a header: inside of a JSON string the quotes would be escaped."""
DIGEST_ZEROS = "0" * 64
MAX_HEADER_BYTES = 100_000_000
DATA_ALIGNMENT = 64

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, eq=False)
class PackedModel:
    """A model as a packed file holds it.

    Attributes:
      tensors: parameter path with dots, layers unstacked (`layers.3.attn.q_proj.kernel`), to its tensor.
      config: the Hugging Face config.json.
      tokenizer: plain file name (`tokenizer.json`) to the file's bytes; may be empty.
      meta: anything else worth keeping that JSON can say: the run, the method, its results.
    """

    tensors: dict[str, StoredTensor]
    config: dict[str, Any]
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Checks names, shapes, dtypes and grids, without reading codes or weights.

        Raises:
          FormatError: names the tensor or the file and what does not fit.
        """
        self.grids()
        for name, tensor in self.tensors.items():
            with located(f"tensor {name!r}"):
                if not _TENSOR_NAME.fullmatch(name):
                    raise FormatError("not a parameter path", "join letters, digits, '_' and '-' by dots")
                if isinstance(tensor, PackedTensor):
                    tensor.validate()
                else:
                    check_float(tensor)
        for name in self.tokenizer:
            if not _FILE_NAME.fullmatch(name):
                raise FormatError(f"tokenizer file {name!r} is not a plain file name", "use the name without folders")
        stored_arrays(self)

    def check_contents(self) -> None:
        """Reads every code and every float.

        Raises:
          FormatError: names the tensor that holds NaN, infinity, damaged padding or a code without a level.
        """
        for name, tensor in self.tensors.items():
            with located(f"tensor {name!r}"):
                if isinstance(tensor, PackedTensor):
                    tensor.check_contents()
                else:
                    check_float_contents(tensor)

    def adapters(self) -> dict[str, Adapter]:
        """Returns the adapter of each tensor that has one, by name."""
        packed = {name: tensor for name, tensor in self.tensors.items() if isinstance(tensor, PackedTensor)}
        return {name: tensor.adapter for name, tensor in packed.items() if tensor.adapter is not None}

    def without_adapters(self) -> "PackedModel":
        """Returns the model that adapters were trained beside: codes, scales and floats."""
        bare = {
            name: tensor.without_adapter() if isinstance(tensor, PackedTensor) else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=bare)

    def grids(self) -> dict[str, NDArray[np.float32]]:
        """Returns the levels of each grid by name.

        Raises:
          FormatError: one name for two different lists of levels.
        """
        grids: dict[str, NDArray[np.float32]] = {}
        for name, tensor in self.tensors.items():
            if isinstance(tensor, PackedTensor):
                known = grids.setdefault(tensor.grid, tensor.levels)
                if not np.array_equal(known, tensor.levels):
                    raise FormatError(
                        f"tensor {name!r}: grid {tensor.grid!r} has other levels than in an earlier tensor",
                        "give each list of levels a name of its own",
                    )
        return grids


def stored_arrays(model: PackedModel) -> dict[str, BFloat16 | np.ndarray]:
    """Returns the flat arrays of the file by stored name: codes, scales, zeros and factors, floats, tokenizer files.

    Raises:
      FormatError: two arrays of one name.
    """
    named: list[tuple[str, BFloat16 | np.ndarray]] = []
    for name, tensor in model.tensors.items():
        if isinstance(tensor, PackedTensor):
            named.append((f"{name}.codes", tensor.packed))
            if (coded := tensor.coded_scale) is None:
                named.append((f"{name}.scale", tensor.scale))
            else:
                endings = {SCALE_CODES: coded.codes, SCALE_STEPS: coded.steps, SCALE_MEAN: coded.mean}
                named += [(f"{name}.{ending}", array) for ending, array in endings.items()]
            if tensor.zero is not None:
                named.append((f"{name}.zero", tensor.zero))
            if tensor.in_scale is not None:
                named.append((f"{name}.in_scale", tensor.in_scale))
            if tensor.adapter is not None:
                named += [(f"{name}.{LORA_A}", tensor.adapter.a), (f"{name}.{LORA_B}", tensor.adapter.b)]
        else:
            named.append((name, tensor))
    for name, content in model.tokenizer.items():
        named.append((TOKENIZER_PREFIX + name, np.frombuffer(content, np.uint8)))
    arrays = dict(named)
    if len(arrays) != len(named):
        counts = Counter(name for name, _ in named)
        raise FormatError(
            f"two arrays would be stored as {counts.most_common(1)[0][0]!r}", "rename one of the parameters"
        )
    return arrays


def packed_entry(tensor: PackedTensor) -> dict[str, Any]:
    """Returns what the header says of a quantized tensor besides its arrays; see `PACKED_ENTRY_TYPES`."""
    entry = {
        "grid": tensor.grid,
        "packing": tensor.packing,
        "shape": list(tensor.shape),
        "transposed": tensor.transposed,
        "zero": tensor.zero is not None,
    }
    beside = {IN_SCALE: tensor.in_scale, ADAPTER: tensor.adapter, CODED_SCALE: tensor.coded_scale}
    return entry | {key: True for key, value in beside.items() if value is not None}


IN_SCALE, ADAPTER, CODED_SCALE = "in_scale", "adapter", "coded_scale"
OPTIONAL_ENTRIES = frozenset({IN_SCALE, ADAPTER, CODED_SCALE})
"""The entries that need not be there: true where the tensor has a factor an input, a matrix of low rank to be added, or
codes in the place of scales. A reader that does not know one refuses the file rather than leave something out."""

LORA_A, LORA_B = "lora_a", "lora_b"
"""Endings of the arrays of an adapter."""

SCALE_CODES, SCALE_STEPS, SCALE_MEAN = "scale_codes", "scale_steps", "scale_mean"
"""Endings of the arrays that scales are decoded from."""

PACKED_ENTRY_TYPES: dict[str, type] = {
    "grid": str,
    "packing": str,
    "shape": list,
    "transposed": bool,
    "zero": bool,
}


def canonical_json(value: object, what: str) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, ASCII.

    Raises:
      FormatError: something that JSON cannot say.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{what} cannot be written as JSON: {error}", "keep to strings, finite numbers, lists and dicts"
        ) from error
