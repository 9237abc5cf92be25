"""From the parameters of ``linx run``, ``sandbox`` and ``enter`` to a `Workload`, contradictions explained."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import linx_trio as linx
from linx_trio import _cli_fields as fields
from linx_trio import _cli_values as values
from linx_trio._cli_errors import Complaint
from linx_trio._cli_mounts import entries
from linx_trio._cli_options import KINDS, mount_order
from linx_trio._cli_values import nearest

Params = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is to be run, and what the command does meanwhile.

    Attributes:
        verb: ``"run"``, ``"sandbox"`` or ``"enter"``.
        workload: with all but its terminal.
        target, joined, join_cgroup: of `linx.enter`.
        fresh, inside: with a target: the kinds to unshare, and the options that are about these.
        tty: whether it gets a terminal, and the caller's is attached to it.
        timeout: after so many seconds it is ended.
        grace: seconds between the signal that ends it and SIGKILL.
        json_fd: where its end is told as JSON.
    """

    verb: str
    workload: linx.Workload
    target: str | int | None = None
    joined: frozenset[str] | None = None
    join_cgroup: bool = True
    fresh: Set[str] = frozenset()
    inside: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tty: bool = False
    timeout: float | None = None
    grace: float = 5.0
    json_fd: int | None = None

    def open(self, workload: linx.Workload) -> AbstractAsyncContextManager[linx.Session]:
        """Its session, with that workload."""
        if self.target is None:
            return linx.spawn(workload)
        joining: dict[str, Any] = {"namespaces": self.joined, "join_cgroup": self.join_cgroup}
        return linx.enter(self.target, workload, **joining, unshare=self.fresh, **self.inside)


def run_plan(p: Params, order: Sequence[str | None]) -> Plan:
    """Of ``linx run``."""
    kinds = _kinds(p)
    options = {**fields.process(p), **fields.limits(p), **fields.privileges(p), **_names(p)}
    user = _user(p, kinds)
    rootless = user is not None or "user" in kinds or os.geteuid() != 0
    mounts = _own_mounts(p, order, kinds, rootless=rootless)
    _check_names(p, kinds | ({"time"} if options.get("time_offsets") else set()), rootless=rootless)
    options |= {"namespaces": kinds, "user": user, "root": _root(p), "mounts": mounts}
    return _plan("run", p, linx.Workload(p["argv"], **options))


def sandbox_plan(p: Params, order: Sequence[str | None]) -> Plan:
    """Of ``linx sandbox``."""
    options = {**fields.process(p, own_env=False), **fields.limits(p), **fields.privileges(p), **_names(p)}
    readonly = dict.fromkeys(map(fields.absolute, p["rw"]), False)
    for path in map(fields.absolute, p["ro"]):
        if path in readonly:
            raise Complaint(f"--ro and --rw contradict each other: {path}")
        readonly[path] = True
    # In the order of paths: what is below another one is not hidden by it, whichever of them can be written to.
    shown = [linx.mount.Bind(path, readonly=readonly[path], nosuid=True, nodev=True) for path in sorted(readonly)]
    mounts = [*shown, *_mounts(p, order, rootless=True)]
    options.pop("init", None)  # it has one anyway
    workload = fields.sandboxed(p["argv"], {"network": p["share_net"], "mounts": mounts, **options})
    more = fields.env(p, dict(os.environ), workload.env)
    return _plan("sandbox", p, workload if more is None else workload.replace(env=more))


def enter_plan(p: Params, order: Sequence[str | None]) -> Plan:
    """Of ``linx enter``."""
    named = frozenset(kind for kind in KINDS.values() if p[f"ns_{kind}"])
    if named and p["ns_all"]:
        raise Complaint(f"--all and --{min(named)} contradict each other: all are joined if none is named")
    if not p["target"].isdecimal() and "/" not in p["target"]:
        raise Complaint(f"{p['target']!r} is no PID", "it is a number, as 'linx ps' has it, or a path like /proc/PID")
    options = {**fields.process(p), **fields.limits(p), **fields.privileges(p)}
    target = int(p["target"]) if p["target"].isdecimal() else p["target"]
    fresh = _unshared(p)
    inside = {"hostname": p["hostname"], "domainname": p["domainname"], "sysctls": dict(p["sysctl"]), "root": _root(p)}
    inside["mounts"] = _own_mounts(p, order, fresh, rootless=True, inside=True)
    inside = {name: value for name, value in inside.items() if value not in (None, {}, [])}
    for name, kind in _INSIDE.items():
        if name in inside and kind not in fresh:
            option = f"--{name}" if p.get(name) else "the file system's options"
            raise Complaint(
                f"{option}: what is entered is not changed", f"for a {kind} namespace inside: --unshare {kind}"
            )
    plan = _plan("enter", p, linx.Workload(p["argv"], **options))
    try:
        plan.workload.replace(namespaces=fresh, **inside)
    except ValueError as exc:
        raise Complaint(re.sub(r"add '(\w+)' to namespaces", r"--unshare \1", str(exc))) from None
    plan = dataclasses.replace(plan, target=target, joined=named or None, join_cgroup=not p["no_cgroup"])
    return dataclasses.replace(plan, fresh=fresh, inside=inside)


