"""A packed model as a Hugging Face folder: decoded weights for transformers, and the packed file beside them."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.packed import check_standard, unpack_params
from lowbit.formats import PackedModel, write
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.models import save_hf
from lowbit.tree import unflatten

PACKED_FILE = "lowbit/model.lowbit"
"""Where the folder holds codes and scales; transformers looks into no subfolder."""


def to_hf(packed: PackedModel, folder: Path) -> Literal["float16", "float32"]:
    """Writes a folder that transformers loads as it is, and returns the dtype of its weights.

    The dtype is float16 if that holds every weight exactly, and float32 otherwise (a level times an fp16 scale has more
    digits than fp16 in most grids): either way the weights are those of the packed file, bit for bit.

    Args:
      packed: the model.
      folder: must not exist, or be empty.

    Raises:
      ModelError: the folder has content, the model has norms or a rounding of activations that transformers does not
        compute, or the tensors are not those of the config.
      FormatError: damaged codes.
    """
    cfg = LlamaConfig.from_hf(packed.config)
    check_standard(cfg, packed.meta, "transformers")
    odd = sorted(packed.tensors.keys() ^ unstacked_shapes(cfg).keys())
    if odd:
        raise ModelError(f"the tensors are not those of the config: see {', '.join(odd[:4])}", "export it again")
    flat = unpack_params(cfg, packed)
    dtype: Literal["float16", "float32"] = "float16" if all(map(_is_half, flat.values())) else "float32"
    save_hf(folder, cfg, unflatten(flat), packed.tokenizer, dtype)
    target = folder / PACKED_FILE
    try:
        target.parent.mkdir()
        write(target, packed)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # whole or not at all
        raise
    return dtype


def _is_half(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float16).astype(np.float32), values)
