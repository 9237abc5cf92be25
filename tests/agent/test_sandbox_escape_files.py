"""Attempts to get out of a sandbox: the host's files, its mounts, its devices, ``/proc``, and what was the root before.

See test_sandbox_escape.py for how they are made.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import _sandbox
from linx_trio.mount import mounts
from tests.agent import escapes
from tests.agent.escapes import IS_ROOT, inside, loose, outside, without_filter
from tests.agent.probes import needs_root
from tests.support import children_of, eventually_async, stat_of

pytestmark = escapes.needs_python


@pytest.fixture
def host() -> Iterator[Path]:
    """A directory of the host with a secret in it, which everybody may read and write."""
    with tempfile.TemporaryDirectory(prefix="linx-host-", dir="/var/tmp") as directory:
        path = Path(directory)
        path.chmod(0o777)
        (path / "secret").write_text("of the host")
        (path / "secret").chmod(0o666)
        yield path


# ---- what there is -----------------------------------------------------------------------------------------------


def test_the_root_has_nothing_else() -> None:
    merged = {name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32") if os.path.lexists(f"/{name}")}
    names = inside("result = os.listdir('/')")
    assert set(names) == {"dev", "etc", "proc", "run", "tmp", "usr", "var"} | merged
    assert "root" in outside("result = os.listdir('/')")


@pytest.mark.parametrize("path", ["/root", "/home", "/etc/shadow", "/etc/machine-id", "/sys", "/boot", "/srv", "/opt"])
def test_not_there(path: str) -> None:
    attempt = f"result = attempt(os.listdir, {path!r})"
    assert inside(attempt) == "ENOENT"
    if os.path.lexists(path):
        assert outside(attempt) != "ENOENT"


def test_no_private_keys() -> None:
    assert inside("result = attempt(os.listdir, '/etc/ssl/private')") in ("ENOENT", "EACCES")


def test_the_hosts_temporary_files(host: Path) -> None:
    attempt = f"result = attempt(lambda: open('{host}/secret').read())"
    assert inside(attempt) == "ENOENT"
    assert outside(attempt) == inside(attempt, readonly=["/usr", str(host)]) == "of the host"


def test_only_the_hosts_files_that_were_named_are_mounted() -> None:
    own = inside("result = open('/proc/self/mountinfo').read()").splitlines()
    fresh = {line.split()[4] for line in own if line.split()[2] not in _devices()}
    assert {"/", "/proc", "/dev", "/tmp"} <= fresh <= {"/"} | OWN | MASKED
    bound = {line.split()[4] for line in own} - fresh
    allowed = (
        *_sandbox.READONLY,
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
    )
    assert {path for path in bound if not path.startswith(allowed)} <= MASKED
    assert not [line for line in own if " cgroup" in line or " sysfs " in line]


OWN = {"/proc", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/var/tmp", "/run"}
MASKED = {*_sandbox._MASKED, *_sandbox._MASKED_FROM_ROOT}


def _devices() -> set[str]:
    """Of the file systems that the host has mounted."""
    return {line.split()[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


# ---- writing -----------------------------------------------------------------------------------------------------


def test_nothing_of_the_host_is_mounted_writable() -> None:
    """That is the mount's flag, whatever the permissions of what lies below."""
    text = inside("result = open('/proc/self/mountinfo').read()")
    writable = [line for line in text.splitlines() if "rw" in line.split()[5].split(",")]
    assert [line for line in writable if line.split()[2] in _devices()] == []
    assert {line.split()[4] for line in writable} <= OWN


WALK = """
found = []
for line in open("/proc/self/mountinfo"):
    path = line.split()[4]
    if os.path.isdir(path):
        found.append([path, attempt(os.mkdir, path + "/linx-escape")])
result = dict(found)
"""


def test_no_directory_of_the_host_can_be_written_to() -> None:
    answers = inside(WALK)
    assert {path for path, answer in answers.items() if answer is None} <= OWN
    assert [answers[path] for path in ("/", "/usr", "/tmp")] == ["EROFS", "EROFS", None]
    kernels = {path: answer for path, answer in answers.items() if path.startswith(("/proc", "/dev/pts"))}
    assert set(kernels.values()) <= {"ENOENT", "EPERM", "EACCES", "EROFS"}
    assert {answer for path, answer in answers.items() if path not in kernels} == {None, "EROFS"}


