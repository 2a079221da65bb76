"""The budget in bytes of the packed file, the best choice, and the record of it."""

import itertools
import json

import numpy as np
import pytest

from lowbit.errors import AllocationError, QuantizerError
from lowbit.export import pack_tensor
from lowbit.llama import LAYER_PREFIX, param_shapes
from lowbit.mixed import Sensitivities, allocate, allocated_bytes, read_widths, to_record, uniform
from lowbit.mixed.allocation import kernel_bytes
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.ptq import make_target
from lowbit.ptq.widths import Widths
from lowbit.report.width_figure import draw_widths

PATHS = [path for stage in LINEAR_STAGES for path in stage]
WIDTHS = (1.58, 2.0, 4.0)


def sensitivities(widths=WIDTHS, seed=0):
    rng = np.random.default_rng(seed)
    return Sensitivities(
        "kl", widths, {path: rng.lognormal(0, 2, (2, 1)) * 4.0 ** -np.array(widths)[None] for path in PATHS}
    )


@pytest.mark.parametrize(("grid", "bits"), [("paretoq", 1.58), ("zero_point", 3.0), ("integer", 3.0), ("nf4", 4.0)])
@pytest.mark.parametrize("granularity", ["channel", 8, "tensor"])
def test_bytes_are_those_of_the_packed_file(source, grid, bits, granularity):
    """Rows of 24 codes at 1.58 bits end in a byte that is not full."""
    target, path = make_target(grid, bits, granularity, "max"), "mlp/down_proj/kernel"
    scales = {"channel": 16, 8: 3 * 16, "tensor": 1}[granularity]
    w = source.layer(0)[path]
    state = {"scale": np.full((3 if granularity == 8 else 1, 1 if granularity == "tensor" else 16), 0.1, np.float32)}
    if grid == "zero_point":
        state["zero"] = np.zeros_like(state["scale"])
    held = pack_tensor(w, target.quantizer, state)
    assert kernel_bytes(source.cfg, target, path) == held.nbytes
    rows = {1.58: 5, 3.0: 9, 4.0: 12}[bits]
    assert held.nbytes == 16 * rows + 2 * scales * len(state)


@pytest.mark.parametrize("budget", [2.9, 3.3, 4.2])
def test_no_other_widths_lose_less(source, budget):
    target, found = make_target("paretoq", 2, "channel", "max"), sensitivities()
    few = Sensitivities("kl", WIDTHS, {path: found.losses[path][:1] for path in PATHS[:7]})
    best = allocate(source.cfg, target, few, budget)
    assert best.bits <= budget
    shapes = param_shapes(source.cfg)
    weights = sum(2 * k * n for _, k, n in (shapes[LAYER_PREFIX + path] for path in PATHS))
    assert best.weights == weights
    least = np.inf
    for chosen in itertools.product(range(3), repeat=7):
        widths = Widths({path: (WIDTHS[option],) for path, option in zip(PATHS, chosen, strict=True)})
        if 8 * allocated_bytes(source.cfg, target, widths) <= budget * weights:
            least = min(least, sum(few.losses[path][0, option] for path, option in zip(PATHS, chosen, strict=True)))
    assert best.loss == pytest.approx(least, rel=1e-12)


def test_one_width_for_all_fits_its_own_bits_and_is_never_better(source):
    target, found = make_target("paretoq", 2, "channel", "max"), sensitivities()
    for one in uniform(source.cfg, target, found).values():
        best = allocate(source.cfg, target, found, one.bits)
        assert best.nbytes <= one.nbytes
        assert best.loss <= one.loss


def test_an_impossible_budget_says_the_least_that_is_possible(source):
    target, found = make_target("paretoq", 2, "channel", "max"), sensitivities((2.0, 3.0))
    with pytest.raises(AllocationError, match=r"a budget of 2 bits/weight is [\d,]+ bytes, and the narrowest") as error:
        allocate(source.cfg, target, found, 2.0)
    least = float(error.value.mend.split()[1])
    assert allocate(source.cfg, target, found, least).widths.used == (2.0,)
    with pytest.raises(AllocationError):
        allocate(source.cfg, target, found, least - 0.002)


@pytest.fixture
def record(source, make_trial):
    found = sensitivities((2.0, 3.0, 4.0))
    trial = make_trial()
    best = allocate(source.cfg, trial.plan.target, found, 3.9)
    return json.loads(json.dumps(to_record(source.cfg, best, trial, found, 3.9, {"source": "here"}))), best


def test_the_record_says_all_and_is_read_again(record, tmp_path):
    said, best = record
    (tmp_path / "w.json").write_text(json.dumps(said))
    widths, target = read_widths(tmp_path / "w.json")
    assert widths == best.widths
    assert (target.grid, target.granularity) == ("paretoq", "channel")
    assert said["calibration"]["sha256"]
    assert said["bits_per_weight"] == best.bits <= 3.9
    assert [one["bits"] for one in said["uniform"]] == [2.0, 3.0, 4.0]
    assert np.asarray(said["losses"]["attn/q_proj/kernel"]).shape == (2, 3)
    figure = draw_widths(said)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "q",
        "k",
        "v",
        "o",
        "gate",
        "up",
        "down",
    ]
    assert figure.axes[0].images[0].get_array().shape == (7, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allocation": 2}, "is an allocation of version 2, and this reads version 1"),
        ({"grid": "square"}, "holds widths that cannot be: unknown grid 'square'"),
        ({"widths": {"attn/q_proj/kernel": [7.0]}}, "holds widths that cannot be: the grid 'paretoq' has no 7 bits"),
        ({"widths": [3]}, "holds no allocation of widths"),
    ],
)
def test_a_record_that_cannot_be_is_refused(record, tmp_path, change, message):
    (tmp_path / "w.json").write_text(json.dumps(record[0] | change))
    with pytest.raises(AllocationError, match=message):
        read_widths(tmp_path / "w.json")


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(AllocationError, match=r"none.json cannot be read: No such file"):
        read_widths(tmp_path / "none.json")
    (tmp_path / "w.json").write_text("{")
    with pytest.raises(AllocationError, match="holds no allocation of widths"):
        read_widths(tmp_path / "w.json")


def test_kernels_alike_in_all_layers_need_no_traced_grid():
    widths = Widths({path: (3.0, 3.0) if "attn" in path else (2.0, 4.0) for path in PATHS})
    overrides = dict(widths.overrides(make_target("paretoq", 2, 64, "max")))
    shared = {"method": "paretoq", "granularity": 64, "symmetric": True}
    assert overrides["layers/attn/q_proj/kernel"] == {**shared, "bits": 3.0}
    assert overrides["layers/mlp/up_proj/kernel"] == {**shared, "layer_bits": (2.0, 4.0)}
    attention = Widths(dict.fromkeys(PATHS, (3.0, 3.0)))
    assert dict(attention.overrides(make_target("zero_point", 3, 64, "max")))["layers/mlp/up_proj/kernel"] == {
        "method": "rtn",
        "granularity": 64,
        "symmetric": False,
        "bits": 3.0,
    }
    with pytest.raises(QuantizerError, match="training has only the grid 'paretoq' for that"):
        widths.overrides(make_target("zero_point", 3, 64, "max"))
