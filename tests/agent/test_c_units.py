"""The agent's own units and fuzz targets (`agent_c/tests`), under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "agent_c" / "tests" / "run"
NO_SANITIZER = 77


def run(name: str) -> subprocess.CompletedProcess[str]:
    # A compiler that was named for the agent (musl-gcc -static, say) has no sanitizers.
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "CFLAGS")}
    return subprocess.run(
        ["sh", str(RUN), "-t", "2", name],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=100,
    )


@pytest.mark.parametrize("name", ["test_etf", "test_frame", "test_request", "fuzz_etf", "fuzz_request"])
def test_c(name: str) -> None:
    done = run(name)
    if done.returncode == NO_SANITIZER:
        pytest.skip(f"gcc has no sanitizers here (apt-get install gcc libc6-dev): {done.stderr.strip()}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 0, "\n".join(failed) + f"\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "ok   " in done.stdout


def test_an_unknown_name_is_refused() -> None:
    done = run("test_typo")
    if done.returncode != NO_SANITIZER:
        assert done.returncode == 64
        assert "no such test: test_typo" in done.stderr
