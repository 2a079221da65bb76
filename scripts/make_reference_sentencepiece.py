"""Makes tests/models/reference_tokenizers/sentencepiece.json: a small SentencePiece model and how it cuts a few texts.

    pip install sentencepiece && python scripts/make_reference_sentencepiece.py

The model is trained with the settings of Llama's (BPE, byte fallback, a space before every text, digits apart). The
file holds its pieces, scores and types as GGUF numbers them, and the ids of each text, so that the tests need no
sentencepiece.
"""

import io
import json
from pathlib import Path

import sentencepiece

TARGET = Path(__file__).resolve().parents[1] / "tests/models/reference_tokenizers/sentencepiece.json"
SENTENCES = [
    "the weights of the model are rounded to the nearest level of the grid",
    "there are two levels and then there are three, and the scale is learned with them",
    "what the tokenizer has not seen is written with bytes, one after the other",
    "    indented lines start with spaces, and other lines end with them  ",
    "a bit is a bit, a trit is more than a bit: 1 2 3 4 15 158 2024",
    "été café naïve über größer — the letters with marks are letters too",
]
TEXTS = [
    "the levels of the model",
    " the",
    "   three spaces",
    "trailing spaces  ",
    "15 158, 2024!",
    "a café in Zürich — naïve",
    "日本語 is not in it",
    "an emoji 🙂 and\na new line\tand a tab",
    "ththththththere",
    "aaaa eeeee ssss tttttt",
    "▁",
    "x",
    "",
]


def gguf_type(model: sentencepiece.SentencePieceProcessor, number: int) -> int:
    """Returns the entry of tokenizer.ggml.token_type for a piece."""
    kinds = ((model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6))
    return next((kind for is_kind, kind in kinds if is_kind(number)), 1)


def main() -> None:
    """Trains the model and writes the file."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=trained,
        model_type="bpe",
        vocab_size=380,
        character_coverage=0.99,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    numbers = range(model.get_piece_size())
    reference = {
        "tokens": [model.id_to_piece(n) for n in numbers],
        "scores": [model.get_score(n) for n in numbers],
        "token_type": [gguf_type(model, n) for n in numbers],
        "texts": {text: model.encode(text) for text in TEXTS},
    }
    TARGET.write_text(json.dumps(reference, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
