"""Labs that are cancelled, interrupted, half made, used at the wrong moment, or killed; and many tasks at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import linx_trio as linx
from linx_trio.net import Host, Lab, Switch
from tests.agent.containers import below
from tests.agent.labs import link_of, output, pair, ping, two_hosts
from tests.agent.roots import needs_busybox
from tests.support import DEADLINE, exists, open_fds

pytestmark = needs_busybox
ROOT = Path(__file__).resolve().parents[2]
SLEEP = ["sleep", "100000"]


# ---- cancelled -------------------------------------------------------------------------------------------------------


class AtStep(trio.abc.Instrument):
    """Does something just before a task's so-manieth step, and counts them all."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.at, self.act, self.steps = at, act, 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.act()


@contextlib.contextmanager
def at_step(step: int, act: Callable[[], object]) -> Iterator[AtStep]:
    counter = AtStep(step, act)
    trio.lowlevel.add_instrument(counter)
    try:
        yield counter
    finally:
        trio.lowlevel.remove_instrument(counter)


@contextlib.contextmanager
def cancelled_at(step: int) -> Iterator[AtStep]:
    with trio.CancelScope() as scope, at_step(step, scope.cancel) as counter:
        yield counter


def declared(lab: Lab) -> tuple[Host, Host, Switch]:
    """One of everything."""
    a = lab.host("a", SLEEP, gateway=["10.0.0.2", "fd00::2"], stdio=linx.DEVNULL)
    r, s = lab.router("r"), lab.switch("s")
    lab.link(a, s, address=["10.0.0.1/24", "fd00::1/64"], rate="10mbit")
    lab.link(r, s, address=["10.0.0.2/24", "fd00::2/64"])
    lab.link(a, r, peer_address="10.1.0.1/24")
    return a, r, s


async def check_declared(a: Host, r: Host) -> None:
    assert a.session is not None
    assert a.session.state == "running"
    assert {str(route.destination) for route in await a.net.routes() if route.gateway} == {"0.0.0.0/0", "::/0"}
    for host, link, own in ((a, "eth0", "10.0.0.1/24"), (r, "eth0", "10.0.0.2/24"), (r, "eth1", "10.1.0.1/24")):
        assert own in {str(address.interface) for address in await host.net.addresses(link)}
        assert (await host.net.link(link)).state == "up"
    assert [qdisc.kind for qdisc in await a.net.qdiscs("eth0")] == ["tbf"]


async def steps_of(action: Callable[[], Awaitable[object]]) -> int:
    with cancelled_at(-1) as counter:
        await action()
    return counter.steps


async def test_a_start_that_is_cancelled_anywhere_can_be_gone_on_with() -> None:
    async with Lab() as lab:
        declared(lab)
        steps = await steps_of(lab.start)
    for step in random.Random(7).sample(range(1, steps), 24):
        async with Lab() as lab:
            a, r, _ = declared(lab)
            with cancelled_at(step):
                await lab.start()
            await lab.start()
            await check_declared(a, r)
    assert not below()


async def test_a_lab_that_is_cancelled_anywhere_leaves_nothing() -> None:
    async def all_of_it() -> None:
        async with Lab() as lab:
            a, _, _ = declared(lab)
            await a.run(["true"])

    steps = await steps_of(all_of_it)
    fds = len(open_fds())
    for step in random.Random(8).sample(range(1, steps), 24):
        with cancelled_at(step):
            await all_of_it()
        assert not below()
        assert len(open_fds()) == fds


async def test_one_who_is_cancelled_harms_nobody_else() -> None:
    """A task that gives up while it is making the lab is not the only one who needs it."""
    async with Lab() as lab:
        a, r, _ = declared(lab)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.run, ["true"])
            impatient = trio.CancelScope()

            async def give_up() -> None:
                with impatient:
                    await r.run(["true"])

            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked()
            impatient.cancel()
        await check_declared(a, r)


async def test_a_cancelled_body_still_leaves_in_order() -> None:
    with trio.move_on_after(0.5) as scope:
        async with two_hosts() as (_, a, _b):
            scope.cancel()
            await a.run(["true"])
    assert scope.cancelled_caught
    assert not below()


# ---- exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
async def test_an_exception_of_the_body_comes_out_as_itself(error: BaseException) -> None:
    pids: list[int] = []

    async def fail() -> None:
        async with two_hosts() as (_, a, _b):
            pids.append(a.anchor.host_pid)
            raise error

    assert await bare(fail) is error
    assert not any(map(exists, pids))


