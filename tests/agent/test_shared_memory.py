"""A workload that does not park has its parent's memory until it executes: nobody may look into it by the workload."""

from __future__ import annotations

from tests.agent.probes import as_somebody

LOOK = """
import contextlib
import os
from linx_trio.mount import Dir, File, Tmpfs

WORK = [Dir(f"/d{{i}}") for i in range({count})]
seen = []

def owner_of(pid):
    return os.stat(f"/proc/{{pid}}/mem").st_uid  # root's, if it is not dumpable

def stat_of(pid):
    with open(f"/proc/{{pid}}/stat") as file:
        state, parent, *_ = file.read().rsplit(")", 1)[1].split()
    return state, int(parent)

def look(pid):
    parent = stat_of(pid)[1]
    while True:
        sample = owner_of(pid), owner_of(parent)
        if stat_of(pid)[0] in "ZX":  # and has no memory
            return
        seen.append(sample)

async def main():
    try:
        async with linx.spawn(
            ["/none"], auto_proceed=True, wait_ready=False, root=Tmpfs("/"), mounts=WORK, init=True,
            namespaces={{"user", "pid", "mount"}}, user=linx.user.root_map(),
        ) as s:
            while s.state == "starting":
                try:
                    s.host_pid
                    break
                except linx.LinxError:
                    await trio.lowlevel.checkpoint()
            with contextlib.suppress(OSError):  # it is gone
                await trio.to_thread.run_sync(look, s.host_pid)
            await s.wait()
    except linx.SetupError as exc:
        assert exc.stage == "execve", exc

trio.run(main)
result = [os.getuid(), seen]
"""


def test_neither_the_workload_nor_pid_1_whose_memory_it_has_can_be_looked_into() -> None:
    """Nearly all the time it makes a great many directories, its id maps written and its end not near."""
    own, seen = as_somebody(LOOK.format(count=30_000))
    for _ in range(10):
        if len(seen) > 20:
            break
        own, seen = as_somebody(LOOK.format(count=30_000))  # whoever looks may be late, on a busy machine
    hidden = [own not in owners for owners in seen]
    assert sum(hidden) > 0.5 * len(seen)
    assert all(hidden[hidden.index(True) :]), "it stays so"
