"""Attempts to get out of a sandbox: other processes, the agent, keys, terminals, sockets; and who stays behind.

See test_sandbox_escape.py for how they are made.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import linx_trio as linx
from linx_trio import _sandbox
from tests.agent import escapes
from tests.agent.escapes import IS_ROOT, PYTHON, inside, loose, outside, without_filter
from tests.agent.probes import ROOT
from tests.support import TOKEN, eventually, exists, with_token

pytestmark = escapes.needs_python


@pytest.fixture
def canary() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user, outside; it is alive at the end."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        assert process.poll() is None
        process.kill()


# ---- who can be seen, and reached --------------------------------------------------------------------------------


def test_only_its_own_processes_are_seen(canary: subprocess.Popen[bytes]) -> None:
    attempt = "result = [sorted(int(name) for name in os.listdir('/proc') if name.isdigit()), os.getpid()]"
    pids, own = inside(attempt)
    assert pids == [1, own]
    assert canary.pid in outside(attempt)[0]


PROCESS = "pid = {pid}\nresult = attempt(lambda: {way})"

WAYS = {
    "kill": "os.kill(pid, 0)", "pidfd_open": "os.pidfd_open(pid) and None", "proc": "os.stat(f'/proc/{pid}') and None",
    "getpgid": "os.getpgid(pid) and None", "affinity": "os.sched_getaffinity(pid) and None",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_process_of_the_host(way: str, canary: subprocess.Popen[bytes]) -> None:
    attempt = PROCESS.format(pid=canary.pid, way=WAYS[way])
    assert inside(attempt) == without_filter(attempt) == ("ENOENT" if way == "proc" else "ESRCH")
    assert outside(attempt) is None


def test_killing_everybody(canary: subprocess.Popen[bytes]) -> None:
    """``kill(-1)`` means its own child; pid 1 and the host live."""
    attempt = """
child = subprocess.Popen(["sleep", "600"])
os.kill(-1, signal.SIGKILL)
result = [child.wait(), attempt(os.kill, 1, 0)]
"""
    assert inside(attempt) == [-signal.SIGKILL, None]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_pid_1_cannot_be_stopped(number: signal.Signals) -> None:
    attempt = f"""
os.kill(1, {number:d})
subprocess.run(["true"])
state = open("/proc/1/stat").read().rsplit(")", 1)[1].split()[0]
result = state
"""
    assert inside(attempt) in ("S", "R")


def test_without_limits_pid_1_still_reaps() -> None:
    """Whoever has the same uid may set its limits (``prlimit(2)``): then the session ends, and nothing is left."""
    workload = linx.sandboxed(
        [PYTHON, "-I", "-c", "import resource as r\nfor n in range(16): r.prlimit(1, n, (0, 0))"], env={TOKEN: "here"}
    )
    done = linx.run_sync(workload, check=False, stderr=linx.DEVNULL)
    assert isinstance(done.outcome, linx.Exited | linx.Signaled)
    eventually(lambda: not with_token("here"), "nothing is left")


# ---- pid 1 is a process of the agent -----------------------------------------------------------------------------


def test_pid_1_is_the_agents() -> None:
    """And not dumpable: its files are those of a root that an ordinary user does not have in there."""
    assert inside("result = open('/proc/1/comm').read()") == "linx-reaper\n"
    owners = inside("result = [os.stat(f'/proc/{pid}/mem').st_uid for pid in (1, 'self')]")
    assert owners == ([0, 0] if IS_ROOT else [65534, os.getuid()])


CLOSED = ["mem", "maps", "environ", "auxv", "syscall", "stack", "io", "pagemap", "personality", "ns/mnt"]


@pytest.mark.parametrize("name", CLOSED)
def test_the_agents_process_tells_nothing(name: str) -> None:
    """Those that are opened all the same refuse to be read."""
    attempt = f"result = attempt(lambda: os.read(os.open('/proc/{{}}/{name}', 0), 8) and 'read')"
    assert inside(attempt.format(1)) in ("EACCES", "EPERM")
    if name != "stack":  # root's alone
        assert inside(attempt.format("self")) in {"mem": ["EIO"], "ns/mnt": ["EINVAL"]}.get(name, ["read", ""])


def test_the_agents_process_cannot_be_written_to() -> None:
    attempt = "result = attempt(lambda: open('/proc/{}/mem', 'r+b').close())"
    assert inside(attempt.format(1)) in ("EACCES", "EROFS")
    read = attempt.replace("r+b", "rb")
    assert [inside(read.format(1)), inside(read.format("self"))] == ["EACCES", None]


TRACED = {
    "attach": "call(NR_ptrace, 16, pid, 0, 0)",
    "seize": "call(NR_ptrace, 0x4206, pid, 0, 0)",
    "read": "call(NR_process_vm_readv, pid, vector(buffer), 1, vector(buffer), 1, 0)",
    "write": "call(NR_process_vm_writev, pid, vector(buffer), 1, vector(buffer), 1, 0)",
}

TRACE = """
buffer = ctypes.create_string_buffer(8)
def vector(buffer):
    return struct.pack("QQ", ctypes.addressof(buffer), 8)
