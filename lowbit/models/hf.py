"""Hugging Face folders: config.json, safetensors (one file or shards with an index) and tokenizer files."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lowbit.errors import ModelError, TokenizerError, nearest
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models.layerwise import StoredModel
from lowbit.models.pretrained import Pretrained
from lowbit.models.stacking import TensorSource, is_transposed
from lowbit.tree import flatten

SaveDtype = Literal["float16", "float32", "bfloat16"]
Slot = tuple[str, int | None]  # (path in the tree, layer)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Those of them that everyone reads as JSON objects; tokenizer.json is left to its library.
_TOKEN_NAMES = frozenset({"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"})
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")
_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Parts of a tensor's name in the tree ("layers.{i}." already removed) and in Hugging Face's files.
_LAYER_NAMES = {
    "attn_norm/scale": "input_layernorm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    **{f"attn/{p}_proj/kernel": f"self_attn.{p}_proj.weight" for p in "qkvo"},
    **{f"attn/{p}_proj/bias": f"self_attn.{p}_proj.bias" for p in "qkv"},
    **{f"mlp/{p}_proj/kernel": f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")},
}
_TOP_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}


def hf_name(path: str, layer: int | None) -> str:
    """Returns Hugging Face's name of one layer (None: not layered) of the parameter at `path`."""
    if layer is None:
        return _TOP_NAMES[path]
    return f"model.layers.{layer}.{_LAYER_NAMES[path.removeprefix('layers/')]}"


def load_hf(folder: Path) -> Pretrained:
    """Loads a folder; floats of 16 bits become float32.

    Raises:
      ModelError: no config.json or safetensors, a missing shard, or tensors that are not what the config states.
      TokenizerError: tokenizer files that are no JSON objects.
    """
    return open_hf(folder).load()


def open_hf(folder: Path) -> StoredModel:
    """Opens a folder, whose tensors stay on the disk; raises as `load_hf`."""
    cfg = read_hf_config(folder)
    tokenizer_files = read_tokenizer_files(folder)
    return StoredModel(cfg, tokenizer_files, _agree_on_head(cfg, _Folder(folder)), hf_name)


def read_hf_config(folder: Path) -> LlamaConfig:
    """Returns the sizes that a folder's config.json states; raises ModelError where there is none, or a wrong one."""
    return LlamaConfig.from_hf(_read_json(folder / "config.json"), str(folder / "config.json"))


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Returns name -> content of the tokenizer files in a folder.

    Raises:
      TokenizerError: a small file that names tokens is no JSON object.
    """
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    for name in _TOKEN_NAMES & files.keys():
        try:
            content = json.loads(files[name])
        except ValueError as error:
            raise TokenizerError(f"{folder / name} is not JSON ({error})", "download it again") from error
        if not isinstance(content, dict):
            raise TokenizerError(f"{folder / name} does not hold a JSON object", "download it again")
    return files


def save_hf(
    folder: str | Path,
    cfg: LlamaConfig,
    params: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes],
    dtype: str = "float16",
    max_shard_bytes: int = 4_000_000_000,
) -> None:
    """Writes a folder that transformers loads; it appears whole or not at all.

    Args:
      folder: where to; must not exist, or be empty.
      cfg: sizes and constants.
      params: the tree that `load` returns (numpy or jax arrays).
      tokenizer_files: name to content.
      dtype: "float16", "float32" or "bfloat16".
      max_shard_bytes: a file grows up to this; also what is held in memory beside `params`.

    Raises:
      ModelError: the folder has content, an unknown dtype, parameters that are not those of `cfg`, or values
        that the dtype cannot hold; or the file system refuses.
    """
    folder = Path(folder)
    if dtype not in get_args(SaveDtype):
        raise ModelError(
            f"cannot save as {dtype!r}: {nearest(dtype, get_args(SaveDtype))}",
            "set dtype to one of " + ", ".join(get_args(SaveDtype)),
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is not an empty folder", "remove it, or save under another name")
    flat = flatten(params)
    shapes = param_shapes(cfg)
    found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    if found != shapes:
        wrong = sorted({path for path, _ in set(found.items()) ^ set(shapes.items())})
        raise ModelError(
            f"the parameters are not those of the config: see {', '.join(wrong[:4])}",
            "save them with the config they were made for",
        )

    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        config = {**cfg.to_hf(), "torch_dtype": dtype, "dtype": dtype}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, content in tokenizer_files.items():
            (partial / name).write_bytes(content)
        _write_shards(partial, flat, _DTYPES[dtype], max_shard_bytes)
        partial.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder} cannot be written: {error}", "free some space, or write to a folder of your own"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


class _Folder:
    """The tensors of a folder, read one at a time (a `TensorSource`)."""

    def __init__(self, folder: Path):
        self.where = str(folder)
        self._file_of = _files_of_tensors(folder)
        self._open: dict[Path, Any] = {}

    def names(self) -> set[str]:
        """Returns all names but those of tables that the decoder computes itself."""
        return {name for name in self._file_of if not name.endswith("rotary_emb.inv_freq")}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in its stored dtype; raises ModelError for no float of 16 or 32 bits, or the wrong shard."""
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = _open_safetensors(file)
        try:
            stored = self._open[file].get_slice(name).get_dtype()
        except SafetensorError as error:
            raise ModelError(
                f"{_INDEX} says that {name} is in {file}, which does not hold it", "download the model again"
            ) from error
        if stored not in _FLOATS:
            raise ModelError(
                f"{name} in {file} is stored as {stored}, not as one of {', '.join(_FLOATS)}",
                "take the float release of this model, not a quantized one",
            )
        return self._open[file].get_tensor(name)

    def release(self) -> None:
        """Closes the files, which are memory maps."""
        self._open.clear()


