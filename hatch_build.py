"""Build hook: compile the agent (``agent_c/*.c``) when the package is installed.

The agent is a program, not an extension module. It links with no Python, so that one wheel fits every
Python of a machine: tag ``py3-none-linux_<arch>``. It is compiled on the machine where it will run, by the
first of these that works:

1. ``$CC``, which may contain arguments. Whoever sets it means it: if it fails, that is an error.
2. ``musl-gcc -static``: the smallest agent, and the quickest to start.
3. ``cc -static``, ``cc``, then the same of ``gcc`` and ``clang``.

``$CPPFLAGS``, ``$CFLAGS`` and ``$LDFLAGS`` are added to our own. A failure says what to do: with no
compiler, the names of the packages to install; with one that refuses our sources, what it said.

A wheel gets the agent as ``linx_trio/_bin/linx-agent``; an editable install gets it in that place of the
source tree. Where there is no Linux, the wheel is pure and has no agent: the package can be imported there,
and says so when used.

Run as a script, this compiles the agent and packages nothing:
``CC=clang CFLAGS=-Werror python hatch_build.py OUTPUT``.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

AGENT = "linx_trio/_bin/linx-agent"

# No -Werror: a stranger's newer compiler warns about things that ours does not know. `make lint` adds it.
CFLAGS = ["-std=gnu11", "-O2", "-g0", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow"]
CFLAGS += ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
LDFLAGS = ["-Wl,-z,relro,-z,now,-z,noexecstack"]

REMEDY = """\
Compiling the agent takes a C compiler, the C library's headers and the kernel's. They are in these packages:
  Debian, Ubuntu:  apt-get install gcc libc6-dev
  Fedora, RHEL:    dnf install gcc glibc-devel kernel-headers
  Alpine:          apk add gcc musl-dev linux-headers
