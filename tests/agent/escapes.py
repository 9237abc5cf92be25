"""Attempts to get out of `linx.sandbox`: how they are made, and how the same is answered elsewhere.

An attempt is the body of a small Python program; what it leaves in ``result`` comes back. It runs *inside* of a sandbox
and, so that a test can fail, also where the answer is another one:

- `outside`: as a plain child of the caller;
- `loose`: with all capabilities in fresh namespaces of every kind, so that what succeeds there harms nobody;
- `without_filter`: in the sandbox, less the seccomp filter: there the namespaces and the missing capabilities answer.

The interpreter is the system's, below ``/usr``: the one that runs the tests may lie where a sandbox does not see it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest

import linx_trio as linx
from linx_trio import _seccomp_compile
from linx_trio.mount import Proc

PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or ""

needs_python = pytest.mark.skipif(not PYTHON, reason="the system has no python3 below /usr")

IS_ROOT = os.geteuid() == 0

_PRELUDE = """
import ctypes, errno, fcntl, json, os, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def word(value):
    return ctypes.c_char_p(value) if isinstance(value, (bytes, type(None))) else ctypes.c_long(value)

def call(number, *arguments):
    "A system call: what it returns, or the name of its error."
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *map(word, arguments))
    return errno.errorcode[ctypes.get_errno()] if answer == -1 else answer

def attempt(function, *arguments, **options):
    "What it returns, or the name of its error."
    try:
        return function(*arguments, **options)
    except OSError as exc:
        return errno.errorcode.get(exc.errno, str(exc))

def in_child(function):
    "The same in a forked child, whose end is told as well if it is one by a signal."
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, json.dumps(attempt(function)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(told) if told else status

result = None
"""

_TELL = "\nprint(json.dumps(result))"

NUMBERS = re.compile(r"\bNR_([a-z0-9_]+)")
"""``NR_mount`` in a body is the number of mount(2)."""


def _source(body: str) -> str:
    return _PRELUDE + NUMBERS.sub(lambda found: str(number_of(found[1])), body) + _TELL


def number_of(name: str) -> int:
    """A system call's number here; one that libseccomp does not know has the same number on all machines."""
    found = _seccomp_compile.number_of(name)
    if found is None or found < 0:
        return {"open_tree_attr": 467}[name]
    return found


def _argv(body: str) -> list[str]:
    return [PYTHON, "-I", "-c", _source(body)]


def _answer(stdout: bytes, stderr: bytes, returncode: int) -> Any:
    assert returncode == 0, f"{returncode}: {stderr.decode()}"
    return json.loads(stdout)


def inside(body: str, **options: Any) -> Any:
    """In a sandbox. `options` are those of `linx.sandboxed`."""
    done = linx.run_sync(linx.sandboxed(_argv(body), **options), capture_stdout=True, capture_stderr=True, check=False)
    return _answer(done.stdout, done.stderr, done.returncode)


def without_filter(body: str, **options: Any) -> Any:
    return inside(body, seccomp=None, **options)


def outside(body: str, **options: Any) -> Any:
    """As a plain child of this process; `options` are those of `subprocess.run`."""
    done = subprocess.run(_argv(body), capture_output=True, check=False, **options)
    return _answer(done.stdout, done.stderr, done.returncode)


def loose(body: str) -> Any:
    """As root, with all capabilities, of throw-away namespaces."""
    done = linx.run_sync(
        _argv(body),
        user=linx.user.root_map(),
        namespaces={"pid", "mount", "ipc", "uts", "net", "cgroup"},
        mounts=[Proc()],
        init=True,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return _answer(done.stdout, done.stderr, done.returncode)


def end_inside(body: str, **options: Any) -> linx.Outcome:
    """How the program itself ends."""
    return linx.run_sync(linx.sandboxed(_argv(body), **options), check=False, stderr=linx.DEVNULL).outcome


@functools.cache
def plain_status() -> dict[str, str]:
    """``/proc/self/status`` in the sandbox."""
    text = inside("result = open('/proc/self/status').read()")
    return {key: value.strip() for key, value in (line.split(":", 1) for line in text.splitlines())}
