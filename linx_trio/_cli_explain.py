"""``linx explain``: the plan of a run, in the order in which the child carries it out.

The order is asked of what makes the request for the agent, so it cannot differ from what would be done.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

import trio

import linx_trio as linx
from linx_trio import _cli_show
from linx_trio._caller import Caller
from linx_trio._cli_workload import Plan
from linx_trio._proto.messages import CHECKPOINT
from linx_trio._request import build


def steps_of(workload: linx.Workload, *, tty: bool = False) -> list[dict[str, Any]]:
    """Each option with what it is about, once; ``checkpoint`` is where the child is parked."""
    caller = Caller.now()
    request = build(workload, caller, caller, (0, 1, 2), terminal="/dev/pts/N" if tty else None)
    steps, origins = list(request.message.steps), list(request.origins)
    if request.after_mapping is not None:
        batch, theirs = request.after_mapping
        place = steps.index(CHECKPOINT)
        steps[place:place], origins[place:place] = batch, theirs
    found = []
    for (option, thing), group in itertools.groupby(
        zip(steps, origins, strict=True), key=lambda each: (each[1][0], each[1][1].split("): ")[0])
    ):
        names = [_name(step) for step, _ in group]
        closed = thing + (")" if thing.count("(") > thing.count(")") else "")
        found.append({"option": option or None, "about": closed or None, "steps": list(dict.fromkeys(names))})
    return found


def _name(step: Any) -> str:
    if isinstance(step, str):
        return step
    return str(step[1][0] if step[0] == "optional" else step[0])


def explain(plan: Plan, *, check: bool, as_json: bool) -> int:
    told = plan_to_dict(plan)
    failure: linx.LinxError | None = None
    if check:
        try:
            told["check"] = {"works": True, "degraded": list(trio.run(_park, plan))}
        except linx.LinxError as exc:
            from linx_trio._cli_errors import describe

            failure = exc
            told["check"] = {"works": False, **describe(exc)}
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        _cli_show.write("\n".join(_lines(told)))
    if failure is not None:
        from linx_trio._cli_errors import explain as in_words
        from linx_trio._cli_errors import failure_status, warn

        if not as_json:
            warn(in_words(failure))
        return failure_status(failure)
    return 0


async def _park(plan: Plan) -> tuple[str, ...]:
    """All that comes before the checkpoint; then it is discarded."""
    async with plan.open(plan.workload) as session:
        return session.info().degraded


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """JSON-able."""
    workload = plan.workload.replace(namespaces=plan.fresh, **plan.inside) if plan.fresh else plan.workload
    told: dict[str, Any] = {
        "verb": plan.verb,
        "argv": list(workload.arguments),
        "workload": workload.replace(pass_fds=()).to_dict(),
        "pass_fds": list(workload.pass_fds),
        "namespaces": sorted(workload.namespace_names) if plan.target is None else [],
        "containment": _containment(plan),
        "steps": steps_of(workload, tty=plan.tty),
        "optional": sorted(workload.optional_names),
        "tty": plan.tty,
        "environment": _environment(workload),
        "timeout": plan.timeout,
        "stop_timeout": plan.grace,
    }
    if plan.target is not None:
        joined = "all" if plan.joined is None else sorted(plan.joined)
        told |= {"target": plan.target, "joins": joined, "joins_cgroup": plan.join_cgroup}
        told["unshares"] = sorted(plan.fresh)
    return told


def _containment(plan: Plan) -> str:
    if plan.target is None and "pid" in plan.workload.namespace_names:
        return "pidns"
    return "cgroup" if plan.workload.limits is not None else "subreaper"


def _environment(workload: linx.Workload) -> str | None:
    """Names only: values may be secrets."""
    if workload.env is None:
        return None
    own = {os.fsdecode(name): os.fsdecode(value) for name, value in workload.env.items()}
    changed = sorted(name for name in own if own[name] != os.environ.get(name))
    gone = sorted(name for name in os.environ if name not in own)
    if len(gone) > len(own) - len(changed):
        return f"only {', '.join(sorted(own))}" if own else "empty"
    words = [f"with {', '.join(changed)}"] if changed else []
    words += [f"without {', '.join(gone)}"] if gone else []
    return ", ".join(["the caller's", *words])


_KILLED = {
    "pidns": "with its PID namespace, at one stroke",
    "cgroup": "by its cgroup, at one stroke",
    "subreaper": "found one by one, by their adopted parent",
}


def _lines(told: dict[str, Any]) -> list[str]:
    import shlex

    lines = [f"program:      {_cli_show.printable(shlex.join(told['argv']))}"]
    if "target" in told:
        joins = told["joins"] if told["joins"] == "all" else ", ".join(told["joins"])
        lines.append(
            f"enters:       {told['target']} (namespaces: {joins}; cgroup: {'its' if told['joins_cgroup'] else 'own'})"
        )
        if told["unshares"]:
            lines.append(f"namespaces:   {', '.join(told['unshares'])}, fresh inside of these")
    else:
        lines.append(f"namespaces:   {', '.join(told['namespaces']) or 'none: all are the caller' + chr(39) + 's'}")
    lines.append(f"what is left: killed {_KILLED[told['containment']]}")
    if "limits" in told["workload"]:
        limits = ", ".join(f"{name}={value}" for name, value in told["workload"]["limits"].items())
        lines.append(f"limits:       {limits}, in a cgroup made for it")
    if "cgroup" in told["workload"]:
        lines.append(f"cgroup:       {told['workload']['cgroup']}")
    if told["environment"] is not None:
        lines.append(f"environment:  {_cli_show.printable(told['environment'])}")
    if told["pass_fds"]:
        lines.append(f"fds:          {', '.join(map(str, told['pass_fds']))}")
    if told["tty"]:
        lines.append("terminal:     its own, with yours attached")
    if told["timeout"] is not None:
        lines.append(f"time-out:     {told['timeout']:g} s, then SIGTERM, {told['stop_timeout']:g} s, SIGKILL")
    lines += ["", "steps, in this order:"]
    number = 0
    for step in told["steps"]:
        if step["option"] is None:
            lines.append("   -- checkpoint: the process exists, and has run nothing --")
            continue
        number += 1
        given_up = "  (may be given up)" if step["option"] in told["optional"] else ""
        lines.append(f"{number:4}. {step['option']:<13} {_cli_show.printable(str(step['about']))}{given_up}")
    lines.append(f"{number + 1:4}. {'execve':<13} {_cli_show.printable(told['argv'][0])}")
    if (check := told.get("check")) is not None and check["works"]:
        degraded = f", without {', '.join(check['degraded'])}" if check["degraded"] else ""
        lines += ["", f"tried up to the checkpoint: it works here{degraded}"]
    return lines
