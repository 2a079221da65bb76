"""The tokenizer of a model, without its weights, from wherever the model is."""

from pathlib import Path

from lowbit.errors import TokenizerError
from lowbit.models.hf import TOKENIZER_FILES, read_tokenizer_files
from lowbit.models.pretrained import download, is_hub_name


def load_tokenizer_files(source: str | Path) -> dict[str, bytes]:
    """Returns name -> content of the tokenizer files of a model, as they lie in a Hugging Face folder.

    A folder without tokenizer.json, as older models have it, is read by transformers, which converts what is there.

    Args:
      source: a Hugging Face folder, a `.gguf` file, or a hub name, of which nothing but the tokenizer is downloaded.

    Raises:
      TokenizerError: nothing is there, or nothing that can be converted.
      ModelError: the hub cannot be reached, or the GGUF file is damaged.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        from lowbit.models.gguf import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    if not path.is_dir():
        if path.exists() or not is_hub_name(source):
            raise TokenizerError(
                f"there is no tokenizer at {path}", "name a model's folder, a .gguf file, or a model of the hub"
            )
        path = download(str(source), TOKENIZER_FILES)
    files = read_tokenizer_files(path)
    return files if "tokenizer.json" in files else {**files, "tokenizer.json": _converted(path)}


def _converted(folder: Path) -> bytes:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return tokenizer.backend_tokenizer.to_str().encode()
    except Exception as error:  # whatever the converter of that kind of tokenizer raises
        raise TokenizerError(
            f"{folder} has no tokenizer.json, and transformers cannot make one of what is there: {error}",
            "save the tokenizer with a fast tokenizer, which writes tokenizer.json",
        ) from error
