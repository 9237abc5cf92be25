"""Causes that lie in files, ids, cgroups and the kernel, provoked for real as in test_probe_causes.py."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import linx_trio as linx
from linx_trio import _agent
from linx_trio._machine import Machine
from linx_trio.mount import Bind, Proc, Tmpfs
from tests.agent.probes import SOMEBODY, needs_root
from tests.agent.provoked import BECOME_SOMEBODY, agent_for_all, feature, report, told, tree
from tests.agent.rights import rootless
from tests.support import eventually

# ---- programs, and the agent -----------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """A copy of it, in a directory of its own."""
    directory = tmp_path / "bin"
    directory.mkdir()
    copy = directory / "linx-agent"
    shutil.copyfile(Path(_agent.__file__).parent / "_bin/linx-agent", copy)
    copy.chmod(0o755)
    return copy


def other(agent: Path) -> dict[str, str]:
    return {_agent.OVERRIDE: str(agent)}


def test_another_agent_works(agent: Path) -> None:
    found = feature("agent", more_env=other(agent))
    assert found["works"]
    assert found["detail"] == str(agent)


def test_an_agent_on_a_mount_without_execution(agent: Path) -> None:
    place = str(agent.parent)
    options = {**rootless("mount"), "mounts": [Bind(place, place, noexec=True)]}
    found = report("agent", "sandbox", more_env=other(agent), **options)
    assert found["agent"]["cause"] == found["sandbox"]["cause"] == "noexec"
    assert f"mounted noexec ({place})" in found["agent"]["why"]
    assert found["sandbox"]["needs"] == "agent"


def test_a_program_on_a_mount_without_execution(tmp_path: Path) -> None:
    program = shutil.copy("/bin/true", tmp_path / "program")
    options = {**rootless("mount"), "mounts": [Bind(str(tmp_path), str(tmp_path), noexec=True)]}
    refusal = told(f"refusal_of([{str(program)!r}])", **options)
    assert (refusal["stage"], refusal["errno"], refusal["cause"]) == ("execve", errno.EACCES, "noexec")
    assert f"noexec ({tmp_path})" in refusal["hint"]


@pytest.mark.parametrize(("mode", "cause"), [(0o644, "not-executable"), (None, "agent")], ids=["mode", "missing"])
def test_an_agent_that_is_no_program(agent: Path, mode: int | None, cause: str) -> None:
    agent.unlink() if mode is None else agent.chmod(mode)
    found = feature("agent", more_env=other(agent))
    assert not found["works"]
    assert found["cause"] == cause
    assert "reinstall" in found["remedy"]
    assert str(agent) in found["why"]


@needs_root
def test_an_agent_in_a_directory_that_is_closed(agent: Path) -> None:
    agent.parent.chmod(0o700)
    found = feature("agent", BECOME_SOMEBODY, more_env=other(agent))
    assert found["cause"] == "closed-directory"
    assert f"uid {SOMEBODY} may not search" in found["why"]


@needs_root
def test_a_program_in_a_directory_that_is_closed_to_another_user(tmp_path: Path) -> None:
    """`tmp_path` itself is such a directory, or one above it: pytest sees to that."""
    program = shutil.copy("/bin/true", tmp_path / "program")
    with pytest.raises(linx.SetupError) as caught:
        linx.run_sync([str(program)], uid=SOMEBODY, gid=SOMEBODY, cwd="/")
    assert getattr(caught.value.hint, "cause", None) == "closed-directory"


@needs_root
def test_programs_in_memory_are_forbidden() -> None:
    if not os.path.exists("/proc/sys/vm/memfd_noexec"):
        pytest.skip("this kernel has no vm.memfd_noexec")
    before = "open('/proc/sys/vm/memfd_noexec', 'w').write('2')"
    options = {"namespaces": {"pid"}, "mounts": [Proc()], "init": True}
    found = report("memfd", "enter", "spawn", before=before, **options)
    assert found["spawn"]["works"]
    assert found["memfd"]["cause"] == found["enter"]["cause"] == "memfd-noexec"


# ---- ids -----------------------------------------------------------------------------------------------------------


def test_newuidmap_is_not_there(tmp_path: Path) -> None:
    before = (BECOME_SOMEBODY if os.geteuid() == 0 else "") + f"os.environ['PATH'] = {str(tmp_path)!r}"
    with agent_for_all() as env:
        found = feature("id-range", before, more_env=env)
    assert (found["errno"], found["cause"]) == (errno.EPERM, "newgidmap-missing")
    assert "uidmap" in found["remedy"]


Grants = Callable[..., list[Bind]]


def test_a_container_without_so_many_ids() -> None:
    """Its root may map what it likes, of the one id that it has; and even that without groups."""
    found = feature("id-range", **rootless())
    assert (found["errno"], found["cause"]) == (errno.EPERM, "setgroups-denied")


@needs_root
def test_a_container_with_fewer_ids() -> None:
    ids = linx.user.Maps(uid=(0, 0, 1000), gid=(0, 0, 1000), setgroups="allow")
    found = feature("id-range", namespaces={"user"}, user=ids)
    assert (found["errno"], found["cause"]) == (errno.EPERM, "unmapped-range")


@pytest.fixture
def grants(tmp_path: Path) -> Grants:
    """Mounts over files in ``/etc`` that grant `SOMEBODY` so many ids."""

    def make(uids: int, gids: int, *, named: bool = True) -> list[Bind]:
        passwd = Path("/etc/passwd").read_text() + (f"somebody:x:{SOMEBODY}:{SOMEBODY}::/:/bin/sh\n" if named else "")
        texts = {"passwd": passwd, "subuid": _line(uids), "subgid": _line(gids)}
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o644)
        return [Bind(str(tmp_path / name), f"/etc/{name}") for name in texts]

    return make


def _line(count: int) -> str:
    return f"{SOMEBODY}:200000:{count}\n" if count else ""


needs_uidmap = pytest.mark.skipif(shutil.which("newuidmap") is None, reason="newuidmap(1) is needed: package uidmap")


@needs_root
@needs_uidmap
@pytest.mark.parametrize(
    ("uids", "gids", "cause"),
    [
        (65535, 65535, None),
        (0, 65535, "subuid-missing"),
        (65535, 0, "subgid-missing"),
        (1000, 65535, "subuid-too-small"),
        (65535, 1000, "subgid-too-small"),
    ],
)
def test_ranges_of_ids(uids: int, gids: int, cause: str | None, grants: Grants) -> None:
    for name in ("/etc/subuid", "/etc/subgid"):
        assert os.path.exists(name), f"{name} is there to be mounted over: package uidmap"
    with agent_for_all() as env:
        found = feature("id-range", BECOME_SOMEBODY, more_env=env, namespaces={"mount"}, mounts=grants(uids, gids))
    assert found["works"] == (cause is None)
    assert found["cause"] == cause
    if cause is not None:
        assert "usermod --add-sub" in found["remedy"]
        assert cause.partition("-")[0] in found["why"]


@needs_root
@needs_uidmap
def test_a_uid_without_a_name(grants: Grants) -> None:
    """As ``docker run --user 1234`` makes it: the grant is there, by the number."""
    mounts = grants(65535, 65535, named=False)
    with agent_for_all() as env:
        found = feature("id-range", BECOME_SOMEBODY, more_env=env, namespaces={"mount"}, mounts=mounts)
    assert found["cause"] == "no-user-name"
    assert str(SOMEBODY) in found["why"]


@needs_root
@needs_uidmap
@pytest.mark.parametrize("how", ["mode", "nosuid"])
def test_a_newuidmap_without_rights(how: str, grants: Grants, tmp_path: Path) -> None:
    program = shutil.which("newuidmap")
    assert program is not None
    copy = tmp_path / "newuidmap"
    shutil.copyfile(program, copy)
    copy.chmod(0o755)
    over = Bind(str(copy), program) if how == "mode" else Bind(program, program, nosuid=True)
    mounts = [*grants(65535, 65535), over]
    with agent_for_all() as env:
        found = feature("id-range", BECOME_SOMEBODY, more_env=env, namespaces={"mount"}, mounts=mounts)
    assert found["cause"] == "newuidmap-not-setuid"
    assert ("nosuid" in found["why"]) == (how == "nosuid")


# ---- control groups ------------------------------------------------------------------------------------------------


def test_only_cgroup_v1_is_mounted() -> None:
    """A file system that has all of the host's but /sys, and of that the hierarchies of v1, if there are any."""
    v1 = sorted(set(Machine().v1_controllers().values()))
    entries = [*tree("sys", "proc"), *(Bind(path) for path in v1), Proc()]
    options = {**rootless("mount", "pid"), "root": Tmpfs("/"), "mounts": entries, "init": True}
    found = report("cgroup2", "cgroup2:delegated", "cgroup2:memory", **options)
    assert {entry["works"] for entry in found.values()} == {False}
    assert {entry["cause"] for entry in found.values()} == {"cgroup-v1-only" if v1 else "no-cgroup2"}
    assert found["cgroup2:memory"]["needs"] == "cgroup2"


