"""Where a benchmark leaves what it measured."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.atomic import write_atomically


def write_record(record: Mapping[str, Any], output: str | None) -> None:
    """Writes a record as JSON into a file that is there whole or not at all; to stdout for "-" or None.

    Raises:
      ValueError: a number that JSON cannot write.
    """
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    if output in (None, "-"):
        sys.stdout.write(text)
    else:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
