"""Inside of a container: its seccomp filter cannot see what clone3(2) is asked for, and so says that there is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import linx_trio as linx
from linx_trio import seccomp

NO_CLONE3 = seccomp.deny_list(["clone3"], ("errno", "ENOSYS"))

PROGRAM = """
import sys, trio
import linx_trio as linx
async def main():
    async with linx.spawn(["sh", "-c", "echo $$"], stdout=linx.PIPE) as s:
        assert s.state == "ready"
        await s.take_steps([(("umask", 0o077), "umask")])
        await s.proceed()
        assert int(await s.stdout.receive_some()) == s.host_pid
    kinds = {"user", "pid", "net"}
    async with linx.spawn(["sleep", "60"], namespaces=kinds, user=linx.user.root_map(), init=True) as s:
        assert s.child_pid == 2
        await s.proceed()
        async with linx.enter(s, ["sh", "-c", "echo $$"], stdout=linx.PIPE, auto_proceed=True) as inside:
            assert int(await inside.stdout.receive_some()) == inside.child_pid
    for options in ({"namespaces": {"time"}, "user": linx.user.root_map()},):
        try:
            await linx.run(["true"], **options)
        except linx.SetupError as exc:
            print(exc.stage, exc.strerror, exc.hint)
trio.run(main)
"""


async def test_without_clone3() -> None:
    """The older call does for all that it can say."""
    env = {**os.environ, "PYTHONPATH": str(Path(linx.__file__).parents[1])}
    done = await linx.run([sys.executable, "-c", PROGRAM], seccomp=NO_CLONE3, env=env, capture_stdout=True)
    assert done.stdout is not None
    assert done.stdout.decode().startswith("clone Function not implemented")
