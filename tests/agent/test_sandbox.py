"""What works in a sandbox, what it is made of, and what of it a caller can change. For attempts to leave it see
test_sandbox_escape.py.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import _sandbox
from linx_trio.mount import Bind, File, Symlink, Tmpfs
from tests.agent import escapes
from tests.agent.escapes import IS_ROOT, inside
from tests.agent.probes import status_of
from tests.agent.terminals import read_to_end
from tests.proto.strategies import relaxed

pytestmark = escapes.needs_python


def shell(script: str, **options: Any) -> str:
    """What a shell in a sandbox writes."""
    workload = linx.sandboxed(["sh", "-c", script], **options)
    return linx.run_sync(workload, capture_stdout=True, stderr=linx.STDOUT).stdout.decode()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the host, not below what a sandbox has of its own."""
    with tempfile.TemporaryDirectory(prefix="linx-host-", dir="/var/tmp") as path:
        yield Path(path)


# ---- programs ----------------------------------------------------------------------------------------------------


def test_a_shell() -> None:
    assert shell("echo hello | tr a-z A-Z; echo $?; printf %s $(seq 3) | wc -c") == "HELLO\n0\n3\n"


def test_python_with_threads_processes_and_sockets() -> None:
    body = """
import concurrent.futures as cf, multiprocessing, sqlite3, ssl, tempfile, threading
def double(n):
    return 2 * n
a, b = socket.socketpair()
a.sendall(b"x")
with cf.ThreadPoolExecutor(4) as pool, cf.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
    result = [sum(pool.map(double, range(5))), sum(processes.map(double, range(5))), b.recv(1).decode()]
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
    result.append(sqlite3.connect(":memory:").execute("select 1 + 1").fetchone()[0])
result.append(len(ssl.create_default_context().get_ca_certs()) >= 0)
"""
    assert inside(body) == [20, 20, "x", 2, True]


def test_a_compiler() -> None:
    if not shutil.which("gcc", path="/usr/bin"):
        pytest.skip("gcc is not installed")
    script = "echo 'int main(void) { return 42; }' >a.c && gcc -O1 -o a a.c && ./a; echo $?"
    assert shell(script) == "42\n"


def test_git() -> None:
    if not shutil.which("git", path="/usr/bin"):
        pytest.skip("git is not installed")
    script = """
git init -q . && git config user.name me && git config user.email me@localhost && echo 1 >a && git add a &&
git commit -qm first && git log --format=%s && git clone -q . copy && cat copy/a
"""
    assert shell(script) == "first\n1\n"


def test_standard_streams() -> None:
    workload = linx.sandboxed(["sh", "-c", "cat; echo bad >&2; exit 3"])
    done = linx.run_sync(workload, stdin=b"fed", capture_stdout=True, capture_stderr=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"fed", b"bad\n", 3)
    with pytest.raises(linx.CalledProcessError):
        linx.run_sync(workload, stderr=linx.DEVNULL)


async def test_as_a_session() -> None:
    """Parked, released, talked to, and gone."""
    async with linx.sandbox(["cat"], stdin=linx.PIPE, stdout=linx.PIPE) as session:
        assert session.state == "ready"
        assert session.info().containment == "pidns"
        assert session.info().degraded == ()
        await session.proceed()
        assert session.stdin is not None
        assert session.stdout is not None
        await session.stdin.send_all(b"x")
        assert await session.stdout.receive_some(1) == b"x"
        status = status_of(session.host_pid)
        await session.stdin.aclose()
        assert await session.wait() == linx.Exited(0)
    assert (status["CapEff"], status["Seccomp"], status["NoNewPrivs"]) == ("0" * 16, "2", "1")


async def test_run_takes_the_workload() -> None:
    done = await linx.run(linx.sandboxed(["id", "-un"]), capture_stdout=True)
    assert done.stdout == (b"root\n" if IS_ROOT else b"user\n")


async def test_on_a_terminal() -> None:
    async with linx.sandbox(["sh", "-c", "tty; stty size"], stdio=linx.Pty(10, 20), auto_proceed=True) as session:
        assert session.pty is not None
        assert await read_to_end(session.pty) == b"/dev/console\r\n10 20\r\n"


async def test_cancelling() -> None:
    with trio.move_on_after(0.3) as scope:
        await linx.run(linx.sandboxed(["sleep", "600"]))
    assert scope.cancelled_caught


