"""The config machinery: files, variants, overrides, JSON, and every kind of typo."""

import json
from pathlib import Path

import pytest

from lowbit.config import (
    ConfigDict,
    base,
    choose,
    differences,
    from_json,
    load,
    override,
    steps,
    to_json,
    variants,
)
from lowbit.config.keys import flat, leaves
from lowbit.config.records import ADDED
from lowbit.errors import ConfigError
from lowbit.version import __version__

FILE = """
from lowbit.config import base, variants

def get_config(arg=""):
    variant = variants(arg, bits=2.0, smoke=False)
    config = base()
    config.quant.bits = variant.bits
    {line}
    return config
"""


@pytest.fixture
def write(tmp_path):
    def write_file(line="", name="tiny.py"):
        path = tmp_path / name
        path.write_text(FILE.format(line=line))
        return str(path)

    return write_file


def test_file_variant_override_and_lock(write):
    config = load(write() + ":bits=4,smoke", ["--config.train.tokens=1_000", "quant.granularity=64", "mesh.fsdp=2"])
    assert config.quant.bits == 4.0
    assert config.train.tokens == 1000
    assert config.quant.granularity == 64
    assert config.mesh.fsdp == 2
    assert config.is_locked
    with pytest.raises(AttributeError, match="tokns"):
        config.train.tokns = 3


def test_values_take_the_type_of_their_key():
    config = base()
    override(
        config,
        [
            "optimizer.learning_rate=1",
            "optimizer.clip_norm=inf",
            "log.tensorboard=true",
            "data.train=a.npy,b.npy",
            "data.valid=",
            "quant.granularity=tensor",
            "quant.overrides=(('embed/.*', {'bits': 4}),)",
        ],
    )
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.optimizer.clip_norm == float("inf")
    assert config.log.tensorboard is True
    assert config.data.train == ("a.npy", "b.npy")
    assert config.data.valid == ()
    assert config.quant.granularity == "tensor"
    assert config.quant.overrides == (("embed/.*", {"bits": 4}),)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trian.tokens=5", "unknown config key 'trian.tokens'\n  -> did you mean 'train.tokens'"),
        ("optimizer.learning_rte=1", r"did you mean 'optimizer\.learning_rate'"),
        ("optimizer=1", "config key 'optimizer' is a section\n  -> "),
        ("train.tokens=many", "config key train.tokens is an int, which 'many' is not"),
        ("train.tokens=1.5", "is an int, which '1.5' is not"),
        ("optimizer.b1=nan", "is a float, which 'nan' is not"),
        ("log.progress=maybe", "is a bool, which 'maybe' is not\n  -> write true or false"),
        ("quant.overrides=(1", "is a tuple, which"),
        ("train.tokens", "override 'train.tokens' sets nothing"),
        ("train.tokens=inf", "is an int, which 'inf' is not"),
        ("quant.layer_bits=2,two", r"each part of config key quant\.layer_bits is a float, which 'two' is not"),
        ("model.architecture.eos_token_ids=a", "eos_token_ids is an int, which 'a' is not"),
        ("data.train=(7)", r"is a tuple, which '\(7\)' is not\n  -> .*comma after a single part"),
        ("data.train=('a.txt')", "config key data.train is a tuple"),
        ("data.train=({[]:1},)", "config key data.train is a tuple"),
        ("data.train=" + "(" * 5000 + ")" * 5000, "config key data.train is a tuple"),
        ("quant.overrides=embed", "config key quant.overrides is a tuple"),
    ],
)
def test_bad_overrides_are_refused(assignment, message):
    with pytest.raises(ConfigError, match=message.replace("(1", r"\(1")):
        override(base(), [assignment])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("bit=2", "unknown config variant 'bit'\n  -> did you mean 'bits'"),
        ("smoky", "unknown config variant 'smoky'\n  -> did you mean 'smoke'"),
        ("bits", "variant 'bits' has no value\n  -> write bits=2"),
        ("bits=two", "variant bits is a float, which 'two' is not"),
    ],
)
def test_bad_variants_are_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        variants(argument, bits=2.0, smoke=False)


def test_variants_are_typed():
    chosen = variants("bits=3, smoke=false", bits=2.0, smoke=True, name="x")
    assert chosen.to_dict() == {"bits": 3.0, "smoke": False, "name": "x"}


def test_choose_names_the_nearest():
    assert choose("recipe", 2.0, {2.0: "a"}) == "a"
    with pytest.raises(ConfigError, match=r"no recipe for bits 5\n  -> choose from 2\.0, 4\.0"):
        choose("recipe for bits", 5.0, {2.0: "a", 4.0: "b"})


