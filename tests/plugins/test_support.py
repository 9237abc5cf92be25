"""What the tests look at processes with."""

from __future__ import annotations

import os
import subprocess
import threading

from tests.support import children_of


def test_children_of_any_thread() -> None:
    """Else the check for leaks would not see what a worker thread has started, as long as that thread is alive."""
    before = set(children_of(os.getpid()))
    started, looked = threading.Event(), threading.Event()
    sleepers = []

    def worker() -> None:
        with subprocess.Popen(["sleep", "1000"]) as sleeper:
            sleepers.append(sleeper.pid)
            started.set()
            looked.wait()
            sleeper.kill()

    thread = threading.Thread(target=worker)
    thread.start()
    try:
        assert started.wait(60)
        found = children_of(os.getpid())
    finally:
        looked.set()
        thread.join()
    assert set(found) - before == set(sleepers)
    assert len(found) == len(set(found))
    assert sleepers[0] not in children_of(os.getpid())


def test_children_of_nobody() -> None:
    assert children_of(2**22 + 1) == []
