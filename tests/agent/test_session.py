"""The life of a session, as a user sees it."""

from __future__ import annotations

import linx_trio as linx


async def test_parked_then_released() -> None:
    async with linx.spawn(["/bin/sh", "-c", "exit 7"]) as s:
        assert s.state == "ready"
        assert not s.ran
        await s.proceed()
        assert await s.wait() == linx.Exited(7)
        assert s.returncode == 7
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), linx.Running(), linx.Exited(7)]
