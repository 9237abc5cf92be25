"""The commands ``sandbox`` and ``enter``, and those that only look: ``ps``, ``explain``, ``doctor``, ``completion``."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import linx_trio as linx
from linx_trio import _cli_ps
from tests.agent.commands import Command, command, environment
from tests.agent.commands import linx as run_linx
from tests.agent.test_spare import the_spare
from tests.support import eventually_async, name_of

__all__ = ["command"]  # a fixture


# ---- sandbox ---------------------------------------------------------------------------------------------------------


def test_a_sandbox(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    (tmp_path / "seen").write_text("seen\n")
    (tmp_path / "kept").mkdir()
    script = """
        cat seen; echo x 2>/dev/null >seen || echo read-only; echo new >kept/new; echo ${SECRET-none} $PLAIN
        ls /sys/class/net 2>/dev/null; grep -c : /proc/net/dev; [ -e /home ] || echo no home
    """
    given = ("--ro", str(tmp_path), "--rw", str(tmp_path / "kept"), "-w", str(tmp_path), "-e", "PLAIN=yes")
    status, out, err = command("sandbox", *given, "--", "sh", "-c", script)
    assert status == 0, err
    assert out.split("\n")[:3] == ["seen", "read-only", "none yes"]
    assert "no home" in out
    assert (tmp_path / "kept" / "new").read_text() == "new\n"


def test_what_is_below_a_writable_directory_can_be_kept_from_it(command: Command, tmp_path: Path) -> None:
    (tmp_path / "project" / ".git").mkdir(parents=True)
    given = ("--ro", str(tmp_path / "project" / ".git"), "--rw", str(tmp_path / "project"), "-w", str(tmp_path))
    script = "echo new >project/new; echo new 2>/dev/null >project/.git/new || echo read-only"
    assert command("sandbox", *given, "--", "sh", "-c", script) == (0, "read-only\n", "")
    assert (tmp_path / "project" / "new").exists()
    assert "contradict" in command("sandbox", "--ro", "/srv", "--rw", "/srv/", "--", "true")[2]


def test_settings_of_a_sandbox_come_in_addition_to_its_own(command: Command) -> None:
    given = ("--sysctl", "net.ipv4.ip_forward=1", "--rlimit", "nofile=64")
    plan = json.loads(command("explain", "--json", "sandbox", *given, "true")[1])["workload"]
    usual = linx.sandboxed(["true"])
    assert plan["sysctls"] == {**usual.sysctls, "net/ipv4/ip_forward": "1"}
    assert plan["rlimits"] == {"core": [0, 0], "nofile": [64, 64]}
    assert "user/max_user_namespaces" in plan["sysctls"]


def test_a_sandbox_decides_its_namespaces_itself(command: Command) -> None:
    status, _, err = command("sandbox", "--net", "true")
    assert status == 125
    assert "there is no option --net" in err
    assert command("sandbox", "--share-net", "--", "readlink", "/proc/self/ns/net")[1] == (
        os.readlink("/proc/self/ns/net") + "\n"
    )


# ---- enter -----------------------------------------------------------------------------------------------------------


async def test_enter(command: Command) -> None:
    options: dict[str, object] = {"namespaces": {"uts", "user"}, "user": linx.user.root_map(), "hostname": "inside"}
    async with linx.spawn(["sleep", "1000"], auto_proceed=True, **options) as session:  # type: ignore[arg-type]
        pid = str(session.host_pid)
        for given in (
            ["enter", pid, "--"],
            ["enter", "-a", pid],
            ["enter", pid, "-u", "-U"],
            ["enter", "-uU", f"/proc/{pid}"],
        ):
            done = run_linx(*given, "uname", "-n")
            assert (done.returncode, done.stdout, done.stderr) == (0, "inside\n", "")


async def test_fresh_namespaces_inside_of_others(command: Command, tmp_path: Path) -> None:
    """The target has none of them, and nothing of them."""
    options: dict[str, object] = {"namespaces": {"mount"}, "user": linx.user.root_map(), "auto_proceed": True}
    async with linx.spawn(["sleep", "1000"], **options) as session:  # type: ignore[arg-type]
        given = ("enter", str(session.host_pid), "--unshare", "mount,uts", "--unshare", "net")
        more = ("--hostname", "inside", "--sysctl", "net.ipv4.ip_forward=1", "--perms", "700", "--tmpfs", "/mnt")
        script = "uname -n; cat /proc/sys/net/ipv4/ip_forward; stat -c %a /mnt; touch /x"
        done = run_linx(*given, *more, "--read-only", "--", "sh", "-c", script)
        assert done.stdout.split() == ["inside", "1", "700"]
        assert "Read-only file system" in done.stderr
        assert not [entry for entry in linx.mount.mounts(session) if entry.mount_point == "/mnt"]
        plan = json.loads(command("explain", "--json", *given, *more, "true")[1])
        assert (plan["unshares"], plan["namespaces"]) == (["mount", "net", "uts"], [])
        assert "\nnamespaces:   mount, net, uts, fresh inside of these\n" in command("explain", *given, "true")[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tmpfs", "/mnt"], ["what is entered is not changed", "--unshare mount"]),
        (["--root", "/srv"], ["--root: what is entered", "--unshare mount"]),
        (["--hostname", "x"], ["--hostname: what is entered", "--unshare uts"]),
        (["--sysctl", "net.ipv4.ip_forward=1"], ["net/ipv4/ip_forward", "--unshare net"]),
        (["--propagation", "slave"], ["--propagation needs", "--unshare mount"]),
        (["--unshare", "pid"], ["cannot be fresh inside of others"]),
        (["--unshare", "mnt"], ["there is no 'mnt'; did you mean 'mount'?"]),
    ],
)
def test_what_belongs_to_the_target_is_left_alone(command: Command, given: list[str], words: list[str]) -> None:
    status, _, err = command("enter", str(os.getpid()), *given, "true")
    assert status == 125
    assert [word for word in words if word not in err] == []


def test_entering_what_is_not_there(command: Command) -> None:
    status, _, err = command("enter", "999999999", "true")
    assert (status, "(stage open_ns_user)" in err) == (125, True)
    assert command("enter")[::2] == (125, "linx: PID is missing\n  hint: linx enter --help\n")
    assert "there is no program to run" in command("enter", "1")[2]
    assert "contradict" in command("enter", "-a", "-n", "1", "true")[2]


# ---- ps --------------------------------------------------------------------------------------------------------------


async def test_ps(command: Command) -> None:
    spaces = {"pid", "uts", "user"}
    sleep = ["sleep", "1000"]
    async with (
        linx.spawn(sleep, namespaces=spaces, init=True, user=linx.user.root_map(), auto_proceed=True) as one,
        linx.spawn(sleep) as parked,
        linx.enter(one, sleep, auto_proceed=True) as inside,
    ):
        rows = {row.pid: row for row in _cli_ps.sessions()}
        row = rows[one.host_pid]
        assert (row.state, row.containment, row.namespaces) == ("running", "pidns", sorted(spaces))
        assert (row.argv, row.owner) == (["sleep", "1000"], os.getpid())
        assert 0 <= row.age < 600
        assert (rows[parked.host_pid].state, rows[parked.host_pid].containment) == ("parked", "subreaper")
        assert rows[inside.host_pid].state == "running"
        done = run_linx("ps", "--json")
        assert {row["pid"] for row in json.loads(done.stdout)} >= {one.host_pid, parked.host_pid, inside.host_pid}
        (line,) = [line for line in run_linx("ps").stdout.splitlines() if line.startswith(f"{one.host_pid} ")]
        assert line.split()[2] == "running"
        assert line.endswith("sleep 1000")
    assert not {one.host_pid, inside.host_pid} & {row.pid for row in _cli_ps.sessions()}


async def test_entered_sessions_are_told_from_others() -> None:
    """By PID namespaces, and by who else is there. What is entered without a difference is not entered."""
    sleep = linx.Workload(["sleep", "1000"], user=linx.user.root_map(), auto_proceed=True)
    guest = linx.Workload(["sleep", "1000"], auto_proceed=True)
    async with (
        linx.spawn(sleep, namespaces={"pid", "uts"}) as pidns,
        linx.spawn(sleep, namespaces={"pid"}, init=True) as init,
        linx.spawn(sleep, namespaces={"net"}) as net,
        linx.spawn(guest) as plain,
        linx.enter(pidns, ["sleep", "1000"]) as deeper,
        linx.enter(init, guest) as beside,
        linx.enter(net, guest) as other,
        linx.enter(net, guest, namespaces={"user"}, unshare={"net"}) as fresh,
        linx.enter(plain, guest) as same,
    ):
        rows = {row.pid: row for row in _cli_ps.sessions()}
        found = {s: (rows[s.host_pid].entered, rows[s.host_pid].target) for s in (pidns, init, net, plain, same)}
        assert set(found.values()) == {(False, None)}
        for session, target in ((deeper, pidns), (beside, init), (other, net), (fresh, net)):
            row = rows[session.host_pid]
            assert row.entered
            # Until it runs, an ordinary user may not look at the namespaces of one that is inside of others.
            assert row.target == target.host_pid or (session is deeper and row.namespaces is None)
            assert row.user == pwd.getpwuid(os.geteuid()).pw_name
            assert row.containment == "subreaper"
        told = {row["pid"]: row for row in json.loads(run_linx("ps", "--json").stdout)}
        assert (told[other.host_pid]["entered"], told[other.host_pid]["target"]) == (True, net.host_pid)
        heads, *lines = run_linx("ps").stdout.splitlines()
        place = heads.split().index("ENTERED")
        cells = {line.split()[0]: line.split()[place] for line in lines}
        assert cells[str(other.host_pid)] == str(net.host_pid)
        assert cells[str(pidns.host_pid)] == "-"


async def test_a_monitor_may_be_older_than_its_session() -> None:
    """One in spare is: what is entered is younger then."""
    spare = await the_spare()
    target = subprocess.Popen(["unshare", "-Ur", "sleep", "1000"])  # noqa: ASYNC220 - no linx of ours
    try:
        await eventually_async(lambda: name_of(target.pid) == "sleep", "there is a target")
        async with linx.enter(target.pid, ["sleep", "1000"], auto_proceed=True) as session:
            (row,) = [row for row in _cli_ps.sessions() if row.pid == session.host_pid]
            assert (row.monitor, row.entered, row.target) == (spare, True, target.pid)
    finally:
        target.kill()
        target.wait()


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_a_plan_has_the_steps_in_the_childs_order(command: Command) -> None:
    given = ("-r", "-p", "-u", "--hostname", "x", "--tmpfs", "/mnt", "--cap-drop", "ALL", "--memory", "64M")
    status, out, err = command("explain", "run", *given, "--optional", "limits", "-w", "/", "--", "echo", "it ran")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["program:", "echo", "'it", "ran'"]
    assert "mount, pid, user, uts" in lines[1]
    assert "memory=67108864" in out
    options = [line.split()[1] for line in lines if line[:4].strip().isdigit()]
    expected = ["user", "hostname", "mounts", "capabilities", "cwd", "execve"]
    assert [option for option in options if option in expected][:1] == ["user"]
    assert sorted(set(options), key=options.index)[-3:] == ["capabilities", "cwd", "execve"]
    assert options.index("mounts") < options.index("capabilities")
    assert [line for line in lines if "checkpoint" in line]


def test_a_plan_has_the_mounts_as_they_are_done(command: Command) -> None:
    layers = ("--overlay-src", "/srv/a", "--overlay-src", "/srv/b", "--ro-overlay", "/mnt")
    given = ("--propagation", "slave", *layers, "--perms", "1777", "--size", "1M", "--tmpfs", "/tmp", "--read-only")
    status, out, err = command("explain", "run", "-r", *given, "true")
    assert (status, err) == (0, "")
    assert [line.partition("mounts")[2].strip() for line in out.splitlines() if ". mounts " in line] == [
        "Propagation(dst='/', type='slave')",
        "Overlay(dst='/mnt', lower=('/srv/b', '/srv/a'), userxattr=True, nosuid=True, nodev=True)",
        "Tmpfs(dst='/tmp', size='1M', mode=0o1777)",
        "Remount(dst='/', readonly=True)",
    ]


def test_a_plan_names_variables_and_keeps_their_values(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").write_text("SECRET=hidden\nOTHER=1\n")
    monkeypatch.setenv("GONE", "1")
    given = ("--env-file", str(tmp_path / "env"), "--unsetenv", "GONE")
    out = command("explain", "run", *given, "true")[1]
    assert "\nenvironment:  the caller's, with OTHER, SECRET, without GONE\n" in out
    assert "hidden" not in out
    assert "\nenvironment:  only SECRET\n" in command("explain", "run", "--clearenv", "-e", "SECRET=x", "true")[1]
    assert "\nenvironment:  empty\n" in command("explain", "run", "--clearenv", "true")[1]
    assert "environment:" not in command("explain", "run", "true")[1]


def test_limits_of_devices_are_in_the_plan(command: Command) -> None:
    given = ("--device-read-bps", "/dev/sda:1M", "--device-write-iops", "/dev/sda:10", "--device-write-bps", "8:0:1k")
    plan = json.loads(command("explain", "--json", "run", *given, "true")[1])
    assert plan["workload"]["limits"]["io"] == {"/dev/sda": {"rbps": 1 << 20, "wiops": 10}, "8:0": {"wbps": 1024}}


def test_a_plan_as_json_has_the_workload(command: Command) -> None:
    plan = json.loads(command("explain", "--json", "run", "-r", "--timeout", "3", "true")[1])
    assert linx.Workload.from_dict(plan["workload"]).user == linx.user.root_map()
    assert plan["timeout"] == 3
    assert {"option": None, "about": None, "steps": ["checkpoint"]} in plan["steps"]
    plan = json.loads(command("explain", "--json", "sandbox", "true")[1])
    (mounts,) = {tuple(step["steps"]) for step in plan["steps"] if step["about"] == "Proc()"} or {("mount_new",)}
    assert mounts == ("mount_new",)
    assert plan["containment"] == "pidns"
    plan = json.loads(command("explain", "--json", "enter", "-n", "1", "true")[1])
    assert (plan["target"], plan["joins"]) == (1, ["net"])


def test_a_plan_that_is_tried_never_runs(command: Command, tmp_path: Path) -> None:
    status, out, _ = command("explain", "--check", "run", "touch", str(tmp_path / "ran"))
    assert status == 0
    assert out.endswith("tried up to the checkpoint: it works here\n")
    assert not (tmp_path / "ran").exists()
    status, _, err = command("explain", "--check", "run", "-r", "--bind", "/no/such", "/mnt", "true")
    assert status == 125
    assert "(stage mount)" in err
    given = ("--optional", "oom_score_adj", "-r", "--oom-score-adj", "-1000")
    assert command("explain", "--check", "run", *given, "true")[1].endswith("works here, without oom_score_adj\n")


def test_a_terminal_is_in_the_plan(command: Command) -> None:
    out = command("explain", "run", "-m", "-t", "sh")[1]
    assert "terminal:     its own" in out
    assert "stdio         /dev/pts/N" in out


def test_what_cannot_be_explained(command: Command) -> None:
    assert "did you mean 'run'" in command("explain", "rum", "true")[2]
    assert "there is no option --nett" in command("explain", "run", "--nett", "true")[2]


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor(command: Command) -> None:
    status, out, _ = command("doctor", "agent", "mount")
    assert (status, out.splitlines()[-1]) == (0, "2 of 2 work here")
    told = json.loads(command("doctor", "--json", "agent")[1])
    assert told["features"]["agent"]["works"] is True
    assert "did you mean 'agent'" in command("doctor", "agnet")[2]


# ---- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(command: Command, shell: str) -> None:
    status, out, err = command("completion", shell)
    assert (status, err) == (0, "")
    assert f"_LINX_COMPLETE={shell}_complete" in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is needed")
def test_bash_completes(tmp_path: Path) -> None:
    name = tmp_path / "linx"
    name.write_text('#!/bin/sh\nexec "$LINX_PYTHON" -m linx_trio "$@"\n')
    name.chmod(0o755)
    script = """
        eval "$(linx completion bash)"
        COMP_WORDS=(linx run --map-r) COMP_CWORD=2; _linx_completion linx; echo "${COMPREPLY[@]}"
        COMPREPLY=() COMP_WORDS=(linx do) COMP_CWORD=1; _linx_completion linx; echo "${COMPREPLY[@]}"
    """
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", LINX_PYTHON=sys.executable)
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--map-root-user", "doctor"]
