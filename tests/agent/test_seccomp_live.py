"""Filters on the kernel: in effect from the workload's first instruction, and not a step sooner."""

from __future__ import annotations

import errno
import os
import struct
import sys
import termios
from typing import Any

import pytest
import trio

import linx_trio as linx
from linx_trio import capabilities, seccomp
from tests.agent.probes import SOMEBODY, needs_root, status_of
from tests.agent.rights import AFFINITY, output_of, rootless
from tests.proto.test_workload import ALLOWS_ALL
from tests.support import DEADLINE

EXECVE = {"x86_64": 59, "aarch64": 221}[os.uname().machine]
SIGSYS = linx.Signaled(31)
SLEEP = ["sleep", "600"]

LOADER = [
    "execve", "brk", "arch_prctl", "mmap", "munmap", "mprotect", "access", "faccessat", "open", "openat", "fstat",
    "newfstatat", "fstatat64", "read", "pread64", "close", "set_tid_address", "set_robust_list", "rseq", "prlimit64",
    "getrandom", "futex", "statx", "exit_group",
]  # fmt: skip
"""What a dynamic loader calls, and the end of a program."""


def of_uname(action: int) -> seccomp.Filter:
    """A program by hand, which does this with ``uname(2)`` and allows the rest."""
    number = {"x86_64": 63, "aarch64": 160}[os.uname().machine]
    lines = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)]
    return seccomp.from_bpf(b"".join(struct.pack("=HBBI", *line) for line in lines))


def of_execve(action: int) -> seccomp.Filter:
    """Does this with ``execve(2)`` of any path that is not at address 0, which nobody can know beforehand."""
    lines = [
        *((0x20, 0, 0, 0), (0x15, 0, 3, EXECVE), (0x20, 0, 0, 16), (0x15, 1, 0, 0)),
        *((0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)),
    ]
    return seccomp.from_bpf(b"".join(struct.pack("=HBBI", *line) for line in lines))


UNAME = [sys.executable, "-S", "-E", "-c", """
import os
try:
    os.uname()
    print("fine")
except OSError as exc:
    print(exc.errno)
"""]  # fmt: skip

DENIALS = {
    "deny_list": lambda: seccomp.deny_list(["uname"], ("errno", "EXDEV")),
    "deny_list, logged": lambda: seccomp.deny_list(["uname"], ("errno", 18), log=True),
    "from_oci": lambda: seccomp.from_oci(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}],
        }
    ),
    "from_bpf": lambda: of_uname(0x00050000 | errno.EXDEV),
}


async def imperative(argv: list[str], *filters: seccomp.Filter, **options: Any) -> tuple[linx.Outcome, bytes]:
    """The end and the output of a workload whose filters are installed while it is parked."""
    async with linx.spawn(argv, stdout=linx.PIPE, **options) as s:
        for each in filters:
            await seccomp.install(s, each)
        await s.proceed()
        assert s.stdout is not None
        with trio.fail_after(DEADLINE):
            output = b"".join([chunk async for chunk in s.stdout])
        return await s.wait(), output


# ---- each kind of filter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DENIALS)
async def test_an_errno_is_seen_inside(kind: str) -> None:
    made = DENIALS[kind]()
    assert await output_of(UNAME, seccomp=made) == b"18\n"
    assert await imperative(UNAME, made) == (linx.Exited(0), b"18\n")
    assert await output_of(UNAME) == b"fine\n"


@pytest.mark.parametrize(
    ("action", "outcome"), [("kill_process", SIGSYS), ("kill_thread", SIGSYS), ("trap", SIGSYS), ("log", None)]
)
async def test_other_actions(action: str, outcome: linx.Outcome | None) -> None:
    made = seccomp.deny_list(["uname"], action)
    options: Any = {"rlimits": {"core": (0, 0)}}
    done = await linx.run(["uname"], seccomp=made, check=False, capture_stdout=True, **options)
    assert done.outcome == (outcome or linx.Exited(0))
    assert (await imperative(["uname"], made, **options))[0] == done.outcome


