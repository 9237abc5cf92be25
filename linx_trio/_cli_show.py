"""Tables and lists on standard output: with rich on a terminal, else plain text that stays as it is for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from linx_trio._probe_report import Probe


def is_terminal() -> bool:
    return sys.stdout.isatty()


def console() -> Console:
    """It looks at NO_COLOR and TERM itself."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def printable(text: str) -> str:
    """A name or an argument of somebody's may have control characters in it, or bytes that are no text."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def waiting(text: str) -> AbstractContextManager[object]:
    """Says so on stderr while the block lasts, if that is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def write(text: str) -> None:
    sys.stdout.write(text + "\n")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns; on a terminal the last one is cut at its edge."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal():
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        for row in (list(heads), *cells):
            write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        shown.add_column(head, no_wrap=True, overflow="ellipsis" if i == len(heads) - 1 else "ignore")
    for row in cells:
        shown.add_row(*map(Text, row))
    console().print(shown)


def probe(found: Probe) -> None:
    """What a probe has found: the same words on a terminal, with colour."""
    if not is_terminal():
        write(str(found))
        return
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    out.print(f"linx-trio {found.version} on Linux {found.kernel}, as uid {found.uid}", style="bold", markup=False)
    width = max((len(name) for name in found), default=0)
    group: str | None = None
    said: dict[str, str] = {}
    for feature in found.features:
        if feature.group != group:
            group = feature.group
            out.print(Text(f"\n{group}", style="bold"))
        first = said.setdefault(feature.verdict, feature.name)
        mark = Text("✔ " if feature else "✘ ", style="green" if feature else "red")
        out.print(Text("  ") + mark + Text(feature.name.ljust(width)), end="")
        if feature:
            out.print(Text(f"  {feature.detail or ''}", style="dim"))
        elif first != feature.name:
            out.print(Text(f"  as {first}", style="dim"))
        else:
            out.print(Text(f"  {feature.why or ''}"))
            if feature.remedy:
                out.print(Padding(Text(feature.remedy, style="yellow"), (0, 0, 0, width + 6)))
    works = sum(map(bool, found.features))
    out.print(Text(f"\n{works} of {len(found)} work here", style="bold"))
