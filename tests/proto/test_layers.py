"""The shape of the package: a module imports lower ranks only, the core does no I/O, importing works anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import linx_trio

ROOT = Path(linx_trio.__file__).parent

RANKS = {
    "_build_id": 0,
    "_cgroups": 0,
    "_cgroup_stats": 0,
    "_idmaps": 0,
    "_machine": 1,
    "_mount_info": 0,
    "_mount_steps": 0,
    "_events": 0,
    "_fd": 0,
    "_version": 0,
    "errors": 0,
    "_proto": 0,
    "_caller": 1,
    "_capabilities": 1,
    "_limits": 1,
    "_systemd": 1,
    "_mount_entries": 1,
    "_subids": 2,
    "_proto.etf": 1,
    "_proto.framing": 1,
    "_cgroup_files": 4,
    "_cgroup_end": 5,
    "_cgroup_setters": 5,
    "_cgroup_watch": 1,
    "_cgroup_target": 1,
    "_cgroup_parent": 5,
    "_cgroup_group": 8,
    "_own_cgroup": 9,
    "cgroup": 9,
    "_idmap_files": 3,
    "_mount_tree": 2,
    "_options": 2,
    "_seccomp_bpf": 0,
    "_seccomp_filter": 1,
    "_proto.messages": 2,
    "_checks": 3,
    "_proto.states": 3,
    "_proto.protocol": 4,
    "_workload": 4,
    "_pty": 4,
    "_cause_kernel": 3,
    "_cause_programs": 3,
    "_cause_rights": 2,
    "_causes": 4,
    "_channel": 5,
    "_hints": 5,
    "_owner": 5,
    "_patience": 5,
    "_terminal": 5,
    "_agent": 6,
    "_keeper": 7,
    "_stdio": 6,
    "_target": 6,
    "_request": 7,
    "_session_facts": 8,
    "_session_news": 9,
    "_session_listening": 10,
    "_session": 11,
    "_manager": 12,
    "_parked": 7,
    "_seccomp_compile": 2,
    "_seccomp_make": 1,
    "_seccomp_oci": 3,
    "_seccomp_profiles": 3,
    "_seccomp_shorten": 1,
    "seccomp": 12,
    "_sandbox": 13,
    "capabilities": 12,
    "user": 13,
    "_run": 14,
    "tty": 13,
    "mount": 15,
    "_netns": 15,
    "_restarts": 1,
    "_supervision": 2,
    "_child": 13,
    "ready": 12,
    "_incarnation": 14,
    "_supervise": 16,
    "_supervisor": 15,
    "_net_checks": 0,
    "_net_units": 0,
    "_netlink_frames": 0,
    "_net_objects": 1,
    "_net_tuntap": 1,
    "_netlink_messages": 1,
    "_net_kinds": 2,
    "_net_read": 2,
    "_rtnl": 2,
    "_net_base": 3,
    "_net_monitor": 3,
    "_net_targets": 16,
    "_net_owner": 17,
    "_net_links": 18,
    "_net_qdiscs": 19,
    "_net_routes": 19,
    "_net": 20,
    "_lab_plan": 20,
    "_lab": 25,
    "net": 26,
    "": 27,
    "_together": 5,
    "_lab_site": 21,
    "_lab_nodes": 22,
    "_lab_links": 23,
    "_lab_declare": 24,
    "_probe_report": 0,
    "_probe_bench": 15,
    "_probe_cgroups": 21,
    "_probe_nets": 21,
    "_probe_trials": 16,
    "_probe": 22,
    "_cli": 36,
    "_cli_values": 28,
    "_cli_elsewhere": 28,
    "_cli_errors": 29,
    "_cli_params": 29,
    "_cli_options": 30,
    "_cli_usage": 31,
    "_cli_show": 28,
    "_cli_fields": 30,
    "_cli_mounts": 31,
    "_cli_toml": 31,
    "_cli_supervise": 34,
    "_cli_workload": 32,
    "_cli_suspend": 28,
    "_cli_session": 33,
    "_cli_explain": 33,
    "_cli_ps": 31,
    "_cli_app": 35,
    "__main__": 37,
    "_pytest_start": 21,
    "_pytest_services": 22,
    "_pytest_leaks": 23,
    "pytest_plugin": 27,
}
"""Every module (the package itself is the empty name). A new one belongs here too."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in ROOT.rglob("*.py")
}


def _for_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes that can be run, functions' bodies included."""
    for statement in body:
        if not _for_typing_only(statement):
            yield from ast.walk(statement)


