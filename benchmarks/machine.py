"""What a benchmark ran on, and the small C programs that it compiles for itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

CAP_SYS_ADMIN = 21  # capability.h

HAVE_LINX = importlib.util.find_spec("linx_trio") is not None
NO_LINX = None if HAVE_LINX else "linx_trio is not importable: run `pip install .` in the source tree"


class CompileError(Exception):
    """No compiler, or one that refused; the text is its first complaint."""


def compiler() -> list[str]:
    """The C compiler and its own flags: `$CC`, else `cc`."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def compile_c(source: Path, output: Path, *flags: str, cc: Sequence[str] | None = None) -> Path:
    """Compile one C file with -O2 and `flags`, and return `output`.

    Raises: CompileError.
    """
    command = [*(cc or compiler()), "-O2", "-std=c11", *flags, "-o", str(output), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        complaint = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompileError(f"{shlex.join(command[:4])}: {complaint[0]}")
    return output


def tiny_program(folder: Path) -> tuple[Path, str]:
    """The smallest program that succeeds, static where the toolchain can: its path, and how it was linked.

    Raises: CompileError, when not even a dynamic one can be made.
    """
    source = folder / "tiny.c"
    source.write_text("int main(void) { return 0; }\n")
    output = folder / "tiny"
    for cc, flags, how in ((["musl-gcc"], ["-static"], "static, musl"), (None, ["-static"], "static")):
        try:
            return compile_c(source, output, *flags, cc=cc), how
        except CompileError:
            continue
    return compile_c(source, output), "dynamic: this toolchain cannot link statically"


def linkage(program: Path) -> str:
    """``"static"``, ``"dynamic"`` or ``"script"``: what execve(2) has to do for `program`."""
    try:
        with program.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        return str(error.strerror)
    if not head.startswith(b"\x7fELF"):
        return "script"
    # Every linker in use stores the interpreter's path next to the program headers, so in the first page.
    return "dynamic" if b"/ld-" in head else "static"


def may_make_namespaces() -> bool:
    """Whether this process has CAP_SYS_ADMIN, which clone(2) wants for all namespaces but the user namespace.

    Not "is it root": a container's root often lacks it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            return bool(int(value, 16) >> CAP_SYS_ADMIN & 1)
    return False


def describe(*distributions: str) -> dict[str, str]:
    """Facts that a figure is worthless without, in the order to print them; with the versions of `distributions`."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "kernel": f"{platform.release()} {platform.machine()}",
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cpus usable",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "trio": _version("trio"),
        **{name: _version(name) for name in distributions},
        "linx-trio": _version("linx-trio"),
        "agent": _agent(),
        "compiler": _compiler_version(),
    }


def stolen_seconds() -> float:
    """CPU time that the hypervisor gave to others since boot, over all cpus (proc_stat(5), `steal`)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # aarch64 has no such line


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.util.find_spec(distribution.replace("-", "_"))
        return "not installed" if found is None else "source tree, not installed"


def _agent() -> str:
    if not HAVE_LINX:
        return "-"
    from linx_trio._agent import agent_path

    agent = agent_path()
    if not agent.exists():
        return "not built"
    return f"{linkage(agent)}, {agent.stat().st_size // 1024} KiB"


def _compiler_version() -> str:
    command = compiler()
    if shutil.which(command[0]) is None:
        return "none"
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [command[0]])[0]
