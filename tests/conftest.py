"""Every test leaves the machine as it found it: no process, zombie, fd, mount or network link more than before."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import linx_trio as linx
from linx_trio import _agent
from tests.support import TOKEN, children_of, descendants_of, eventually, with_token

pytest_plugins = ["tests.plugins.allowed_skips"]


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> None:
    """Starts the zygote, which stays, and its spare, before any test counts."""
    linx.run_sync(["/bin/true"])
    linx.run_sync(["/bin/true"])


def _zygotes() -> set[int]:
    return {zygote.pid for zygote in _agent.current()}


def _fds() -> Counter[str]:
    """This process' open fds by kind, without those for zygotes (a test may have replaced them)."""
    kept = _agent.kept_fds()
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the directory's own
        if int(name) not in kept:
            kinds[link.split(":[")[0]] += 1
    return kinds


def _mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def _links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def _children() -> list[int]:
    _agent.reap()
    return [pid for pid in children_of(os.getpid()) if pid not in _zygotes()]


def _below_zygotes() -> list[int]:
    return [pid for zygote in _zygotes() for pid in descendants_of(zygote)]


@pytest.fixture(autouse=True)
def nothing_is_left(_zygote: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fails a test that leaks. Its value is the token that all of the test's workloads have in their environment."""
    token = uuid.uuid4().hex
    monkeypatch.setenv(TOKEN, token)
    fds, mounts, links, children = _fds(), _mounts(), _links(), _children()
    yield token
    eventually(lambda: not with_token(token), f"no process of the test is left: {with_token(token)}", 20)
    eventually(lambda: not _below_zygotes(), f"the zygotes have no children left: {_below_zygotes()}", 20)
    eventually(lambda: not set(_children()) - set(children), f"no new child: {_children()}", 20)
    eventually(lambda: not _fds() - fds, f"no new fd: {_fds() - fds}", 20)
    eventually(lambda: _mounts() == mounts, "the mounts are as before", 20)
    eventually(lambda: _links() == links, f"the links are as before: {_links() ^ links}", 20)
