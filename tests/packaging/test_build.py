"""The build itself: what is in an sdist and a wheel, and which compiler makes the agent.

Everything happens in copies of the tree, so that the agent that the other tests use stays as it is, and
without fetching anything (``--no-build-isolation``): hatchling comes with the ``test`` extra."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.tags import platform_tags

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = next(tag for tag in platform_tags() if tag.startswith("linux_"))
AGENT = "linx_trio/_bin/linx-agent"
REMEDY = ("apt-get install gcc libc6-dev", "dnf install gcc", "apk add gcc musl-dev linux-headers")

# What a build needs of the tree. Named one by one: the tree of a developer holds far more, and changes
# meanwhile.
PARTS = ("pyproject.toml", "hatch_build.py", "pytest_linx_trio.py", "README.md", "LICENSE", "CHANGELOG.md", "Makefile")
TREES = (".ci", "agent_c", "benchmarks", "docs", "linx_trio", "tests")

# Settings of whoever runs the tests must not choose the compiler.
BUILD_ENV = {k: v for k, v in os.environ.items() if k not in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS")}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the agent is a Linux program")


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `command`, with all that it says in ``stdout``."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**BUILD_ENV, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run `command`, which has to succeed; return what it said."""
    done = run(*command, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_tree(target: Path) -> Path:
    """Copy the sources to `target`, without anything that was built from them."""
    target.mkdir()
    for name in PARTS:
        shutil.copy2(ROOT / name, target)
    ignore = shutil.ignore_patterns("__pycache__", "_bin", ".hypothesis", "*.o")
    for name in TREES:
        shutil.copytree(ROOT / name, target / name, ignore=ignore, symlinks=True)
    return target


def version() -> str:
    """Return the version as its single source has it."""
    scope: dict[str, str] = {}
    exec((ROOT / "linx_trio/_version.py").read_text(), scope)
    return scope["__version__"]


def assert_agent_works(agent: Path) -> None:
    """`agent` is a program that describes itself as one of our version."""
    assert stat.S_IMODE(agent.stat().st_mode) & 0o755 == 0o755
    assert version() in check(agent, "--describe", cwd=agent.parent)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree that no test changes. A former editable install has left its agent in it.

    Without .gitignore, which keeps that agent out of what is built too, but is not in every copy of a tree.
    """
    copied = copy_tree(tmp_path_factory.mktemp("tree") / "linx-trio")
    stale = copied / AGENT
    stale.parent.mkdir()
    stale.write_text("a stale agent")
    return copied


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    check(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, cwd=tree)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist: so whatever the sdist lacks is missed."""
    unpacked, out = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    check("tar", "-xf", sdist, "-C", unpacked, cwd=unpacked)
    (source,) = unpacked.iterdir()
    check(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the tree to spoil."""
    return copy_tree(tmp_path / "linx-trio")


@pytest.fixture
def stub(scratch: Path) -> Path:
    """A copy of the tree whose agent is the least that describes itself: it is compiled in no time."""
    shutil.rmtree(scratch / "agent_c")
    (scratch / "agent_c").mkdir()
    (scratch / "agent_c/main.c").write_text(
        '#include <stdio.h>\nint main(void) { return puts(LINX_VERSION " " LINX_SOURCE_HASH) < 0; }\n'
    )
    return scratch


@pytest.fixture
def make_compiler(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that puts a compiler, a shell script, into the directory ``bin``, for a PATH.

    The script finds the real compiler as ``$REAL``, and may note its calls in ``$LOG``.
    """
    directory = tmp_path / "bin"
    directory.mkdir()
    # The real compiler calls its assembler and linker by way of PATH, which the script therefore gives back.
    preamble = f"#!/bin/sh\nREAL={shutil.which('cc')}\nLOG={tmp_path / 'log'}\nPATH={os.environ['PATH']}\n"

    def make(name: str, body: str) -> Path:
        script = directory / name
        script.write_text(preamble + body)
        script.chmod(0o755)
        return script

    return make


def compile_agent(tree: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Compile the agent of `tree` into ``tree/built``."""
    return run(sys.executable, "hatch_build.py", "built", cwd=tree, env=env)


class TestContents:
    def test_sdist_has_all_that_a_build_and_its_tests_need(self, sdist: Path) -> None:
        with tarfile.open(sdist) as archive:
            names = {name.split("/", 1)[1] for name in archive.getnames()}
        sources = {f"agent_c/{p.name}" for p in (ROOT / "agent_c").iterdir() if p.is_file()}
        wanted = {*PARTS, *sources, "linx_trio/py.typed", "tests/packaging/test_build.py", ".ci/run"}
        assert wanted <= names
        assert AGENT not in names

    def test_wheel_fits_every_python_of_this_platform(self, wheel: Path) -> None:
        assert wheel.name == f"linx_trio-{version()}-py3-none-{PLATFORM}.whl"

    def test_wheel_has_the_package_and_an_agent_that_may_be_run(self, wheel: Path, tree: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            mode = archive.getinfo(AGENT).external_attr >> 16
            assert archive.read(AGENT).startswith(b"\x7fELF")
        assert stat.S_IMODE(mode) == 0o755
        assert stat.S_ISREG(mode)
        package = {p.relative_to(tree).as_posix() for p in (tree / "linx_trio").rglob("*") if p.is_file()}
        assert {name for name in names if ".dist-info/" not in name} == package | {"pytest_linx_trio.py"}
        assert f"linx_trio-{version()}.dist-info/licenses/LICENSE" in names

    def test_wheel_metadata(self, wheel: Path) -> None:
        info = f"linx_trio-{version()}.dist-info"
        with zipfile.ZipFile(wheel) as archive:
            metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
            tags: Message = Parser().parsestr(archive.read(f"{info}/WHEEL").decode())
        assert metadata["Version"] == version()
        assert metadata["Requires-Python"] == ">=3.11"
        requirements = metadata.get_all("Requires-Dist", [])
        assert {r.split(">")[0] for r in requirements if "extra ==" not in r} == {"trio", "pyroute2"}
        assert {"seccomp", "cli", "test", "dev"} <= set(metadata.get_all("Provides-Extra", []))
        assert tags["Root-Is-Purelib"] == "false"

    def test_elsewhere_than_on_linux_the_wheel_is_pure(self, tree: Path, tmp_path: Path) -> None:
        script = (
            "import sys, hatchling.build, packaging.tags; sys.platform = 'darwin'; "
            f"hatchling.build.build_wheel({str(tmp_path)!r})"
        )
        # No compiler either: none may be looked for.
        check(sys.executable, "-c", script, cwd=tree, env={"CC": "false"})
        (pure,) = tmp_path.glob("*.whl")
        assert pure.name.endswith("-py3-none-any.whl")
        with zipfile.ZipFile(pure) as archive:
            assert AGENT not in archive.namelist()


class TestInstalling:
    def test_wheel(self, wheel: Path, tmp_path: Path) -> None:
        check(sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path, wheel, cwd=tmp_path)
        assert_agent_works(tmp_path / AGENT)
        script = "import linx_trio; print(linx_trio.__version__, linx_trio.__file__)"
        said = check(sys.executable, "-c", script, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
        assert said.split() == [version(), str(tmp_path / "linx_trio/__init__.py")]

    def test_editable(self, scratch: Path, tmp_path: Path) -> None:
        """Each install renames a new agent into its place: one that is running cannot be written to."""
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
        command += ["--ignore-installed", "--prefix", str(tmp_path / "prefix"), "--editable", str(scratch)]
        check(*command, cwd=tmp_path)
        assert_agent_works(scratch / AGENT)
        (pointer,) = (tmp_path / "prefix").rglob("*linx_trio.pth")
        assert pointer.read_text().strip() == str(scratch)

        before = (scratch / AGENT).stat().st_ino
        with (scratch / AGENT).open("rb"):  # keeps the number of the old file from being used again
            check(*command, cwd=tmp_path)
        assert (scratch / AGENT).stat().st_ino != before
        assert [p.name for p in (scratch / AGENT).parent.iterdir()] == ["linx-agent"]
        assert_agent_works(scratch / AGENT)

    def test_a_failing_build_says_why_through_pip(self, scratch: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
        done = run(*command, "--target", tmp_path / "out", scratch, cwd=tmp_path, env={"PATH": str(tmp_path)})
        assert done.returncode != 0
        assert "no C compiler was found" in done.stdout
        assert all(line in done.stdout for line in REMEDY)
        assert "Traceback" not in done.stdout


class TestCompilers:
    def test_none(self, tree: Path, tmp_path: Path) -> None:
        done = compile_agent(tree, {"PATH": str(tmp_path)})
        assert done.returncode == 1
        assert "no C compiler was found" in done.stdout
        assert all(line in done.stdout for line in REMEDY)

    def test_cc_may_contain_arguments(
        self, stub: Path, tmp_path: Path, make_compiler: Callable[[str, str], Path]
    ) -> None:
        mine = make_compiler("my-cc", 'echo "$@" >>"$LOG"\nexec "$REAL" "$@"\n')
        done = compile_agent(stub, {"CC": f"{mine} -DMINE='a b'", "CFLAGS": "-O1", "LDFLAGS": "-s"})
        assert done.returncode == 0, done.stdout
        assert_agent_works(stub / "built")
        (line,) = (tmp_path / "log").read_text().splitlines()
        assert line.startswith("-DMINE=a b ")
        assert line.index(" -O2 ") < line.index(" -O1 ")  # the caller's come last, and win
        assert line.endswith(" -s")

    @pytest.mark.parametrize("cc", ["no-such-compiler", "false", "false --with arguments"])
    def test_a_broken_cc_is_an_error_that_names_it(self, stub: Path, cc: str) -> None:
        """And not an invitation to use another one, which is there."""
        done = compile_agent(stub, {"CC": cc})
        assert done.returncode == 1
        assert "$CC" in done.stdout
        assert repr(cc) in done.stdout
        assert not (stub / "built").exists()

    def test_the_first_that_works_is_taken(
        self, stub: Path, tmp_path: Path, make_compiler: Callable[[str, str], Path]
    ) -> None:
        note = 'echo "${0##*/} $1" >>"$LOG"\n'
        make_compiler("musl-gcc", note + "echo broken >&2\nexit 1\n")
        make_compiler("cc", note + 'case $1 in -static) echo no libc.a >&2; exit 1;; esac\nexec "$REAL" "$@"\n')
        make_compiler("gcc", note + 'exec "$REAL" "$@"\n')
        done = compile_agent(stub, {"PATH": str(tmp_path / "bin")})
        assert done.returncode == 0, done.stdout
        assert_agent_works(stub / "built")
        assert (tmp_path / "log").read_text().splitlines() == [
            "musl-gcc -static",
            "cc -static",
            "cc -std=gnu11",
        ]

    def test_a_mistake_in_our_sources_is_shown_and_no_compiler_blamed(self, stub: Path) -> None:
        (stub / "agent_c/mistake.c").write_text("int mistake(void) { return no_such_thing; }\n")
        done = compile_agent(stub, {})
        assert done.returncode == 1
        assert "agent_c/mistake.c:1" in done.stdout
        assert "no_such_thing" in done.stdout
        assert "apt-get" not in done.stdout

    def test_a_compiler_without_headers_gets_the_remedy(
        self, stub: Path, tmp_path: Path, make_compiler: Callable[[str, str], Path]
    ) -> None:
        make_compiler("cc", "echo 'fatal error: stdio.h: No such file or directory' >&2\nexit 1\n")
        done = compile_agent(stub, {"PATH": str(tmp_path / "bin")})
        assert done.returncode == 1
        assert done.stdout.count("stdio.h: No such file") == 1
        assert all(line in done.stdout for line in REMEDY)

    @pytest.mark.parametrize("cc", ["gcc", "gcc -static", "clang", "musl-gcc -static"])
    def test_real_ones(self, scratch: Path, cc: str) -> None:
        if shutil.which(cc.split()[0]) is None:
            pytest.skip(f"{cc.split()[0]} is not installed")
        done = compile_agent(scratch, {"CC": cc})
        assert done.returncode == 0, done.stdout
        assert_agent_works(scratch / "built")

    def test_a_tree_without_sources(self, scratch: Path) -> None:
        shutil.rmtree(scratch / "agent_c")
        done = compile_agent(scratch, {})
        assert done.returncode == 1
        assert "no C sources" in done.stdout