async def bare(action: Callable[[], Awaitable[object]]) -> BaseException:
    """What it raises."""
    try:
        await action()
    except BaseException as exc:
        return exc
    pytest.fail("nothing")


async def test_a_program_that_is_not_there_and_then_is(tmp_path: Path) -> None:
    """What has failed can be started again when its cause is gone."""
    program = tmp_path / "server"
    async with Lab() as lab:
        a = lab.host("a", [program], stdio=linx.DEVNULL)
        others = [lab.host(f"h{i}", SLEEP, stdio=linx.DEVNULL) for i in range(5)]
        exc = await bare(lab.start)
        assert isinstance(exc, linx.SetupError)
        assert isinstance(exc, FileNotFoundError)
        assert exc.stage == "execve"
        assert a.session is None
        assert type(await bare(lambda: others[0].run(["true"]))) is type(exc), "the lab is not what it should be"
        program.write_text("#!/bin/sh\nexec sleep 100000\n")
        program.chmod(0o755)
        before = [host.session for host in others]
        await lab.start()
        assert all(host.session is not None and host.session.state == "running" for host in lab.hosts)
        assert all(session in (None, host.session) for session, host in zip(before, others, strict=True))
        assert len(below()) == 2 * (1 + len(lab.hosts) * 2), "a monitor and a workload each: none was started twice"


async def test_a_link_that_cannot_be_made() -> None:
    async with Lab() as lab:
        a, b, _ = pair(lab)
        await lab.start()
        await a.net.create_bridge("eth1")  # behind the lab's back
        link = lab.link(a, b, address="10.1.0.1/24", peer_address="10.1.0.2/24")
        assert link.names == ("eth1", "eth1")
        for _ in range(2):
            assert isinstance(await bare(lab.start), FileExistsError)
            assert {found.name for found in await b.net.links()} == {"lo", "eth0"}
        await a.net.delete("eth1")
        assert await ping(a, "10.1.0.2")


async def test_a_gateway_out_of_reach() -> None:
    async with Lab() as lab:
        a = lab.host("a", gateway="10.0.0.2")
        exc = await bare(lab.start)
        assert isinstance(exc, OSError)
        assert "unreachable" in str(exc)
        assert "network of an address of 'a'" in exc.__notes__[-1]
        b = lab.host("b")
        lab.link(a, b, address="10.0.0.1/24", peer_address="10.0.0.2/24")
        await lab.start()
        assert [str(route.gateway) for route in await a.net.routes() if route.gateway] == ["10.0.0.2"]


async def test_a_sysctl_that_is_not_there() -> None:
    async with Lab() as lab:
        lab.host("a", sysctls={"net.ipv4.no_such_thing": 1})
        exc = await bare(lab.start)
        assert isinstance(exc, linx.SetupError)
        assert (exc.stage, exc.filename) == ("sysctl", "net/ipv4/no_such_thing")


async def test_many_failures_are_one() -> None:
    async with Lab() as lab:
        for i in range(10):
            lab.host(f"h{i}", ["/no/such/program"])
        assert isinstance(await bare(lab.start), FileNotFoundError)


INTERRUPTED = """
import os, signal, sys
import random, trio
import linx_trio as linx
from tests.agent.containers import below
from tests.support import open_fds
from tests.agent.test_lab_trouble import AtStep, declared

async def main(at):
    counter = AtStep(at, lambda: signal.raise_signal(signal.SIGINT))
    trio.lowlevel.add_instrument(counter)
    async with linx.net.Lab() as lab:
        a, _, _ = declared(lab)
        await a.run(["true"])
    return counter.steps

steps = trio.run(main, -1)
print(steps)
for at in random.Random(9).sample(range(1, steps), 24):
    fds = len(open_fds())
    try:
        if trio.run(main, at) >= at:
            print(at, "nothing was raised")
    except KeyboardInterrupt:
        pass
    except BaseException as exc:
        print(at, repr(exc))
    if below() or len(open_fds()) != fds:
        print(at, "left", below())
print("done")
"""