def test_tuples_hold_what_their_key_asks_for():
    config = base()
    override(config, ["quant.layer_bits=2,1.58", "model.architecture.eos_token_ids=0,2", "optimizer.frozen=1"])
    assert config.quant.layer_bits == (2.0, 1.58)
    assert config.model.architecture.eos_token_ids == (0, 2)
    assert config.optimizer.frozen == ("1",)
    override(config, ["quant.layer_bits=(4, 2)", "data.train=('a,b.txt',)", "train.tokens=1e7"])
    assert config.quant.layer_bits == (4, 2)
    assert config.data.train == ("a,b.txt",)
    assert config.train.tokens == 10_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package", "cannot be loaded: ModuleNotFoundError: .*no_such_package"),
        ("def get_config(arg):\n    return bse()", "cannot be loaded: NameError: .*bse"),
        ("def get_config(arg):\n    return int('two')", "cannot be loaded: ValueError"),
        (
            "from lowbit.config import ConfigDict\ndef get_config(arg):\n    return ConfigDict({'lr': 1.0})",
            "sets an unknown key 'lr'",
        ),
        (
            "from lowbit.config import base, ConfigDict\ndef get_config(arg):\n    values = base().to_dict()\n"
            "    del values['mesh']['fsdp']\n    return ConfigDict(values)",
            r"leaves out the key 'mesh\.fsdp'\n  -> start from base",
        ),
    ],
)
def test_files_that_fail_are_refused(tmp_path, text, message):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.trian.tokens = 5", "sets an unknown key 'trian'\n  -> did you mean 'train'"),
        ("config.train.token = 5", "sets an unknown key 'token'\n  -> did you mean 'tokens'"),
        ("config.train.tokens = 'many'", "cannot be loaded: .*tokens"),
        ("return 3", "returns an int"),
        ("config. = 4", "cannot be loaded"),
    ],
)
def test_typos_in_files_are_refused(write, line, message):
    with pytest.raises(ConfigError, match=message):
        load(write(line))


def test_missing_files_and_functions_are_refused(write, tmp_path):
    write()
    with pytest.raises(ConfigError, match=r"does not exist\n  -> did you mean '.*tiny\.py'"):
        load(str(tmp_path / "tinny.py"))
    with pytest.raises(ConfigError, match="give the path of a config file"):
        load("nowhere/at/all.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"defines no get_config"):
        load(str(tmp_path / "empty.py"))


def test_json_keeps_every_value_and_type():
    config = base()
    override(config, ["quant.granularity=64", "data.train=a,b", "optimizer.clip_norm=inf"])
    config.quant.overrides = (("embed/.*", {"bits": 4.0}),)
    again = from_json(to_json(config), "here")
    assert isinstance(again, ConfigDict)
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.optimizer.clip_norm, float)
    json.loads(to_json(config), parse_constant=pytest.fail)  # JSON itself knows no Infinity
    assert differences(config, again) == []
    override(again, ["quant.bits=4", "train.tokens=5"])
    assert differences(config, again) == ["quant.bits", "train.tokens"]


def test_json_of_another_version_is_refused():
    values = json.loads(to_json(base()))
    values["train"]["novelty"] = 1
    message = (
        rf"run/config.json has keys that this version does not know: train\.novelty\n.*by lowbit {__version__}, and"
    )
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(values), "run/config.json")
    del values["train"]["novelty"], values["train"]["tokens"], values["lowbit_version"]
    message = r"run/config.json lacks the keys train\.tokens\n.* by a version that did not say which, and this is"
    with pytest.raises(ConfigError, match=message):
        from_json(json.dumps(values), "run/config.json")
    with pytest.raises(ConfigError, match=r"run/config\.json holds no config"):
        from_json("[1", "run/config.json")


def test_a_config_of_the_first_runs_means_what_it_did_then():
    """The record is as it was written: 56 keys, infinity as Python spells it, no version."""
    text = (Path(__file__).parent / "config_of_the_first_runs.json").read_text()
    written = dict(flat(json.loads(text)))
    config = from_json(text, "w2/config.json")
    found = dict(leaves(config))
    assert found.keys() == dict(leaves(base())).keys(), "add new keys to ADDED"
    assert {key: found[key] for key in written} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in written.items()
    }
    assert {key: found[key] for key in found.keys() - written.keys()} == ADDED
    assert config.log.recorder_every_steps == 0  # the one default that changes what a run does
    usual = dict(leaves(base()))
    assert {key for key in ADDED if ADDED[key] != usual[key]} == {"log.recorder_every_steps"}
    assert from_json(to_json(config), "again").to_dict() == config.to_dict()


def test_json_with_values_of_another_type_is_refused():
    for section, key, value in (("train", "tokens", "many"), ("optimizer", "b1", "high")):
        values = json.loads(to_json(base()))
        values[section][key] = value
        with pytest.raises(ConfigError, match="here holds a value of another type"):
            from_json(json.dumps(values), "here")


def test_steps():
    config = base()
    assert steps(config) == 10_000_000 // (32 * 1024) == 305
    config.train.tokens = 7
    with pytest.raises(ConfigError, match=r"train\.tokens=7 is less than one step of 32768 tokens"):
        steps(config)