_INSIDE = {"hostname": "uts", "domainname": "uts", "root": "mount", "mounts": "mount"}


def _unshared(p: Params) -> set[str]:
    found = set(values.words(p["unshare"]))
    for kind in found - _UNSHARED:
        if kind in KINDS.values():
            raise Complaint(
                f"--unshare {kind}: that cannot be fresh inside of others", "linx run, inside: -- linx run …"
            )
        raise Complaint(f"--unshare: there is no {kind!r}{nearest(kind, _UNSHARED)}")
    return found


_UNSHARED = {"mount", "uts", "ipc", "cgroup", "net"}


def _root(p: Params) -> Any:
    if p["root"] and p["empty_root"]:
        raise Complaint("--root and --empty-root contradict each other: both say what / is")
    return linx.mount.Tmpfs("/") if p["empty_root"] else (p["root"] and fields.absolute(p["root"])) or None


def _plan(verb: str, p: Params, workload: linx.Workload) -> Plan:
    grace = p["stop_timeout"]
    fd = p["json_fd"] if p["json_fd"] is not None else (2 if p["as_json"] else None)
    if fd is not None:
        try:
            os.fstat(fd)
        except (OSError, OverflowError):
            raise Complaint(f"--json-fd {fd}: there is no open fd of that number") from None
    return Plan(
        verb,
        workload.replace(orphan_policy=linx.Kill(grace=grace)),
        tty=p["tty"],
        timeout=p["timeout"] or None,  # 0 is none, as with timeout(1)
        grace=grace,
        json_fd=fd,
    )


# ---- namespaces and ids ----------------------------------------------------------------------------------------------


def _kinds(p: Params) -> set[str]:
    kinds = {kind for kind in KINDS.values() if p[f"ns_{kind}"]}
    if p["unshare_all"]:
        kinds = set(KINDS.values()) - ({"net"} if p["share_net"] else set())
        if p["ns_net"] and p["share_net"]:
            raise Complaint("--net and --share-net contradict each other")
    elif p["share_net"]:
        raise Complaint(
            "--share-net makes an exception from --unshare-all, which is not there",
            "without --net the network is the caller's anyway",
        )
    return kinds


def _user(p: Params, kinds: set[str]) -> linx.user.Maps | None:
    """The id maps. What asks for one, implies a user namespace."""
    flags = {name: p[name] for name in ("map_root_user", "map_current_user", "map_auto") if p[name]}
    lines = {name: p[name] for name in ("map_users", "map_groups") if p[name]}
    single = {name: p[name] for name in ("map_user", "map_group") if p[name] is not None}
    if len(flags) + bool(lines) + bool(single) > 1:
        both = [f"--{name.replace('_', '-')}" for name in (*flags, *lines, *single)]
        raise Complaint(f"{' and '.join(both)} contradict each other: each of them is the whole map")
    uid, gid = os.geteuid(), os.getegid()
    setgroups = p["setgroups"] or "deny"
    if p["map_root_user"]:
        maps = linx.user.Maps(uid=(0, uid, 1), gid=(0, gid, 1), setgroups=setgroups)
    elif p["map_auto"]:
        ranges = linx.user.subids()
        maps = linx.user.Maps(_auto(uid, ranges.uid, "uid"), _auto(gid, ranges.gid, "gid"), p["setgroups"] or "allow")
    elif lines:
        if not p["map_users"] or not p["map_groups"]:
            raise Complaint("--map-users and --map-groups belong together: a user namespace has both maps")
        maps = linx.user.Maps(uid=p["map_users"], gid=p["map_groups"], setgroups=setgroups)
    elif single:
        inside = single.get("map_user", uid), single.get("map_group", gid)
        maps = linx.user.Maps(uid=(inside[0], uid, 1), gid=(inside[1], gid, 1), setgroups=setgroups)
    elif p["map_current_user"] or p["unshare_all"] or ("user" in kinds and {p["uid"], p["gid"]} != {None}):
        inside = (uid if p["uid"] is None else p["uid"], gid if p["gid"] is None else p["gid"])
        if p["map_current_user"]:
            inside = uid, gid
        maps = linx.user.Maps(uid=(inside[0], uid, 1), gid=(inside[1], gid, 1), setgroups=setgroups)
    elif p["setgroups"]:
        raise Complaint("--setgroups belongs to a map: add --map-root-user, --map-users or another one")
    else:
        return None
    return maps


