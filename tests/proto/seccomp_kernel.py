"""The real kernel's opinion about seccomp programs, asked in throw-away processes: none of them is the test's own.

The script below is run by a fresh interpreter. It takes no privilege: PR_SET_NO_NEW_PRIVS is set first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from linx_trio.seccomp import Filter

_SCRIPT = r"""
import ctypes, errno, json, os, platform, sys

libc = ctypes.CDLL(None, use_errno=True)
SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
NEW_LISTENER = 8

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

def install(program, flags):
    memory = ctypes.create_string_buffer(program, max(len(program), 1))
    prog = Program(len(program) // 8, ctypes.cast(memory, ctypes.c_void_p))
    failed = libc.syscall(SECCOMP, 1, flags, ctypes.byref(prog)) < 0
    return ctypes.get_errno() if failed else 0

def asked(program, nr, arguments):
    "What one syscall returns under a filter: minus errno, the result, or 'killed'."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        assert install(program, 0) == 0
        result = libc.syscall(ctypes.c_long(nr), *(ctypes.c_ulong(a) for a in arguments))
        os.write(writing, str(-ctypes.get_errno() if result < 0 else result).encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return "killed" if os.WIFSIGNALED(status) else int(said)

def accepted(programs):
    "One listener a process: with a second one a valid program is EBUSY, and is not installed."
    allow = (6).to_bytes(4, sys.byteorder) + (0x7FFF0000).to_bytes(4, sys.byteorder)
    assert install(allow, NEW_LISTENER) == 0
    answers = [errno.errorcode[install(program, NEW_LISTENER)] for program in programs]
    assert set(answers) <= {"EBUSY", "EINVAL"}, answers
    return [answer == "EBUSY" for answer in answers]

assert libc.prctl(38, 1, 0, 0, 0) == 0
request = json.load(sys.stdin)
if "argv" in request:
    assert install(bytes.fromhex(request["program"]), request["flags"]) == 0
    os.execvp(request["argv"][0], request["argv"])
elif "accepted" in request:
    print(json.dumps(accepted([bytes.fromhex(program) for program in request["accepted"]])))
else:
    print(json.dumps([asked(bytes.fromhex(program), nr, a) for program, nr, a in request["asked"]]))
"""


def _ask(request: dict[str, object]) -> object:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _SCRIPT],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def accepted(programs: Sequence[bytes]) -> list[bool]:
    """Whether the kernel takes each of them."""
    answer = _ask({"accepted": [program.hex() for program in programs]})
    assert isinstance(answer, list)
    return answer


def asked(questions: Sequence[tuple[bytes, int, Sequence[int]]]) -> list[int | str]:
    """For each program, syscall number and arguments: the result, minus the errno, or ``"killed"``."""
    answer = _ask({"asked": [(program.hex(), nr, list(arguments)) for program, nr, arguments in questions]})
    assert isinstance(answer, list)
    return answer


def run(filter: Filter, argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """A program under a filter."""
    request = json.dumps({"program": filter.program.hex(), "flags": filter.flags, "argv": list(argv)})
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-I", "-S", "-c", _SCRIPT],
        input=request,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
