"""Writes docs/results/gguf_types.json: which GGUF type each width takes at each row length, and what it costs.

    python scripts/measure_gguf_types.py

Rows of 2048 are a multiple of every block; rows of 576 (SmolLM2-135M) and 192 (the shipped model) are not.
"""

import json
from pathlib import Path

import numpy as np

from lowbit.export.gguf_blocks import to_blocks
from lowbit.formats import PackedTensor
from lowbit.numerics.grids import WIDTHS, paretoq_grid

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "results" / "gguf_types.json"
ROWS = (2048, 576, 192)
GROUPS = (None, 128, 64, 32)
OUTPUTS = 256


def main() -> None:
    """Encodes a random matrix of each kind."""
    rng = np.random.default_rng(0)
    found = []
    for bits in WIDTHS:
        grid = paretoq_grid(bits)[0]
        for k in ROWS:
            for group in GROUPS:
                if group is not None and k % group:
                    continue
                scale = rng.uniform(0.005, 0.05, (1 if group is None else k // group, OUTPUTS)).astype(np.float16)
                codes = rng.integers(0, len(grid.levels), (k, OUTPUTS)).astype(np.uint8)
                tensor = PackedTensor.from_codes(codes, scale, grid.table(), grid.name)
                blocks = to_blocks(tensor, along_rows=False)
                found.append(
                    {
                        "bits": bits,
                        "grid": grid.name,
                        "row": k,
                        "group": group,
                        "type": blocks.kind.name,
                        "bits_gguf": 8 * blocks.data.nbytes / codes.size,
                        "bits_packed": 8 * tensor.nbytes / codes.size,
                        "exact": blocks.error == 0,
                    }
                )
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