def test_control_c_anywhere() -> None:
    """It comes out as itself, when all has been cleared away."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True, cwd=ROOT, timeout=100
    )
    assert done.stdout.split("\n", 1)[1] == "done\n"


# ---- at the wrong moment ---------------------------------------------------------------------------------------------


async def test_before_and_after_the_block() -> None:
    lab = Lab()
    a, b, link = pair(lab)
    for action in (lab.start, lambda: a.run(["true"]), lambda: a.nft("table t"), link.set_down, link.shape):
        with pytest.raises(RuntimeError, match="the lab is not open: async with"):
            await action()
    with pytest.raises(RuntimeError, match="not open"):
        _ = lab.net
    async with lab:
        assert await ping(a, "b")
        with pytest.raises(RuntimeError, match="a lab can be entered once"):
            await lab.__aenter__()
        assert await ping(a, "b")
    for action in (lab.start, lambda: b.run(["true"]), lambda: a.nft("table t"), link.set_up, link.shape):
        with pytest.raises(RuntimeError, match="the lab has been left"):
            await action()
    for declare in (lambda: lab.host("c"), lambda: lab.switch("c"), lambda: lab.link(a, b)):
        with pytest.raises(RuntimeError, match="the lab has been left"):
            declare()
    with pytest.raises(RuntimeError, match="entered once"):
        async with lab:
            pass
    with pytest.raises(RuntimeError, match="has been left"):
        async with a.spawn(["true"]):
            pass
    with pytest.raises(trio.ClosedResourceError):
        await a.net.links()


async def test_a_guest_is_entered_once() -> None:
    async with two_hosts() as (_, a, _b):
        guest = a.spawn(["true"])
        async with guest as session:
            await session.proceed()
            assert await session.wait() == linx.Exited(0)
        with pytest.raises(RuntimeError, match="entered once"):
            async with guest:
                pass
        with pytest.raises(FileNotFoundError):
            async with a.spawn(["/no/such/program"], auto_proceed=True):
                pass


# ---- many at once ----------------------------------------------------------------------------------------------------


async def test_many_tasks_that_all_need_it() -> None:
    """It is made once, by whoever comes first; and more may be declared meanwhile."""
    async with Lab() as lab:
        a, b, _ = pair(lab)
        results: list[bool] = []

        async def one(host: Host, whom: str) -> None:
            results.append(await ping(host, whom))

        async def declare() -> None:
            for i in range(3):
                c = lab.host(f"c{i}")
                lab.link(a, c, address=f"10.{i + 1}.0.1/24", peer_address=f"10.{i + 1}.0.2/24")
                await one(a, f"c{i}")

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(lab.start)
                nursery.start_soon(one, a, "b")
                nursery.start_soon(one, b, "a")
            nursery.start_soon(declare)
        assert results == [True] * 15
        assert {found.name for found in await a.net.links()} == {"lo", "eth0", "eth1", "eth2", "eth3"}


async def test_declared_at_any_moment_of_the_making() -> None:
    """What comes too late for this start is made by the next one, all of it."""
    async with Lab() as lab:
        declared(lab)
        steps = await steps_of(lab.start)
    too_late = 0
    for step in random.Random(10).sample(range(1, steps // 2), 12):  # the number of steps differs from time to time
        async with Lab() as lab:
            a, r, s = declared(lab)

            def more(lab: Lab = lab, a: Host = a, r: Host = r, s: Switch = s) -> None:
                c = lab.host("c", SLEEP, stdio=linx.DEVNULL)
                lab.link(c, s, address="10.0.0.3/24")
                lab.link(a, r, address="10.2.0.1/24", peer_address="10.2.0.2/24")

            with at_step(step, more):
                await lab.start()
            await check_declared(a, r)
            c = lab["c"]
            assert isinstance(c, Host)
            too_late += c._net is None
            await lab.start()
            assert c.session is not None
            assert c.session.state == "running"
            for host, link, own in ((c, "eth0", "10.0.0.3/24"), (a, "eth2", "10.2.0.1/24"), (r, "eth2", "10.2.0.2/24")):
                assert own in {str(address.interface) for address in await host.net.addresses(link)}
                assert (await host.net.link(link)).state == "up"
            await check_declared(a, r)
    assert too_late > 3


@contextlib.asynccontextmanager
async def open_lab(lab: Lab) -> AsyncIterator[None]:
    async with lab:
        await lab.start()
        yield


async def test_what_runs_on_hosts_ends_with_the_lab() -> None:
    """Though the tasks that run it go on: they see it killed."""
    seen: list[Any] = []
    lab = Lab()
    a, b, _ = pair(lab)
    left = trio.Event()

    async def quiet(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        seen.append((await a.run(SLEEP, check=False)).outcome)

    async def captured(task_status: trio.TaskStatus[linx.Session]) -> None:
        with pytest.raises(linx.CalledProcessError) as caught:
            await b.run(SLEEP, capture_stdout=True, task_status=task_status)
        seen.append(caught.value.outcome)

    async def spawned(task_status: trio.TaskStatus[linx.Session]) -> None:
        async with b.spawn(["sh", "-c", "sleep 100000 & wait"]) as session:
            await session.proceed()
            task_status.started(session)
            await left.wait()
            seen.append(session.outcome)

    async def parked(task_status: trio.TaskStatus[linx.Session]) -> None:
        async with b.spawn(SLEEP) as session:
            task_status.started(session)
            await left.wait()
            seen.append(session.outcome)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            async with open_lab(lab):
                await nursery.start(quiet)
                for kind in (captured, spawned, parked):
                    await nursery.start(kind)
            left.set()
    assert sorted(map(repr, seen)) == [repr(linx.Aborted())] + [repr(linx.Signaled(9))] * 3


async def test_leaving_while_others_are_still_making_it() -> None:
    async with Lab() as lab:
        declared(lab)
        steps = await steps_of(lab.start)
    for step in (2, steps // 8, steps // 4, steps // 2):
        lab = Lab()
        declared(lab)
        errors: list[BaseException] = []

        async def make(lab: Lab, errors: list[BaseException]) -> None:
            errors.append(await bare(lab.start))

        async with trio.open_nursery() as nursery, lab:
            nursery.start_soon(make, lab, errors)
            nursery.start_soon(make, lab, errors)
            reached = trio.Event()
            counter = AtStep(step, reached.set)
            trio.lowlevel.add_instrument(counter)
            await reached.wait()
            trio.lowlevel.remove_instrument(counter)
        assert [str(error) for error in errors] == ["the lab has been left"] * 2, errors
        assert not below()


# ---- killed ----------------------------------------------------------------------------------------------------------


async def test_an_anchor_that_is_killed_from_outside() -> None:
    """Its host is of no use any more; the others are."""
    async with Lab() as lab:
        hosts = [lab.host(name) for name in "abc"]
        switch = lab.switch("s")
        for i, host in enumerate(hosts, 1):
            lab.link(host, switch, address=f"10.0.0.{i}/24")
        await lab.start()
        a, b, _ = hosts
        os.kill(a.anchor.host_pid, signal.SIGKILL)
        await a.anchor.wait()
        with pytest.raises(linx.NoProcess):
            await a.run(["true"])
        with pytest.raises(linx.NoProcess):
            async with a.spawn(["true"]):
                pass
        assert await ping(b, "c")
        assert [link.name for link in await a.net.links()] == ["lo", "eth0"]


async def test_the_holder_is_killed_from_outside() -> None:
    async with two_hosts() as (lab, a, _b):
        holder = lab._site._holder
        assert holder is not None
        os.kill(holder.host_pid, signal.SIGKILL)
        await holder.wait()
        assert await ping(a, "b")
        lab.host("c")
        with pytest.raises(linx.NoProcess):
            await lab.start()


async def test_a_hosts_program_is_asked_to_end_while_the_network_is_still_there(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f"trap 'busybox ping -c 1 -W 5 b > {said}; exit' TERM; echo up; while :; do sleep 0.01; done"
    async with Lab() as lab:
        grace = linx.Kill(grace=30.0)
        a = lab.host("a", ["sh", "-c", script], shutdown=grace, stdout=linx.PIPE, stdin=linx.DEVNULL)
        b = lab.host("b")
        lab.link(a, b, address="10.0.0.1/24", peer_address="10.0.0.2/24")
        await lab.start()
        assert a.session is not None
        assert a.session.stdout is not None
        assert await a.session.stdout.receive_some()
    assert "1 packets received" in said.read_text()


async def test_too_few_files_may_be_open() -> None:
    """What had been made by then is cleared away, and it can be gone on with when there is room again."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Lab() as lab:
        hosts = [lab.host(f"h{i}") for i in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 15, hard))
        try:
            exc = await bare(lab.start)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(exc, OSError)
        assert "open files" in str(exc)
        await lab.start()
        assert await output(hosts[-1], "hostname") == "h19\n"
        assert (await link_of(hosts[-1], "lo"))["operstate"] == "UNKNOWN"
