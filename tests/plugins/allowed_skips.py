"""In CI, a skip that is not on the list below fails the run.

A test that skips itself looks like one that passed: a missing program, a kernel without a feature or a
typing error in a condition can switch half a suite off, and nobody notices. On a contributor's machine that
is fair. In CI (``CI=true``) the machine is known, so each reason to skip is written down here, with why it
is no hole, and any other one makes the session fail and is listed at its end.

Registered by ``tests/conftest.py``: ``pytest_plugins = ["tests.plugins.allowed_skips"]``.
"""

from __future__ import annotations

import os
import re

import pytest

__all__ = ["ALLOWED", "SkipWatch"]

#: Patterns, searched for in the reason of a skip, and why that skip may happen in CI.
ALLOWED: list[tuple[str, str]] = []
# The guest of `make test-vm` (.ci/test-vm) is there to run what other machines cannot: nothing of this may skip there.
if not os.environ.get("LINX_VM"):
    ALLOWED += [
        (r"CAP_SYS_RESOURCE", "withheld from root on some virtual machines and in most containers"),
        (r"needs a loop device", "containers lack it, and small virtual machines may"),
        (r"needs netem", "kernels of small virtual machines lack it; the guest has it"),
        (
            r"needs a pure cgroup v2 hierarchy with memory and pids controllers",
            "a machine that has them on cgroup v1 cannot; the guest of `make test-vm` runs these tests",
        ),
    ]
if os.geteuid() != 0:
    ALLOWED.append((r"needs root|root only|CAP_SYS_NICE", "the ordinary user's run; root's own run has them all"))


class SkipWatch:
    """Collects the skips that are not allowed, and turns them into the session's failure."""

    def __init__(self, allowed: list[tuple[str, str]]) -> None:
        self.allowed = [re.compile(pattern) for pattern, _why in allowed]
        self.refused: list[tuple[str, str]] = []

    def look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # An expected failure is reported as a skip too; it did run.
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(pattern.search(reason) for pattern in self.allowed):
            self.refused.append((report.nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.look_at(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.refused:
            return
        terminalreporter.section("skips that CI does not allow", red=True, bold=True)
        for nodeid, reason in self.refused:
            terminalreporter.line(f"{nodeid}: {reason}")
        terminalreporter.line("Mend the machine or the test, or add the reason to tests/plugins/allowed_skips.py.")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI", "").lower() == "true":
        config.pluginmanager.register(SkipWatch(ALLOWED), "linx-skip-watch")