def own_cgroup() -> str:
    own = Machine().own_cgroup()
    if own is None:
        pytest.skip("cgroup v2 is not mounted here")
    return own


def test_a_cgroup_of_somebody_else() -> None:
    own = own_cgroup()
    before = BECOME_SOMEBODY if os.geteuid() == 0 else ""
    with agent_for_all() as env:
        found = feature("cgroup2:delegated", before, more_env=env)
    assert found["works"] == (os.geteuid() != 0 and os.access(own, os.W_OK))
    if not found["works"]:
        assert found["cause"] == "cgroup-not-delegated"
        assert own in found["why"]
        assert "Delegate=yes" in found["remedy"]


@needs_root
def test_a_cgroup_that_is_delegated_by_half() -> None:
    """Groups can be made there, and processes not moved, for that takes the right to write to its cgroup.procs."""
    path = Path(own_cgroup(), f"linx-test.{os.getpid()}")
    path.mkdir()
    try:
        path.chmod(0o777)
        before = f"open('{path}/cgroup.procs', 'w').write(str(os.getpid()))\n{BECOME_SOMEBODY}"
        with agent_for_all() as env:
            found = feature("cgroup2:delegated", before, more_env=env)
        assert found["cause"] == "cgroup-not-delegated"
        assert str(path) in found["why"]
        assert not [name for name in os.listdir(path) if name.startswith("linx-probe")]
    finally:
        eventually(lambda: not path.joinpath("cgroup.procs").read_text(), "the group is empty")
        path.rmdir()


def test_a_read_only_cgroup() -> None:
    own = own_cgroup()
    options = {**rootless("mount"), "mounts": [Bind(own, own, readonly=True)]}
    assert feature("cgroup2:delegated", **options)["cause"] == "cgroup-read-only"


# ---- networks ------------------------------------------------------------------------------------------------------


def test_links_that_the_kernel_lacks() -> None:
    """One for which it says that it has the module, works."""
    for name, found in linx.probe("net:veth", "net:bridge", "net:macvlan", "net:netem").items():
        option = {"net:netem": "CONFIG_NET_SCH_NETEM"}.get(name, f"CONFIG_{name.partition(':')[2].upper()}")
        has = Machine().option(option)
        if has in ("y", "n"):
            assert found.works == (has == "y"), found
        assert found.works or found.cause == "kernel-option"
