"""A pretrained model from wherever it is: a Hugging Face folder, a hub name, a GGUF file or a packed file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.errors import ModelError
from lowbit.llama import LlamaConfig

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


class Pretrained(NamedTuple):
    """A float model in memory.

    Attributes:
      cfg: sizes and constants.
      params: nested dict of float32 numpy arrays with stacked layers, shaped as `lowbit.llama.param_shapes` says.
      tokenizer_files: name to content of every tokenizer file, as they lie in a Hugging Face folder.
    """

    cfg: LlamaConfig
    params: dict[str, Any]
    tokenizer_files: dict[str, bytes]


def load(source: str | Path) -> Pretrained:
    """Loads a float model.

    Args:
      source: a Hugging Face folder (config.json and safetensors), a `.gguf` file, a packed file (any other file), or
        a hub name such as "HuggingFaceTB/SmolLM2-135M", which is downloaded once and then read from the cache.

    Raises:
      ModelError: nothing is there, the hub cannot be reached, the family is not supported, or a tensor is
        missing, misshapen or unexpected.
      TokenizerError: a GGUF file whose tokenizer cannot be rebuilt.
      FormatError: a file that is neither of both, or damaged.
    """
    from lowbit.models.layerwise import open_model

    return open_model(source).load()


def load_config(source: str | Path) -> LlamaConfig:
    """Returns the sizes of what `load` would load, without reading a weight; of a hub model, config.json is fetched.

    Raises:
      ModelError: as `load`, of everything but the tensors.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        from lowbit.models.gguf import read_gguf_config

        return read_gguf_config(path)
    if path.is_file():
        from lowbit.models.packed import read_packed_config

        return read_packed_config(path)
    from lowbit.models.hf import read_hf_config

    return read_hf_config(local_folder(source, ("config.json",)))


def local_folder(source: str | Path, files: Sequence[str] = _HUB_FILES) -> Path:
    """Returns the folder of a source that is no file; of a hub model, one with the files of these patterns.

    Raises:
      ModelError: there is no folder, and no hub model that can be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if is_hub_name(source):
        return download(str(source), files)
    raise ModelError(
        f"there is no model at {path}", "check the path, or give a hub name such as HuggingFaceTB/SmolLM2-135M"
    )


def is_hub_name(source: str | Path) -> bool:
    """Whether this could be the name of a model on the hub; there may be a folder of that name all the same."""
    return _HUB_NAME.fullmatch(str(source)) is not None


def download(name: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """Returns the local folder of a hub model, downloading what is not in the cache yet of the files of these patterns.

    Raises:
      ModelError: the hub cannot be reached, or has no such model that this user may read.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise ModelError(
            f"the hub does not let you read {name!r} yet",
            f"accept its licence at https://huggingface.co/{name} and log in with `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"there is no folder and no hub model {name!r}", "check the spelling, or log in if it is private"
        ) from error
    except OSError as error:  # the hub's own errors are: offline mode, no answer, an empty cache
        raise ModelError(
            f"there is no folder {name!r}, and the Hugging Face hub cannot be reached for the model of that name",
            "connect to the network (HF_HUB_OFFLINE unset), or download the model elsewhere and give its folder",
        ) from error
