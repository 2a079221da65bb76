"""Documents from a column of a Parquet file. pyarrow reads it, which is asked for only where it is needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowbit.errors import DataError

SUFFIX = ".parquet"
_ROWS_A_BATCH = 256  # rows in memory at once: a row may be a book


def read_column(path: Path, field: str, start: int) -> Iterator[tuple[str, int]]:
    """Yields (text, bytes of the file that lie behind) from row `start` on; row groups before it are not read.

    Raises:
      DataError: pyarrow is missing, the file is damaged, or it has no column of strings called `field`.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path} is read by pyarrow, which is not installed", "pip install 'lowbit[datasets]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(path, file.schema_arrow, field)
            yield from _rows(path, file, field, start)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "fetch the file again") from error


def _check_column(path: Path, schema: Any, field: str) -> None:
    import pyarrow.types

    if field not in schema.names:
        raise DataError(f"{path} has no column {field!r}", "choose from " + ", ".join(schema.names))
    kind = schema.field(field).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(f"column {field!r} of {path} holds {kind}, not text", "name a column of strings")


def _rows(path: Path, file: Any, field: str, start: int) -> Iterator[tuple[str, int]]:
    size, total = path.stat().st_size, file.metadata.num_rows
    first, groups = 0, list(range(file.metadata.num_row_groups))  # number of the first row in the groups that are left
    while groups and first + file.metadata.row_group(groups[0]).num_rows <= start:
        first += file.metadata.row_group(groups.pop(0)).num_rows
    row = first
    for batch in file.iter_batches(_ROWS_A_BATCH, row_groups=groups, columns=[field]):
        for text in batch.column(0).to_pylist():
            if row >= start:
                if text is None:
                    raise DataError(f"{path}, row {row}: no text in {field!r}", "leave out rows without text")
                yield text, size * (row + 1) // total
            row += 1