child = os.fork()
if child == 0:
    signal.pause()
answers = []
for pid in (1, child):
    answers.append({way})
os.kill(child, signal.SIGKILL)
result = answers
"""


@pytest.mark.parametrize("way", TRACED)
def test_the_agents_process_cannot_be_traced(way: str) -> None:
    """Its own child can."""
    assert inside(TRACE.replace("{way}", TRACED[way])) == ["EPERM", 8 if way in ("read", "write") else 0]


def test_no_fd_of_the_agent() -> None:
    body = TRACE.replace("{way}", "type(call(NR_pidfd_getfd, os.pidfd_open(pid), 0, 0)) is int")
    assert inside(body) == [False, False]
    assert without_filter(body) == [False, True]


NAMESPACES_OF = "result = call(NR_ioctl, os.{open}, {request:#x}, 0)\nresult = result if type(result) is str else 0"


def test_no_namespace_above_its_own() -> None:
    """``NS_GET_PARENT`` and ``NS_GET_USERNS``, ``ioctl_ns(2)``; and the requests of a pidfd."""
    for kind in ("user", "pid"):
        parent = NAMESPACES_OF.format(open=f"open('/proc/self/ns/{kind}', 0)", request=0xB702)
        assert inside(parent) == without_filter(parent) == "EPERM"
    own = NAMESPACES_OF.format(open="open('/proc/self/ns/mnt', 0)", request=0xB701)
    assert inside(own) == 0
    for request in range(0xFF01, 0xFF0B):
        assert inside(NAMESPACES_OF.format(open="pidfd_open(1)", request=request)) in ("EPERM", "EACCES", "ENOTTY")


# ---- what is known of the caller ---------------------------------------------------------------------------------


def test_the_environment_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINX_SECRET", "of the caller")
    attempt = "result = dict(os.environ)"
    assert inside(attempt) == dict(_sandbox.ENVIRONMENT)
    assert outside(attempt)["LINX_SECRET"] == "of the caller"


def test_the_hosts_name_is_not_told() -> None:
    attempt = "result = [socket.gethostname(), os.uname().nodename, open('/proc/sys/kernel/hostname').read().strip()]"
    assert inside(attempt) == ["sandbox"] * 3
    assert outside(attempt) == [os.uname().nodename] * 3


KEYS = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
assert libc.syscall({keyctl}, 1, None) > 0  # KEYCTL_JOIN_SESSION_KEYRING
key = libc.syscall({add_key}, b"user", b"linx-secret", b"12345", 5, -3)
assert key > 0
from tests.agent.escapes import inside, without_filter
body = f"result = [call(NR_keyctl, 11, {{key}}, 0, 0), call(NR_request_key, b'user', b'linx-secret', None, 0)]"
print(inside(body), without_filter(body)[0])
print("linx-secret" in open("/proc/keys").read(), "linx-secret" in inside("result = open('/proc/keys').read()"))
"""


