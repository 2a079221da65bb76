"""The benchmark of the attention kernel's tiles runs, and finds what it times right."""

import json

import pytest

from benchmarks.attention_tiles import main


@pytest.mark.slow
def test_tiles_are_held_against_products(tmp_path):
    output = tmp_path / "tiles.json"
    sizes = ["--sizes", "1x32", "--layers", "1", "--tiles", "1", "--repeats", "1", "--caches", "int4_minmax"]
    main([*sizes, "-o", str(output)])
    [case] = json.loads(output.read_text())["cases"]
    assert (case["cache"], case["batch"], case["length"]) == ("int4_minmax", 1, 32)
    ways = {tuple(row["way"]): row for row in case["ways"]}
    assert set(ways) == {("products",), ("chosen",), (32, 1, 2, None), (32, 1, 2, 1)}
    assert ways["products",]["error"] == 0 < ways["chosen",]["error"]
    assert all(row["right"] for row in ways.values())
    # Two kinds of parts, keys and values, of 3 heads: 16 halfwords, a scale and a zero for each of 32 slots.
    row = ways["chosen",]
    assert row["bytes_per_s"] * row["us_a_layer"] * 1e-6 == pytest.approx(2 * 3 * 32 * (32 + 4))


def test_a_cache_of_wider_numbers_is_refused(capsys):
    """Its random halfwords would be read as another kind."""
    with pytest.raises(SystemExit):
        main(["--caches", "float32"])
    assert "invalid choice: 'float32'" in capsys.readouterr().err
