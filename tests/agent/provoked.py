"""Machines of another kind: a Python that is a workload itself, from which something has been taken away for real, and
what it says of that.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import linx_trio as linx
from linx_trio import _agent
from linx_trio.mount import Bind, Entry, Symlink
from tests.agent.probes import SOMEBODY, public_agent

ROOT = Path(__file__).resolve().parents[2]

BECOME_SOMEBODY = f"""
import os
os.setgroups([]); os.setresgid({SOMEBODY}, {SOMEBODY}, {SOMEBODY}); os.setresuid({SOMEBODY}, {SOMEBODY}, {SOMEBODY})
"""
"""For `before`, where the caller is root. Python has been imported by then, so its files need not be open to others."""

_PROGRAM = """
import json, os, sys
import linx_trio as linx
from linx_trio import _probe

def refusal_of(argv, **options):
    try:
        linx.run_sync(argv, **options)
    except linx.LinxError as exc:
        hint = exc.args[0] if isinstance(exc, linx.AgentError) else exc.hint
        return {{
            "cause": getattr(hint, "cause", None),
            "hint": str(hint),
            "stage": getattr(exc, "stage", None),
            "errno": getattr(exc, "errno", None),
        }}

{before}
print(json.dumps(({result})))
"""


def told(result: str, before: str = "", **options: Any) -> Any:
    """The value of the expression `result` in a Python that is a workload with these options."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, **options.pop("more_env", {})}
    program = _PROGRAM.format(before=before, result=result)
    done = linx.run_sync(
        [sys.executable, "-W", "error", "-c", program],
        env=env,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def report(*features: str, before: str = "", **options: Any) -> dict[str, dict[str, Any]]:
    """What `linx.probe` says there."""
    found: dict[str, dict[str, Any]] = told(f"linx.probe(*{features!r}).to_dict()['features']", before, **options)
    return found


def feature(name: str, before: str = "", **options: Any) -> dict[str, Any]:
    """What it says of that one."""
    return report(name, before=before, **options)[name]


@contextlib.contextmanager
def agent_for_all() -> Iterator[dict[str, str]]:
    """Environment with an agent that others may execute too."""
    with public_agent() as path:
        yield {_agent.OVERRIDE: str(path)}


def tree(*without: str, below: str = "") -> list[Entry]:
    """The host's root directory, name by name, to be put together anew."""
    entries: list[Entry] = []
    for name in sorted(os.listdir("/")):
        path = f"/{name}"
        if os.path.islink(path):
            entries.append(Symlink(os.readlink(path), f"{below}{path}"))
        elif os.path.isdir(path) and name not in without:
            entries.append(Bind(path, f"{below}{path}"))
    return entries