async def test_an_allow_list() -> None:
    allowed = seccomp.allow_list(LOADER)
    assert (await linx.run(["true"], seccomp=allowed)).outcome == linx.Exited(0)
    async with linx.spawn(["sleep", "0"], seccomp=allowed, rlimits={"core": (0, 0)}) as s:
        await s.proceed()
        assert await s.wait() == SIGSYS
        assert s.ran, "it was killed by a syscall of its own"
    refusing = seccomp.allow_list([*LOADER, "write"], ("errno", "ENOSYS"))
    done = await linx.run(["uname"], seccomp=refusing, check=False, capture_stderr=True)
    assert done.returncode == 1
    assert done.stderr is not None
    assert b"not implemented" in done.stderr


async def test_the_default_profile() -> None:
    made = seccomp.default()
    script = "echo out; (exec sleep 0) & wait; ls / >/dev/null; cat /proc/self/status | grep Seccomp:"
    assert await output_of(["sh", "-c", script], seccomp=made) == b"out\nSeccomp:\t2\n"
    for refused in ("unshare --user true", "unshare --mount true", "mount -t tmpfs none /mnt"):
        done = await linx.run(refused.split(), seccomp=made, check=False, capture_stderr=True, **rootless())
        assert done.returncode != 0, refused
        assert done.stderr is not None
        assert b"not permitted" in done.stderr or b"permission denied" in done.stderr
    done = await linx.run(["unshare", "--user", "true"], seccomp=seccomp.default(allow=["unshare"]))
    assert done.returncode == 0


async def test_no_typing_into_the_terminal() -> None:
    """A process may do that on its own controlling terminal, where the kernel still has it."""
    code = f"import fcntl\ntry:\n fcntl.ioctl(0, {termios.TIOCSTI}, b'x')\n"
    code += "except OSError as exc: print('errno', exc.errno)"
    code += f"\nfcntl.ioctl(0, {termios.TIOCGWINSZ}, bytes(8)); print('done')"
    for made in (seccomp.no_tty_injection(), seccomp.default()):
        argv = [sys.executable, "-S", "-E", "-c", code]
        async with linx.spawn(argv, stdio=linx.PTY, seccomp=made, auto_proceed=True) as s:
            output = b""
            with trio.fail_after(DEADLINE):
                while chunk := await s.pty.receive_some():
                    output += chunk
            assert await s.wait() == linx.Exited(0)
        assert output == b"errno %d\r\ndone\r\n" % errno.EPERM


# ---- when it is installed ------------------------------------------------------------------------------------------

SETUP = [
    "setresuid", "setresgid", "setgroups", "capset", "prctl", "chdir", "mount_setattr", "open_tree", "move_mount",
    "fsopen", "fsconfig", "fsmount", "pivot_root", "openat2", "sethostname", "setdomainname", "sched_setaffinity",
    "umask", "setpriority", "setsid", "seccomp", "sendto", "recvmsg", "mkdirat", "symlinkat", "unshare", "mount",
    "umount2",
]  # fmt: skip
"""What the set-up does, or might, and the workload does not. A filter that kills for it is in nobody's way."""


async def test_nothing_that_the_set_up_does_has_to_be_allowed() -> None:
    made = seccomp.deny_list(SETUP, "kill_process")
    options = rootless("mount", "uts", "net", "pid") | {
        "mounts": [linx.mount.Tmpfs("/mnt"), linx.mount.Proc(), linx.mount.Dir("/mnt/a/b")],
        "hostname": "box",
        "domainname": "home",
        "sysctls": {"net.ipv4.ip_forward": 1},
        "cpu_affinity": {AFFINITY},
        "oom_score_adj": 500,
        "umask": 0o077,
        "nice": 1,
        "cwd": "/mnt/a",
        "capabilities": capabilities.keep({"kill"}),
        "no_new_privs": True,
        "uid": 0,
        "gid": 0,
        "init": True,
        "seccomp": made,
    }
    for auto_proceed in (False, True):
        async with linx.spawn(SLEEP, auto_proceed=auto_proceed, **options) as s:
            await s.proceed()
            status = status_of(s.host_pid)
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
            assert os.readlink(f"/proc/{s.host_pid}/cwd") == "/mnt/a"
        assert s.outcome == linx.Signaled(9)


