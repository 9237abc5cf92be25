"""`Session.take_steps`: what all verbs on a parked session are made of, and when it may be called."""

from __future__ import annotations

import errno
import os
import resource
import signal
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio import capabilities, mount
from linx_trio._proto import messages as m
from tests.agent.probes import needs_root, status_of
from tests.agent.programs.phases import lone_zygote, state_of, stop
from tests.agent.rights import Options, in_both_ways, rootless
from tests.support import DEADLINE, eventually_async, monitor_of, stat_of

SLEEP = ["sleep", "600"]
Steps = list[tuple[m.Step, str]]


def umask(mask: int) -> tuple[m.Step, str]:
    return ("umask", mask), f"umask {mask:o}"


NICE = (("nice", 5), "nice")
NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
BAD: tuple[m.Step, str] = (("cpu_affinity", bytes(8)), "no CPU")
"""A step that the kernel always refuses: EINVAL."""


def umask_of(s: linx.Session) -> int:
    return int(status_of(s.host_pid)["Umask"], 8)


# ---- what it does ------------------------------------------------------------------------------------------------


async def test_it_returns_when_it_is_done() -> None:
    async with linx.spawn(SLEEP) as s:
        for mask in (0o077, 0o007, 0o777):
            await s.take_steps([umask(mask)])
            assert umask_of(s) == mask
        await s.take_steps([])
        assert s.state == "ready"
        await s.proceed()
        assert umask_of(s) == 0o777


async def test_the_first_refused_step_is_named() -> None:
    """Those before it are done, those behind it are not, and the workload is still parked."""
    async with linx.spawn(SLEEP) as s:
        with pytest.raises(linx.SetupError) as caught:
            await s.take_steps([umask(0o011), BAD, umask(0o022)])
        assert (caught.value.stage, caught.value.errno, caught.value.filename) == (
            "cpu_affinity",
            errno.EINVAL,
            "no CPU",
        )
        assert "none of these CPUs" in str(caught.value.hint)
        assert umask_of(s) == 0o011
        assert s.state == "ready"
        await s.take_steps([umask(0o033)])
        await s.proceed()
        assert umask_of(s) == 0o033
        assert [event async for event in _first(s, 2)] == [linx.Ready(s.host_pid), linx.Running()]


async def _first(s: linx.Session, count: int) -> Any:
    async for event in s.events():
        yield event
        count -= 1
        if not count:
            return


@pytest.mark.parametrize(
    "step",
    [("typo",), ("umask",), ("umask", 1, 2), ("umask", b"18"), ("chdir", b"/\0"), ("setuid", 2**32), m.CHECKPOINT],
    ids=repr,
)
async def test_what_is_no_step(step: m.Step) -> None:
    """The child refuses the whole batch, and waits for the next one."""
    async with linx.spawn(SLEEP) as s:
        before = umask_of(s)
        with pytest.raises(linx.SetupError) as caught:
            await s.take_steps([umask(before ^ 0o1), (step, "nonsense")])
        assert (caught.value.stage, caught.value.errno) == ("request", errno.EINVAL)
        assert umask_of(s) == before
        await s.take_steps([umask(0o123)])
        assert umask_of(s) == 0o123


async def test_a_large_batch() -> None:
    """Far more than a message of the child's socket can be."""
    many = [umask(number % 0o777) for number in range(20000)]
    async with linx.spawn(SLEEP) as s:
        with trio.fail_after(DEADLINE):
            await s.take_steps([*many, umask(0o045)])
        assert umask_of(s) == 0o045
        with pytest.raises(linx.SetupError) as caught:
            await s.take_steps([*many, BAD])
        assert caught.value.filename == "no CPU"


@pytest.mark.parametrize(
    "step", [("make_file", b"/x", bytes(17 << 20), 0o644), ("hostname", object())], ids=["large", "odd"]
)
async def test_a_batch_that_cannot_be_said(step: m.Step) -> None:
    """It is refused here; the answers to later ones find those who wait for them."""
    async with linx.spawn(SLEEP) as s:
        with pytest.raises((linx.SetupError, TypeError, ValueError)):
            await s.take_steps([(step, "thing")])
        with trio.fail_after(DEADLINE):
            await s.take_steps([umask(0o077)])
        assert umask_of(s) == 0o077


def fds_of(pid: int) -> set[str]:
    return set(os.listdir(f"/proc/{pid}/fd"))


async def test_no_fd_is_left_behind() -> None:
    async with linx.spawn(SLEEP) as s:
        monitor = monitor_of(s.host_pid)
        before = fds_of(s.host_pid), fds_of(monitor)
        for _ in range(20):
            await s.take_steps([NICE])
        await eventually_async(lambda: fds_of(s.host_pid) <= before[0], "the child has closed what it was told with")
        await eventually_async(lambda: fds_of(monitor) <= before[1], "and so has the monitor")


# ---- several at a time -------------------------------------------------------------------------------------------