# ---- what it sees ------------------------------------------------------------------------------------------------


def test_ids_have_names() -> None:
    me = "root" if IS_ROOT else "user"
    ids = f"{os.geteuid()} {os.getegid()}"
    assert shell("id -un; id -gn; echo $(id -u) $(id -g); whoami; ls -ld /tmp | cut -d' ' -f3") == (
        f"{me}\n{me}\n{ids}\n{me}\n{me}\n"
    )


def test_environment_and_directory() -> None:
    assert shell("echo $HOME $LANG; pwd; hostname; echo $PATH") == (
        f"/tmp C.UTF-8\n/tmp\nsandbox\n{_sandbox.ENVIRONMENT['PATH']}\n"
    )
    assert shell("echo $HOME $X; pwd; hostname", env={"X": "y"}, cwd="/usr", hostname="h") == "y\n/usr\nh\n"


@pytest.mark.parametrize("path", ["/tmp", "/dev/shm", "/run"])
def test_places_to_write_to(path: str) -> None:
    """Each sandbox has its own."""
    assert shell(f"ls {path}; echo x >{path}/file && cat {path}/file") == "x\n"
    assert shell(f"ls {path}") == ""


def test_var_tmp_is_one_of_them() -> None:
    assert shell("echo x >/var/tmp/file && cat /var/tmp/file") == "x\n"


def test_a_writable_directory(directory: Path) -> None:
    (directory / "in").write_text("from the host")
    script = f"cd {directory}; cat in; echo from inside >out; mkdir d; ln -s /etc/passwd d/link; chmod 700 out"
    assert shell(script, writable=[directory]) == "from the host"
    assert (directory / "out").read_text() == "from inside\n"
    assert (directory / "out").stat().st_uid == os.geteuid()
    assert stat.S_IMODE((directory / "out").stat().st_mode) == 0o700


def test_a_writable_directory_below_tmp() -> None:
    with tempfile.TemporaryDirectory() as path:
        assert shell(f"touch {path}/a; ls {path}", writable=[path]) == "a\n"
        assert os.listdir(path) == ["a"]


def test_a_readable_directory(directory: Path) -> None:
    (directory / "in").write_text("from the host\n")
    script = (
        f"cat {directory}/in; touch {directory}/in {directory}/x 2>/dev/null || echo no; test -e /usr/bin/env; echo $?"
    )
    assert shell(script, readonly=["/usr", directory]) == "from the host\nno\n0\n"
    assert os.listdir(directory) == ["in"]


def test_a_readable_directory_below_tmp() -> None:
    with tempfile.TemporaryDirectory() as path:
        Path(path, "in").write_text("from the host")
        assert shell(f"cat {path}/in || true", readonly=["/usr", path]) == "from the host"


def test_all_of_etc_is_readable() -> None:
    assert shell("ls /etc/fstab /etc/passwd", readonly=["/usr", "/etc"]).splitlines()[-1] == "/etc/passwd"


def test_a_writable_directory_in_a_readable_one(directory: Path) -> None:
    (directory / "w").mkdir()
    script = f"cd {directory}; touch w/a && touch b 2>/dev/null; ls -R | grep -x [ab]"
    assert shell(script, readonly=["/usr", directory], writable=[directory / "w"]) == "a\n"


@pytest.mark.parametrize("as_given", ["{}", "/{}/", "{}/."])
def test_a_readable_directory_in_a_writable_one(directory: Path, as_given: str) -> None:
    """And again a writable one in that. The inner one says how it is, however they are written, in whatever order."""
    (directory / "r/w").mkdir(parents=True)
    inner = as_given.format(directory / "r")
    script = f"cd {directory}; touch a r/w/b && touch r/c 2>/dev/null; ls -R | grep -x '[abc]'"
    for writable in ([directory, directory / "r/w"], [directory / "r/w", directory]):
        assert shell(script, readonly=["/usr", inner], writable=writable) == "a\nb\n"


def test_one_of_the_usual_directories_can_be_writable() -> None:
    """Nobody has asked for it to be read-only."""
    assert inside("result = [os.statvfs(x).f_flag & 1 for x in ('/usr', '/etc')]", writable=["/usr"]) == [0, 1]


