"""The benchmark of allocated widths: plain choices of the same bytes, rows that are not made twice, and its tables."""

import json

import numpy as np
import pytest

from benchmarks import mixed_precision
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.report.mixed_tables import tables
from lowbit.report.width_figure import draw_choices
from lowbit.tree import unflatten

# Kernels of one shape, so that one program rounds them all.
CFG = LlamaConfig(40, 16, 16, 2, num_heads=2, num_kv_heads=2, head_dim=8, max_positions=32)


def test_plain_widths_take_turns_between_two():
    even, odd = mixed_precision.plain_widths(["a", "b"], 3, [2, 3, 4], 2.5).values()
    assert even.by_path == {"a": (3, 2, 3), "b": (3, 2, 3)}
    assert odd.by_path == {"a": (2, 3, 2), "b": (2, 3, 2)}
    (alike,) = mixed_precision.plain_widths(["a"], 2, [2, 3, 4], 3.0).values()
    assert alike.by_path == {"a": (3.0, 3.0)}
    with pytest.raises(ValueError, match="5 bits lie outside of the widths"):
        mixed_precision.plain_widths(["a"], 2, [2, 3, 4], 5.0)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in param_shapes(CFG).items()}
    save_hf(folder / "model", CFG, unflatten(flat), {}, dtype="float32")
    np.save(folder / "tokens.npy", rng.integers(0, 40, 400).astype(np.uint16))
    told = {"--model": folder / "model", "--data": folder / "tokens.npy", "--eval": folder / "tokens.npy"}
    sizes = {"--sequences": 2, "--length": 16, "--windows": 4, "-o": folder / "out.json", "--ways": "rounding"}
    return [*(str(x) for pair in (told | sizes).items() for x in pair), "--by", "kl", "hessian", "--budgets", "2.5"]


def test_choices_of_equal_bytes_are_compared(arguments):
    mixed_precision.main(arguments)
    path = arguments[arguments.index("-o") + 1]
    with open(path) as file:
        record = json.load(file)
    plain, *_ = chosen = record["choices"]
    assert [choice["name"] for choice in chosen[2:]] == ["by kl", "by hessian"]
    assert all(choice["bytes"] <= plain["bytes"] for choice in chosen)
    assert chosen[2]["predicted"]["kl"] <= min(choice["predicted"]["kl"] for choice in chosen)
    assert len(record["rows"]) == 1 + 4
    rows = record["rows"]
    mixed_precision.main(arguments)
    with open(path) as file:
        assert json.load(file)["rows"] == rows
    made = tables(record, "plain")
    assert made.keys() == {"mixed.machine", "mixed.choices", "mixed.measures", "mixed.rounding"}
    assert len(made["mixed.rounding"].splitlines()) == 2 + 4
    assert len(draw_choices(record).axes) == 2 + 1  # maps, and their key
    with pytest.raises(SystemExit, match="holds rows of other settings"):
        mixed_precision.main([*arguments, "--windows", "3"])
