"""The command ``linx run``: its exit statuses, what it passes on, and how it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import linx_trio
from linx_trio import _cli_app
from linx_trio._cli_elsewhere import ELSEWHERE
from tests.agent.commands import LINX, ROOT, Command, command, environment, linx

__all__ = ["command"]  # a fixture

OWN = ("-r",)  # a user namespace, in which anybody may make the others


# ---- the real thing --------------------------------------------------------------------------------------------------


def test_the_script_is_the_entry_point() -> None:
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["linx"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_a_program_runs_with_the_callers_streams() -> None:
    done = linx("run", "--", "sh", "-c", "cat; echo problem >&2; exit 7", stdin=None, input="typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "typed\n", "problem\n")


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_it_says_how_to_get_it(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from linx_trio._cli import main; main(['ps'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 125
    assert f"needs {module}" in done.stderr
    assert "pip install 'linx-trio[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    """As for ``linx ps | head -0``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = linx("doctor", "agent", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")


def test_a_traceback_is_there_for_who_asks() -> None:
    done = linx("run", "no-such-program", env=environment(LINX_DEBUG="1"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "SetupError" in done.stderr


# ---- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_status_is_the_workloads(command: Command, script: str, status: int) -> None:
    assert command("run", "sh", "-c", script) == (status, "", "")


def test_not_found_and_not_executable(command: Command, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    status, _, err = command("run", "no-such-program")
    assert status == 127
    assert err.startswith("linx: [ENOENT] No such file or directory: 'no-such-program' (stage execve)\n  hint: ")
    status, _, err = command("run", str(plain))
    assert status == 126
    assert "[EACCES]" in err
    assert "chmod" in err
    plain.chmod(0o755)
    plain.write_bytes(b"\x7fELF nonsense")
    assert command("run", str(plain))[0] == 126


def test_what_cannot_be_set_up_is_125(command: Command) -> None:
    status, _, err = command("run", "-w", "/no/such/directory", "true")
    assert status == 125
    assert "(stage chdir)" in err
    assert "Traceback" not in err


def test_what_is_left_behind_is_killed(command: Command, tmp_path: Path) -> None:
    left = tmp_path / "left"
    daemon = f"echo $$ > {left}.new; mv {left}.new {left}; exec sleep 1000"
    script = f"setsid sh -c '{daemon}' & while ! [ -e {left} ]; do sleep 0.01; done"
    assert command("run", "sh", "-c", script)[0] == 0
    assert not Path(f"/proc/{left.read_text().strip()}").exists()


def test_a_time_out(command: Command) -> None:
    status, _, err = command("run", "--timeout", "0.2", "sleep", "1000")
    assert (status, err) == (124, "linx: ended by --timeout, after 0.2 s\n")
    status, _, err = command("run", "--timeout", "0.2", "--json", "sleep", "1000")
    told = json.loads(err)
    assert (status, told["timed_out"], told["outcome"]["name"]) == (124, True, "SIGTERM")
    assert command("run", "--timeout", "0", "sleep", "0.1")[0] == 0


def test_one_that_ignores_the_time_out_is_killed(command: Command) -> None:
    script = "trap '' TERM; while :; do sleep 1000; done"
    status, _, err = command("run", "--timeout", "0.2", "--stop-timeout", "0.2", "--json", "sh", "-c", script)
    assert status == 124
    assert json.loads(err)["outcome"]["name"] == "SIGKILL"


# ---- json ------------------------------------------------------------------------------------------------------------


def test_the_end_as_json(command: Command) -> None:
    status, out, err = command("run", *OWN, "-p", "--json", "sh", "-c", "echo $$; exit 4")
    told = json.loads(err)
    assert (status, out) == (4, "1\n")
    assert told["exit_status"] == 4
    assert told["outcome"] == {"kind": "exited", "code": 4}
    assert told["namespaces"] == ["pid", "user"]
    assert told["containment"] == "pidns"
    assert told["usage"]["wall_time"] > 0


def test_json_has_an_fd_of_its_own(command: Command, tmp_path: Path) -> None:
    with open(tmp_path / "told", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        assert command("run", "--json-fd", str(file.fileno()), "true") == (0, "", "")
        file.seek(0)
        assert json.loads(file.read())["exit_status"] == 0
    status, _, err = command("run", "--json-fd", "999", "true")
    assert (status, err) == (125, "linx: --json-fd 999: there is no open fd of that number\n")


def test_a_failure_as_json(command: Command) -> None:
    status, _, err = command("run", "--json", "no-such-program")
    told = json.loads(err)
    assert (status, told["exit_status"]) == (127, 127)
    assert told["error"]["errno"] == errno.errorcode[errno.ENOENT]
    assert told["error"]["stage"] == "execve"
    assert told["error"]["hint"]


# ---- what it is given ------------------------------------------------------------------------------------------------


def test_the_environment(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("GONE", "1")
    given = ("-e", "A=b=c", "--setenv", "D", "", "--unsetenv", "GONE", "sh", "-c", "echo $A,$D,$MINE,${GONE-unset}")
    assert command("run", *given)[1] == "b=c,,1,unset\n"
    assert command("run", "--clearenv", "-e", "MINE", "-e", "NOT_SET", "/usr/bin/env")[1] == "MINE=1\n"


def test_variables_of_a_file(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker reads it: no quotes, no expansion. What is said on the command line counts more."""
    monkeypatch.setenv("MINE", "1")
    (tmp_path / "env").write_bytes(
        b"\xef\xbb\xbf# comment\n\n  A=b=c\r\nQUOTED='x' $HOME\nMINE\nNOT_SET\nGONE=1\nB=file\n"
    )
    given = ("--clearenv", "--env-file", str(tmp_path / "env"), "-e", "B=option", "--unsetenv", "GONE")
    status, out, err = command("run", *given, "/usr/bin/env")
    assert (status, sorted(out.splitlines()), err) == (0, ["A=b=c", "B=option", "MINE=1", "QUOTED='x' $HOME"], "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"A=1\nexport B=1\n", ["line 2", "'export B'"]),
        (b"=1\n", ["line 1", "NAME=VALUE"]),
        (b"A=\xff\n", ["not UTF-8", "byte 2"]),
    ],
)
def test_a_wrong_file_of_variables(command: Command, tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "env").write_bytes(content)
    status, _, err = command("run", "--env-file", str(tmp_path / "env"), "true")
    assert status == 125
    assert err.startswith(f"linx: --env-file {tmp_path / 'env'}: ")
    assert [word for word in words if word not in err] == []


def test_fds_that_it_gets_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    with open(tmp_path / "file") as file:
        fd = file.fileno()
        script = f"cat /proc/self/fd/{fd}; ls /proc/self/fd"
        done = linx("run", "--preserve-fd", str(fd), "--", "sh", "-c", script, pass_fds=[fd])
        assert done.stdout.split() == ["content", *sorted(["0", "1", "2", "3", str(fd)])]
        done = linx("run", "--", "sh", "-c", "ls /proc/self/fd", pass_fds=[fd])
        assert done.stdout.split() == ["0", "1", "2", "3"]
        done = linx("explain", "run", "--preserve-fd", str(fd), "true", pass_fds=[fd])
        assert f"fds:          {fd}\n" in done.stdout


def test_attributes(command: Command) -> None:
    script = "umask; ulimit -n; ulimit -c; pwd; nice"
    given = ("--umask", "027", "--rlimit", "nofile=64:99", "--ulimit", "core=0", "-w", "/usr", "--nice", "3")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert command("run", *given, "sh", "-c", script)[1].split() == ["0027", "64", "0", "/usr", str(min(own + 3, 19))]


def test_names_in_namespaces(command: Command) -> None:
    given = ("-u", "-n", "-p", "--hostname", "inside", "--sysctl", "net.ipv4.ip_forward=1", "--init", "--mount-proc")
    script = "uname -n; cat /proc/sys/net/ipv4/ip_forward; cat /proc/1/comm; id -u"
    assert command("run", *OWN, *given, "sh", "-c", script)[1].split() == ["inside", "1", "linx-reaper", "0"]


def test_all_namespaces_and_the_callers_own_ids(command: Command) -> None:
    script = "id -u; readlink /proc/self/ns/net /proc/self/ns/pid"
    status, out, _ = command("run", "--unshare-all", "--share-net", "--proc", "/proc", "sh", "-c", script)
    uid, net, pid = out.split()
    assert (status, uid) == (0, str(os.geteuid()))
    assert net == os.readlink("/proc/self/ns/net")
    assert pid != os.readlink("/proc/self/ns/pid")


def test_ids_in_a_user_namespace(command: Command) -> None:
    assert command("run", "-U", "--uid", "1234", "--gid", "5", "sh", "-c", "id -u; id -g")[1].split() == ["1234", "5"]
    uid, gid = os.geteuid(), os.getegid()
    maps = ("--map-users", f"7:{uid}:1", "--map-groups", f"8:{gid}:1")
    assert command("run", *maps, "sh", "-c", "id -u; id -g")[1].split() == ["7", "8"]
    assert command("run", "--map-user", "9", "sh", "-c", "id -u; id -g")[1].split() == ["9", str(gid)]
    assert command("run", "--map-group", "9", "sh", "-c", "id -u; id -g")[1].split() == [str(uid), "9"]


def test_offsets_of_clocks(command: Command) -> None:
    status, out, _ = command("run", *OWN, "--boottime", "864000", "cut", "-d.", "-f1", "/proc/uptime")
    assert status == 0
    assert int(out) >= 864000


def test_a_file_system_in_the_order_of_the_options(command: Command, tmp_path: Path) -> None:
    """A tmpfs hides what was there before; a directory made afterwards is on it."""
    (tmp_path / "some").write_text("content")
    given = (
        *("--empty-root", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
        *(
            "--symlink",
            "usr/lib64",
            "/lib64",
            "--dir",
            "/a/hidden",
            "--tmpfs",
            "/a",
            "--dir",
            "/a/seen",
            "--dev",
            "/dev",
        ),
        *("--file", str(tmp_path / "some"), "/a/file", "--bind", str(tmp_path), "/mine"),
        *("--ro-bind-try", "/no/such", "/no/such"),
    )
    script = "cd /; echo * a/*; cat a/file; echo written > mine/new; echo no > usr/no || echo read-only"
    status, out, err = command("run", *OWN, *given, "sh", "-c", script)
    assert status == 0, err
    assert out.splitlines() == ["a bin dev lib lib64 mine usr a/file a/seen", "contentread-only"]
    assert (tmp_path / "new").read_text() == "written\n"


def layers(tmp_path: Path) -> tuple[str, ...]:
    """Two directories as layers, the second one on top."""
    for name in ("below", "above"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        (tmp_path / name / name).touch()
    return ("--overlay-src", str(tmp_path / "below"), "--overlay-src", str(tmp_path / "above"))


def test_layers_on_top_of_each_other(command: Command, tmp_path: Path) -> None:
    """As with bwrap the first one is the lowest."""
    given = (*layers(tmp_path), "--ro-overlay", "/mnt")
    script = "cd /mnt; echo *; cat file; echo x 2>/dev/null >file || echo read-only"
    assert command("run", *OWN, *given, "sh", "-c", script) == (0, "above below file\naboveread-only\n", "")


def test_layers_that_can_be_written_to(command: Command, tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    given = (*layers(tmp_path), "--overlay", str(tmp_path / "upper"), str(tmp_path / "work"), "/mnt")
    script = "cd /mnt; echo written >below; cat file; rm file; echo *"
    assert command("run", *OWN, *given, "sh", "-c", script) == (0, "aboveabove below\n", "")
    assert (tmp_path / "upper" / "below").read_text() == "written\n"
    assert (tmp_path / "above" / "file").read_text() == "above"


def test_size_and_mode_of_what_follows(command: Command, tmp_path: Path) -> None:
    (tmp_path / "some").touch()
    given = (
        *("--perms", "1777", "--size", "64k", "--tmpfs", "/mnt", "--perms", "700", "--dir", "/mnt/a"),
        *("--dir", "/mnt/b", "--perms", "0600", "--file", str(tmp_path / "some"), "/mnt/c"),
    )
    script = "stat -c %a /mnt /mnt/a /mnt/b /mnt/c; df --output=size -k /mnt | tail -1"
    status, out, err = command("run", *OWN, *given, "sh", "-c", script)
    assert (status, out.split(), err) == (0, ["1777", "700", "755", "600", "64"], "")


def test_volumes_as_docker_has_them(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("-v", f"{tmp_path}:/mnt/rw", "--volume", ".:/mnt/ro:ro")
    script = "echo x >/mnt/rw/new; cat /mnt/ro/new; echo y 2>/dev/null >/mnt/ro/new || echo read-only"
    assert command("run", *OWN, "--tmpfs", "/mnt", *given, "sh", "-c", script) == (0, "x\nread-only\n", "")


def test_what_becomes_read_only(command: Command) -> None:
    script = "for d in / /mnt /mnt/below; do touch $d/x 2>/dev/null && echo $d; done"
    mounts = ("--tmpfs", "/mnt", "--tmpfs", "/mnt/below")
    links = [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    run = ("run", *OWN, "--empty-root", "--ro-bind", "/usr", "/usr", *links)
    shell = ("--dev", "/dev", "sh", "-c", script)
    assert command(*run, *mounts, *shell)[1].split() == ["/", "/mnt", "/mnt/below"]
    assert command(*run, "--read-only", *mounts, *shell)[1].split() == ["/mnt", "/mnt/below"]
    assert command(*run, *mounts, "--remount-ro", "/mnt", *shell)[1].split() == ["/", "/mnt/below"]


def test_message_queues(command: Command) -> None:
    script = "grep /mnt /proc/self/mounts"
    assert (
        "mqueue /mnt mqueue rw,nosuid,nodev,noexec"
        in command("run", *OWN, "-i", "--mqueue", "/mnt", "sh", "-c", script)[1]
    )


def test_propagation(command: Command) -> None:
    """Of the shared mounts of an outer namespace an inner one gets what it asks for."""
    look = "sed -n 's/^[^/]*[^ ]* \\/ [^ ]* \\(.*\\) - .*/:\\1/p' /proc/self/mountinfo | head -1"
    said = {}
    for kind in ("private", "slave", "shared"):
        inner = shlex.join([*LINX, "run", "-m", "--propagation", kind, "--", "sh", "-c", look])
        status, said[kind], err = command("run", *OWN, "-m", "--propagation", "shared", "sh", "-c", inner)
        assert status == 0, err
    assert [word in said[kind] for kind in said for word in ("master:", "shared:")] == [
        *(False, False),
        *(True, False),
        *(False, True),
    ]


def test_privileges(command: Command) -> None:
    cat = ("sh", "-c", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status")
    words = command("run", *OWN, "--cap-drop", "ALL", "--cap-add", "net_raw", "--no-new-privs", *cat)[1].split()
    assert words == ["CapEff:", f"{1 << 13:016x}", "NoNewPrivs:", "1", "Seccomp:", words[-1]]
    words = command("run", *OWN, "--keep-caps", "none", "--seccomp", "default", *cat)[1].split()
    assert words[1] == f"{0:016x}"
    assert words[-1] == "2"


def test_a_profile_in_a_file(command: Command, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    status, _, err = command("run", "--seccomp", str(profile), "mkdir", str(tmp_path / "new"))
    assert status == 1
    assert "cross-device" in err.lower()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--hostnam", "x"], ["there is no option --hostnam", "'--hostname'"]),
        (["--hostname", "x"], ["--hostname needs a fresh uts", "-u/--uts"]),
        (["--init"], ["--init needs a fresh pid", "-p/--pid"]),
        (["-r", "-c"], ["--map-root-user and --map-current-user contradict"]),
        (["--map-users", "0:0:1"], ["belong together"]),
        (["--map-users", "0,0,1"], ["INSIDE:OUTSIDE:COUNT"]),
        (["--share-net"], ["--unshare-all"]),
        (["--root", "/", "--empty-root"], ["contradict each other"]),
        (["--cap-add", "net_raw"], ["--cap-drop ALL --cap-add net_raw"]),
        (["--keep-caps", "kill", "--cap-drop", "chown"], ["contradict"]),
        (["--cap-drop", "net_rav"], ["unknown capability 'net_rav'", "CAP_NET_RAW"]),
        (["--groups", "1", "--clear-groups"], ["--groups and --clear-groups contradict"]),
        (["--keep-groups", "--init-groups"], ["--keep-groups and --init-groups contradict"]),
        (["--init-groups", "--uid", "4000000000"], ["no user with the uid 4000000000", "--groups"]),
        (["-r", "--map-user", "7"], ["--map-root-user and --map-user contradict"]),
        (["--env-file", "/no/such/file"], ["--env-file /no/such/file: No such file"]),
        (["--env-fiel", "/x"], ["'--env-file'"]),
        (["--preserve-fd", "999"], ["--preserve-fd 999: there is no open fd 999", "999<FILE"]),
        (["--preserve-fd", "x"], ["--preserve-fd: 'x' is no whole number"]),
        (["--preserve-fds", "-1"], ["a number of fds"]),
        (["--device-read-bps", "/dev/sda"], ["DEVICE:RATE"]),
        (["--device-read-bps", "sda:1M"], ["'/dev/sda'"]),
        (["--rlimit", "nofil=1"], ["'nofile'"]),
        (["--timeout", "soon"], ["no duration"]),
        (["--memory", "lots"], ["memory='lots'"]),
        (["--memory-swap", "1G"], ["needs --memory"]),
        (["--optional", "limit"], ["'limits'"]),
        (["--uid", "nobody-of-that-name"], ["neither a number nor a user"]),
        (["--setgroups", "deny"], ["belongs to a map"]),
        (["--net=/run/netns/x"], ["does not take a value", "linx enter PID"]),
        (["--cgroup=x"], ["--cgroup-path"]),
        (["--pid=host"], ["does not take a value", "it is the caller's"]),
        (["--kill-child=TERM"], ["does not take a value", "killed with linx in any case"]),
        (["--tmp-overlay", "/x"], ["there is no option --tmp-overlay\n", "--overlay UPPER WORK DST"]),
        (["-d"], ["there is no option -d\n", "linx supervise"]),
        (["--bind", "/srv"], ["linx: --bind: dst must be an absolute path, not 'echo'"]),
        (["-S", "nobody-of-that-name"], ["linx: --uid: 'nobody-of-that-name' is neither"]),
        (["-r", "--sysctl", "net.ipv4.ip_forward=1"], ["needs a namespace", "add --net\n"]),
        (["--seccomp", "/etc/passwd"], ["--seccomp /etc/passwd: it is neither JSON nor a BPF program"]),
        (["--setgroups", "alow"], ["linx: --setgroups: 'alow' is none of them; did you mean 'allow'?"]),
        (["--ro", "/srv"], ["there is no option --ro\n", "--ro is an option of: linx sandbox"]),
        (["-it"], ["-it is docker's"]),
        (["--tty"], ["standard input is none"]),
        (["--monotonic", "1", "--time-offset", "monotonic=2"], ["contradict"]),
        (["--seccomp", "/no/such/file"], ["No such file"]),
        (["--env", "=x"], ["NAME=VALUE"]),
        (["--size", "1M", "--dir", "/mnt"], ["--size is about what follows it, and --dir has no size"]),
        (["--size", "1M"], ["nothing does", "before --tmpfs"]),
        (["--size", "lots", "--tmpfs", "/mnt"], ["'lots' is no size"]),
        (["--perms", "700", "--perms", "711", "--tmpfs", "/mnt"], ["--perms is there twice"]),
        (["--perms", "rwx", "--dir", "/mnt"], ["'rwx' is no mode"]),
        (["--overlay-src", "/srv", "--bind", "/srv", "/mnt"], ["--bind has no layers"]),
        (["--overlay-src", "/srv", "--ro-overlay", "/mnt"], ["two layers at least", "--overlay-src SRC"]),
        (["--overlay", "/a", "/b", "/mnt"], ["one layer at least", "--overlay-src SRC"]),
        (["--overlya", "/a"], ["there is no option --overlya", "'--overlay'"]),
        (["--tmpfs", "/run:rw,size=64m"], ["docker's", "--size 64M --perms 1777 --tmpfs /run"]),
        (["-v", "data:/data"], ["no volumes by name", "./data:/data"]),
        (["-v", "/srv:/mnt:z"], ["'z'", "ro, rw"]),
        (["-r", "--mqueue", "/mnt"], ["--mqueue needs a fresh ipc namespace", "add -i/--ipc"]),
        (["--propagation", "slave"], ["needs a fresh mount namespace", "-m/--mount"]),
        (["-m", "--propagation", "unchanged"], ["not to be had", "--propagation slave"]),
        (["-m", "--propagation", "slvae"], ["slave"]),
    ],
)
def test_bad_options_are_explained(
    command: Command, monkeypatch: pytest.MonkeyPatch, given: list[str], words: list[str]
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        status, out, err = command("run", *given, "echo", "it ran")
    assert (status, out) == (125, "")
    assert err.startswith("linx: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--json", "ps"], "there is no option --json\n  hint: it stands behind the command: linx ps --json"),
        (["--tty", "bash"], "there is no option --tty\n  hint: it stands behind the command: linx run --tty"),
        (["explain", "run", "--memroy", "1"], "there is no option --memroy; did you mean '--memory'?"),
        (["explain", "run", "--bind", "x"], "--bind takes SRC DST\n  hint: linx run --help"),
        (["completion", "bsh"], "bash|zsh|fish: 'bsh' is none of them; did you mean 'bash'?"),
        (["enter", "abc", "true"], "'abc' is no PID\n  hint: it is a number"),
    ],
)
def test_bad_command_lines_are_explained(command: Command, given: list[str], words: str) -> None:
    status, out, err = command(*given)
    assert (status, out) == (125, "")
    assert err.startswith(f"linx: {words}")


def test_nothing_at_all_is_told_what_there_is(command: Command) -> None:
    status, out, err = command()
    assert (status, out) == (125, "")
    assert err.startswith("Usage: linx ")
    assert err.index("  run ") < err.index("  sandbox ") < err.index("  completion ")


def test_the_help_has_sections(command: Command) -> None:
    for verb, first in (
        ("run", "\nNamespaces, and the ids in them:\n  -m, --mount "),
        ("enter", "\nWhat is joined:\n"),
    ):
        status, out, _ = command(verb, "--help")
        assert status == 0
        assert first in out
        assert (
            out.index("\nLimits:\n")
            < out.index("  --memory ")
            < out.index("\nRunning it:\n")
            < out.index("  -t, --tty ")
        )


def test_a_relative_path_where_the_directory_is_gone(tmp_path: Path) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; exec {shlex.join(LINX)} run -v ./x:/mnt true"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        125,
        "linx: ./x: the working directory is not there any more",
    )


def test_nothing_to_run(command: Command) -> None:
    status, _, err = command("run", "-r", "--")
    assert (status, err.splitlines()[0]) == (125, "linx: there is no program to run")


def test_an_unknown_command_gets_the_nearest(command: Command) -> None:
    assert command("snadbox")[::2] == (
        125,
        "linx: there is no command 'snadbox'; did you mean 'sandbox'?\n  hint: linx --help\n",
    )


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["-m", "256M"], "--memory 256M"),
        (["-U", "1000:1000"], "--uid 1000:1000"),
        (["-p", "8080:80"], "-p is the pid namespace"),
        (["-p", "127.0.0.1:8080:80/tcp"], "-p is the pid namespace"),
        (["--mount", "type=bind,src=/a,dst=/b"], "-v SRC:DST"),
    ],
)
def test_options_taken_for_dockers_get_advice(command: Command, given: list[str], hint: str) -> None:
    status, _, err = command("run", *OWN, *given, "true")
    assert status == 127
    assert hint in err


def test_advice_names_options_that_there_are() -> None:
    """And is given for those only that there are not; the documentation has them all."""
    commands = [_cli_app.cli.commands[verb] for verb in _cli_app.PLANS]
    known = {name for command in commands for param in command.params for name in param.opts}
    page = (ROOT / "docs" / "command.md").read_text()
    of_run = {name for param in commands[0].params for name in param.opts}
    for name, advice in ELSEWHERE.items():
        assert name not in of_run
        assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*(?![\w'])", advice)) - known <= {"-a", "-c"}, (name, advice)
        assert f"`{name}`" in page


def test_options_end_at_the_program(command: Command) -> None:
    assert command("run", "echo", "-n", "--net", "--", "-x")[1] == "--net -- -x"
    assert command("run", "--", "echo", "--", "x")[1] == "-- x\n"


def test_optional_things_are_told(command: Command) -> None:
    """In a user namespace of one's own nobody has the capability for this one."""
    given = ("-r", "--oom-score-adj", "-1000")
    status, _, err = command("run", *given, "true")
    assert status == 125
    assert "oom_score_adj" in err
    status, _, err = command("run", "--optional", "oom-score-adj", *given, "true")
    assert (status, err) == (0, "linx: not to be had here, and done without: oom_score_adj\n")


def test_help_names_every_command(command: Command) -> None:
    status, out, _ = command("--help")
    assert status == 0
    for name in ("run", "sandbox", "enter", "ps", "doctor", "explain", "supervise", "completion"):
        assert f"\n  {name} " in out
    assert command("--version")[1] == f"linx-trio {linx_trio.__version__}\n"
    assert LINX[-1] == "linx_trio"
