"""What linx-trio does, on this machine, now: run it with `make demo`.

Three workloads in fresh namespaces stand side by side at the checkpoint, are looked at from outside, and released.
A fourth one leaves daemons behind on purpose. At the end a search through all processes shows that nothing is left.
"""

import os
import uuid
from pathlib import Path

import trio

import linx_trio as linx

# Every process of this demonstration carries this in its environment, wherever it hides.
MARK = f"LINX_DEMO={uuid.uuid4().hex}"
ENV = {**os.environ, **dict([MARK.split("=")])}

FRESH = {"net", "uts", "pid"}
if os.geteuid() != 0:
    FRESH.add("user")  # an ordinary user may create the others inside one of these


def marked() -> list[int]:
    """All processes of this machine that carry the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and MARK.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # gone, or somebody else's
    return found


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def interfaces(pid: int) -> list[str]:
    devices = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return [line.split(":")[0].strip() for line in devices if ":" in line]


async def box(name: str, parked: trio.Event, release: trio.Event) -> None:
    script = """
        interfaces=$(grep -o '[a-z0-9]*:' /proc/net/dev)
        echo "  I am $(cat /proc/sys/kernel/hostname), pid $$, with the interfaces" $interfaces
    """
    hostname = name if os.geteuid() == 0 else None
    async with linx.spawn(
        ["/bin/sh", "-c", script], namespaces=FRESH, hostname=hostname, stdout=linx.PIPE, env=ENV
    ) as s:
        print(f"  {name}: {s.state}, pid {s.host_pid} here and {s.child_pid} inside, in {namespace(s.host_pid, 'net')}")
        print(
            f"  {name}: seen from outside it has the interfaces {interfaces(s.host_pid)}; its program has not run yet"
        )
        parked.set()
        await release.wait()
        await s.proceed()
        assert s.stdout is not None
        async for chunk in s.stdout:
            print(chunk.decode(), end="")
        outcome = await s.wait()
        assert s.usage is not None
        print(f"  {name}: {outcome}, {s.usage.max_rss // 1024} KiB, {s.usage.wall_time * 1000:.1f} ms")


async def side_by_side() -> None:
    here = namespace(os.getpid(), "net")
    print(f"Three workloads, each in fresh {', '.join(sorted(FRESH))} namespaces. This process is in {here}.")
    release = trio.Event()
    async with trio.open_nursery() as nursery:
        for name in ("alpha", "beta", "gamma"):
            parked = trio.Event()
            nursery.start_soon(box, name, parked, release)
            await parked.wait()
        print("All three are parked between clone(2) and execve(2). Released together:")
        release.set()


async def daemons() -> None:
    print("A workload that leaves three daemons behind: double-forked, in sessions of their own, deaf to SIGTERM:")
    script = "for i in 1 2 3; do (trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' &) ; done"
    async with linx.spawn(["/bin/sh", "-c", script], env=ENV, stdio=linx.DEVNULL) as s:
        await s.proceed()
        print(f"  it ended with {await s.wait()}", end="")
        while len(marked()) < 3:  # noqa: ASYNC110  # until the last one has been started: nothing tells
            await trio.sleep(0.01)
        print(f", and left behind the processes {marked()}")
    print(f"  the block is left: {marked() or 'none of them exists any more'}")


async def cancelled() -> None:
    print("A pipeline of three that is cancelled after a moment:")
    with trio.move_on_after(0.2):
        await linx.run(["/bin/sh", "-c", "yes | tr y n | cat >/dev/null"], env=ENV)
    print(f"  cancelled: {marked() or 'none of its processes exists any more'}")


async def refused() -> None:
    print("And when something is refused:")
    try:
        await linx.run(["/usr/bin/no-such-program"], env=ENV)
    except FileNotFoundError as exc:
        print(f"  {type(exc).__name__}: {exc}")


async def main() -> None:
    await side_by_side()
    await daemons()
    await cancelled()
    await refused()
    left = marked()
    print(f"Searched all of /proc for this demonstration's mark: {len(left)} processes left.")
    assert not left, left


if __name__ == "__main__":
    trio.run(main)
