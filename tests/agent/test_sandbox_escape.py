"""Attempts to get out of a sandbox, one test each. Here: system calls, namespaces, privileges, other architectures.

Each is made inside, where it must be refused with the very error given, and somewhere else, where it is answered in
another way: without that the test could not fail. The arguments of the system calls are such that nothing happens where
they are allowed.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from tests.agent import escapes
from tests.agent.escapes import IS_ROOT, end_inside, inside, loose, outside, plain_status, without_filter

pytestmark = escapes.needs_python

# ---- system calls that the filter refuses ------------------------------------------------------------------------

REFUSED: dict[str, tuple[int | bytes | None, ...]] = {
    # mounts
    "mount": (0, 0, 0, 0, 0), "umount2": (0, 0), "pivot_root": (0, 0), "chroot": (0,), "open_tree": (-100, 0, 0),
    "open_tree_attr": (-100, 0, 0, 0, 0), "fsopen": (0, 0), "fsconfig": (-1, 99, 0, 0, 0), "fsmount": (-1, 0, 0),
    "fspick": (-100, 0, 0), "move_mount": (-1, 0, -1, 0, 0), "mount_setattr": (-1, 0, 0, 0, 0),
    # namespaces
    "unshare": (0,), "setns": (-1, 0),
    # files by their handles
    "open_by_handle_at": (-1, 0, 0), "fanotify_init": (-1, 0),
    # keys
    "keyctl": (-1, 0, 0, 0, 0), "add_key": (0, 0, 0, 0, 0), "request_key": (0, 0, 0, 0),
    # ways into the kernel
    "bpf": (-1, 0, 0), "io_uring_setup": (0, 0), "io_uring_enter": (-1, 0, 0, 0, 0, 0),
    "io_uring_register": (-1, 0, 0, 0), "perf_event_open": (0, 0, -1, -1, 0), "userfaultfd": (-1,),
    # other processes
    "kcmp": (0, 0, 99, 0, 0), "pidfd_getfd": (-1, 0, 0), "process_madvise": (-1, 0, 0, 0, 0),
    # where memory lies
    "mbind": (1, 0, 0, 0, 0, 0), "migrate_pages": (-1, 0, 0, 0), "move_pages": (0, 0, 0, 0, 0, -1),
    "set_mempolicy": (99, 0, 0), "get_mempolicy": (0, 0, 0, 0, 99),
    # the machine
    "acct": (b"/nowhere/at/all",), "clock_settime": (99, 0), "delete_module": (0, 0), "finit_module": (-1, 0, 0),
    "init_module": (0, 0, 0), "kexec_load": (0, 0, 0, -1), "quotactl": (-1, 0, 0, 0), "quotactl_fd": (-1, 0, 0, 0),
    "reboot": (0, 0, 0, 0), "sethostname": (0, -1), "setdomainname": (0, -1), "settimeofday": (1, 0),
    "swapoff": (0,), "swapon": (0, 0), "syslog": (99, 0, 0), "vhangup": (),
}  # fmt: skip
if platform.machine() == "x86_64":
    REFUSED |= {"iopl": (99,), "ioperm": (-1, 0, 1)}

MISSING = {"clone3": (0, 0), "lsm_list_modules": (0, 0, 0)}
"""As if this kernel did not have them."""

PRIVILEGED = {
    "bpf", "delete_module", "fanotify_init", "finit_module", "init_module", "kexec_load", "acct", "open_by_handle_at",
    "perf_event_open", "quotactl", "settimeofday", "swapoff", "swapon", "syslog", "userfaultfd", "vhangup",
}  # fmt: skip
"""What the kernel itself refuses to all but root of the machine, some of it even with those arguments."""

_CALLS = "result = {{name: call(number, *arguments) for name, (number, arguments) in {table!r}.items()}}"


def _table(calls: dict[str, Any]) -> str:
    numbers = {"lsm_list_modules": 461}
    return _CALLS.format(
        table={name: (numbers.get(name) or escapes.number_of(name), arguments) for name, arguments in calls.items()}
    )


@functools.cache
def _inside() -> dict[str, Any]:
    answers = inside(_table(REFUSED | MISSING))
    assert isinstance(answers, dict)
    return answers


@functools.cache
def _elsewhere() -> dict[str, Any]:
    """As the machine's root, or else as root of namespaces: without ``vhangup``, which does hang up."""
    without = {name: arguments for name, arguments in (REFUSED | MISSING).items() if name != "vhangup"}
    answers = outside(_table(without)) if IS_ROOT else loose(_table(without))
    assert isinstance(answers, dict)
    return answers


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_filter(name: str) -> None:
    assert _inside()[name] == "EPERM"
    if name != "vhangup" and (IS_ROOT or name not in PRIVILEGED):
        assert _elsewhere()[name] != "EPERM", "the arguments were not those of a privilege missing"