def imports_of(module: str) -> set[str]:
    """Full names of what it imports: modules, or names in them."""
    found: set[str] = set()
    for node in _statements(ast.parse(MODULES[module].read_text()).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports_of(module: str) -> set[str]:
    """The modules of this package among them."""
    found = set()
    for name in imports_of(module):
        if not f"{name}.".startswith("linx_trio."):
            continue
        inside = name.removeprefix("linx_trio").removeprefix(".")
        found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found


def test_every_module_has_a_rank() -> None:
    assert set(MODULES) == set(RANKS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_lower_ranks_only(module: str) -> None:
    for other in own_imports_of(module):
        assert RANKS[other] < RANKS[module], f"linx_trio.{module} imports linx_trio.{other}"


def test_the_checks_above_see_imports() -> None:
    assert {"_agent", "_proto.messages", "_proto.states", "_caller", "errors"} <= own_imports_of("_session")
    assert own_imports_of("errors") == set()  # its import of _events is for type checkers
    assert "_session" in own_imports_of("")


def closure_of(module: str) -> set[str]:
    found = {module}
    while more := {other for known in found for other in own_imports_of(known)} - found:
        found |= more
    return found


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("_proto")))
def test_the_core_does_no_io(module: str) -> None:
    outside = {name.split(".")[0] for known in closure_of(module) for name in imports_of(known)} - {"linx_trio"}
    assert not outside & {"trio", "socket", "select", "selectors", "asyncio", "threading", "fcntl", "signal", "ctypes"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_pyroute2_is_imported_where_it_is_used(module: str) -> None:
    top = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert "pyroute2" not in top


def python(program: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_importing_brings_little_along() -> None:
    """What `import linx_trio` costs beyond `import trio`."""
    more = python("import sys, trio; before = set(sys.modules); import linx_trio; print(*(set(sys.modules) - before))")
    foreign = {name.split(".")[0] for name in more.split()} - {"linx_trio"}
    assert "linx_trio" in {name.split(".")[0] for name in more.split()}
    assert foreign <= {"dataclasses", "fcntl", "termios", "resource", "array"}


def test_importing_starts_nothing() -> None:
    program = """
import os, threading
before = sorted(os.listdir("/proc/self/fd"))
import linx_trio
print(sorted(os.listdir("/proc/self/fd")) == before, threading.active_count(), linx_trio._agent.current())
"""
    assert python(program) == "True 1 []"


ELSEWHERE = """
import os, signal, socket, sys
import trio, trio.testing, pathlib, subprocess
sys.platform, os.name = {platform!r}, {name!r}
for module in {modules!r}:
    sys.modules[module] = None
for owner, names in (
    (os, {os_names!r}),
    (signal, {signal_names!r}),
    (socket, {socket_names!r}),
    (trio.lowlevel, {trio_names!r}),
):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
"""
NOT_ON_DARWIN = {
    "platform": "darwin",
    "name": "posix",
    "modules": [],
    "os_names": ["O_PATH", "pipe2", "pidfd_open", "setns", "unshare", "memfd_create", "eventfd"],
    "signal_names": ["pidfd_send_signal", "SIGPWR", "SIGSTKFLT"],
    "socket_names": ["MSG_CMSG_CLOEXEC", "AF_NETLINK"],
    "trio_names": [],
}
NOT_ON_WINDOWS = {
    "platform": "win32",
    "name": "nt",
    "modules": ["fcntl", "termios", "resource", "tty", "pwd", "grp"],
    "os_names": [
        *NOT_ON_DARWIN["os_names"], "O_CLOEXEC", "O_DIRECTORY", "fork", "geteuid", "getpriority", "getsid", "getuid",
        "posix_spawn", "register_at_fork", "uname", "WNOHANG", "sysconf", "POSIX_SPAWN_DUP2", "PRIO_PROCESS",
        "environb",
    ],
    "signal_names": [*NOT_ON_DARWIN["signal_names"], "SIGKILL", "SIGHUP", "SIGCHLD", "pthread_sigmask"],
    "socket_names": [*NOT_ON_DARWIN["socket_names"], "SCM_RIGHTS", "CMSG_SPACE", "send_fds", "recv_fds"],
    "trio_names": ["FdStream"],
}  # fmt: skip
SYSTEMS = pytest.mark.parametrize("lacks", [NOT_ON_DARWIN, NOT_ON_WINDOWS], ids=["darwin", "win32"])


@SYSTEMS
def test_importing_works_on_other_systems(lacks: dict[str, object]) -> None:
    program = """
import linx_trio as linx
print(linx.Workload(["x"], namespaces={"net"}, rlimits={"nofile": (1, 2)}).arguments)
"""
    assert python(ELSEWHERE.format(**lacks) + program) == "('x',)"


@SYSTEMS
@pytest.mark.parametrize("options", ["", ", stdio=linx.PIPE", ", cwd='/'"])
def test_spawning_on_other_systems_is_not_supported(lacks: dict[str, object], options: str) -> None:
    """Wrong arguments are still told from that, and first."""
    program = f"""
import linx_trio as linx
async def main():
    try:
        async with linx.spawn(["true"]{options}):
            print("spawned")
    except linx.NotSupported as exc:
        print(exc.feature, exc.hint, sep=": ")
trio.run(main)
try:
    linx.spawn([])
except ValueError as exc:
    print(exc)
"""
    first, second = python(ELSEWHERE.format(**lacks) + program).splitlines()
    assert first == f"spawning: it needs Linux, and this is {lacks['platform']}"
    assert second.startswith("argv is empty")


@SYSTEMS
def test_run_sync_on_other_systems_is_not_supported(lacks: dict[str, object]) -> None:
    program = """
import linx_trio as linx
try:
    linx.run_sync(["true"])
except linx.NotSupported as exc:
    print(isinstance(exc, OSError), exc.feature)
"""
    assert python(ELSEWHERE.format(**lacks) + program) == "True spawning"


@SYSTEMS
def test_on_other_systems_nothing_works(lacks: dict[str, object]) -> None:
    program = """
import linx_trio as linx
probe = linx.probe()
print(len(probe) > 40, len(probe.failed) == len(probe), list(probe.causes()))
print(probe["agent"].verdict)
"""
    first, second = python(ELSEWHERE.format(**lacks) + program).splitlines()
    assert first == "True True ['not-supported']"
    assert second.endswith(f"it needs Linux, and this is {lacks['platform']}")