def _auto(own: int, ranges: Sequence[range], kind: str) -> list[tuple[int, int, int]]:
    lines, inside = [(0, own, 1)], 1
    for each in ranges:
        lines.append((inside, each.start, len(each)))
        inside += len(each)
    if len(lines) == 1:
        raise Complaint(
            f"--map-auto: there are no {kind}s granted to this user in /etc/sub{kind}",
            f"usermod --add-sub{kind}s 100000-165535 NAME, as root; or --map-root-user, which needs none",
        )
    return lines


def _names(p: Params) -> dict[str, Any]:
    offsets = dict(p["time_offset"])
    for clock in ("monotonic", "boottime"):
        if p[clock] is not None:
            if clock in offsets:
                raise Complaint(f"--{clock} and --time-offset {clock}=… contradict each other")
            offsets[clock] = p[clock]
    found: dict[str, Any] = {"hostname": p["hostname"], "domainname": p["domainname"], "init": p["init"]}
    found["sysctls"] = dict(p["sysctl"])
    found["time_offsets"] = {clock: _float(value, f"--time-offset {clock}") for clock, value in offsets.items()}
    return {name: value for name, value in found.items() if value not in (None, {}, False)}


def _float(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Complaint(f"{name}: {text!r} is no number of seconds") from None


_NEEDS = {"hostname": ("uts", "-u/--uts"), "domainname": ("uts", "-u/--uts"), "init": ("pid", "-p/--pid")}


def _check_names(p: Params, kinds: set[str], *, rootless: bool) -> None:
    """What the library would refuse too; here it is told in the words of the command line."""
    for name, (kind, option) in _NEEDS.items():
        if p[name] and kind not in kinds:
            raise Complaint(f"--{name} needs a fresh {kind} namespace", f"add {option}")
    if p["fs_mqueue"] and "ipc" not in kinds and rootless:
        raise Complaint("--mqueue needs a fresh ipc namespace", "add -i/--ipc")
    if (p["fs_proc"] or p["fs_mount_proc"]) and "pid" not in kinds and os.geteuid() != 0:
        raise Complaint(
            "--proc needs a fresh pid namespace, unless one is root", "add -p/--pid, or --ro-bind /proc /proc"
        )


# ---- the file system -------------------------------------------------------------------------------------------------


def _mounts(p: Params, order: Sequence[str | None], *, rootless: bool) -> list[linx.mount.Entry]:
    return entries(mount_order(order, p), rootless=rootless)


def _own_mounts(
    p: Params, order: Sequence[str | None], kinds: Set[str], *, rootless: bool, inside: bool = False
) -> list[linx.mount.Entry]:
    """Of ``run``, whose root may be the caller's."""
    found = _mounts(p, order, rootless=rootless)
    if p["propagation"] and not (found or p["root"] or p["empty_root"] or p["read_only"] or "mount" in kinds):
        raise Complaint(
            "--propagation needs a fresh mount namespace", "--unshare mount" if inside else "add -m/--mount"
        )
    if p["propagation"] == "unchanged":
        raise Complaint(
            "--propagation unchanged is not to be had: a fresh mount namespace is private, or as one of the others",
            "with --propagation slave what the host mounts later is seen, and nothing goes back",
        )
    if p["propagation"] in ("slave", "shared"):
        found.insert(0, linx.mount.Propagation("/", p["propagation"]))
    if p["read_only"]:
        found.append(linx.mount.Remount("/", readonly=True))
    return found
