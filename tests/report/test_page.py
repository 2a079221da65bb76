import html.parser
import json
import re

import numpy as np
import pytest

from lowbit.errors import DataError
from lowbit.report.histograms import WeightHistogram
from lowbit.report.page import write_report

VOID = {"meta", "link", "br", "img", "hr"}


class Balance(html.parser.HTMLParser):
    """Checks that every element is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(run_folder):
    weights = np.random.default_rng(0).normal(size=500)
    path = write_report(run_folder, [WeightHistogram("2 bit", weights, weights, (-0.75, -0.25, 0.25, 0.75))])
    assert path == run_folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_shows_every_part(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Frontier", "Results", "Training", "Weights", "What the models write", "How this was made"]
    words = "".join(parser.text)
    for expected in ["6.820", "2.8 MB", "the coast of <qat> & its people", "0123456789abcdef", "two cores"]:
        assert expected in words
    assert "at 4, 2 and 1 bits per weight" in words
    assert "+3.10" in words
    assert "6 of 6" in words


def test_page_opens_without_a_network(page):
    """Nothing is fetched: no element or style with an address; the only addresses are names of SVG's namespaces."""
    assert not re.findall(r"<(?:script|link|img|iframe|object|embed|base)\b", page)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert not re.findall(r'(?:src|href)="(?!#)', page)


def test_page_has_a_light_and_a_dark_form(page):
    assert "color-scheme: light dark" in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert page.count("--paper:") == 2


def test_page_is_the_same_when_made_again(page, run_folder):
    weights = np.random.default_rng(0).normal(size=500)
    again = write_report(run_folder, [WeightHistogram("2 bit", weights, weights, (-0.75, -0.25, 0.25, 0.75))])
    assert again.read_text(encoding="utf-8") == page


def test_a_model_that_is_not_as_trained_stands_out(run_folder, items):
    items[3]["verified"] = False
    (run_folder / "results.json").write_text(json.dumps(items))
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert '<td class="wrong">NO</td>' in page
    assert "5 of 6" in page


def test_parts_without_content_are_left_out(run_folder, items):
    bare = [item | {"sample": None, "metrics": None} for item in items if item["method"] == "rtn"]
    (run_folder / "results.json").write_text(json.dumps(bare))
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Frontier", "Results", "How this was made"]


def test_bad_input_leaves_no_file(run_folder, items):
    (run_folder / "results.json").write_text("[]")
    with pytest.raises(DataError, match="no results to report"):
        write_report(run_folder)
    del items[0]["nll"]
    (run_folder / "results.json").write_text(json.dumps(items))
    with pytest.raises(DataError, match="lacks 'nll'"):
        write_report(run_folder)
    assert not list(run_folder.glob("*.html"))
    assert not list(run_folder.glob("*.png"))
    assert not list(run_folder.glob("*.partial"))