def test_the_network_of_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        body = f"result = attempt(socket.create_connection, {listener.getsockname()!r}) is None or 'connected'"
        assert inside(body.replace(" is None", ".close()"), network=True) == "connected"
    assert shell("test -s /etc/hosts && echo there", network=True) == "there\n"
    assert shell("cat /etc/hosts").startswith("127.0.0.1 localhost sandbox\n")


# ---- what a caller can change ------------------------------------------------------------------------------------


def test_more_mounts(directory: Path) -> None:
    (directory / "a").write_text("bound")
    entries = [Bind(directory, "/data"), Tmpfs("/scratch"), File("/etc/motd", "hi"), Symlink("data", "/link")]
    assert shell("cat /link/a /etc/motd; touch /scratch/x && echo . ; ls /", mounts=entries).startswith("boundhi.\n")


def test_options_take_the_place_of_its_own() -> None:
    workload = linx.sandboxed(["true"], env={}, cwd="/", seccomp=None, capabilities=None, rlimits={"nofile": (9, 9)})
    assert (workload.env, workload.cwd, workload.seccomp, workload.capabilities) == ({}, "/", None, None)
    assert workload.rlimits == {"nofile": (9, 9)}
    assert linx.sandboxed(["true"]).rlimits == {"core": (0, 0)}


def test_without_a_filter_and_with_capabilities() -> None:
    assert inside("result = open('/proc/self/status').read().count('Seccomp:\\t0')", seccomp=None) == 1


def test_what_it_is() -> None:
    """All of it is options of a workload, to be looked at, and to be kept as plain data."""
    workload = linx.sandboxed(["true"], readonly=["/usr"], writable=["/var/tmp"])
    assert workload.namespace_names == {"user", "pid", "mount", "ipc", "uts", "cgroup", "net"}
    assert linx.sandboxed(["true"], network=True).namespace_names == workload.namespace_names - {"net"}
    assert (workload.no_new_privs, workload.init, workload.optional) == (True, True, frozenset())
    assert workload.sysctls == {"user/max_user_namespaces": "0"}
    plain = json.loads(json.dumps(workload.to_dict()))
    assert linx.Workload.from_dict(plain) == workload
    assert pickle.loads(pickle.dumps(workload)) == workload
    assert linx.run_sync(linx.Workload.from_dict(plain)).returncode == 0


def test_it_is_described_anew_when_the_host_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of the usual files is there, and which of the old directories are links."""
    usual, link = tmp_path / "usual", tmp_path / "link"
    monkeypatch.setattr(_sandbox, "_USUAL", {*_sandbox._USUAL, str(usual)})
    monkeypatch.setattr(_sandbox, "_MERGED", (str(link),))

    def mounts() -> list[object]:
        found = list(linx.sandboxed(["true"], readonly=("/usr", usual)).mounts)
        assert found == list(linx.sandboxed(["true"], readonly=("/usr", usual), nice=1).mounts)
        return [entry for entry in found if str(tmp_path) in repr(entry)]

    assert mounts() == []
    usual.touch()
    assert mounts() == [linx.mount.Bind(str(usual), readonly=True, nosuid=True, nodev=True)]
    link.symlink_to("usr/bin")
    assert linx.mount.Symlink("usr/bin", str(link)) in mounts()
    link.unlink()
    link.symlink_to("elsewhere")
    assert linx.mount.Symlink("elsewhere", str(link)) in mounts()
    usual.unlink()
    link.unlink()
    assert mounts() == []


LINK_ALONE = linx.mount.Symlink("x", "/y")
OPTIONS: dict[str, list[Any]] = {
    "auto_proceed": [True, False, 1],
    "mounts": [[], (), [LINK_ALONE], ["/y"]],
    "stdout": [linx.PIPE, linx.DEVNULL, "pipe"],
    "hostname": ["box", "", None, 5],
    "env": [{"A": "B"}, {}, None],
    "seccomp": [None, 1],
    "network": [True, False, 0],
    "readonly": [["/usr"], ("/usr", "/srv"), ["x"], "/usr"],
    "writable": [["/var/tmp"], [], "/var/tmp"],
    "namespaces": [["pid"]],
    "unknown": [1],
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for all that is usual on a host."""
    place = tmp_path / "place"
    note = str(place / "note")
    monkeypatch.setattr(_sandbox, "_DIRECTORIES", (str(place),))
    monkeypatch.setattr(_sandbox, "_MERGED", (str(place / "link"),))
    monkeypatch.setattr(_sandbox, "READONLY", (note,))
    monkeypatch.setattr(_sandbox, "_USUAL", {note})
    monkeypatch.setattr(_sandbox, "_latest", None)
    return place


