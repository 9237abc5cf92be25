"""The plugin that fails a CI run for skips that nobody allowed, tried on small runs of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.allowed_skips import ALLOWED

ROOT = Path(__file__).resolve().parents[2]
PASSES = "def test_ok():\n    assert True\n"


def run_pytest(tmp_path: Path, source: str, ci: str | None, vm: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the tests in `source` with the plugin, and ``CI`` set to `ci`; with `vm`, as in the guest of test-vm."""
    (tmp_path / "test_it.py").write_text("import pytest\n" + source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    env.pop("CI", None)
    env.pop("LINX_VM", None)
    if vm:
        env["LINX_VM"] = "1"
    if ci is not None:
        env["CI"] = ci
    command = [sys.executable, "-m", "pytest", "-p", "tests.plugins.allowed_skips", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)


SKIPS = {
    "in a test": "def test_skip():\n    pytest.skip('no flux capacitor')\n",
    "by a mark": "@pytest.mark.skipif(True, reason='no flux capacitor')\ndef test_skip():\n    pass\n",
    "by a fixture": (
        "@pytest.fixture\ndef f():\n    pytest.skip('no flux capacitor')\n\ndef test_skip(f):\n    pass\n"
    ),
    "of a module": "pytest.skip('no flux capacitor', allow_module_level=True)\n",
}


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS.keys())
def test_a_skip_fails_the_run_in_ci_only(tmp_path: Path, source: str) -> None:
    passing = source if "allow_module_level" in source else PASSES + source
    in_ci = run_pytest(tmp_path, passing, ci="true")
    assert in_ci.returncode == 1, in_ci.stdout
    assert "skips that CI does not allow" in in_ci.stdout
    assert "no flux capacitor" in in_ci.stdout
    assert "skipped" in in_ci.stdout.splitlines()[-1]  # the usual closing line is still the last

    (tmp_path / "test_other.py").write_text(PASSES)
    assert run_pytest(tmp_path, passing, ci=None).returncode == 0


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.xfail\ndef test_bad():\n    assert False\n",
        "def test_skip():\n    pytest.skip('CAP_SYS_RESOURCE is missing here')\n",
    ],
    ids=["expected failure", "allowed reason"],
)
def test_what_is_allowed_passes(tmp_path: Path, source: str) -> None:
    done = run_pytest(tmp_path, PASSES + source, ci="true")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("vm", [False, True])
@pytest.mark.parametrize(
    "reason", ["needs CAP_SYS_RESOURCE", "needs a pure cgroup v2 hierarchy with memory and pids controllers"]
)
def test_what_the_virtual_machine_is_for_may_not_be_skipped_there(tmp_path: Path, reason: str, vm: bool) -> None:
    done = run_pytest(tmp_path, PASSES + f"def test_skip():\n    pytest.skip({reason!r})\n", ci="true", vm=vm)
    assert done.returncode == (1 if vm else 0), done.stdout


def test_a_failure_stays_a_failure(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "def test_bad():\n    assert False\n", ci="true")
    assert done.returncode == 1
    assert "does not allow" not in done.stdout


def test_every_entry_says_why() -> None:
    assert all(pattern and why for pattern, why in ALLOWED)
    assert len(ALLOWED) <= 8
