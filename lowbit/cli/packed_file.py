"""Opening a packed file as the model that its config describes."""

from pathlib import Path

from lowbit.errors import FormatError
from lowbit.formats import PackedModel, Summary, read, summarize
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.report.table import format_bytes

FLOAT16_BYTES = 2


def open_model(path: str, *, verify: bool = True) -> tuple[PackedModel, LlamaConfig]:
    """Reads a packed file and its config.

    Args:
      path: the file.
      verify: also compare every tensor with its checksum, which reads the whole file.

    Raises:
      FormatError: damaged, of another version, no packed file, or tensors that are not those of its config.
      ModelError: a config of a family not supported.
    """
    packed = read(Path(path).expanduser(), verify=verify)
    cfg = LlamaConfig.from_hf(packed.config)
    found = {row.name: row.shape for row in summarize(packed).rows}
    expected = unstacked_shapes(cfg)
    if found != expected:
        odd = sorted({name for name, _ in found.items() ^ expected.items()})
        raise FormatError(
            f"{path}: the tensors are not those of its config: see {', '.join(odd[:4])}", "export it again"
        )
    return packed, cfg


def bits_fields(summary: Summary) -> list[tuple[str, str]]:
    """Returns bits per weight three ways, and the file's size against float16, for `tables.fields`."""
    quantized = "none" if summary.quantized_bits is None else f"{summary.quantized_bits:.3f} bits/weight"
    pairs = [
        ("quantized matrices", f"{quantized}, {summary.quantized_weights:,} weights"),
        ("whole model", f"{summary.model_bits:.3f} bits/weight, {summary.weights:,} weights"),
    ]
    if summary.file_bytes is not None:
        float16 = FLOAT16_BYTES * summary.weights
        pairs.append(
            (
                "file",
                f"{8 * summary.file_bytes / summary.weights:.3f} bits/weight, {format_bytes(summary.file_bytes)} with "
                f"header and tokenizer ({format_bytes(float16)} at float16, {float16 / summary.file_bytes:.1f}x)",
            )
        )
    return pairs
