"""Forty tests, each with a redis server of its own, all at the same time and on the same port.

Run by `pytest docs/examples/services`. It needs no root, no free port and no cleaning up.
"""

import shutil
from collections.abc import Iterator

import pytest

import linx_trio as linx
from linx_trio.pytest_plugin import Service, Services, lo_up

COUNT = 40
REDIS = shutil.which("redis-server")

pytestmark = [
    pytest.mark.linx(requires={"user", "net"}),
    pytest.mark.skipif(REDIS is None, reason="redis-server is not installed"),
]


@pytest.fixture(scope="module")
def servers(workload_module: Services, tmp_path_factory: pytest.TempPathFactory) -> list[Service]:
    """All are started at the same time. Each is ready when it listens; they end with the module."""
    argv = [REDIS or "", "--port", "6379", "--save", "", "--loglevel", "warning"]
    return workload_module.together(
        [linx.Workload(argv, cwd=tmp_path_factory.mktemp("redis")) for _ in range(COUNT)],
        namespaces={"user", "net"},
        on_checkpoint=lo_up,
        ready=linx.ready.tcp(6379),
        stdout=linx.DEVNULL,
    )


def ask(server: Service, *commands: str) -> Iterator[str]:
    """What it answers, asked from inside of its network: from outside nobody can."""
    words = "".join(f"{command}\\r\\n" for command in [*commands, "QUIT"])
    script = f"exec 3<>/dev/tcp/127.0.0.1/6379; printf '{words}' >&3; cat <&3"
    done = server.run_inside(["bash", "-c", script], capture_stdout=True)
    return iter(done.stdout.decode().splitlines())


@pytest.mark.parametrize("number", range(COUNT))
def test_nobody_else_writes_here(servers: list[Service], number: int) -> None:
    answer = ask(servers[number], f"SET me {number}", "GET me", "DBSIZE")
    assert next(answer) == "+OK"
    assert (next(answer), next(answer)) == (f"${len(str(number))}", str(number))
    assert next(answer) == ":1"