def _with_key() -> list[str]:
    """What a Python sees that has a key in a session keyring of its own, and its sandbox."""
    source = KEYS.format(keyctl=escapes.number_of("keyctl"), add_key=escapes.number_of("add_key"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_key_of_the_caller() -> None:
    """The session's keyring is inherited, and no namespace contains it: the filter does."""
    assert _with_key()[0] == "['EPERM', 'EPERM'] 5"


def test_no_name_of_a_key_of_the_caller() -> None:
    assert _with_key()[1] == "True False"


# ---- terminals ---------------------------------------------------------------------------------------------------

TYPE = """
controller, terminal = os.openpty()
fcntl.ioctl(terminal, 0x540E, 0)  # TIOCSCTTY: it leads a session of its own
result = [call(NR_ioctl, terminal, {request} | high << 32, b"x") for high in (0, 1, 0x7fffffff)]
"""


def test_no_typing_into_a_terminal() -> None:
    """TIOCSTI, and with it what the kernel does not look at: the upper half of the request."""
    assert inside(TYPE.format(request=0x5412)) == ["EPERM"] * 3
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    kernel_allows = not setting.exists() or setting.read_text() == "1\n"
    assert without_filter(TYPE.format(request=0x5412)) == ([0] * 3 if kernel_allows else ["EIO"] * 3)


def test_no_selection_of_a_console() -> None:
    """TIOCLINUX, which can paste what it has selected; what is no console says ENOTTY."""
    assert inside(TYPE.format(request=0x541C)) == ["EPERM"] * 3
    assert without_filter(TYPE.format(request=0x541C)) == ["ENOTTY"] * 3


def test_no_typing_into_an_inherited_terminal() -> None:
    body = "result = [call(NR_ioctl, 0, request, b'x') for request in (0x5412, 0x100005412, 0x541c, 0x5423)]"
    controller, terminal = pty.openpty()
    try:
        refused = inside(body, stdin=terminal)
        fcntl.ioctl(controller, termios.FIONREAD, bytes(4))
        assert refused[:3] == ["EPERM"] * 3
        assert refused[3] != 0, "TIOCSETD needs an argument: it is not the filter that says so"
        assert inside("result = os.isatty(0)", stdin=terminal) is True
        readable = int.from_bytes(fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)), sys.byteorder)
        assert readable == 0, "nothing was typed"
    finally:
        os.close(controller)
        os.close(terminal)


async def test_no_typing_into_its_own_terminal() -> None:
    source = (
        "import fcntl, os\n"
        "try:\n    fcntl.ioctl(0, 0x5412, b'x')\nexcept OSError as exc:\n    print(exc.errno, os.ttyname(0))\n"
    )
    async with linx.sandbox([PYTHON, "-I", "-c", source], stdio=linx.PTY, auto_proceed=True) as session:
        assert session.pty is not None
        output = b"".join([bytes(chunk) async for chunk in session.pty])
    assert output == b"1 /dev/console\r\n"


# ---- sockets -----------------------------------------------------------------------------------------------------

CONNECT = "result = attempt(socket.socket({family}).connect, {address!r})"