@pytest.mark.parametrize("name", MISSING)
def test_not_there(name: str) -> None:
    """``clone3(2)``: its flags are in memory, where no filter can look."""
    assert _inside()[name] == "ENOSYS"
    if name == "clone3":
        assert _elsewhere()[name] == "EINVAL"


# ---- namespaces --------------------------------------------------------------------------------------------------

KINDS = {
    "CLONE_NEWNS": 1 << 17, "CLONE_NEWCGROUP": 1 << 25, "CLONE_NEWUTS": 1 << 26, "CLONE_NEWIPC": 1 << 27,
    "CLONE_NEWUSER": 1 << 28, "CLONE_NEWPID": 1 << 29, "CLONE_NEWNET": 1 << 30,
}  # fmt: skip

CLONE = """
def clone():
    pid = call(NR_clone, {flags:#x} | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if isinstance(pid, int):
        os.waitpid(pid, 0)
        return "done"
    return pid
result = clone()
"""

UNSHARE = "result = in_child(lambda: call(NR_unshare, {flags:#x}))"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("body", "done"), [(CLONE, "done"), (UNSHARE, 0)], ids=["clone", "unshare"])
def test_no_new_namespace(kind: str, body: str, done: object) -> None:
    """Not even without the filter: the user namespace may have none of its own, others need a capability."""
    attempt = body.format(flags=KINDS[kind])
    assert inside(attempt) == "EPERM"
    assert without_filter(attempt) == ("ENOSPC" if kind == "CLONE_NEWUSER" else "EPERM")
    assert loose(attempt) == done


def test_no_new_namespace_by_flags_that_the_kernel_does_not_look_at() -> None:
    """The upper half of ``clone``'s flags means nothing to the kernel, and must not hide the lower one."""
    assert inside(CLONE.format(flags=1 << 62 | 1 << 40 | KINDS["CLONE_NEWUSER"])) == "EPERM"
    assert inside(CLONE.format(flags=1 << 62)) == "done", "it is the namespace that is refused"


def test_no_time_namespace() -> None:
    attempt = UNSHARE.format(flags=0x80)
    assert inside(attempt) == without_filter(attempt) == "EPERM"
    assert loose(attempt) == 0


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])
def test_no_way_into_the_namespaces_of_pid_1(kind: str) -> None:
    attempt = f"result = attempt(lambda: os.open('/proc/1/ns/{kind}', os.O_RDONLY) and 0)"
    own = attempt.replace("/proc/1/", "/proc/self/")
    assert [inside(attempt), without_filter(attempt), inside(own)] == ["EACCES", "EACCES", 0]
    join = f"result = call(NR_setns, os.open('/proc/self/ns/{kind}', os.O_RDONLY), 0)"
    assert inside(join) == "EPERM"


@pytest.mark.parametrize("way", ["unshare -Ur true", "bwrap --dev-bind / / true", "nsenter -t 1 -a true"])
def test_not_with_the_usual_programs(way: str) -> None:
    program = way.split()[0]
    if not Path("/usr/bin", program).exists():
        pytest.skip(f"{program} is not installed")
    attempt = f"result = subprocess.run({way.split()}, stdout=-3, stderr=-3).returncode"
    assert inside(attempt) != 0
    if program != "nsenter":
        assert loose(attempt) == 0


