"""Pick the quickstart's text from the English novels of ELTeC: six whole novels, and held-out pages of ten others.

Example:
  python scripts/make_quickstart_text.py ELTEC_FOLDER --out assets/quickstart/text

ELTEC_FOLDER holds `train_*.jsonl.bz2` and `valid.jsonl.bz2`, rows of `id`, `title`, `author`, `text`, one row for
about 20,000 characters of a novel.
"""

import argparse
import bz2
import json
from pathlib import Path

# First published 1840 to 1920, by authors who died before 1951: public domain in the United States, and where
# copyright lasts seventy years after the author's death.
TRAIN_NOVELS = (
    "ENG18652_Carroll",
    "ENG18900_Doyle",
    "ENG18920_Grossmith",
    "ENG18952_Wells",
    "ENG18610_Eliot",
    "ENG19150_Buchan",
)
VALID_ROWS = (
    "ENG18440_Disraeli.xml#28",
    "ENG18480_Thackeray.xml#9",
    "ENG18530_Dickens.xml#10",
    "ENG18630_Craik.xml#4",
    "ENG18651_Yonge.xml#5",
    "ENG18661_Oliphant.xml#20",
    "ENG18880_Ward.xml#43",
    "ENG18953_Macdonald.xml#11",
    "ENG19010_Mason.xml#13",
    "ENG19200_Lawrence.xml#39",
)


def _rows(path: Path) -> list[dict[str, str]]:
    with bz2.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _clean(row: dict[str, str]) -> dict[str, str]:
    """One row as the repository ships it: the corpus's remarks in titles go, the text stays as it is."""
    title = row["title"].removesuffix(": ELTec edition").strip()
    return {"id": row["id"], "title": title, "author": row["author"].rstrip("."), "text": row["text"]}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(_clean(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    size = sum(len(row["text"].encode()) for row in rows)
    print(f"{path}: {len(rows)} documents, {size:,} bytes of text")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with train_*.jsonl.bz2 and valid.jsonl.bz2")
    parser.add_argument("--out", type=Path, default=Path("assets/quickstart/text"), help="folder to write")
    args = parser.parse_args()
    source = [row for file in sorted(args.source.glob("train_*.jsonl.bz2")) for row in _rows(file)]
    train = [row for novel in TRAIN_NOVELS for row in source if row["id"].startswith(f"eltec/{novel}.xml#")]
    by_id = {row["id"].removeprefix("eltec/"): row for row in _rows(args.source / "valid.jsonl.bz2")}
    _write(args.out / "train.jsonl", train)
    _write(args.out / "valid.jsonl", [by_id[name] for name in VALID_ROWS])


if __name__ == "__main__":
    main()
