"""The packed file: a model at 1 to 8 bits per weight, as numpy and safetensors alone can read it."""

from lowbit.formats.adapter import Adapter
from lowbit.formats.coded_scale import CodedScale
from lowbit.formats.layout import FORMAT, VERSION, PackedModel
from lowbit.formats.packing import PACKINGS, Packing, pack, packing_for, row_bytes, unpack
from lowbit.formats.reader import read, verify_checksums
from lowbit.formats.summary import Summary, TensorRow, summarize
from lowbit.formats.tensors import BFloat16, PackedTensor, StoredTensor, decode
from lowbit.formats.writer import write

__all__ = [
    "FORMAT",
    "PACKINGS",
    "VERSION",
    "Adapter",
    "BFloat16",
    "CodedScale",
    "PackedModel",
    "PackedTensor",
    "Packing",
    "StoredTensor",
    "Summary",
    "TensorRow",
    "decode",
    "pack",
    "packing_for",
    "read",
    "row_bytes",
    "summarize",
    "unpack",
    "verify_checksums",
    "write",
]
