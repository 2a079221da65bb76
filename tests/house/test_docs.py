"""What the pages say is true: examples run, links lead somewhere, tables are those of the code and of the results."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def script(name: str) -> ModuleType:
    """Imports a script by its path; scripts/ is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for match in LINK.finditer(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("https://", "http://")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{match[0]} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{match[0]} names no heading"


def test_example_in_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})


def test_result_tables_are_current():
    for page, text in script("make_tables").filled_pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is out of date: run `make docs`"


def test_numerics_page_is_current():
    module = script("make_numerics_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"


def test_page_of_methods_without_training_is_current():
    module = script("make_ptq_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"
    assert all((module.IMAGES / f"{name}.png").exists() for name in module.records())


def test_mixed_precision_page_is_current():
    module = script("make_mixed_precision_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"
    assert module.PICTURE.exists()


def test_fine_tuning_page_is_current():
    module = script("make_finetuning_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"


def test_recipe_page_is_current():
    module = script("make_recipe_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"
    assert module.PICTURE.exists()


def test_speed_page_is_current():
    module = script("make_speed_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"


def test_kernels_page_is_current():
    module = script("make_kernels_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"


def test_generation_page_is_current():
    module = script("make_generation_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"


def test_gpu_page_is_current():
    module = script("make_gpu_kernels_page")
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"


def test_every_decision_has_its_parts_and_is_listed():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs" / "adr").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Evidence", "Consequences"]
        number, title = re.match(r"# (\d+)\. (.*)", text).groups()
        assert page.name.startswith(f"{int(number):04d}-")
        assert f"[{number}](adr/{page.name}) | {title} |" in index


def test_folders_that_the_readme_maps_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| folder |") :]
    for folder in re.findall(r"`(lowbit/\w+)`", table.split("\n\n")[0]):
        assert (ROOT / folder).is_dir(), folder