async def test_it_is_the_last_act_whatever_the_order_of_the_calls() -> None:
    """Installed first: what is done afterwards would be death under it."""
    async with linx.spawn(SLEEP, cwd="/mnt", **rootless("mount", "net")) as s:
        await seccomp.install(s, seccomp.deny_list(SETUP, "kill_process"))
        assert status_of(s.host_pid)["Seccomp"] == status_of(os.getpid())["Seccomp"], "not while it is parked"
        await linx.mount.mount(s, "tmpfs", "/mnt")
        await capabilities.drop_bounding(s, {"net_raw"})
        await capabilities.set_thread_sets(s, inheritable={"chown"})
        await s.proceed()
        assert status_of(s.host_pid)["Seccomp"] == "2"
    assert s.outcome == linx.Signaled(9)


@pytest.mark.parametrize("declared", [True, False])
async def test_an_unprivileged_installer_gets_no_new_privs(declared: bool) -> None:
    options: Any = {"uid": SOMEBODY} if os.geteuid() == 0 else {}
    async with linx.spawn(SLEEP, seccomp=ALLOWS_ALL if declared else None, **options) as s:
        if not declared:
            await seccomp.install(s, ALLOWS_ALL)
        await s.proceed()
        assert status_of(s.host_pid)["Seccomp"] == "2"
        assert status_of(s.host_pid)["NoNewPrivs"] == "1"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("privileged", [pytest.param(True, marks=needs_root), False])
async def test_no_new_privs_where_it_is_needed(declared: bool, privileged: bool) -> None:
    """CAP_SYS_ADMIN does without, and then a set-user-ID program is still worth something."""
    options: Any = {} if privileged else {"capabilities": capabilities.keep(())} | rootless()
    async with linx.spawn(SLEEP, seccomp=ALLOWS_ALL if declared else None, **options) as s:
        if not declared:
            await seccomp.install(s, ALLOWS_ALL)
        await s.proceed()
        assert status_of(s.host_pid)["Seccomp"] == "2"
        assert status_of(s.host_pid)["NoNewPrivs"] == ("0" if privileged else "1")


# ---- execve refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: seccomp.allow_list(["read", "write"]),
        lambda: seccomp.allow_list(["read"], ("errno", "EPERM")),
        lambda: seccomp.deny_list(["execve"]),
        lambda: seccomp.deny_list(["execve"], "kill_process"),
    ],
)
async def test_what_is_sure_to_refuse_execve_is_refused_up_front(make: Any) -> None:
    made = make()
    assert seccomp.will_refuse_execve(made) is True
    with pytest.raises(ValueError, match=r"seccomp=.* refuses execve itself"):
        linx.spawn(SLEEP, seccomp=made)
    async with linx.spawn(SLEEP) as s:
        with pytest.raises(ValueError, match=r"filter=.* refuses execve itself"):
            await seccomp.install(s, made)
        await s.proceed()


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("action", [0x80000000, 0, 0x00030000], ids=["kill_process", "kill_thread", "trap"])
async def test_killed_by_its_filter_it_never_ran(declared: bool, action: int) -> None:
    made = of_execve(action)
    assert seccomp.will_refuse_execve(made) is None
    options: Any = {"seccomp": made} if declared else {}
    async with linx.spawn(SLEEP, rlimits={"core": (0, 0)}, **options) as s:
        if not declared:
            await seccomp.install(s, made)
        with pytest.raises(linx.NoProcess), trio.fail_after(DEADLINE):
            await s.proceed()
        assert await s.wait() == SIGSYS
        assert not s.ran
    assert [event async for event in s.events()] == [linx.Ready(s.host_pid), SIGSYS]


