"""The documentation's code runs, its generated parts are up to date, and its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import types
from pathlib import Path
from typing import Any

import pytest
import trio

from linx_trio._proto import messages, states

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path) -> list[str]:
    text = page.read_text()
    # Blank lines in front, so that a traceback has the page's own line numbers.
    return ["\n" * (text[: found.start(1)].count("\n")) + found.group(1) for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "README.md" and _blocks(p)], ids=lambda p: p.name)
async def test_code_blocks_run(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_demonstration_runs(capsys: pytest.CaptureFixture[str]) -> None:
    demo = runpy.run_path(str(ROOT / "docs/examples/demo.py"))
    trio.run(demo["main"])
    assert "0 processes left" in capsys.readouterr().out