@pytest.fixture
def abstract() -> Iterator[str]:
    """A socket of the host that has no file."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0linx-{uuid.uuid4().hex}")
        listener.listen(8)
        name = listener.getsockname()
        yield name.decode()


def test_no_abstract_socket_of_the_host(abstract: str) -> None:
    attempt = CONNECT.format(family="socket.AF_UNIX", address=abstract)
    assert inside(attempt) == without_filter(attempt) == "ECONNREFUSED"
    assert outside(attempt) is inside(attempt, network=True) is None


def test_no_port_of_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attempt = CONNECT.format(family="socket.AF_INET", address=listener.getsockname())
        attempt = attempt.replace("['127.0.0.1'", "('127.0.0.1'")
        assert inside(attempt) == without_filter(attempt) == "ENETUNREACH"
        assert outside(attempt) is inside(attempt, network=True) is None


def test_no_interface_but_a_silent_loopback() -> None:
    attempt = "result = [name for _, name in socket.if_nameindex()]"
    assert inside(attempt) == ["lo"]
    if outside(attempt) != ["lo"]:
        assert inside(attempt, network=True) == outside(attempt)


SOCKETS = {
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "interface up": "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH22x', b'lo', 1))",
}


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("what", SOCKETS)
def test_no_privilege_on_the_network(what: str, network: bool) -> None:
    attempt = f"result = attempt(lambda: {SOCKETS[what]} and None)"
    assert inside(attempt, network=network) == without_filter(attempt, network=network) == "EPERM"
    assert loose(attempt) is None


FAMILIES = {
    "vsock": (40, 1), "alg": (38, 5), "bluetooth": (31, 3), "rds": (21, 5), "tipc": (30, 1), "can": (29, 3),
    "xdp": (44, 3), "smc": (43, 1), "kcm": (41, 5), "key": (15, 3),
}  # fmt: skip
"""Their numbers, and the type of a socket of each."""


@pytest.mark.parametrize("name", FAMILIES)
def test_no_socket_of_another_family(name: str) -> None:
    """With the upper half of the argument set as well."""
    number, kind = FAMILIES[name]
    attempt = f"result = [call(NR_socket, {number} | high << 32, {kind}, 0) for high in (0, 1)]"
    assert inside(attempt) == ["EAFNOSUPPORT"] * 2
    if outside(attempt)[0] != "EAFNOSUPPORT":  # this kernel has it
        assert without_filter(attempt)[0] != "EAFNOSUPPORT"


def test_sockets_of_the_usual_families() -> None:
    attempt = "result = [type(call(NR_socket, family | 1 << 32, 2, 0)) is int for family in (1, 2, 10, 16)]"
    assert inside(attempt) == [True] * 4


def test_no_shared_memory_of_the_host() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    key = int.from_bytes(os.urandom(3), "little") + 1
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    try:
        attempt = f"result = libc.shmget({key}, 0, 0) >= 0"
        assert inside(attempt) is without_filter(attempt) is False
        assert outside(attempt) is True
    finally:
        libc.shmctl(segment, 0, None)


# ---- who stays behind --------------------------------------------------------------------------------------------

DAEMONS = """
for n in range(50):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            while True:
                signal.pause()
        os._exit(0)
result = "started"
"""


def test_daemons_are_gone(nothing_is_left: str) -> None:
    assert inside(DAEMONS, env={**_sandbox.ENVIRONMENT, TOKEN: nothing_is_left}) == "started"
    assert with_token(nothing_is_left) == []


BOMB = """
end = time.monotonic() + 0.3
for _ in range(6):
    if os.fork() == 0:
        while time.monotonic() < end + 600:
            try:
                if os.fork() != 0:
                    os._exit(0)
            except BlockingIOError:
                pass
while time.monotonic() < end:
    pass
result = "exploded"
"""


def test_what_forks_for_ever_is_gone(nothing_is_left: str) -> None:
    """Each of its processes lives just long enough to fork the next one."""
    assert inside(BOMB, env={**_sandbox.ENVIRONMENT, TOKEN: nothing_is_left}) == "exploded"
    assert with_token(nothing_is_left) == []


VICTIM = """
import os, sys, trio
import linx_trio as linx

async def main():
    script = "trap '' TERM; setsid sleep 600 & sleep 600 & echo ready; wait"
    env = {"PATH": "/usr/bin", sys.argv[1]: sys.argv[2]}
    options = {"stdout": 1, "env": env, "auto_proceed": True, "orphan_policy": linx.Kill(grace=0.1)}
    async with linx.sandbox(["sh", "-c", script], **options):
        await trio.sleep_forever()

trio.run(main)
"""


def test_python_is_killed(nothing_is_left: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    argv = [sys.executable, "-c", VICTIM, TOKEN, nothing_is_left]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as python:
        assert python.stdout is not None
        try:
            assert python.stdout.readline() == b"ready\n"
            # It is ready before what it has started in the background has got past its execve, during which there is
            # no environment to be read.
            eventually(lambda: len(with_token(nothing_is_left)) == 4, "Python, the shell, and two that sleep")
            theirs = [pid for pid in with_token(nothing_is_left) if pid != python.pid]
        finally:
            python.kill()
        assert python.stdout.read() == b"", "the end of the file: nobody holds it any more"
    eventually(lambda: not [pid for pid in theirs if exists(pid)], f"none of {theirs} is left")


def test_nothing_is_left_of_one_that_is_killed(canary: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(linx.CalledProcessError):
        linx.run_sync(linx.sandboxed(["sh", "-c", "setsid sleep 600 & kill -9 $$"]))