class _WithoutHead:
    """The tensors of a tied model whose file repeats the embedding as a head."""

    def __init__(self, source: _Folder):
        self.where = source.where
        self.read = source.read
        self.release = source.release
        self._names = source.names() - {_TOP_NAMES["lm_head/kernel"]}

    def names(self) -> set[str]:
        """Returns all names but the head's."""
        return self._names


def _agree_on_head(cfg: LlamaConfig, source: _Folder) -> TensorSource:
    """Returns the source without a repeated tied head; raises ModelError where config and tensors disagree."""
    head, embedding = _TOP_NAMES["lm_head/kernel"], _TOP_NAMES["embed/embedding"]
    has_head = head in source.names()
    if not cfg.tie_embeddings:
        if not has_head:
            raise ModelError(
                f"config.json says that the head is not tied, but {source.where} has no {head}",
                "set tie_word_embeddings to true in config.json if the model shares its embedding",
            )
        return source
    if has_head and embedding in source.names() and not np.array_equal(source.read(head), source.read(embedding)):
        raise ModelError(
            f"config.json says that head and embedding are tied, but {head} in {source.where} differs",
            "set tie_word_embeddings to false in config.json",
        )
    return _WithoutHead(source)


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Returns name -> file, from the index of shards or from the single file."""
    index, single = folder / _INDEX, folder / _WEIGHTS
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ModelError(f"weight_map in {index} does not give the file of each tensor", "download the model again")
        missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
        if missing:
            raise ModelError(f"{folder} lacks the shards {', '.join(missing)}", "finish the download")
        return {name: folder / file for name, file in weight_map.items()}
    if single.is_file():
        return dict.fromkeys(_open_safetensors(single).keys(), single)
    pickled = any(folder.glob("pytorch_model*.bin"))
    raise ModelError(
        f"{folder} has neither {_WEIGHTS} nor {_INDEX}" + (", only pickled weights" if pickled else ""),
        "save the model with transformers' save_pretrained, which writes safetensors",
    )


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error})", "download it again") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file.parent} has no {file.name}", "name the folder of a Hugging Face model") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error})", "make it a file that you may read") from error
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error})", "download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} does not hold a JSON object", "download it again")
    return content


def _write_shards(folder: Path, flat: Mapping[str, Any], dtype: np.dtype[Any], max_bytes: int) -> None:
    """Writes one file, or numbered shards with their index where it would grow past `max_bytes`."""
    plan: list[list[tuple[str, Slot]]] = [[]]
    room = max_bytes
    for path, leaf in flat.items():
        layers = range(leaf.shape[0]) if path.startswith(LAYER_PREFIX) else [None]
        size = leaf.size // len(layers) * dtype.itemsize
        for layer in layers:
            if size > room and plan[-1]:
                plan.append([])
                room = max_bytes
            plan[-1].append((hf_name(path, layer), (path, layer)))
            room -= size

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(plan, 1):
        file = _WEIGHTS if len(plan) == 1 else f"model-{number:05}-of-{len(plan):05}.safetensors"
        tensors = {name: _narrowed(flat, slot, dtype) for name, slot in shard}
        # The metadata is what transformers looks for before it trusts the layout of matrices.
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(plan) > 1:
        total = sum(leaf.size for leaf in flat.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _narrowed(flat: Mapping[str, Any], slot: Slot, dtype: np.dtype[Any]) -> np.ndarray:
    """Returns one layer of a parameter in file layout and dtype; raises ModelError where it overflows."""
    path, layer = slot
    tensor = np.asarray(flat[path] if layer is None else flat[path][layer])
    with np.errstate(over="ignore"):  # reported below, with the name
        narrow = np.ascontiguousarray((tensor.T if is_transposed(path) else tensor).astype(dtype))
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise ModelError(
            f"{hf_name(path, layer)} holds values that {dtype.name} cannot represent",
            "save as float32, or look for NaNs in the training run",
        )
    return narrow
