import json

import pytest

from lowbit.errors import DataError
from lowbit.report.results import read_rows, read_run, rows_from


def test_rows_keep_what_was_written(items):
    rows = rows_from(items)
    assert [row.method for row in rows] == [item["method"] for item in items]
    assert rows[1].nll == items[1]["nll"]
    assert isinstance(rows[1].bits, float)
    assert (rows[0].name, rows[-1].name) == ("float", "qat 1 bit")


@pytest.mark.parametrize("key", ["method", "nll", "bytes", "verified", "sample", "metrics"])
def test_a_missing_key_is_named(items, key):
    del items[2][key]
    with pytest.raises(DataError, match=rf"row 2 of results lacks '{key}'\n  -> give every one of: method, bits"):
        rows_from(items)


def test_an_unknown_key_is_named_with_the_nearest(items):
    items[0]["bits_per_wieght"] = 1
    with pytest.raises(DataError, match=r"unknown key 'bits_per_wieght'\n  -> did you mean 'bits_per_weight'"):
        rows_from(items)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits", "2", r"'bits' in row 0 of results is '2'\n  -> write a value of type float"),
        ("bits", True, r"'bits' in row 0 of results is True"),
        ("bytes", 1.5, r"'bytes' in row 0 of results is 1.5\n  -> write a value of type int"),
        ("verified", 1, r"'verified' in row 0 of results is 1\n  -> write a value of type bool or null"),
        ("sample", 3, r"'sample' (.|\n)* type str or null"),
        ("nll", float("nan"), r"'nll' in row 0 of results is nan\n  -> leave out a model that diverged"),
        ("nll", float("inf"), r"is inf"),
    ],
)
def test_a_wrong_value_is_refused(items, key, value, message):
    items[0][key] = value
    with pytest.raises(DataError, match=message):
        rows_from(items)


def test_files_that_are_no_results_are_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match=r"no results at .*results.json\n  -> run `make quickstart`"):
        read_rows(path)
    path.write_text('[{"method": "fl')
    with pytest.raises(DataError, match="is not JSON"):
        read_rows(path)
    path.write_text('{"rows": []}')
    with pytest.raises(DataError, match="holds a JSON dict, not a list of rows"):
        read_rows(path)
    path.write_text("[3]")
    with pytest.raises(DataError, match=r"row 0 of .* is not a JSON object: 3"):
        read_rows(path)


def test_run_facts_are_read_and_checked(run_folder):
    path = run_folder / "run.json"
    run = read_run(path)
    assert run.machine == {"cpu": "two cores", "jax": "0.10"}
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"seed": "zero"}))
    with pytest.raises(DataError, match=r"'seed' in .*run.json is 'zero'"):
        read_run(path)
    path.write_text(json.dumps(facts | {"machine": "fast"}))
    with pytest.raises(DataError, match=r"'machine' in (.|\n)* type dict"):
        read_run(path)