async def test_batches_are_answered_in_their_order() -> None:
    """Each caller gets the answer to its own: every third one is refused."""
    answers: list[tuple[int, bool]] = []

    async def take(s: linx.Session, number: int) -> None:
        try:
            await s.take_steps(
                [(("cpu_affinity", bytes(8)), f"batch {number}")] if number % 3 == 0 else [umask(number)]
            )
        except linx.SetupError as exc:
            answers.append((number, exc.filename != f"batch {number}"))
        else:
            answers.append((number, True))

    async with linx.spawn(SLEEP) as s:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(take, s, number)
        assert sorted(answers) == [(number, number % 3 != 0) for number in range(60)]
        await s.proceed()


async def test_more_batches_than_a_socket_holds() -> None:
    """Said while the child does not move; none is lost, and `proceed` comes behind the last."""
    done: list[int] = []

    async def take(s: linx.Session, number: int) -> None:
        await s.take_steps([umask(number % 0o777)])
        done.append(number)

    async with linx.spawn(SLEEP) as s:
        os.kill(s.host_pid, signal.SIGSTOP)
        await eventually_async(lambda: (stat_of(s.host_pid) or "?")[0] == "T", "it has stopped")
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for number in range(1000):
                    nursery.start_soon(take, s, number)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(s.proceed)
                await trio.testing.wait_all_tasks_blocked()
                assert not done
                os.kill(s.host_pid, signal.SIGCONT)
        assert sorted(done) == list(range(1000))
        assert s.state == "running"


async def test_steps_that_were_said_before_proceed_are_done_before_it() -> None:
    async with linx.spawn(SLEEP) as s, trio.open_nursery() as nursery:
        many = [umask(0o1) for _ in range(5000)]
        nursery.start_soon(s.take_steps, [*many, umask(0o070)])
        await trio.testing.wait_all_tasks_blocked()
        await s.proceed()
        assert umask_of(s) == 0o070


async def test_cancelled_they_are_done_all_the_same() -> None:
    async with linx.spawn(SLEEP) as s:
        os.kill(s.host_pid, signal.SIGSTOP)
        await eventually_async(lambda: (stat_of(s.host_pid) or "?")[0] == "T", "it has stopped")
        with trio.move_on_after(0.01) as scope:
            await s.take_steps([umask(0o055)])
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await s.take_steps([umask(0o066)])
        assert scope.cancelled_caught, "and cancelled before, they are not even said"
        os.kill(s.host_pid, signal.SIGCONT)
        await s.take_steps([NICE])  # its answer is not that of the one before
        assert umask_of(s) == 0o055
        with pytest.raises(linx.SetupError):
            await s.take_steps([BAD])


# ---- when --------------------------------------------------------------------------------------------------------


async def test_the_states() -> None:
    async with linx.spawn(SLEEP, wait_ready=False) as s:
        if s.state == "starting":
            with pytest.raises(linx.NotReady) as early:
                await s.take_steps([NICE])
            assert (early.value.verb, early.value.state) == ("take_steps", "starting")
    async with linx.spawn(SLEEP) as s:
        await s.proceed()
        with pytest.raises(linx.AlreadyRunning):
            await s.take_steps([NICE])
    with pytest.raises(linx.NoProcess):
        await s.take_steps([NICE])
    async with linx.spawn(SLEEP) as s:
        await s.abort()
        with pytest.raises(linx.NoProcess):
            await s.take_steps([NICE])


async def test_before_the_checkpoint() -> None:
    """An unread request: the session is starting, for as long as its zygote is stopped."""
    zygote = lone_zygote()
    os.kill(zygote, signal.SIGSTOP)
    try:
        async with linx.spawn(SLEEP, wait_ready=False) as s:
            with pytest.raises(linx.NotReady):
                await s.take_steps([NICE])
            with pytest.raises(linx.NotReady, match=r"^drop_bounding: "):
                await capabilities.drop_bounding(s, {"kill"})
            with pytest.raises(linx.NotReady, match=r"^read: "):
                capabilities.read(s)
            with pytest.raises(linx.NotReady, match=r"^set_thread_sets: "):
                await capabilities.set_thread_sets(s, effective=())
            os.kill(zygote, signal.SIGCONT)
            s.kill()
            await s.wait()
    finally:
        os.kill(zygote, signal.SIGCONT)


async def test_once_proceed_has_been_called() -> None:
    """Also before it has had any effect: here the monitor does not move."""
    async with linx.spawn(SLEEP) as s, trio.open_nursery() as nursery:
        monitor = monitor_of(s.host_pid)
        os.kill(monitor, signal.SIGSTOP)
        try:
            nursery.start_soon(s.proceed)
            await trio.testing.wait_all_tasks_blocked()
            assert s.state == "ready"
            with pytest.raises(linx.AlreadyRunning):
                await s.take_steps([NICE])
        finally:
            os.kill(monitor, signal.SIGCONT)


