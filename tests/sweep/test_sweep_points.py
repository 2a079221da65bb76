"""What a sweep is, and what of it is refused before any work."""

import ast
from pathlib import Path

import pytest

from lowbit.errors import ConfigError, LowbitError, QuantizerError
from lowbit.sweep import Sweep, load_sweep, make_points, product
from lowbit.sweep.programs import make_groups

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.py"))


def sweep_of(base, axes, **options):
    return Sweep(base, product(axes), **options)


@pytest.fixture
def groups(base, tmp_path):
    """Returns groups(axes, at_once, *overrides) -> [(names, at_once)]."""

    def make(axes, at_once, *overrides):
        points = make_points(sweep_of(base, axes), tmp_path, overrides)
        return [([point.name for point in group.points], group.at_once) for group in make_groups(points, at_once)]

    return make


def test_points_that_take_scales_over_share_a_width(groups):
    axes = {"quant.bits": (2, 4), "seed": (0, 1)}
    assert groups(axes, 8, "model.source_scales=true") == [
        (["bits=2,seed=0", "bits=2,seed=1"], 2),
        (["bits=4,seed=0", "bits=4,seed=1"], 2),
    ]


def test_a_product_has_every_combination_and_the_last_axis_is_fastest():
    points = product({"quant.bits": (1, 2), "seed": (0, 1)})
    assert points == (
        {"quant.bits": 1, "seed": 0},
        {"quant.bits": 1, "seed": 1},
        {"quant.bits": 2, "seed": 0},
        {"quant.bits": 2, "seed": 1},
    )


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_that_are_shipped_can_be(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the paths of a sweep start
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python -m lowbit sweep configs/sweeps/{path.name}" in text
    assert make_points(load_sweep(str(path)), tmp_path)


def test_points_have_stable_names_and_their_own_run_folders(base, tmp_path):
    axes = {"quant.bits": (1.58,), "optimizer.learning_rate": (1e-3,), "quant.layer_bits": ((), (2, 4))}
    first, second = make_points(sweep_of(base, axes), tmp_path)
    assert first.name == "bits=1.58,learning_rate=0.001,layer_bits=none"
    assert second.name == "bits=1.58,learning_rate=0.001,layer_bits=2-4"
    assert second.config.quant.layer_bits == (2, 4)
    assert second.settings == {"quant.bits": 1.58, "optimizer.learning_rate": 0.001, "quant.layer_bits": [2, 4]}
    assert first.config.run_folder == str(tmp_path / "points" / first.name)
    assert not list(tmp_path.iterdir())


def test_keys_that_end_alike_are_named_in_full(base, tmp_path):
    (point,) = make_points(sweep_of(base, {"train.batch_size": (8,), "evaluation.batch_size": (8,)}), tmp_path)
    assert point.name == "train.batch_size=8,evaluation.batch_size=8"


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (
            {"optimizer.learning_rat": (1,)},
            ConfigError,
            r"unknown config key .*\n  -> did you mean 'optimizer\.learning_",
        ),
        ({"optimizer.learning_rate": ("fast",)}, ConfigError, "learning_rate=fast: config key .* is a float"),
        ({"optimizer.learning_rate": (-1.0,)}, ConfigError, r"point learning_rate=-1: optimizer\.learning_rate=-1\.0"),
        ({"quant.bits": (2, 5)}, QuantizerError, r"no grid has 5\.0 bits per weight\n  -> widths are"),
        ({"quant.method": ("paretok",)}, QuantizerError, r"'paretok'\n  -> did you mean 'paretoq'"),
        ({"train.tokens": (8,)}, ConfigError, "less than one step"),
        ({"run_folder": ("a",)}, ConfigError, "run_folder is set, and each point has its own"),
        ({"seed": (1, 1)}, ConfigError, r"two points called 'seed=1'"),
        ({"seed": ()}, ConfigError, "axis 'seed' has no values"),
        ({"seed": 3}, ConfigError, r"axis 'seed' is 3\n  -> give a tuple"),
        ({"quant.method": "rtn"}, ConfigError, r"axis 'quant\.method' is 'rtn'\n  -> give a tuple"),
    ],
)
def test_a_point_that_cannot_be_is_refused(base, tmp_path, axes, error, message):
    with pytest.raises(error, match=message):
        make_points(sweep_of(base, axes), tmp_path)