CHANGES = {
    "open({path!r}, 'ab')": "EACCES", "os.truncate({path!r}, 0)": "EACCES", "os.chmod({path!r}, 0o777)": "EROFS",
    "os.unlink({path!r})": "EROFS", "os.utime({path!r})": "EROFS", "os.rename({path!r}, '/tmp/x')": "EXDEV",
    "os.setxattr({path!r}, 'user.linx', b'')": "EROFS",
}  # fmt: skip
"""And what those who do not own the file are told: of permissions first."""


@pytest.mark.parametrize("path", ["/usr/bin/env", "/etc/ssl/openssl.cnf", "/etc/ld.so.cache"])
@pytest.mark.parametrize("way", CHANGES)
def test_no_file_of_the_host_can_be_changed(path: str, way: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"needs root's {path}")
    answer = CHANGES[way]
    attempt = f"result = attempt(lambda: {way.format(path=path)} and None)"
    assert inside(attempt) == without_filter(attempt) == ("EROFS" if IS_ROOT and answer == "EACCES" else answer)


def test_the_same_is_possible_where_it_may(host: Path) -> None:
    attempt = f"""
path = {str(host / "secret")!r}
result = [attempt(os.chmod, path, 0o600), attempt(os.utime, path), attempt(os.truncate, path, 0)]
result.append(attempt(os.unlink, path))
"""
    assert inside(attempt, readonly=["/usr", str(host)]) == ["EROFS"] * 4
    assert (host / "secret").read_text() == "of the host"
    assert inside(attempt, writable=[host]) == [None] * 4
    assert not (host / "secret").exists()


MOUNTING = {
    "a new file system": ("call(NR_mount, b'none', b'/tmp', b'tmpfs', 0, None)", 0),
    "a bind mount": ("call(NR_mount, b'/usr', b'/tmp', None, 4096, None)", 0),
    "a remount": ("call(NR_mount, None, b'/proc', None, 4096 | 32, None)", 0),
    "an unmount": ("call(NR_umount2, b'/proc', 2)", 0),
    "other flags": ("call(NR_mount_setattr, -100, b'/proc', 0, struct.pack('4Q', 1, 0, 0, 0), 32)", 0),
    "a detached copy": ("type(call(NR_open_tree, -100, b'/proc', 1)).__name__", "int"),
    "a file system in parts": ("type(call(NR_fsopen, b'tmpfs', 0)).__name__", "int"),
    "another root": ("call(NR_chroot, b'/tmp')", 0),
    "propagation": ("call(NR_mount, None, b'/', None, 1 << 19, None)", 0),
}


@pytest.mark.parametrize("what", MOUNTING)
def test_no_mounting(what: str) -> None:
    """Neither with the filter nor, for want of capabilities, without it."""
    call, done = MOUNTING[what]
    refused = "str" if done == "int" else "EPERM"
    assert inside(f"result = {call}") == without_filter(f"result = {call}") == refused
    assert loose(f"result = {call}") == done


HANDLE = """
handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
told = libc.syscall(NR_name_to_handle_at, -100, b"/usr", handle, ctypes.create_string_buffer(4), 0)
fd = os.open("/usr", os.O_RDONLY)
answer = call(NR_open_by_handle_at, fd, handle.raw, 0)
result = [told, answer if isinstance(answer, str) else "opened"]
"""


def test_no_file_by_its_handle() -> None:
    """A handle knows no mount: whoever may open by one reaches all of the host's file system."""
    assert inside(HANDLE) == without_filter(HANDLE) == [0, "EPERM"]
    if IS_ROOT:
        assert outside(HANDLE) == [0, "opened"]


def test_symlinks_lead_nowhere_outside(host: Path) -> None:
    (host / "shared").mkdir()
    (host / "shared/link").symlink_to(host / "secret")
    attempt = f"result = attempt(lambda: open('{host}/shared/link').read())"
    assert inside(attempt, writable=[host / "shared"]) == "ENOENT"
    assert outside(attempt) == "of the host"


def test_the_root_has_no_parent() -> None:
    attempt = """
os.chdir("/")
os.chdir("../../../..")
result = [os.path.samefile(".", "/"), attempt(os.stat, "../root"), os.getcwd()]
"""
    assert inside(attempt) == [True, "ENOENT", "/"]


