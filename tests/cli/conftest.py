"""One tiny run, packed; a tiny float model on disk; and the command line in this process."""

import contextlib
import dataclasses
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lowbit.cli import main
from lowbit.cli.threads import VARIABLES
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.tree import unflatten

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "qat_quickstart.py:bits=2,smoke")
TOKENIZER = ROOT / "assets" / "quickstart" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch):
    """`generate` writes to the environment, which the tests after it would inherit."""
    for name in VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, "1"))


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def lowbit(capfd):
    """Returns lowbit(*arguments) -> Done."""

    def run(*arguments):
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return Done(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sea.txt"
    path.write_text("The ship lay in the bay, and the men sat on the deck and spoke of home. " * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train_arguments(text):
    """Returns arguments(run_folder) of a run of two steps."""

    def make(folder):
        return [
            "train",
            CONFIG,
            f"--config.run_folder={folder}",
            f"--config.model.tokenizer={TOKENIZER}",
            f"--config.data.train={text}",
            f"--config.data.valid={text}",
            "--config.log.progress=false",
            "--config.quant.scale_init=max",  # no search, which is a third of what a run traces
        ]

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, train_arguments):
    """The run that all tests share: (folder, what `train` printed)."""
    folder = tmp_path_factory.mktemp("runs") / "w2"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(train_arguments(folder)) == 0
    return folder, out.getvalue()


@pytest.fixture(scope="session")
def run_folder(trained):
    return trained[0]


@pytest.fixture(scope="session")
def packed(run_folder):
    path = run_folder.parent / "w2.lowbit"
    assert main(["export", str(run_folder), "-o", str(path)]) == 0
    return path


TINY = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 64,
    }
)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """Returns save(tokenizer=True, **changes of the config) -> a Hugging Face folder."""

    def save(tokenizer=True, **changes):
        cfg = dataclasses.replace(TINY, **changes)
        rng = np.random.default_rng(0)
        flat = {path: rng.normal(1.0 * (len(s) == 2), 0.1, s) for path, s in param_shapes(cfg).items()}
        flat["embed/embedding"] -= 1.0
        params = unflatten({path: w.astype(np.float32) for path, w in flat.items()})
        files = {name: (TOKENIZER / name).read_bytes() for name in TOKENIZER_FILES} if tokenizer else {}
        folder = tmp_path_factory.mktemp("models") / "tiny"
        save_hf(folder, cfg, params, files, dtype="float32")
        return folder

    return save


@pytest.fixture(scope="session")
def float_model(save_model):
    return save_model()
