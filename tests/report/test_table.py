import pytest

from lowbit.errors import DataError
from lowbit.report import table
from lowbit.report.results import rows_from


def test_plain_table_aligns_numbers_right(items):
    lines = table.results_table(rows_from(items[:3]), "plain").splitlines()
    assert lines[0].startswith("method  bits  nats/token")
    assert lines[2].startswith("float     16       3.300")
    assert lines[4].startswith("rtn        2       6.820")
    assert len(lines) == 5


def test_markdown_table_is_well_formed(items):
    lines = table.results_table(rows_from(items), "markdown").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| ------ | ---: | ---------: |")
    assert len(lines) == 2 + len(items)


def test_a_bar_in_a_cell_does_not_break_the_table(items):
    items[0]["method"] = "a|b"
    line = table.results_table(rows_from(items[:1]), "markdown").splitlines()[2]
    assert line.startswith(r"| a\|b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (table.format_bytes(2_829_999), "2.8 MB"),
        (table.format_bytes(98_362), "98.4 kB"),
        (table.format_seconds(0.44), "0.4 s"),
        (table.format_seconds(9.96), "10 s"),
        (table.format_seconds(59.6), "1 min 00 s"),
        (table.format_seconds(125), "2 min 05 s"),
        (table.format_seconds(3725), "1 h 02 min"),
        (table.format_perplexity(41.26), "41.3"),
        (table.format_perplexity(16317.6), "16,318"),
        (table.format_verified(False), "NO"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected


PAGE = "before\n<!-- table:one -->\nold\n<!-- /table -->\nafter\n"


def test_tables_are_filled_between_their_markers_and_filling_again_changes_nothing():
    filled = table.fill_tables(PAGE, {"one": "NEW"})
    assert filled == "before\n<!-- table:one -->\n\nNEW\n\n<!-- /table -->\nafter\n"
    assert table.fill_tables(filled, {"one": "NEW"}) == filled
    assert table.table_names(filled) == ["one"]


def test_filling_refuses_what_it_cannot_do():
    with pytest.raises(DataError, match=r"no table named 'one'\n  -> did you mean 'ones'"):
        table.fill_tables(PAGE, {"ones": ""})
    with pytest.raises(DataError, match="has no `<!-- /table -->` after it"):
        table.fill_tables(PAGE.replace("<!-- /table -->", ""), {"one": ""})