# ---- devices -----------------------------------------------------------------------------------------------------


def test_the_devices_there_are() -> None:
    nodes = {"null", "zero", "full", "random", "urandom", "tty"}
    others = {"pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr", "ptmx"}
    assert set(inside("result = os.listdir('/dev')")) == nodes | others
    assert inside("result = os.listdir('/dev/pts')") == ["ptmx"]
    assert inside("result = os.listdir('/dev/shm')") == []


@pytest.mark.parametrize("directory", ["/tmp", "/dev", "/dev/shm"])
def test_no_device_can_be_made(directory: str) -> None:
    attempt = f"import stat\nresult = attempt(os.mknod, '{directory}/disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))"
    assert inside(attempt) == without_filter(attempt) == "EPERM"
    if IS_ROOT:
        with tempfile.TemporaryDirectory() as there:
            assert outside(attempt.replace(directory, there)) is None


DEVICES = ["null", "zero", "full", "random", "urandom", "tty"]


@pytest.mark.parametrize("name", DEVICES)
def test_the_hosts_devices_cannot_be_changed(name: str) -> None:
    """Not even to what they are: their owner needs no capability for that."""
    attempt = f"""
path = "/dev/{name}"
result = [attempt(os.chmod, path, os.stat(path).st_mode & 0o7777), attempt(os.chown, path, os.getuid(), os.getgid())]
"""
    assert set(inside(attempt)) <= {"EROFS", "EPERM"}
    if IS_ROOT:
        assert outside(attempt) == [None, None]


def test_devices_still_work() -> None:
    attempt = """
with open("/dev/null", "wb") as null, open("/dev/zero", "rb") as zero, open("/dev/urandom", "rb") as random:
    result = [null.write(b"x"), zero.read(3) == bytes(3), len(random.read(5)), attempt(open, "/dev/tty")]
"""
    assert inside(attempt) == [1, True, 5, "ENXIO"]


# ---- /proc -------------------------------------------------------------------------------------------------------

OPENED = """
answers = {}
for directory, names, files in os.walk(TOP):
    names[:] = [name for name in names if not (directory == "/proc" and (name.isdigit() or name in SKIPPED))]
    for name in files:
        path = os.path.join(directory, name)
        try:
            if os.path.islink(path) or os.stat(path).st_rdev == os.makedev(1, 3):
                continue  # a device that covers it
            fd = os.open(path, FLAGS | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            answers.setdefault(errno.errorcode[exc.errno], []).append(path)
        else:
            os.close(fd)
            answers.setdefault("opened", []).append(path)
result = answers
"""


def _opened(top: str, flags: str, where: Any = inside) -> dict[str, list[str]]:
    known = f"TOP, FLAGS, SKIPPED = {top!r}, {flags}, ('self', 'thread-self', 'sys', 'net')"
    answers = where(f"{known}\n{OPENED}")
    assert isinstance(answers, dict)
    return answers


def test_no_setting_below_proc_sys_can_be_opened_for_writing() -> None:
    answers = _opened("/proc/sys", "os.O_WRONLY")
    opened = answers.pop("opened", [])
    assert sum(map(len, answers.values())) > 300
    assert answers.keys() == ({"EROFS", "EACCES"} if IS_ROOT else {"EACCES"}), "EACCES: nobody may write there"
    assert opened == ([] if IS_ROOT else ["/proc/sys/kernel/ns_last_pid"]), "that one looks at who writes"
    assert IS_ROOT or inside(f"result = attempt(lambda: os.write(os.open({opened[0]!r}, 1), b'9'))") == "EPERM"
    assert "opened" in _opened("/proc/sys", "os.O_WRONLY", loose)


def test_nothing_else_in_proc_can_be_opened_for_writing() -> None:
    """Pressure triggers are for everybody, and tell nothing new (``psi``)."""
    answers = _opened("/proc", "os.O_WRONLY")
    opened = {path for path in answers.get("opened", ()) if not path.startswith("/proc/pressure/")}
    assert opened == set()


def test_what_root_alone_may_read_is_not_for_root_in_there() -> None:
    everybodys = set(_opened("/proc", "os.O_RDONLY", _as_nobody)["opened"])
    opened = set(_opened("/proc", "os.O_RDONLY")["opened"])
    assert opened - everybodys - {f"/proc/{name}" for name in ("net",)} == set()


