"""Fields of a `Workload` that all ways to start one have, from the parameters of the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import linx_trio as linx
from linx_trio import _cli_values as values
from linx_trio._cli_errors import Complaint
from linx_trio._options import PASS_FDS_LIMIT

Params = dict[str, Any]


def sandboxed(argv: Sequence[Any], options: dict[str, Any]) -> linx.Workload:
    """`linx.sandboxed`, except that settings and limits come in addition to those that a sandbox has by itself."""
    usual = linx.sandboxed(argv)
    more = {
        name: {**getattr(usual, name), **options[name]}
        for name in ("sysctls", "rlimits")
        if options.get(name) is not None
    }
    return linx.sandboxed(argv, **{**options, **more})


def absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise Complaint(
            f"{path}: the working directory is not there any more", "cd to one that is, or write paths from / on"
        ) from None


_LARGEST = 1 << 24


def content(source: str, option: str, *, or_fd: bool = True) -> bytes:
    """What a file has, or the fd of that number."""
    try:
        fd = os.dup(int(source)) if or_fd and source.isdecimal() else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as exc:
        raise Complaint(f"{option} {source}: {exc.strerror}") from None
    if len(data) > _LARGEST:
        raise Complaint(f"{option} {source}: it is larger than 16 MiB", "bind it instead: --ro-bind")
    return data


def env(p: Params, caller: Mapping[str, str], base: Any = None) -> dict[str, str] | None:
    filed = [item for path in p["env_file"] for item in _env_file(path) if item.split("=")[0] not in p["unsetenv"]]
    given = [*filed, *p["env"], *(f"{name}={value}" for name, value in p["setenv"])]
    try:
        made = values.environment(caller, clear=p["clearenv"] or base is not None, given=given, unset=p["unsetenv"])
    except ValueError as exc:
        raise Complaint(f"--env: {exc}") from None
    if base is None or made is None:
        return made
    if p["clearenv"]:
        return made
    return {name: value for name, value in {**base, **made}.items() if name not in p["unsetenv"]}


def _env_file(path: str) -> list[str]:
    try:
        return values.env_file(content(path, "--env-file", or_fd=False).decode())
    except UnicodeDecodeError as exc:
        raise Complaint(f"--env-file {path}: it is not UTF-8 ({exc.reason} at byte {exc.start})") from None
    except ValueError as exc:
        raise Complaint(f"--env-file {path}: {exc}") from None


def _groups(p: Params) -> Sequence[int] | None:
    said = [f"--{name.replace('_', '-')}" for name in _GROUPS if p[name]]
    if len(said) > 1:
        raise Complaint(f"{' and '.join(said)} contradict each other")
    if p["groups"]:
        try:
            return [values.account(word, "gid") for word in values.words(p["groups"])]
        except ValueError as exc:
            raise Complaint(f"--groups: {exc}") from None
    if p["keep_groups"]:
        return os.getgroups()
    if p["init_groups"]:
        import pwd

        uid = os.geteuid() if p["uid"] is None else p["uid"]
        try:
            name = pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            raise Complaint(f"--init-groups: there is no user with the uid {uid} here", "--groups GID,…") from None
        return os.getgrouplist(name, os.getegid() if p["gid"] is None else p["gid"])
    return () if p["clear_groups"] else None


_GROUPS = ("groups", "clear_groups", "keep_groups", "init_groups")


def _kept_fds(p: Params) -> list[int]:
    """Those that whoever started this command has given to it: what it has opened itself is closed on exec."""
    count = p["preserve_fds"] or 0
    if not 0 <= count <= PASS_FDS_LIMIT:
        raise Complaint(f"--preserve-fds {count}: it is a number of fds, at most {PASS_FDS_LIMIT}")
    found = [*range(3, 3 + count)]
    try:
        found += [values.number(word) for word in values.words(p["preserve_fd"])]
    except ValueError as exc:
        raise Complaint(f"--preserve-fd: {exc}") from None
    for fd in found:
        option = f"--preserve-fds {count}" if 3 <= fd < 3 + count else f"--preserve-fd {fd}"
        try:
            is_given = os.get_inheritable(fd)
        except (OSError, OverflowError):
            is_given = False
        if not is_given:
            raise Complaint(f"{option}: there is no open fd {fd}", f"in a shell: linx … {fd}<FILE")
    return sorted({fd for fd in found if fd > 2})


def process(p: Params, *, own_env: bool = True) -> dict[str, Any]:
    found = {
        "cwd": p["chdir"],
        "env": env(p, dict(os.environ)) if own_env else None,
        "uid": p["uid"],
        "gid": p["gid"],
        "groups": _groups(p),
        "umask": p["umask"],
        "nice": p["nice"],
        "oom_score_adj": p["oom_score_adj"],
        "cpu_affinity": p["cpu_affinity"],
        "rlimits": dict(p["rlimit"]) or None,
        "cgroup": p["cgroup_path"],
        "pass_fds": _kept_fds(p) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def limits(p: Params) -> dict[str, Any]:
    found = {
        "memory": p["memory"],
        "memory_high": p["memory_high"],
        "swap": p["swap"],
        "pids": p["pids_limit"],
        "cpu": p["cpus"],
        "cpu_weight": p["cpu_weight"],
        "cpuset": p["cpuset_cpus"],
        "io": _device_limits(p) or None,
    }
    try:
        if p["memory_swap"] is not None:
            if p["swap"] is not None:
                raise ValueError("--swap says the same in another way, and contradicts it")
            found["swap"] = values.swap(p["memory"], p["memory_swap"])
        optional = values.optional(p["optional"])
    except ValueError as exc:
        raise Complaint(f"{'--memory-swap' if p['memory_swap'] is not None else '--optional'}: {exc}") from None
    told = {name: value for name, value in found.items() if value is not None}
    options: dict[str, Any] = {"limits": linx.Limits(**told)} if told else {}
    return {**options, "optional": optional}


def _device_limits(p: Params) -> dict[str, dict[str, int | str]]:
    found: dict[str, dict[str, int | str]] = {}
    for option, key in (("read_bps", "rbps"), ("write_bps", "wbps"), ("read_iops", "riops"), ("write_iops", "wiops")):
        for device, limit in p[f"device_{option}"]:
            found.setdefault(device, {})[key] = int(limit) if limit.isdecimal() else limit
    return found


def privileges(p: Params) -> dict[str, Any]:
    try:
        policy = values.capabilities(p["cap_add"], p["cap_drop"], p["keep_caps"])
    except ValueError as exc:
        raise Complaint(str(exc)) from None
    found: dict[str, Any] = {}
    if policy is not None:
        action, names = policy
        found["capabilities"] = (linx.capabilities.keep if action == "keep" else linx.capabilities.drop)(names)
    if p["seccomp"] is not None:
        kept = policy[1] if policy is not None and policy[0] == "keep" else []
        found["seccomp"] = filter_of(p["seccomp"], kept)
    if p["no_new_privs"]:
        found["no_new_privs"] = True
    return found


def filter_of(source: str, kept: Sequence[str]) -> linx.seccomp.Filter:
    """``default``, or what a file has: JSON begins with a brace, and a BPF program cannot (0x7b is no opcode)."""
    if source == "default":
        return linx.seccomp.default()
    data = content(source, "--seccomp")
    if data.lstrip()[:1] != b"{":
        try:
            return linx.seccomp.from_bpf(data)
        except ValueError as exc:
            raise Complaint(f"--seccomp {source}: it is neither JSON nor a BPF program: {exc}") from None
    if not source.isdecimal():
        return linx.seccomp.from_oci(source, capabilities=kept)
    import json

    try:
        profile = json.loads(data)
    except ValueError as exc:
        raise Complaint(f"--seccomp {source}: it is no JSON: {exc}") from None
    return linx.seccomp.from_oci(profile, capabilities=kept)
