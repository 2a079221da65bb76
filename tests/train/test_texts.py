"""What a run reads: shards beside token files, and documents kept apart by whatever separates them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.data import TextTokenizer, find_sources, tokenize
from lowbit.errors import ConfigError, RunFolderError, TokenizerError
from lowbit.train import prepare, run, setup
from lowbit.train.objectives import nll_function

pytestmark = pytest.mark.usefixtures("one_device")  # meshes are the subject of others

TOKENIZER = Path(__file__).parents[2] / "assets" / "quickstart" / "model"
OWN = (f"model.tokenizer={TOKENIZER}", "model.architecture.vocab_size=4096")
APART = "data.attend_across_documents=false"


@pytest.fixture
def shards(tmp_path):
    """Shards of the shipped tokenizer, with the token 7 between documents."""
    text = tmp_path / "text.txt"
    text.write_text("The ship lay in the bay, and the men sat on the deck. " * 40)
    tokenizer = TextTokenizer.load(TOKENIZER, separator=7)
    return str(tokenize(find_sources([str(text)]), tokenizer, tmp_path / "shards")["all"])


def test_documents_see_each_other_unless_the_config_keeps_them_apart(tiny_config):
    assert prepare(tiny_config()).model.separator is None
    assert prepare(tiny_config(APART, "data.separator=5")).model.separator == 5


def test_the_separator_is_that_of_the_shards_the_tokenizer_or_the_config(tiny_config, shards):
    data = (f"data.train={shards}", f"data.valid={shards}", "evaluation.windows=0")
    experiment = prepare(tiny_config(*data, *OWN, APART))
    assert experiment.model.separator == 7
    assert list(experiment.valid) == ["shards"]
    assert experiment.byte_lengths is not None
    assert prepare(tiny_config(*OWN, APART)).model.separator == 0
    assert prepare(tiny_config(*OWN, APART, "data.separator=the")).model.separator > 0
    with pytest.raises(TokenizerError, match="has no token '<none>'"):
        prepare(tiny_config(*OWN, APART, "data.separator=<none>"))
    with pytest.raises(TokenizerError, match="nothing says which token separates documents"):
        prepare(tiny_config(APART))
    with pytest.raises(ConfigError, match=r"data\.separator=64\n  -> give a token from 0 to 63"):
        prepare(tiny_config(APART, "data.separator=64"))


def test_shards_of_another_tokenizer_are_refused(tiny_config, shards, tmp_path):
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    vocab["the"], vocab["and"] = vocab["and"], vocab["the"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(TokenizerError, match="was made with another tokenizer than the model's"):
        prepare(tiny_config(f"data.train={shards}", *OWN[1:], f"model.tokenizer={tmp_path / 'other'}"))
    with pytest.raises(TokenizerError, match="tokens of a vocabulary of 4,096, the model 64"):
        prepare(tiny_config(f"data.train={shards}"))


def test_evaluation_takes_each_document_as_if_alone(tiny_config):
    experiment = prepare(tiny_config(APART, "data.separator=5"))
    variables = experiment.initial_state().variables
    first, other = np.full((1, 12), 9, np.int32), np.arange(10, 22, dtype=np.int32)[None]
    last = np.array([[5, 1, 2, 3, 4, 6, 7, 8, 9]], np.int32)

    def losses(model, before):
        batch = np.concatenate([before, last], axis=1)
        return np.asarray(jax.jit(nll_function(model, 1))(variables, batch))[0, -8:]

    apart, across = experiment.model, experiment.model.clone(separator=None)
    # The same float32 sums but for exact zeros.
    np.testing.assert_allclose(losses(apart, first), losses(apart, other), rtol=0, atol=2e-6)
    assert np.abs(losses(across, first) - losses(across, other)).max() > 1e-4


def test_a_teacher_keeps_documents_apart_as_its_student_does(tiny_config, monkeypatch):
    config = tiny_config(APART, "data.separator=5")
    experiment = prepare(config)
    seen = []

    def distill(teacher, student, *_):
        seen.append((teacher.separator, student.separator))
        return lambda variables, batch: (jnp.float32(0), {})

    monkeypatch.setattr(setup, "distill", distill)
    setup.make_objective(config, experiment.model, experiment.cfg)
    assert seen == [(5, 5)]


def test_a_tilde_is_the_home_folder(tiny_config, token_file, monkeypatch):
    home = token_file.parent
    monkeypatch.setenv("HOME", str(home))
    experiment = prepare(tiny_config(f"data.train=~/{token_file.name}", f"data.valid=~/{token_file.name}"))
    assert list(experiment.valid) == [token_file.stem]
    with pytest.raises(RunFolderError, match=f"{home}/absent holds no run to resume"):
        run(tiny_config("run_folder=~/absent"), resume=True)
    with pytest.raises(TokenizerError, match=rf"no tokenizer\.json in {home}/words"):
        prepare(tiny_config("model.tokenizer=~/words"))