async def test_killed_by_its_filter_without_a_checkpoint() -> None:
    made = of_execve(0x80000000)
    done = await linx.run(SLEEP, seccomp=made, check=False, rlimits={"core": (0, 0)})
    assert done.outcome == SIGSYS
    async with linx.spawn(SLEEP, seccomp=made, wait_ready=False, auto_proceed=True, rlimits={"core": (0, 0)}) as s:
        assert await s.wait() == SIGSYS
        assert not s.ran


@pytest.mark.parametrize("init", [False, True])
async def test_execve_refused_with_an_errno(init: bool) -> None:
    options = rootless("pid") | {"init": True} if init else {}
    async with linx.spawn(SLEEP, seccomp=of_execve(0x00050000 | errno.EDOM), **options) as s:
        with pytest.raises(linx.SetupError) as caught, trio.fail_after(DEADLINE):
            await s.proceed()
        assert (caught.value.stage, caught.value.errno) == ("execve", errno.EDOM)
        assert not s.ran


async def test_the_kernel_refuses_the_filter() -> None:
    """Steps by hand, since no `Filter` gets so far: an empty program, and a flag that no kernel has."""
    async with linx.spawn(SLEEP) as s:
        with pytest.raises(linx.SetupError) as caught:
            await s.take_steps([(("seccomp", b"", 0), "nothing")])
        assert (caught.value.stage, caught.value.filename) == ("seccomp_install", "nothing")
        await s.take_steps([(("seccomp", b"\6\0\0\0\0\0\xff\x7f", 1 << 20), "flags")])
        with pytest.raises(linx.SetupError) as caught:
            await s.proceed()
        assert (caught.value.stage, caught.value.errno) == ("seccomp_install", errno.EINVAL)
        assert not s.ran


async def test_only_execve_is_allowed() -> None:
    """It has executed, whatever comes of it."""
    lines = [(0x20, 0, 0, 0), (0x15, 1, 0, EXECVE), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
    made = seccomp.from_bpf(b"".join(struct.pack("=HBBI", *line) for line in lines))
    async with linx.spawn(SLEEP, seccomp=made, rlimits={"core": (0, 0)}) as s:
        await s.proceed()
        assert await s.wait() == SIGSYS
        assert s.ran


async def test_installing_is_for_parked_workloads() -> None:
    async with linx.spawn(SLEEP, auto_proceed=True) as s:
        with pytest.raises(linx.AlreadyRunning, match=r"^install: "):
            await seccomp.install(s, ALLOWS_ALL)
    with pytest.raises(linx.NoProcess, match=r"^install: "):
        await seccomp.install(s, ALLOWS_ALL)


# ---- several -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
async def test_several_filters_are_all_in_force(declared: bool) -> None:
    """As with seccomp(2): of what they decide the strictest. So a later one takes nothing back."""
    uname, chdir = seccomp.deny_list(["uname"], ("errno", "EXDEV")), seccomp.deny_list(["chdir"], ("errno", "EDOM"))
    code = UNAME[-1] + "\ntry: os.chdir('/')\nexcept OSError as exc: print(exc.errno)"
    argv = [*UNAME[:-1], code]
    for first, *rest in ([uname, chdir, ALLOWS_ALL], [ALLOWS_ALL, chdir, uname]):
        if declared:
            outcome = await imperative(argv, *rest, seccomp=first)
        else:
            outcome = await imperative(argv, first, *rest)
        assert outcome == (linx.Exited(0), b"%d\n%d\n" % (errno.EXDEV, errno.EDOM))


async def test_what_a_workload_installs_itself_comes_on_top() -> None:
    async with linx.spawn(SLEEP, seccomp=ALLOWS_ALL) as s:
        before = int(status_of(s.host_pid).get("Seccomp_filters", "0"))
        await s.proceed()
        assert int(status_of(s.host_pid).get("Seccomp_filters", "1")) == before + 1
