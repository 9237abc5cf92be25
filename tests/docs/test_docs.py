"""The documentation's code runs, its generated parts are up to date, and its links lead somewhere."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import runpy
import types
from pathlib import Path
from typing import Any

import pytest
import trio

from linx_trio._probe import TRIALS
from linx_trio._proto import messages, states

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path) -> list[str]:
    text = page.read_text()
    # Blank lines in front, so that a traceback has the page's own line numbers.
    return ["\n" * (text[: found.start(1)].count("\n")) + found.group(1) for found in BLOCK.finditer(text)]


ELSEWHERE = ("README.md", "testing.md")
"""Pages whose code runs in a test of its own; that of testing.md is a test suite: tests/agent/test_pytest_plugin.py."""


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ELSEWHERE and _blocks(p)], ids=lambda p: p.name)
async def test_code_blocks_run(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page", "__builtins__": builtins}  # pickle looks for the latter
    for source in _blocks(page):
        code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = types.FunctionType(code, namespace)()
        if inspect.iscoroutine(result):
            with trio.fail_after(60):
                await result


def test_the_readme_has_one_example_of_ten_lines() -> None:
    (example,) = _blocks(ROOT / "README.md")
    code = compile(example.replace('{"net", "uts"}', "set()").replace("ip -br link; ", ""), "README.md", "exec")
    exec(code, {"__name__": "readme"})
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


def test_the_diagram_is_that_of_the_tables() -> None:
    assert states.diagram() in (ROOT / "docs/sessions.md").read_text()


def test_every_stage_is_explained() -> None:
    stages = (ROOT / "docs/errors.md").read_text().split("## Stages")[1].split("##")[0]
    assert [stage for stage in messages.STAGES if f"`{stage}`" not in stages] == []


def test_every_feature_and_every_cause_is_explained() -> None:
    features, causes = (
        (ROOT / "docs/doctor.md").read_text().split("## Features")[1].split("## AppArmor")[0].split("## Causes")
    )
    assert [name for name in TRIALS if f"`{name}`" not in features] == []
    sources = "".join(path.read_text() for path in ROOT.glob("linx_trio/_*.py"))
    named = set(re.findall(r"""(?:\bHint\(\s*|"cause": )"([a-z0-9-]+)\"""", sources))
    assert len(named) > 25
    assert [name for name in sorted(named) if f"`{name}`" not in causes] == []


def test_no_page_is_an_island() -> None:
    """The README has them all; and each leads to another one, and is found from another one."""
    links = {page.name: set(re.findall(r"\]\((?:docs/)?([a-z-]+\.md)", page.read_text())) for page in PAGES}
    readme = links.pop("README.md")
    assert links.keys() - readme == set()
    assert [page for page in links if not links[page] - {page}] == [], "they lead nowhere"
    found = {other for page in links for other in links[page] - {page}}
    assert links.keys() - found == set(), "nobody leads there"


HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in HEADING.findall(page.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_anchors_are_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([a-z/-]*(?:\.md)?)#([^)]+)\)", page.read_text()):
        assert anchor in _anchors(page.parent / target if target else page), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_lab_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "docs/examples/lab.py"))
    trio.run(example["main"])
    said = capsys.readouterr().out
    assert "870 of 870 answer" in said
    assert "h1 reaches h2\n  h1 does not reach h3\nand put back: h1 reaches h3" in said
    assert "all of it is gone" in said


def test_the_demonstration_runs(capsys: pytest.CaptureFixture[str]) -> None:
    demo = runpy.run_path(str(ROOT / "docs/examples/demo.py"))
    trio.run(demo["main"])
    assert "0 processes left" in capsys.readouterr().out