async def test_a_session_that_proceeds_by_itself_is_never_asked() -> None:
    """It is at its checkpoint for a moment only: whoever asks then must not wait for its end."""
    for _ in range(20):
        async with linx.spawn(SLEEP, auto_proceed=True, wait_ready=False) as s:
            with trio.fail_after(DEADLINE):
                while s.state == "starting":
                    await trio.lowlevel.checkpoint()
                with pytest.raises(linx.AlreadyRunning):
                    await s.take_steps([NICE])


@pytest.mark.parametrize("how", ["abort", "kill", "from outside", "the monitor"])
async def test_the_end_while_steps_are_under_way(how: str) -> None:
    async with linx.spawn(SLEEP) as s:
        os.kill(s.host_pid, signal.SIGSTOP)
        caught: list[linx.LinxError] = []

        async def take() -> None:
            try:
                await s.take_steps([NICE])
            except linx.LinxError as exc:
                caught.append(exc)

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked()
                if how == "abort":
                    await s.abort()
                elif how == "kill":
                    s.kill()
                else:
                    os.kill(s.host_pid if how == "from outside" else monitor_of(s.host_pid), signal.SIGKILL)
        expected = linx.AgentDied if how == "the monitor" else linx.NoProcess
        assert [type(exc) for exc in caught] == [expected] * 3
        assert not s.ran


async def test_it_was_killed_before_the_monitor_passes_them_on() -> None:
    async with linx.spawn(SLEEP) as s:
        monitor = monitor_of(s.host_pid)
        async with trio.open_nursery() as nursery:
            try:
                await stop(monitor)
                os.kill(s.host_pid, signal.SIGKILL)
                await eventually_async(lambda: state_of(s.host_pid) == "Z", "it is dead, and nobody knows")
                nursery.start_soon(refused_for_lack_of_a_process, s)
                await trio.testing.wait_all_tasks_blocked()
            finally:
                os.kill(monitor, signal.SIGCONT)


async def refused_for_lack_of_a_process(s: linx.Session) -> None:
    with pytest.raises(linx.NoProcess), trio.fail_after(DEADLINE):
        await s.take_steps([NICE])


# ---- with other options ------------------------------------------------------------------------------------------


@in_both_ways
async def test_under_an_init_and_in_entered_namespaces(rights: Any) -> None:
    options: Options = rights("pid", "uts") | {"init": True}
    async with linx.spawn(SLEEP, **options) as s, linx.enter(s, SLEEP) as guest:
        for session in (s, guest):
            await session.take_steps([umask(0o076), (("hostname", b"taken"), "hostname")])
            assert umask_of(session) == 0o076
            with pytest.raises(linx.SetupError):
                await session.take_steps([BAD])
        await guest.proceed()
        await s.proceed()


@needs_root
async def test_behind_maps_from_outside() -> None:
    """The batch that the session itself sends there is none of the user's."""
    maps = linx.user.Maps(uid=(0, 100000, 10), gid=(0, 100000, 10))
    async with linx.spawn(SLEEP, user=maps, wait_ready=False) as s:
        with trio.fail_after(DEADLINE):
            while s.state == "starting":
                with pytest.raises(linx.NotReady):
                    await s.take_steps([NICE])
                await trio.lowlevel.checkpoint()
            await s.take_steps([umask(0o071)])
        assert umask_of(s) == 0o071


async def test_an_optional_step_of_ones_own() -> None:
    """It is lived with; `degraded` is about options, and knows nothing of it."""
    async with linx.spawn(SLEEP, **rootless()) as s:
        await s.take_steps([(m.optional(BAD[0]), "thing"), umask(0o062)])
        assert umask_of(s) == 0o062
        assert s.info().degraded == ()
        await s.proceed()


@pytest.mark.parametrize(
    ("limits", "error", "stage"),
    [({"fsize": (10, 10)}, errno.EFBIG, "mount"), ({"nofile": (3, NOFILE)}, errno.EMFILE, "request")],
)
async def test_a_limit_that_is_in_the_way_is_a_refusal(limits: dict[str, Any], error: int, stage: str) -> None:
    """And not its end; the signal that goes with it is the workload's again."""
    big = mount.File("/tmp/big", b"x" * 100)
    options = rootless("mount") | {"mounts": [mount.Tmpfs("/tmp")], "rlimits": limits, "cwd": "/"}
    async with linx.spawn(["/bin/sh", "-c", "kill -XFSZ $$"], **options) as s:
        with pytest.raises(linx.SetupError) as caught:
            await mount.apply(s, [big])
        assert (caught.value.errno, caught.value.stage, s.state) == (error, stage, "ready")
        resource.prlimit(s.host_pid, resource.RLIMIT_NOFILE, (NOFILE, NOFILE))
        await s.proceed()
        assert await s.wait() == linx.Signaled(signal.SIGXFSZ)