Another compiler can be named in $CC."""

# Uses a header of the C library and one of the kernel: a compiler that takes this works, and the fault is
# in our sources.
TRIVIAL_PROGRAM = "#include <stdio.h>\n#include <linux/sched.h>\nint main(void) { return 0; }\n"


class BuildFailed(Exception):
    """The agent could not be compiled. The message says why, and what to do."""


class Attempt(NamedTuple):  # hatchling runs this file as a module that is not in sys.modules: no dataclasses
    """A compiler that was tried in vain: its command, and what it had to say."""

    compiler: list[str]
    message: str


class AgentHook(BuildHookInterface[BuilderConfig]):
    """Compiles the agent into the wheel, or into the tree for an editable install."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or not sys.platform.startswith("linux"):
            return
        root = Path(self.root)
        if version == "editable":
            out = root / AGENT
        else:
            # Outside the tree, which may be read-only, or be building for another Python at this moment.
            self._scratch = tempfile.TemporaryDirectory(prefix="linx-agent-")
            out = Path(self._scratch.name, "linx-agent")
            build_data["force_include"][str(out)] = AGENT
        try:
            compile_agent(root, out)
        except BuildFailed as failure:
            self.app.abort(f"linx-trio: {failure}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()


def platform_tag() -> str:
    """Return the plain tag of this Python's platform, such as ``linux_x86_64``.

    Not from ``platform.machine()``, which tells of the kernel: a 32-bit Python on a 64-bit kernel would
    refuse the wheel.
    """
    return next(tag for tag in platform_tags() if tag.startswith("linux_"))


def compile_agent(root: Path, out: Path) -> None:
    """Compile ``root/agent_c/*.c`` into `out` by the first compiler that works.

    Raises `BuildFailed` if none does.
    """
    # Not the hidden ones: an editor's lock or backup file is no source.
    sources = sorted(f"agent_c/{path.name}" for path in (root / "agent_c").glob("[!.]*.c"))
    if not sources:
        raise BuildFailed(f"no C sources in {root / 'agent_c'}: this source tree is not complete")
    version = runpy.run_path(str(root / "linx_trio/_version.py"))["__version__"]
    source_hash = runpy.run_path(str(root / "linx_trio/_build_id.py"))["source_hash"](root / "agent_c")
    defines = [f'-DLINX_VERSION="{version}"', f'-DLINX_SOURCE_HASH="{source_hash}"']
    out.parent.mkdir(parents=True, exist_ok=True)

    attempts = []
    for compiler in compilers():
        message = try_compile(compiler, [*defines, *sources], root, out)
        if message is None:
            return
        attempts.append(Attempt(compiler, message))
    raise BuildFailed(explain(attempts))


def compilers() -> Iterator[list[str]]:
    """Yield the compilers to try, as commands, the best first: those of them that are there."""
    cc = shlex.split(os.environ.get("CC", ""))
    if cc:
        if shutil.which(cc[0]) is None:
            raise BuildFailed(f"the compiler named by $CC (CC={os.environ['CC']!r}) was not found.\n{REMEDY}")
        yield cc + kernel_headers(cc[0])
        return
    tried = set()
    for program in ("musl-gcc", "cc", "gcc", "clang"):
        path = shutil.which(program)
        if path is None or os.path.realpath(path) in tried:
            continue
        tried.add(os.path.realpath(path))
        yield [program, "-static", *kernel_headers(program)]
        if program != "musl-gcc":
            yield [program]


def kernel_headers(program: str) -> list[str]:
    """Return the options that let musl-gcc find the kernel's headers, which it does not look for by itself.

    After all other directories, so that the C library's own headers are still musl's.
    """
    if Path(program).name != "musl-gcc":
        return []
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    directories = ["/usr/include", f"/usr/include/{multiarch}"]
    return [option for directory in directories for option in ("-idirafter", directory)]


def try_compile(compiler: list[str], arguments: list[str], root: Path, out: Path) -> str | None:
    """Compile into `out`. Return None if that worked, else the compiler's own message."""

    def flags(name: str) -> list[str]:
        return shlex.split(os.environ.get(name, ""))

    # Compiled beside its place, then renamed: an agent that is running cannot be written to (ETXTBSY), and
    # goes on undisturbed.
    with tempfile.TemporaryDirectory(prefix=".linx-agent-", dir=out.parent) as scratch:
        new = Path(scratch, out.name)
        options = [*CFLAGS, *flags("CPPFLAGS"), *flags("CFLAGS")]
        command = [*compiler, *options, *arguments, "-o", str(new), *LDFLAGS, *flags("LDFLAGS")]
        try:
            done = subprocess.run(
                command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            return str(error)
        if done.returncode != 0 or not new.is_file():
            return (done.stderr + done.stdout).strip() or f"exit status {done.returncode}, and not a word"
        if done.stderr:
            print(done.stderr, file=sys.stderr)
        new.chmod(0o755)
        new.replace(out)
    return None


def explain(attempts: list[Attempt]) -> str:
    """Return the message for a user whose compilers, if any, have all failed."""
    if not attempts:
        return f"no C compiler was found.\n{REMEDY}"
    unique = {attempt.message: attempt for attempt in reversed(attempts)}  # keeps the first of equal messages
    said = "\n".join(f"$ {shlex.join(a.compiler)} …\n{a.message}" for a in reversed(unique.values()))
    cc = os.environ.get("CC", "").strip()
    who = f"the compiler named by $CC (CC={cc!r})" if cc else "the C compiler"
    if not any(works(attempt.compiler) for attempt in attempts):
        return f"{who} does not work: it refuses even an empty program.\n{said}\n{REMEDY}"
    return f"the agent's sources did not compile, although {who} works otherwise. It said:\n{said}"


def works(compiler: list[str]) -> bool:
    """Tell whether the compiler makes a program of an empty source."""
    with tempfile.TemporaryDirectory(prefix="linx-agent-") as scratch:
        source = Path(scratch, "trivial.c")
        source.write_text(TRIVIAL_PROGRAM)
        command = [*compiler, str(source), "-o", str(Path(scratch, "trivial"))]
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
        except OSError:
            return False


def main(arguments: list[str]) -> int:
    """Compile the agent into the file named by the only argument."""
    if len(arguments) != 1:
        print("usage: [CC=…] [CFLAGS=…] python hatch_build.py OUTPUT", file=sys.stderr)
        return 2
    try:
        compile_agent(Path(__file__).resolve().parent, Path(arguments[0]).resolve())
    except BuildFailed as failure:
        print(f"linx-trio: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