def _as_nobody(body: str) -> Any:
    if not IS_ROOT:
        return outside(body)
    return outside(body, user=31337, group=31337, extra_groups=[], cwd="/")


@pytest.mark.parametrize("path", ["/proc/version", "/proc/cpuinfo", "/proc/kpagecount", "/proc/kmsg"])
def test_the_entries_of_proc_cannot_be_changed(path: str) -> None:
    """Their modes are the machine's: a new mount of ``/proc`` shows what was set in another."""
    if not Path(path).exists():
        pytest.skip(f"root only where there is {path}")
    attempt = f"result = attempt(os.chmod, {path!r}, os.stat({path!r}).st_mode & 0o7777)"
    assert inside(attempt) in ("EROFS", "EPERM")
    if IS_ROOT:
        assert outside(attempt) is None


@pytest.mark.parametrize("path", ["/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/proc/timer_list"])
def test_not_to_be_read(path: str) -> None:
    """Covered, or closed by its mode."""
    attempt = f"result = attempt(lambda: open({path!r}, 'rb').read(16).decode())"
    assert inside(attempt) in ("", "ENOENT", "EACCES", "EPERM", "EROFS")


def test_who_types_when_is_not_told() -> None:
    attempt = "result = open('/proc/interrupts').read(16)"
    assert inside(attempt) == ""
    assert outside(attempt) != ""


def test_what_the_host_has_mounted_is_not_told() -> None:
    """Of the host's paths only those that were bound."""
    own = inside("result = open('/proc/self/mountinfo').read()")
    paths = {entry.mount_point for entry in mounts(os.getpid())}
    told = {line.split()[4] for line in own.splitlines()}
    assert not {path for path in paths if path.startswith("/sys")} & told
    assert "/sys" in paths


# ---- what was the root before ------------------------------------------------------------------------------------


def test_no_fd_is_left() -> None:
    attempt = "result = {fd: os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) < 3}"
    count = "result = sorted(int(fd) for fd in os.listdir('/proc/self/fd'))"
    assert inside(attempt)["0"] == "/dev/null"
    assert inside(count) == [0, 1, 2, 3], "3 is the directory that is listed"
    read_end, write_end = os.pipe()
    try:
        assert inside(count, pass_fds=[write_end]) == sorted({0, 1, 2, 3, write_end})
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("name", ["root", "cwd", "exe"])
def test_not_through_pid_1(name: str) -> None:
    attempt = f"result = [attempt(f, '/proc/1/{name}') for f in (os.readlink, os.stat, os.listdir)]"
    through = f"result = attempt(os.stat, '/proc/1/{name}/etc/shadow')"
    assert inside(attempt) == without_filter(attempt) == ["EACCES"] * 3
    assert inside(through) == "EACCES"
    assert "EACCES" not in inside(attempt.replace("/proc/1/", "/proc/self/"))


@pytest.mark.parametrize("name", ["fd", "map_files"])
def test_not_through_the_files_of_pid_1(name: str) -> None:
    """Whoever is root in there may see the fds' numbers, and nothing else."""
    attempt = f"""
names = attempt(os.listdir, "/proc/1/{name}")
names = [str(number) for number in range(20)] if isinstance(names, str) else names
ways = (os.readlink, os.stat, os.listdir)
result = sorted({{attempt(way, f"/proc/1/{name}/{{each}}") for each in names for way in ways}})
"""
    assert set(inside(attempt)) <= {"ENOENT", "EACCES", "EPERM"}
    own = f"result = [os.readlink('/proc/self/{name}/' + each) for each in os.listdir('/proc/self/{name}')[:2]]"
    assert len(inside(own)) == 2


@needs_root
async def test_pid_1_has_left_the_old_root_too() -> None:
    async with linx.sandbox(["sleep", "600"], auto_proceed=True) as session:
        fields = stat_of(session.host_pid)
        assert fields is not None
        reaper = int(fields[1])
        await eventually_async(lambda: children_of(reaper) == [session.host_pid], "pid 1 has it as its child")
        for name in ("root", "cwd"):
            there = os.stat(f"/proc/{reaper}/{name}")
            assert there.st_dev != os.stat("/").st_dev
            assert there.st_dev in {os.stat(f"/proc/{session.host_pid}/{place}").st_dev for place in ("root", "cwd")}
