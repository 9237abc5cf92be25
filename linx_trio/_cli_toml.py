"""The file of ``linx supervise``: TOML, as a list of `ChildSpec` and the options of `linx.supervise`.

At the top level are ``strategy``, ``max_restarts``, ``max_seconds`` and ``backoff``; each ``[[child]]`` has the fields
of `ChildSpec` and those of `Workload`, in the form of `Workload.to_dict`. Everything wrong is a `Complaint` with the
file's name and the line.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import linx_trio as linx
from linx_trio._cli_errors import Complaint
from linx_trio._cli_fields import filter_of, sandboxed
from linx_trio._cli_values import nearest

TOP = {"strategy", "max_restarts", "max_seconds", "backoff", "child"}
SPEC = {"id", "restart", "shutdown", "ready", "start_timeout"}
NOT_HERE = {"auto_proceed", "owner", "pass_fds", "shutdown"}
WORKLOAD = {field.name for field in dataclasses.fields(linx.Workload)} - NOT_HERE
SANDBOX = {"sandbox", "readonly", "writable", "network"}
READY = {"tcp", "line", "path"}
BACKOFF = {field.name for field in dataclasses.fields(linx.Backoff)}


@dataclass(frozen=True)
class Supervision:
    """What the file says."""

    children: list[linx.ChildSpec]
    options: dict[str, Any]


def read(path: str) -> Supervision:
    try:
        text = Path(path).read_bytes().decode()
    except OSError as exc:
        raise Complaint(f"{path}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise Complaint(f"{path}: it is not UTF-8, which TOML is ({exc.reason} at byte {exc.start})") from None
    return parse(text, path)


def parse(text: str, path: str) -> Supervision:
    """What `text` says; `path` is its name in errors."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        found = re.search(r" \(at line (\d+), column (\d+)\)$", str(exc))
        where = f":{found[1]}:{found[2]}" if found else f":{text.count(chr(10)) + 1}"
        raise Complaint(f"{path}{where}: {str(exc).split(' (at ')[0]}") from None
    file = _File(text, path)
    file.known(plain, TOP, None)
    children = plain.pop("child", None)
    if not isinstance(children, list) or not children or not all(isinstance(each, dict) for each in children):
        raise Complaint(f"{path}: there are no children", "each one is a [[child]] with an id and an argv")
    options = dict(plain)
    if isinstance(options.get("backoff"), dict):
        file.known(options["backoff"], BACKOFF, None)
        options["backoff"] = file.made(None, "backoff", lambda: linx.Backoff(**options["backoff"]))
    return Supervision([_child(file, number, each) for number, each in enumerate(children)], options)


class _File:
    """For saying where something is: tomllib does not tell, so it is looked for."""

    def __init__(self, text: str, path: str) -> None:
        self._lines = text.splitlines()
        self._path = path

    def place(self, child: int | None, key: str | None = None, value: str | None = None) -> str:
        """The file's name, and the line of a key, or of a value; or of the child's header."""
        headers = [i for i, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*child\s*\]\]", line)]
        first, last = 0, headers[0] if headers else len(self._lines)
        if child is not None and child < len(headers):
            first = headers[child]
            last = headers[child + 1] if child + 1 < len(headers) else len(self._lines)
        if key is not None:
            word = re.compile(rf"""(^|[\s{{,.\[])["']?{re.escape(key)}["']?\s*(=|\.|\])""")
            for i in range(first, last):
                if word.search(self._lines[i].split("#")[0]):
                    return f"{self._path}:{i + 1}"
        for i in range(first, last):
            if value and re.search(rf"""["']{re.escape(value)}["']""", self._lines[i]):
                return f"{self._path}:{i + 1}"
        return f"{self._path}:{first + 1}" if child is not None and child < len(headers) else self._path

    def known(self, plain: Mapping[str, Any], fields: set[str], child: int | None) -> None:
        for key in plain:
            if child is not None and key in TOP and key not in fields:
                raise Complaint(f"{self.place(child, key)}: {key!r} belongs to the top of the file, before [[child]]")
            if key not in fields:
                raise Complaint(f"{self.place(child, key)}: unknown field {key!r}{nearest(key, fields)}")

    def made(self, child: int | None, key: str | None, make: Any) -> Any:
        """What `make` returns, its complaints with the place."""
        try:
            return make()
        except (TypeError, ValueError, re.error) as exc:
            word = key or re.split(r"[\s=\[:]", str(exc))[0]
            value = re.search(r"'([^']+)'", str(exc))
            raise Complaint(f"{self.place(child, word, value and value[1])}: {exc}") from None
        except Complaint as exc:
            raise Complaint(f"{self.place(child, key)}: {exc}", exc.hint) from None


def _child(file: _File, number: int, plain: dict[str, Any]) -> linx.ChildSpec:
    file.known(plain, SPEC | WORKLOAD | SANDBOX, number)
    for key in ("id", "argv"):
        if key not in plain:
            raise Complaint(f"{file.place(number)}: the child has no {key}")
    spec = {key: value for key, value in plain.items() if key in SPEC}
    fields = {key: value for key, value in plain.items() if key in WORKLOAD}
    if "ready" in spec:
        spec["ready"] = file.made(number, "ready", lambda: _ready(file, number, spec["ready"], fields))
    workload = file.made(number, None, lambda: _workload(fields, plain))
    made: linx.ChildSpec = file.made(number, None, lambda: linx.ChildSpec(workload, **spec))
    return made


def _workload(fields: dict[str, Any], plain: dict[str, Any]) -> linx.Workload:
    if isinstance(fields.get("seccomp"), str):
        made = filter_of(fields["seccomp"], ())
        fields = {**fields, "seccomp": made.to_dict()}
    if fields.get("user") == "root":
        fields = {**fields, "user": linx.user.root_map().to_dict()}
    sandbox = plain.get("sandbox", False)
    if not isinstance(sandbox, bool):
        raise TypeError(f"sandbox must be true or false, not {sandbox!r}")
    more = {key: plain[key] for key in SANDBOX - {"sandbox"} if key in plain}
    if not sandbox:
        if more:
            raise ValueError(f"{min(more)} belongs to a sandbox: add sandbox = true")
        return linx.Workload.from_dict(fields)
    decided = {"namespaces", "user", "root"} & fields.keys()
    if decided:
        raise ValueError(f"{min(decided)} is what a sandbox decides itself")
    # With all namespaces, so that what belongs into one can be checked; then the sandbox has its own.
    checked = linx.Workload.from_dict({**fields, "namespaces": [kind.value for kind in linx.Namespace]})
    given: dict[str, Any] = {key: getattr(checked, key) for key in fields if key != "argv"}
    return sandboxed(checked.arguments, {**more, **given})


def _ready(file: _File, number: int, plain: Any, fields: dict[str, Any]) -> Any:
    if not isinstance(plain, dict) or len(plain) != 1:
        raise TypeError("ready must be one of { tcp = 8080 }, { line = 'pattern' } and { path = '/run/x' }")
    file.known(plain, READY, number)
    ((kind, value),) = plain.items()
    if kind == "path":
        return linx.ready.path(value)
    if kind == "line":
        fields.setdefault("stdout", "pipe")
        return linx.ready.line(value, to=_write)
    if isinstance(value, str) and value.rpartition(":")[2].isdecimal():
        host, _, port = value.rpartition(":")
        return linx.ready.tcp(host.strip("[]") or "127.0.0.1", int(port))
    return linx.ready.tcp(value)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
