"""The pytest plugin, as its users have it: small test suites of their own, each in a pytest of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNNERS = {
    "pytest-trio": ("[pytest]\ntrio_mode = true\n", "import pytest\n"),
    "pytest-trio, by mark": ("[pytest]\n", "import pytest\npytestmark = pytest.mark.trio\n\n"),
    "anyio": (
        "[pytest]\n",
        "import pytest\npytestmark = pytest.mark.anyio\n\n@pytest.fixture\ndef anyio_backend():\n    return 'trio'\n",
    ),
}

PLUGINS_BY_NAME = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the others take a second to be loaded, and are none of our business
}


class Suite:
    """A directory with a test suite. What `run` returns has all that pytest has written in ``stdout``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(
        self,
        body: str,
        *arguments: str,
        runner: str = "pytest-trio",
        env: dict[str, str] | None = None,
        inside: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        ini, head = RUNNERS[runner]
        (self.path / "pytest.ini").write_text(ini + "addopts = --strict-markers -ra\nfilterwarnings = error\n")
        (self.path / "test_it.py").write_text(f"{head}import linx_trio as linx\n{body}")
        other = "anyio.pytest_plugin" if runner == "anyio" else "pytest_trio.plugin"
        plugins = ["linx_trio.pytest_plugin", other, "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *(f"-p{plugin}" for plugin in plugins)]
        return subprocess.run(
            [*inside, *command, *arguments],
            cwd=self.path,
            env={**PLUGINS_BY_NAME, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def counts(self, body: str, *arguments: str, runner: str = "pytest-trio") -> tuple[dict[str, int], str]:
        """What the last line counts, and all of the output."""
        text = self.run(body, *arguments, runner=runner).stdout
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|warnings?)", text.splitlines()[-1])
        return {word.removesuffix("s"): int(number) for number, word in found}, text


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


EVERY_FIXTURE = """
from linx_trio.pytest_plugin import Lab, Netns, Sandboxes, Services, Workloads, lo_up

PIDS = []

async def test_workload(workload: Workloads) -> None:
    session = await workload(["/bin/sh", "-c", "echo up; sleep 1000"], stdout=linx.PIPE, ready=linx.ready.line("up"))
    parked = await workload(["/bin/sleep", "1000"], auto_proceed=False)
    assert (session.state, parked.state) == ("running", "ready")
    PIDS.extend([session.host_pid, parked.host_pid])

async def test_they_have_ended_with_their_test() -> None:
    import os
    assert len(PIDS) == 2
    assert not [pid for pid in PIDS if os.path.exists(f"/proc/{pid}")]

async def test_checkpoint(workload: Workloads) -> None:
    look = ["/bin/sh", "-c", "ip -br link; ip -br address show lo"]
    session = await workload(look, namespaces={"user", "net"}, on_checkpoint=lo_up, stdout=linx.PIPE)
    await session.wait()
    seen = bytes(await session.stdout.receive_some())
    assert b"127.0.0.1" in seen, seen

async def test_netns(netns: Netns) -> None:
    assert [link.name for link in await netns.net.links()] == ["lo"]
    done = await netns.run(["ip", "-br", "address"], capture_stdout=True)
    assert b"127.0.0.1" in done.stdout
    async with netns.spawn(["/bin/cat"], stdin=linx.PIPE, auto_proceed=True) as cat:
        await cat.stdin.aclose()
        assert await cat.wait() == linx.Exited(0)
    server = await netns.workload(["/bin/sleep", "1000"])
    assert server.state == "running"

async def test_sandbox(sandbox: Sandboxes, tmp_path) -> None:
    (tmp_path / "there").write_text("in")
    argv = ["/bin/sh", "-c", f"cat there > out; ls -A /tmp; echo $USER$HOME"]
    session = await sandbox(argv, writable=[tmp_path], cwd=tmp_path, stdout=linx.PIPE)
    assert await session.wait() == linx.Exited(0)
    assert (tmp_path / "out").read_text() == "in"

async def test_lab(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, address="10.0.0.1/24")
    await lab.start()
    assert {link.name for link in await a.net.links()} > {"lo"}

async def test_a_service_of_the_module(workload_module: Services) -> None:
    service = workload_module(["/bin/sleep", "1000"])
    PIDS.append(service.host_pid)
    assert service.returncode is None and service.outcome is None
    async with linx.enter(service.host_pid, ["/bin/true"], auto_proceed=True) as inside:
        assert await inside.wait() == linx.Exited(0)

async def test_goes_on() -> None:
    import os
    assert os.path.exists(f"/proc/{PIDS[-1]}")
"""


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_fixture_works(suite: Suite, runner: str) -> None:
    counts, text = suite.counts(EVERY_FIXTURE, runner=runner)
    assert counts == {"passed": 8}, text


PLAIN = """
import os
from linx_trio.pytest_plugin import lo_up

@pytest.fixture(scope="module")
def servers(workload_module):
    return workload_module.together(
        [["/bin/sleep", str(1000 + n)] for n in range(5)], namespaces={"user", "net"}, on_checkpoint=lo_up
    )

def test_in_order(servers):
    assert [server.info().argv[1] for server in servers] == [str(1000 + n) for n in range(5)]
    assert len({os.readlink(f"/proc/{server.host_pid}/ns/net") for server in servers}) == 5

def test_verbs(servers):
    servers[0].terminate()
    assert servers[0].wait() == linx.Signaled(15) and servers[0].returncode == -15
    servers[1].kill()
    assert servers[1].wait() == linx.Signaled(9)
    servers[2].signal(1)
    assert servers[2].wait() == linx.Signaled(1)
    with pytest.raises(TimeoutError, match="sleep 1003"):
        servers[3].wait(0.01)
    with pytest.raises(linx.NoProcess):
        servers[0].terminate()
    assert "sleep 1003" in repr(servers[3])

def test_errors_are_those_of_spawn(workload_module):
    with pytest.raises(FileNotFoundError, match="no-such"):
        workload_module(["/no-such"])
    with pytest.raises(ValueError, match="argv is empty"):
        workload_module([])

def test_all_or_none(workload_module):
    before = workload_module.live()
    with pytest.raises(FileNotFoundError):
        workload_module.together([["/bin/sleep", "1000"], ["/no-such"], ["/bin/sleep", "1000"]])
    assert workload_module.live() == before

def test_not_ready(workload_module):
    before = workload_module.live()
    with pytest.raises(TimeoutError, match="'/bin/sleep 1000' runs, and was not ready after 0.05 s"):
        workload_module(["/bin/sleep", "1000"], ready=linx.ready.path("/no-such"), ready_timeout=0.05)
    with pytest.raises(linx.NoProcess):
        workload_module(["/bin/true"], ready=linx.ready.path("/no-such"))
    with pytest.raises(ValueError, match="contradict"):
        workload_module(["/bin/true"], ready=linx.ready.path("/no-such"), auto_proceed=False)
    assert workload_module.live() == before

LATER = []

def test_leave(workload_session, servers):
    LATER.extend([*servers, workload_session(["/bin/sleep", "1000"])])

"""


def test_services_need_no_async_test(suite: Suite) -> None:
    (suite.path / "test_later.py").write_text(
        "import os\nimport pytest\nfrom test_it import LATER\n\n"
        "def test_the_module_s_have_ended_and_the_run_s_goes_on():\n"
        "    assert [os.path.exists(f'/proc/{one.host_pid}') for one in LATER[3:]] == [False, False, True]\n"
        "    with pytest.raises(RuntimeError, match='left'):\n"
        "        LATER[3].kill()\n"
    )
    counts, text = suite.counts(PLAIN, "--import-mode=prepend")
    assert counts == {"passed": 7}, text


# ---- what tests require ----------------------------------------------------------------------------------------------

REQUIRES = """
@pytest.mark.linx(requires={"user", "exec"})
async def test_both(): pass

@pytest.mark.linx(requires={"agent"})
def test_one(): pass

@pytest.mark.linx(requires=["usr"])
def test_typo(): pass

@pytest.mark.linx("user")
def test_by_position(): pass

@pytest.mark.linx(requires="user")
def test_no_set(): pass

@pytest.mark.linx(need={"user"})
def test_no_such_word(): pass

def test_nothing(): pass
"""


def test_what_works_runs_and_mistakes_fail(suite: Suite) -> None:
    counts, text = suite.counts(REQUIRES.replace('"exec"', '"net"'))
    assert counts == {"passed": 3, "error": 4}, text
    assert "did you mean 'user'" in text
    assert "takes requires= and leaks=, not 'need'" in text


REFUSED = """
@pytest.mark.linx(requires={"agent"})
async def test_agent(workload):
    raise AssertionError("it has run")

async def test_nothing():
    assert True
"""


def test_what_does_not_work_is_skipped_with_the_reason_or_fails(suite: Suite, tmp_path: Path) -> None:
    nowhere = {"LINX_TRIO_AGENT": "/no/such/agent"}
    done = suite.run(REFUSED, env=nowhere)
    assert done.returncode == 0, done.stdout
    assert re.search(r"SKIPPED.*agent: does not.*/no/such/agent", done.stdout), done.stdout
    done = suite.run(REFUSED, "--linx-must-work", env=nowhere)
    assert done.returncode == 1, done.stdout
    assert "1 passed, 1 error" in done.stdout
    assert "/no/such/agent" in done.stdout
    assert "it has run" not in done.stdout


def test_only_what_is_asked_for_is_tried_and_once(suite: Suite) -> None:
    body = """
import linx_trio._probe, linx_trio.pytest_plugin as plugin
CALLS = []

def counted(*names):
    CALLS.append(names)
    return linx_trio._probe.probe(*names)

plugin.probe = counted

@pytest.mark.linx(requires={"agent"})
def test_a(): pass

@pytest.mark.linx(requires={"agent", "user"})
def test_b(): pass

def test_calls():
    assert [sorted(set(names)) for names in CALLS] == [["agent", "user"]]
"""
    counts, text = suite.counts(body)
    assert counts == {"passed": 3}, text


# ---- leaks -----------------------------------------------------------------------------------------------------------

LEAKS = """
import os, socket, subprocess
KEPT = []

def test_process():
    KEPT.append(subprocess.Popen(["sleep", "1000"]))

def test_zombie():
    KEPT.append(os.posix_spawn("/bin/true", ["true"], {}))

def test_fd():
    KEPT.append(open("/etc/passwd"))

def test_sockets():
    KEPT.extend(socket.socketpair())

def test_session(request):
    import trio
    async def leave():
        manager = linx.spawn(["sleep", "1000"])
        KEPT.append((manager, await manager.__aenter__()))
        raise SystemExit
    with pytest.raises(BaseException):
        trio.run(leave)

def test_what_python_keeps_is_no_leak():
    import multiprocessing
    for method in ("spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=os.getpid)
        process.start()
        process.join()
        process.close()

def test_tidy():
    KEPT[0].kill()
    KEPT[0].wait()
    os.waitpid(KEPT[1], 0)
    subprocess.run(["true"])
    open("/etc/passwd").close()
"""


def _impatient(suite: Suite) -> None:
    (suite.path / "conftest.py").write_text("import linx_trio._pytest_leaks as leaks\nleaks.GRACE_SECONDS = 0.3\n")


def test_leaks_are_found_and_told(suite: Suite) -> None:
    _impatient(suite)
    counts, text = suite.counts(LEAKS, "--linx-leaks=all")
    assert counts == {"passed": 7, "error": 5}, text
    assert re.search(r"process \d+ \(sleep 1000\)", text)
    assert re.search(r"process \d+ \(true\), a zombie", text)
    assert re.search(r"fd \d+ \(/etc/passwd\)", text)
    assert len(set(re.findall(r"fd \d+ \(socket:", text))) == 2  # with CI=true pytest says it twice
    assert re.search(r"fd \d+ \(anon_inode:\[pidfd\]\)", text)


SHARED = """
import subprocess
from linx_trio import _own_cgroup

@pytest.mark.linx
def test_link():
    subprocess.run(["ip", "link", "add", "left0", "type", "veth", "peer", "name", "left1"], check=True)

@pytest.mark.linx
def test_links_that_are_gone_again():
    subprocess.run(["ip", "link", "add", "left2", "type", "veth", "peer", "name", "left3"], check=True)
    subprocess.run(["ip", "link", "delete", "left2"], check=True)

@pytest.mark.linx
def test_cgroup(tmp_path):  # a directory that is called like one of ours, where ours are made
    _own_cgroup._swept.add(str(tmp_path))
    (tmp_path / f"{_own_cgroup._prefix()}7").mkdir()
    (tmp_path / "linx.somebody.else.s").mkdir()
"""


def test_links_and_cgroups_are_looked_at_unless_others_are_at_work(suite: Suite) -> None:
    _impatient(suite)
    network = ("unshare", "--map-root-user", "--net")
    text = suite.run(SHARED, inside=network).stdout
    assert "3 passed, 2 errors" in text, text
    assert "network link left0\n  network link left1\n" in text
    assert re.search(r"cgroup /.*/linx\.\d+\.\d+\.\d+\.7$", text, re.MULTILINE)
    assert "else" not in text
    text = suite.run(SHARED, inside=network, env={"PYTEST_XDIST_WORKER": "gw0"}).stdout
    assert "3 passed in" in text, text


SESSION_ELSEWHERE = """
import threading
STOP = threading.Event()

@pytest.mark.linx
def test_leaves_a_session():
    def work():
        with pytest.raises(Exception, match="cancel="):
            linx.run_sync(["/bin/sleep", "1003"], cancel=STOP)
    THREADS.append(threading.Thread(target=work))
    THREADS[0].start()
    import linx_trio._pytest_leaks as leaks, time
    while not any("sleep 1003" in words for words in leaks._processes().values()):
        time.sleep(0.01)

THREADS = []

@pytest.mark.linx
def test_end():
    STOP.set()
    THREADS[0].join()
"""


def test_a_session_in_another_thread_is_a_leak_too(suite: Suite) -> None:
    _impatient(suite)
    text = suite.run(SESSION_ELSEWHERE).stdout
    assert "2 passed, 1 error in" in text, text
    assert re.search(r"process \d+ \(/bin/sleep 1003\)", text)


CHOICES = """
KEPT = []

def test_unmarked():
    KEPT.append(open("/etc/passwd"))

@pytest.mark.linx
def test_marked():
    KEPT.append(open("/etc/passwd"))

@pytest.mark.linx(leaks=False)
def test_switched_off():
    KEPT.append(open("/etc/passwd"))

@pytest.mark.linx(leaks=True)
def test_switched_on():
    KEPT.append(open("/etc/passwd"))

async def test_fixture(workload):
    KEPT.append(open("/etc/passwd"))
"""


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((), ["test_fixture", "test_marked", "test_switched_on"]),
        (("-o", "linx_leaks=all"), ["test_fixture", "test_marked", "test_switched_on", "test_unmarked"]),
        (("-o", "linx_leaks=all", "--linx-leaks=off"), ["test_switched_on"]),
    ],
)
def test_leaks_are_looked_for_where_that_is_said(suite: Suite, arguments: tuple[str, ...], found: list[str]) -> None:
    _impatient(suite)
    text = suite.run(CHOICES, *arguments).stdout
    assert sorted(re.findall(r"^ERROR test_it.py::(\w+)", text, re.MULTILINE)) == found, text


def test_a_wrong_choice_is_refused(suite: Suite) -> None:
    done = suite.run("def test_x(): pass", "-o", "linx_leaks=some")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "linx_leaks must be one of off, linx, all, not 'some'" in done.stdout


# ---- the documentation -----------------------------------------------------------------------------------------------


def test_the_examples_of_the_documentation_are_tests_that_pass(suite: Suite) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/testing.md").read_text(), re.MULTILINE | re.DOTALL)
    counts, text = suite.counts("".join(blocks), runner="pytest-trio, by mark")
    assert counts == {"passed": 7}, text


def test_forty_servers_on_one_port(suite: Suite) -> None:
    """The suite of docs/examples/services, in a copy, so that it is no part of this one."""
    shutil.copy(ROOT / "docs/examples/services/test_redis.py", suite.path)
    env = dict(PLUGINS_BY_NAME)
    if shutil.which("redis-server") is None:
        program = shutil.which("redis-check-rdb")  # Debian: the server, as soon as it is called by its name
        if program is None:
            pytest.skip("redis-server is not installed")
        (suite.path / "bin").mkdir()
        (suite.path / "bin/redis-server").symlink_to(program)
        env["PATH"] = f"{suite.path / 'bin'}:{env['PATH']}"
    done = suite.run("", "test_redis.py", env=env)
    assert done.stdout.splitlines()[-1].split(" in ")[0].strip("= ") == "40 passed", done.stdout


# ---- cheap, and in the way of nobody ---------------------------------------------------------------------------------


def test_a_run_without_it_imports_neither_trio_nor_the_package(suite: Suite) -> None:
    (suite.path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n    assert not {'trio', 'linx_trio', 'asyncio'} & set(sys.modules)\n"
    )
    (suite.path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_linx_trio", "-p", "no:cacheprovider", "-q", "test_it.py"],
        cwd=suite.path,
        env=PLUGINS_BY_NAME,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_asyncio_is_told_what_to_do(suite: Suite) -> None:
    body = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

async def test_it(workload): pass
"""
    counts, text = suite.counts(body, runner="anyio")
    assert counts == {"error": 1}, text
    assert "needs trio" in text
