"""What is wrong with a command line, in this command's form: click finds it, and says it in its own.

In place of what there is not, the nearest thing that there is; or, for what users of others are used to, what does the
same here.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from linx_trio._cli_elsewhere import ELSEWHERE
from linx_trio._cli_errors import Complaint
from linx_trio._cli_options import KINDS
from linx_trio._cli_values import nearest

RUNNING = ("run", "sandbox", "enter")
"""The commands that run a program."""

_HINTS = {
    "--cgroup": "--cgroup is the namespace, as with unshare(1); the group to be born into is --cgroup-path",
    "--user": "--user is the namespace, as with unshare(1); the user to be is --uid",
    "--kill-child": "it is killed with linx in any case; before that it gets SIGTERM, and --stop-timeout to end",
    "--fork": "nothing is needed: it is a child of its own in any case",
    "--mount": "--mount is the namespace, as with unshare(1); for a mount: --bind, --ro-bind, --tmpfs, …",
}

_SPACES = {f"--{kind}" for kind in KINDS.values()}


def complaint(exc: click.ClickException, arguments: Sequence[str]) -> Complaint:
    """What click has to say of a command line, in this command's form."""
    message = exc.format_message()
    ctx = getattr(exc, "ctx", None)
    hint = None
    if isinstance(exc, click.NoSuchOption):
        message, hint = _no_such_option(exc.option_name, ctx, arguments)
    elif isinstance(exc, click.BadOptionUsage):
        message, hint = _bad_usage(exc.option_name, message, ctx)
    elif isinstance(exc, click.MissingParameter) and exc.param is not None:
        message, hint = f"{_label(exc.param)} is missing", None
        if exc.param.name == "argv":
            usage = "enter PID" if ctx and ctx.command.name == "enter" else ctx.command.name if ctx else "run"
            message, hint = "there is no program to run", f"linx {usage} [OPTION]… -- CMD [ARG]…"
    elif isinstance(exc, click.BadParameter) and exc.param is not None:
        message = f"{_label(exc.param)}: {exc.message}"
    if hint is None and isinstance(exc, click.UsageError) and ctx is not None:
        hint = "linx --help" if ctx.parent is None else f"linx {ctx.command.name} --help"
    return Complaint(message, hint)


def _label(param: click.Parameter) -> str:
    """The name of an option, its first long one; what stands for an argument."""
    if isinstance(param, click.Option):
        return next((name for name in param.opts if name.startswith("--")), param.opts[0])
    return str(param.metavar or param.name).strip("{}")


def _no_such_option(name: str, ctx: click.Context | None, arguments: Sequence[str]) -> tuple[str, str | None]:
    message = f"there is no option {name}"
    hint = _elsewhere(name, ctx, arguments)
    if hint is not None or ctx is None:
        return message, hint
    longer = message + nearest(name, [name for param in ctx.command.params for name in param.opts])
    return (longer if len(longer) <= 200 else message), None


def _bad_usage(name: str, message: str, ctx: click.Context | None) -> tuple[str, str | None]:
    """A value too few, or one too many."""
    if "does not take a value" in message:
        hint = _HINTS.get(name)
        if hint is None and f"--{name.removeprefix('--unshare-').lstrip('-')}" in _SPACES:
            hint = "without it, it is the caller's; to join one that exists: linx enter PID -- CMD"
        return f"{name} does not take a value", hint
    param = next((param for param in ctx.command.params if name in param.opts), None) if ctx is not None else None
    return (message if param is None or not param.metavar else f"{name} takes {param.metavar}"), None


def _elsewhere(name: str, ctx: click.Context | None, arguments: Sequence[str]) -> str | None:
    """What to do in place of an option that another program has, or another one of these commands."""
    group = ctx.find_root().command if ctx is not None else None
    if ctx is None or not isinstance(group, click.Group):
        return None
    having = [verb for verb, command in group.commands.items() if any(name in param.opts for param in command.params)]
    if ctx.command is group:
        verb = next((word for word in arguments if word in having), having[0]) if having else None
        return None if verb is None else f"it stands behind the command: linx {verb} {name}"
    if ctx.command.name not in RUNNING:
        return None
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    having = [verb for verb in having if verb in RUNNING]
    return f"{name} is an option of: {', '.join(f'linx {verb}' for verb in having)}" if having else None