def test_the_setting_stays() -> None:
    """``user.max_user_namespaces`` is that of the sandbox' own user namespace."""
    read = "result = open('/proc/sys/user/max_user_namespaces').read()"
    write = "result = attempt(lambda: open('/proc/sys/user/max_user_namespaces', 'w').close())"
    assert inside(read) == "0\n" != outside(read)
    assert inside(write) == without_filter(write) == ("EROFS" if IS_ROOT else "EACCES")
    assert loose(write) is None


# ---- privileges --------------------------------------------------------------------------------------------------


def test_no_capability_in_any_set() -> None:
    sets = {name: plain_status()[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert set(sets.values()) == {"0" * 16}
    assert "CapBnd:\t0000000000000000" not in loose("result = open('/proc/self/status').read()")


def test_the_locks_are_on() -> None:
    status = plain_status()
    assert (status["NoNewPrivs"], status["Seccomp"], status["Seccomp_filters"]) == ("1", "2", "1")


CORE = """
import resource
def limit():
    try:
        return resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError as exc:
        return str(exc)
result = [resource.getrlimit(resource.RLIMIT_CORE), limit()]
"""


def test_no_core_is_dumped() -> None:
    assert inside(CORE) == [[0, 0], "not allowed to raise maximum limit"]
    assert inside(CORE, rlimits={"core": (0, 5)}) == [[0, 5], None]


EXEC_AS_ROOT = """
header, data = struct.pack("Ii", 0x20080522, 0), bytes(24)
dropped = call(NR_capset, header, data)
text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
result = [dropped, [line.split()[1] for line in text.splitlines() if line.startswith("CapEff")]]
"""


def test_capabilities_do_not_come_back_with_a_program() -> None:
    """As `execve(2)` gives them back to root; that is prevented by an empty bounding set."""
    assert inside(EXEC_AS_ROOT) == [0, ["0" * 16]]
    dropped, sets = loose(EXEC_AS_ROOT)
    assert dropped == 0
    assert sets != ["0" * 16]


@pytest.mark.parametrize("capability", range(41))
def test_no_capability_can_be_raised(capability: int) -> None:
    raised = _raised()
    assert raised["capset"][capability] == "EPERM"
    assert raised["ambient"][capability] == "EPERM"
    assert _raised_loosely()["capset"][capability] == 0


RAISE = """
def capset(n):
    low, high = (1 << n) & 0xffffffff, (1 << n) >> 32
    return call(NR_capset, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", low, low, 0, high, high, 0))
result = {
    "capset": [in_child(lambda: capset(n)) for n in range(41)],
    "ambient": [call(NR_prctl, 47, 2, n, 0, 0) for n in range(41)],
}
"""


@functools.cache
def _raised() -> Any:
    return inside(RAISE)


@functools.cache
def _raised_loosely() -> Any:
    return loose(RAISE)


def test_no_other_ids() -> None:
    """Nobody else is mapped."""
    attempt = "result = [attempt(os.setuid, 12345), attempt(os.setgid, 12345), attempt(os.setgroups, [12345])]"
    assert inside(attempt) == ["EINVAL", "EINVAL", "EPERM"]
    others = "result = [attempt(os.setgroups, [12345]), attempt(os.setgid, 12345), attempt(os.setuid, 12345)]"
    if IS_ROOT:
        assert outside(others) == [None, None, None]


def _setuid_programs() -> list[str]:
    found = []
    for directory in ("/usr/bin", "/usr/sbin", "/usr/lib"):
        for path in Path(directory).iterdir():
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o4000:
                found.append(str(path))
    return sorted(found)


AUXV = """
done = subprocess.run([{path!r}, "--help"], env={{"LD_SHOW_AUXV": "1"}}, stdin=-3, capture_output=True)
result = done.stdout.decode()
"""


@pytest.mark.parametrize("path", _setuid_programs())
def test_a_set_user_id_program_gains_nothing(path: str) -> None:
    """Its dynamic loader says as whom it runs, if that is no more than who started it; else it is silent."""
    if b"LD_SHOW_AUXV" not in Path(_loader()).read_bytes():
        pytest.skip("the dynamic loader shows nothing")
    if not os.access(path, os.X_OK):
        pytest.skip(f"{path} may not be executed")
    told = inside(AUXV.format(path=path))
    assert "AT_SECURE:            0" in told
    assert f"AT_EUID:              {os.geteuid()}" in told
    if not IS_ROOT:
        assert "AT_SECURE" not in outside(AUXV.format(path=path)), "outside it is somebody else"


def _loader() -> str:
    text = subprocess.run(["ldd", escapes.PYTHON], capture_output=True, text=True, check=True).stdout
    return next(word for line in text.splitlines() for word in line.split() if "/ld-linux" in word)


def test_no_file_can_be_made_that_gives_privileges() -> None:
    """A file capability is refused; and a set-user-ID bit means nothing, wherever it can be set."""
    attempt = """
import shutil
shutil.copy("/usr/bin/cat", "/tmp/cat")
data = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0)
result = [attempt(os.setxattr, "/tmp/cat", "security.capability", data)]
os.chmod("/tmp/cat", 0o6755)
text = subprocess.run(["/tmp/cat", "/proc/self/status"], capture_output=True, text=True).stdout
result += [line.split()[1] for line in text.splitlines() if line.startswith(("CapEff", "CapPrm"))]
result += [bool(os.statvfs(path).f_flag & os.ST_NOSUID) for path in ("/tmp", "/usr", "/dev", "/dev/shm", "/proc")]
"""
    assert inside(attempt) == ["EPERM", "0" * 16, "0" * 16, *[True] * 5]
    made = "open('/tmp/{name}', 'w'); result = attempt(os.setxattr, '/tmp/{name}', 'security.capability', {data!r})"
    data = b"\x01\x00\x00\x02" + bytes(16)
    name = f"linx-capability-{os.getpid()}"
    try:
        assert loose(made.format(name=name, data=data)) is None
    finally:
        Path("/tmp", name).unlink()


def test_personality_keeps_its_protections() -> None:
    """ADDR_NO_RANDOMIZE and READ_IMPLIES_EXEC are refused, asking is not."""
    attempt = "result = [call(NR_personality, value) for value in (0x40000, 0x400000, 0x1_00040000, 0xffffffff)]"
    assert inside(attempt) == ["EPERM", "EPERM", "EPERM", 0]
    assert outside(attempt)[0] == 0


def test_no_second_filter_gets_round_the_first() -> None:
    """One that allows all, also with a listener that says go on, has no say in what the first refuses."""
    attempt = """
program = struct.pack("HBBI", 6, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(program)
fprog = struct.pack("HxxxxxxQ", 1, ctypes.addressof(buffer))
result = [call(NR_seccomp, 1, 0, fprog), call(NR_unshare, 0), call(NR_prctl, 22, 0, 0, 0, 0)]
"""
    assert inside(attempt) == [0, "EPERM", "EINVAL"]
    assert loose(attempt)[:2] == [0, 0]


# ---- other architectures -----------------------------------------------------------------------------------------

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs root's x86_64")

I386 = """
import mmap
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(b"\\x53\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\x5b\\xc3")  # push rbx; mov eax, getpid; int 0x80; pop rbx; ret
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
result = function() == os.getpid()
"""

X32 = "result = call(0x40000000 | 39)"


@X86
def test_no_system_call_of_i386() -> None:
    assert end_inside(I386) == linx.Signaled(31)
    assert without_filter(I386) is True


@X86
def test_no_system_call_of_x32() -> None:
    assert end_inside(X32) == linx.Signaled(31)
    assert without_filter(X32) == "ENOSYS" or isinstance(without_filter(X32), int)