NOTHING: tuple[Any, ...] = ((), ())


def test_what_is_on_the_host_is_looked_for_again_when_a_directory_has_changed(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sandbox, "_SETTLED", -1e9)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "note").touch()
    (tmp_path / "full" / "link").symlink_to("usr")
    found = ((str(elsewhere / "note"),), ((str(elsewhere / "link"), "usr"),))
    for _ in range(2):
        for name, expected in (("empty", NOTHING), ("full", found)):
            elsewhere.symlink_to(tmp_path / name)
            assert _sandbox._on_the_host() == expected
            assert _sandbox._on_the_host() is _sandbox._on_the_host()
            elsewhere.unlink()
    assert _sandbox._on_the_host() == NOTHING


def test_a_link_to_nowhere_may_come_to_lead_somewhere(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a change of where the link is."""
    monkeypatch.setattr(_sandbox, "_SETTLED", -1e9)
    monkeypatch.setattr(_sandbox, "_DIRECTORIES", (str(elsewhere.parent), str(elsewhere)))
    (tmp_path / "away").mkdir()
    elsewhere.symlink_to(tmp_path / "away" / "place")
    assert _sandbox._on_the_host() == NOTHING
    (tmp_path / "away" / "place").mkdir()
    (tmp_path / "away" / "place" / "note").touch()
    assert _sandbox._on_the_host() == ((str(elsewhere / "note"),), ())


def test_a_directory_that_has_just_changed_is_looked_at_each_time(elsewhere: Path) -> None:
    elsewhere.mkdir()
    assert _sandbox._on_the_host() == NOTHING
    (elsewhere / "note").touch()
    assert _sandbox._on_the_host() == ((str(elsewhere / "note"),), ())
    (elsewhere / "note").unlink()
    assert _sandbox._on_the_host() == NOTHING


@relaxed
@given(
    st.sampled_from([["true"], ("true",), ["true", "x"], [], "true", [b"true"], ["\0"]]),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in OPTIONS.items()}),
)
@example(["true"], {"mounts": []})
@example(["true"], {"auto_proceed": True})
@example(["true"], {"seccomp": None})
def test_a_remembered_sandbox_is_what_a_new_one_would_be(argv: Any, options: dict[str, Any]) -> None:
    def outcome() -> object:
        try:
            return linx.sandboxed(argv, **options)
        except (TypeError, ValueError) as exc:
            return type(exc), str(exc)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sandbox, "remembered", lambda *_: None)
        new = outcome()
    assert [outcome() for _ in range(2)] == [new] * 2


def test_the_same_sandbox_again_is_the_same_workload() -> None:
    one = linx.sandboxed(["true"], auto_proceed=True, stdout=linx.PIPE)
    assert linx.sandboxed(("true",), auto_proceed=True, stdout=linx.PIPE) is one
    assert linx.sandboxed(["true"], stdout=linx.PIPE) != one
    assert linx.sandboxed(["true", "x" * 5000]) is not linx.sandboxed(["true", "x" * 5000])


def test_sandboxes_do_not_change_each_other() -> None:
    plain = linx.sandboxed(["true"])
    assert linx.sandboxed(["true"]) == plain
    more = linx.sandboxed(["true"], mounts=[linx.mount.Dir("/more")], env={"A": "B"}, hostname="other", seccomp=None)
    assert (more.hostname, more.seccomp, dict(more.env or {})) == ("other", None, {"A": "B"})
    assert linx.mount.Dir("/more") in more.mounts
    assert linx.sandboxed(["true"]) == plain
    assert list(plain.mounts)[-1] == list(more.mounts)[-1] == linx.mount.Remount("/", readonly=True)
    assert linx.sandboxed(["true"], network=True) != plain
    assert linx.sandboxed(["true"], readonly=("/usr",)) != plain
    assert linx.sandboxed(["true"], writable=("/srv",)) != plain
    assert linx.sandboxed(["false"]).arguments == ("false",)
    with pytest.raises(TypeError):
        linx.sandboxed("true")


def test_it_gives_up_nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel refuses is an error: here a limit that nobody may set."""
    with pytest.raises(linx.SetupError) as caught:
        linx.run_sync(linx.sandboxed(["true"], rlimits={"nofile": (2**40, 2**40)}))
    assert caught.value.stage == "rlimit"
    with pytest.raises(linx.SetupError) as caught:
        linx.run_sync(linx.sandboxed(["true"], sysctls={"user.max_user_namespaces": "many"}))
    assert (caught.value.stage, caught.value.filename) == ("sysctl", "user/max_user_namespaces")


# ---- what is wrong -----------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "one path": (TypeError, {"readonly": "/usr"}, r"readonly must be an iterable of paths.*'/usr'"),
    "relative": (ValueError, {"writable": ["a"]}, r"writable\[0\] must be an absolute path, not 'a'"),
    "no path": (TypeError, {"writable": [5]}, r"writable\[0\] must be str, bytes or a path, not 5"),
    "the root": (ValueError, {"readonly": ["/"]}, r"readonly\[0\] is '/', and the sandbox has a root of its own"),
    "the root, writable": (ValueError, {"writable": ["/srv", "/./"]}, r"writable\[1\] is '/\./'"),
    "a detour": (ValueError, {"writable": ["/srv/.."]}, r"writable\[0\] must have no '\.\.' in it: '/srv/\.\.'"),
    "both": (ValueError, {"readonly": ["/usr", "/srv/x"], "writable": ["/srv", "//srv/./x/"]}, r"'//srv/./x/'"),
    "not a truth": (TypeError, {"network": 1}, r"network must be True or False, not 1"),
    "unknown": (TypeError, {"colour": "red"}, r"colour"),
    "no entry": (TypeError, {"mounts": ["/usr"]}, r"'/usr'"),
    "no limit": (ValueError, {"rlimits": {"files": (1, 1)}}, r"files"),
    "no setting": (ValueError, {"sysctls": {"kernel.panic": 1}}, r"kernel"),
    "nul": (ValueError, {"readonly": ["/a\0b"]}, r"NUL"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("call", [linx.sandbox, linx.sandboxed], ids=["sandbox", "sandboxed"])
def test_bad_input(what: str, call: Any) -> None:
    """Told by the call itself, naming it."""
    error, options, words = WRONG[what]
    with pytest.raises(error, match=words):
        call(["true"], **options)


def test_no_program() -> None:
    with pytest.raises(ValueError, match="argv"):
        linx.sandboxed([])
    with pytest.raises(FileNotFoundError) as caught:
        linx.run_sync(linx.sandboxed(["/root/linx-no-such-program"]))
    assert isinstance(caught.value, linx.SetupError)
    assert (caught.value.stage, caught.value.filename) == ("execve", "/root/linx-no-such-program")


def test_a_place_that_is_not_there() -> None:
    for options in ({"readonly": ["/usr", "/nowhere/at/all"]}, {"writable": ["/nowhere/at/all"]}):
        with pytest.raises(FileNotFoundError) as caught:
            linx.run_sync(linx.sandboxed(["true"], **options))  # type: ignore[arg-type]
        assert isinstance(caught.value, linx.SetupError)
        assert caught.value.stage == "mount"
        assert "/nowhere/at/all" in str(caught.value.filename)


def test_a_directory_that_is_not_there_inside() -> None:
    with pytest.raises(linx.SetupError) as caught:
        linx.run_sync(linx.sandboxed(["true"], cwd="/home"))
    assert (caught.value.stage, caught.value.filename) == ("chdir", "/home")


# ---- what it does not keep out -----------------------------------------------------------------------------------


def test_a_readable_socket_can_be_connected_to(directory: Path) -> None:
    """As documented: a read-only mount is about files."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        body = f"result = attempt(socket.socket(socket.AF_UNIX).connect, '{directory}/socket')"
        assert inside(body, readonly=["/usr", directory]) is None


def test_a_file_as_standard_input_can_be_opened_anew(directory: Path) -> None:
    """As documented: what it is given, it has. Bytes and pipes have no such name."""
    file = directory / "file"
    file.write_text("1")
    body = "result = attempt(lambda: open('/proc/self/fd/0', 'w').write('changed') and None)"
    with file.open() as stdin:
        assert inside(body, stdin=stdin) is None
    assert file.read_text() == "changed"
