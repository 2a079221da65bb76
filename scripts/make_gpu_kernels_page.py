"""Fills the tables of docs/gpu_kernels.md, and draws its pictures, from what benchmarks measured."""

import json
import sys
from pathlib import Path

from lowbit.report.gpu_figures import draw
from lowbit.report.gpu_tables import decoding, step_layers, tables
from lowbit.report.kernel_figures import save
from lowbit.report.table import fill_tables

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gpu_kernels.md"
RECORD = ROOT / "docs" / "results" / "gpu_kernels_h100.json"
DECODING = ROOT / "docs" / "results" / "gpu_decoding_h100.json"
STEPS = ROOT / "docs" / "results" / "step_layers_h100.json"
IMAGES = ROOT / "docs" / "images"
PICTURES = {
    "gpu.picture_bits": "![microseconds over bits per weight](images/gpu_bits.png)",
    "gpu.picture_batch": "![microseconds over tokens at a time](images/gpu_batch.png)",
}


def filled_page() -> str:
    """Returns the page with its tables brought up to date; as it is as long as no run was published."""
    page = PAGE.read_text(encoding="utf-8")
    if not RECORD.exists():
        return page
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    models = {
        "gpu.decoding": decoding(json.loads(DECODING.read_text(encoding="utf-8")), "markdown"),
        "gpu.step_layers": step_layers(json.loads(STEPS.read_text(encoding="utf-8")), "markdown"),
    }
    return fill_tables(page, tables(record, "markdown") | models | PICTURES)


def main() -> None:
    """Rewrites the page and its pictures where the tables are out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        for name, figure in draw(json.loads(RECORD.read_text(encoding="utf-8"))).items():
            save(figure, IMAGES / f"gpu_{name}.png")
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
