"""Fills the tables of docs/numerics.md from the grids and quantizers themselves.

Every row is the answer of the code: a level is what a code decodes to, an interval's ends are encoded to see
which code they get.
"""

import itertools
import math
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lowbit.numerics import grids
from lowbit.numerics.quantizers import Quantizer, absmean_ternary, llmqat, nf4, onebit, paretoq, rtn
from lowbit.report.table import fill_tables, table_names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "numerics.md"

# One quantizer for each grid; scales in float32, so that a scale of 1 is exactly 1.
TRUTH_TABLES: dict[str, Quantizer] = {
    "grid.binary": paretoq(1, scale_dtype=jnp.float32),
    "grid.seq_ternary": paretoq(1.58, scale_dtype=jnp.float32),
    "grid.ternary": absmean_ternary(scale_dtype=jnp.float32),
    "grid.seq2": paretoq(2, scale_dtype=jnp.float32),
    "grid.int2": rtn(2, scale_dtype=jnp.float32),
    "grid.uint2": rtn(2, symmetric=False, scale_dtype=jnp.float32),
    "grid.int3": paretoq(3, scale_dtype=jnp.float32),
    "grid.int4": paretoq(4, scale_dtype=jnp.float32),
    "grid.nf4": nf4(scale_dtype=jnp.float32),
}

QUANTIZERS: dict[str, Quantizer] = {
    **{f"paretoq({bits:g})": paretoq(bits) for bits in grids.WIDTHS},
    **{f"rtn({bits:g})": rtn(bits) for bits in grids.WIDTHS},
    **{f"rtn({bits}, symmetric=False)": rtn(bits, symmetric=False) for bits in (2, 3, 4)},
    **{f"llmqat({bits})": llmqat(bits) for bits in (2, 3, 4)},
    "absmean_ternary()": absmean_ternary(),
    "onebit()": onebit(),
    "nf4()": nf4(),
}

AFFINE: dict[str, grids.AffineGrid] = {
    "binary": grids.elastic_binary(),
    "seq_ternary": grids.stretched_ternary(),
    "ternary": grids.integer_ternary(),
    "seq2": grids.stretched_two_bit(),
    **{f"int{bits}": grids.integer(bits) for bits in (2, 3, 4)},
}


def codes_of(quantizer: Quantizer, weights: list[float]) -> list[int]:
    """Returns the codes of weights where the scale is 1 and the zero point 0."""
    one = jnp.ones((1, 1), jnp.float32)
    tensor = quantizer.encode(jnp.asarray(weights, jnp.float32)[:, None], {"scale": one, "zero": one - 1})
    return [int(code) for code in np.asarray(tensor.codes)[:, 0]]


def truth_table(quantizer: Quantizer) -> str:
    """Lists the codes of a quantizer's grid: stored bits, level, and which w/scale become it."""
    assert quantizer.grid is not None
    levels = quantizer.grid.levels
    count = len(levels)
    assert codes_of(quantizer, list(levels)) == list(range(count))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    owners = codes_of(quantizer, middles)
    packed = max(1, math.ceil(math.log2(count)))
    rows = []
    for code, level in enumerate(levels):
        pattern = f"trit {code}" if count == 3 else f"{code:0{packed}b}"
        low = "(−∞" if code == 0 else ("[" if owners[code - 1] == code else "(") + number(middles[code - 1])
        high = "∞)" if code == count - 1 else number(middles[code]) + ("]" if owners[code] == code else ")")
        rows.append([str(code), f"`{pattern}`", number(level), f"{low}, {high}"])
    return markdown(["code", "stored as", "level", "w/scale"], rows, right=(0, 2))


def quantizer_table() -> str:
    """Lists every quantizer with its grid, its information and what a code takes in the file."""
    rows = []
    for name, quantizer in QUANTIZERS.items():
        grid = quantizer.grid
        assert grid is not None
        learns = (
            "recomputed each step"
            if quantizer.dynamic
            else "learned"
            if name.startswith(("paretoq", "onebit"))
            else "fixed at the start"
        )
        granularity = str(quantizer.granularity)
        per = {"channel": "output channel", "tensor": "matrix", "64": "64 inputs of an output"}[granularity]
        per += ", and one an input" if name.startswith("onebit") else ""
        levels = [f"`{name}`", grid.name, str(len(grid.levels)), f"{grid.bits:.3f}", f"{grid.storage_bits:g}"]
        rows.append([*levels, learns, per])
    head = ["quantizer", "grid", "levels", "information, bits", "stored bits", "scale", "one scale a"]
    return markdown(head, rows, right=(2, 3, 4))


def gradient_table() -> str:
    """Lists what the backward pass uses of each evenly spaced grid."""
    fields = ("step", "offset", "low", "high", "edge_low", "edge_high", "elastic", "reach")
    rows = [[name, *(number(float(getattr(affine, f))) for f in fields)] for name, affine in AFFINE.items()]
    return markdown(["grid", *fields], rows, right=tuple(range(1, 9)))


def number(value: float) -> str:
    """Writes a number to four decimals at most, with a true minus sign."""
    return f"{round(value, 4) + 0.0:g}".replace("-", "−")


def markdown(headings: list[str], rows: list[list[str]], right: tuple[int, ...]) -> str:
    """Lays out a table for GitHub."""
    rule = ["---:" if i in right else "---" for i in range(len(headings))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *rows])


def filled_page() -> str:
    """Returns docs/numerics.md with its tables as the code has them now."""
    text = PAGE.read_text(encoding="utf-8")
    tables = {name: truth_table(quantizer) for name, quantizer in TRUTH_TABLES.items()}
    tables |= {"quantizers": quantizer_table(), "gradients": gradient_table()}
    if set(table_names(text)) != set(tables):
        raise SystemExit(f"docs/numerics.md does not show {sorted(set(tables) - set(table_names(text)))}")
    return fill_tables(text, tables)


def main() -> None:
    """Rewrites the page where it is out of date."""
    text = filled_page()
    if text != PAGE.read_text(encoding="utf-8"):
        PAGE.write_text(text, encoding="utf-8")
        print("wrote docs/numerics.md", file=sys.stderr)


if __name__ == "__main__":
    main()