def test_overrides_are_for_what_points_share(base, tmp_path):
    sweep = sweep_of(base, {"seed": (0, 1)}, overrides=("train.tokens=512",))
    first, _ = make_points(sweep, tmp_path, ["--config.train.batch_size=16"])
    assert (first.config.train.tokens, first.config.train.batch_size) == (512, 16)
    with pytest.raises(ConfigError, match=r"override 'seed=3' sets what the points differ in"):
        make_points(sweep, tmp_path, ["seed=3"])


def test_sweeps_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="a sweep without points"):
        Sweep("x.py", ())
    with pytest.raises(ConfigError, match="points_at_once=-1"):
        Sweep("x.py", ({},), points_at_once=-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"defines no get_sweep\(\)"),
        ("def get_sweep():\n    return 3", "returns 3\n  -> return a lowbit.sweep.Sweep"),
        ("def get_sweep():\n    return 1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("from lowbit.sweep import product\ndef get_sweep():\n    return product({'seed': ()})", "has no values"),
    ],
)
def test_files_that_hold_no_sweep_are_refused(tmp_path, text, message):
    (tmp_path / "rates.py").write_text(text)
    with pytest.raises(LowbitError, match=message):
        load_sweep(str(tmp_path / "rates.py"))
    with pytest.raises(ConfigError, match=r"does not exist\n  -> did you mean '.*rates\.py'"):
        load_sweep(str(tmp_path / "rate.py"))


def test_widths_rates_and_seeds_share_a_program(groups):
    axes = {"quant.bits": (1, 2), "optimizer.learning_rate": (1e-3, 1e-2), "seed": (0, 1)}
    ((names, at_once),) = groups(axes, 8)
    assert len(names) == at_once == 8


def test_what_is_part_of_the_program_has_one_of_its_own(groups):
    ones, others = groups({"quant.scale_init": ("mse", "max"), "seed": (0, 1)}, 8)
    assert ones == (["scale_init=mse,seed=0", "scale_init=mse,seed=1"], 2)
    assert others == (["scale_init=max,seed=0", "scale_init=max,seed=1"], 2)
    # Plain rounding has its levels in the program, and an override may take its width from the swept one.
    assert [at_once for _, at_once in groups({"quant.bits": (2, 3)}, 8, "quant.method=rtn")] == [0, 0]
    some = 'quant.overrides=(("layers/mlp/.*", {"granularity": "tensor"}),)'
    assert [at_once for _, at_once in groups({"quant.bits": (2, 3)}, 8, some)] == [0, 0]
    assert [at_once for _, at_once in groups({"seed": (2, 3)}, 8, some)] == [2]
    assert [at_once for _, at_once in groups({"quant.bits": (2, 3)}, 8, "adapters.rank=2")] == [0, 0]


def test_large_models_and_those_who_ask_for_it_run_alone(groups):
    assert [at_once for _, at_once in groups({"seed": (0, 1)}, 8, "mesh.fsdp=2")] == [0, 0]
    assert [at_once for _, at_once in groups({"seed": (0, 1)}, 0)] == [0, 0]
    assert [at_once for _, at_once in groups({"seed": (0,)}, 8)] == [0]


@pytest.mark.parametrize(
    ("count", "at_once", "size"), [(15, 8, 5), (8, 8, 8), (3, 8, 3), (16, 8, 8), (7, 4, 4), (5, 1, 1)]
)
def test_batches_are_of_one_size_where_that_is_possible(groups, count, at_once, size):
    assert groups({"seed": tuple(range(count))}, at_once)[0][1] == size
