"""The command line as a process: what it loads, how fast it answers, and how it ends."""

import importlib.util
import inspect
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowbit.cli import entry, train
from lowbit.cli.commands import COMMANDS
from lowbit.cli.origin import read_origin, source_path
from lowbit.cli.parsing import make_parser, parse
from lowbit.cli.quantized import READS
from lowbit.cli.sources import kind_of
from lowbit.cli.threads import VARIABLES, set_threads
from lowbit.cli.usage import UsageError
from lowbit.numerics.quantizers import QUANTIZERS
from lowbit.train import Result
from lowbit.train.quantization import FLOAT
from lowbit.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_overview_and_version(lowbit):
    bare = lowbit()
    assert bare == lowbit("--help")
    assert bare.status == 0
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        assert f"  {name:<{width}}  {command.summary}" in bare.out
    assert lowbit("--version").out == f"lowbit {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_every_argument_in_one_line_and_gives_an_example(lowbit, name):
    done = lowbit(name, "--help")
    assert done.status == 0
    assert f"  python -m lowbit {name} " in done.out
    for argument in COMMANDS[name].arguments:
        assert argument.help
        assert "\n" not in argument.help
        assert argument.help.split()[0] in done.out
        assert (argument.names[-1] if argument.is_flag else argument.options["metavar"]) in done.out


def test_help_of_generate_says_what_it_needs(lowbit):
    assert "numpy and tokenizers" in " ".join(lowbit("generate", "--help").out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse_and_begin_with_the_command_itself(name):
    examples = COMMANDS[name].examples
    parsed = [parse(shlex.split(example))[0].name for example in examples]
    assert parsed[0] == name
    assert parsed == [example.split()[0] for example in examples]  # others show what comes next


def test_help_in_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = make_parser(COMMANDS["eval"]).format_help()
    description = text.partition("options:")[0]
    assert max(map(len, description.splitlines())) <= 60


def test_help_answers_at_once():
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lowbit", "generate", "--help"], check=True, capture_output=True, cwd=ROOT)
    # Half a second is the promise; the rest is for a machine that is busy with other tests.
    assert time.perf_counter() - began < 2
    loaded = (
        "import sys, lowbit.cli; lowbit.cli.main(['train', '--help']); "
        "sys.exit(len({'numpy', 'jax', 'ml_collections'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=False, cwd=ROOT).returncode == 0


def test_packed_files_need_no_jax(packed, text, tmp_path):
    script = f"""
import sys
from lowbit.cli import main

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "transformers", "matplotlib"):
            raise ModuleNotFoundError(f"refused {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
assert main(["inspect", {str(packed)!r}, "--checksums"]) == 0
assert main(["generate", {str(packed)!r}, "--prompt", "The ship", "--tokens", "3"]) == 0
evaluate = ["eval", {str(packed)!r}, "--data", {str(text)!r}, "--windows", "2", "--backend", "numpy"]
assert main(evaluate) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_error(packed):
    process = subprocess.Popen(
        [sys.executable, "-m", "lowbit", "inspect", str(packed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_control_c_is_said_in_one_line(lowbit, monkeypatch):
    def interrupt(name, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_execute", interrupt)
    done = lowbit("inspect", "x")
    assert (done.status, done.out, done.err) == (130, "", "lowbit: interrupted\n")


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(entry, "_execute", lambda name, values: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        entry.main(["inspect", "x"])


def test_kinds_of_sources(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "packed").write_bytes(b"")
    expected = {
        tmp_path / "run": "run",
        tmp_path / "hf": "pretrained",
        tmp_path / "packed": "packed",
        tmp_path / "absent.gguf": "pretrained",
        tmp_path / "absent.lowbit": "packed",
        "organisation/model": "pretrained",
    }
    assert {path: kind_of(str(path)) for path in expected} == expected


def test_threads_are_one_unless_somebody_says_otherwise():
    environment: dict[str, str] = {}
    assert set_threads(None, environment) == 1
    assert environment == dict.fromkeys(VARIABLES, "1")
    environment = {"OMP_NUM_THREADS": "4"}
    assert set_threads(None, environment) is None
    assert environment == {"OMP_NUM_THREADS": "4"}
    assert set_threads(2, environment) == 2
    assert environment == dict.fromkeys(VARIABLES, "2")


def test_origin_of_another_form_is_refused():
    origin = {"kind": "run", "path": "", "quant": [], "step": 2, "commit": None, "lowbit_version": "0"}
    for record in (None, {"kind": "run"}, origin, {**origin, "quant": {}, "kind": "dream"}):
        with pytest.raises(UsageError, match="f does not say what it was made from"):
            read_origin({"origin": record}, "f")
    assert read_origin({"origin": {**origin, "quant": {}}}, "f").step == 2


def test_flags_are_refused_where_the_method_takes_no_such_setting():
    assert READS.keys() == {*QUANTIZERS, FLOAT}
    settings = {setting for reads in READS.values() for setting in reads}
    for method, make in QUANTIZERS.items():
        assert settings & inspect.signature(make).parameters.keys() == set(READS[method]), method


def test_one_source_has_one_spelling():
    assert {source_path(path) for path in ("runs/w2", "runs/w2/", "./runs/w2", "runs//w2")} == {"runs/w2"}
    assert source_path("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"


def test_commands_page_is_current():
    spec = importlib.util.spec_from_file_location("make_commands_page", ROOT / "scripts" / "make_commands_page.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run scripts/make_commands_page.py"


def test_a_stopped_run_says_how_to_go_on(lowbit, monkeypatch, train_arguments, tmp_path):

    stopped = Result(tmp_path, finished=False, step=7, tokens=7, seconds=1.0, tokens_per_s=None, evaluations={})
    monkeypatch.setattr(train, "run_config", lambda config, resume: stopped)
    done = lowbit(*train_arguments(tmp_path / "run"))
    assert done.status == 143
    assert done.out == "stopped at step 7 with a checkpoint; the same command with --resume goes on\n"
