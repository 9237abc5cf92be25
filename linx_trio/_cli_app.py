"""The command ``linx``: its subcommands, for click."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

import linx_trio as linx
from linx_trio import _cli_options as options
from linx_trio import _cli_params as params
from linx_trio._cli_errors import EXPECTED, FAILED, Complaint, report, warn
from linx_trio._cli_usage import complaint
from linx_trio._cli_values import nearest
from linx_trio._cli_workload import Plan, enter_plan, run_plan, sandbox_plan

_COMPLETE = "_LINX_COMPLETE"
"""The environment variable by which a shell's completion asks."""

PLANS: dict[str, Callable[..., Plan]] = {"run": run_plan, "sandbox": sandbox_plan, "enter": enter_plan}


class Group(click.Group):
    """A command that is none gets the nearest one that is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"there is no command {name!r}{nearest(name, self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they are defined: what is needed first comes first."""
        return list(self.commands)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(linx.__version__, "-V", "--version", prog_name="linx-trio", message="%(prog)s %(version)s")
def cli() -> None:
    """Linux processes, namespaces and sandboxes; when the command ends, nothing of them is left.

    Exit status: the workload's own; 128+N if signal N killed it; 124 if --timeout ended it; 125 if linx itself failed,
    126 if the program cannot be executed, 127 if there is none.
    """


def _perform(ctx: click.Context, verb: str, given: dict[str, Any]) -> int:
    order = ctx.meta.get(params.ORDER, ())
    plan = PLANS[verb](given, order)
    explaining = ctx.find_root().meta.get("linx_trio.explain")
    if explaining is not None:
        from linx_trio import _cli_explain

        return _cli_explain.explain(plan, **explaining)
    from linx_trio import _cli_session

    _cli_session.check_terminal(plan.tty)
    return _cli_session.perform(plan)


@cli.command(
    "run",
    short_help="Run a program, with what is its own where asked for.",
    cls=params.Command,
    context_settings=options.SETTINGS,
)
@options.NAMESPACES
@options.NAMES
@options.CLOCKS
@options.ROOT
@options.MOUNTS
@options.PROCESS
@options.PRIVILEGES
@options.LIMITS
@options.RUNNING
@options.ARGV
@click.pass_context
def run_command(ctx: click.Context, /, **given: Any) -> int:
    """Run a program, with namespaces, a file system, privileges and limits of its own where asked for.

    Without options it is just run, and what it leaves behind is killed with it.
    """
    return _perform(ctx, "run", given)


@cli.command(
    "sandbox", short_help="Run a program that nobody has read.", cls=params.Command, context_settings=options.SETTINGS
)
@params.many("--ro", type=click.Path(), metavar="PATH", help="Something else of the host to be seen.")
@params.many("--rw", type=click.Path(), metavar="PATH", help="Something of the host to be written to.")
@params.flag("--share-net", "--network", "share_net", help="In the host's network; else it has none.")
@options.NAMES
@options.CLOCKS
@options.MOUNTS
@options.PROCESS
@options.PRIVILEGES
@options.LIMITS
@options.RUNNING
@options.ARGV
@click.pass_context
def sandbox_command(ctx: click.Context, /, **given: Any) -> int:
    """Run a program that nobody has read.

    It sees the host's /usr, read-only, and a /tmp, /dev and /proc of its own; it has no network, no capabilities, and
    none of the caller's environment. For root and for anybody else.
    """
    return _perform(ctx, "sandbox", given)


@cli.command(
    "enter",
    short_help="Run a program where a running process is.",
    cls=params.TargetFirst,
    context_settings=options.SETTINGS,
)
@options.JOINED
@options.NAMES
@options.ROOT
@options.MOUNTS
@options.PROCESS
@options.PRIVILEGES
@options.LIMITS
@options.RUNNING
@click.argument("target", metavar="PID")
@options.ARGV
@click.pass_context
def enter_command(ctx: click.Context, /, **given: Any) -> int:
    """Run a program inside the namespaces, and the cgroup, of the running process PID (or /proc/PID)."""
    if given["argv"][:1] == ("--",):
        given["argv"] = given["argv"][1:]
    return _perform(ctx, "enter", given)


@cli.command(
    "explain", short_help="Say what one of these would do, without doing it.", context_settings=options.SETTINGS
)
@params.flag("--check", help="Also try it, up to the program's first instruction, which is never reached.")
@params.flag("--json", "as_json", help="As JSON.")
@click.argument("verb", metavar="run|sandbox|enter")
@click.argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]… [--] CMD [ARG]…")
@click.pass_context
def explain_command(ctx: click.Context, check: bool, as_json: bool, verb: str, rest: tuple[str, ...]) -> int:
    """Say what a run, sandbox or enter would do, step by step, without running it."""
    if verb not in PLANS:
        raise click.UsageError(f"{verb!r} cannot be explained{nearest(verb, PLANS)}", ctx)
    ctx.find_root().meta["linx_trio.explain"] = {"check": check, "as_json": as_json}
    command = cli.commands[verb]
    with command.make_context(verb, list(rest), parent=ctx) as inner:
        return int(command.invoke(inner))


@cli.command("ps", short_help="List the sessions that live on this machine.")
@params.flag("--json", "as_json", help="As JSON.")
def ps_command(as_json: bool) -> int:
    """List the sessions that live on this machine, whoever started them."""
    from linx_trio import _cli_ps

    return _cli_ps.show(as_json=as_json)


@cli.command("doctor", short_help="Try what works here; say why the rest does not.")
@params.flag("--json", "as_json", help="As JSON.")
@click.argument("features", nargs=-1, metavar="[FEATURE]…")
def doctor_command(as_json: bool, features: tuple[str, ...]) -> int:
    """Try what works here; say why the rest does not, and what to do about it.

    With FEATUREs the exit status is 1 unless all of them work.
    """
    from linx_trio import _cli_show

    with _cli_show.waiting("trying what works here, each feature in a throw-away child"):
        probe = linx.probe(*features)
    if as_json:
        click.echo(json.dumps(probe.to_dict(), indent=2))
    else:
        _cli_show.probe(probe)
    return 1 if features and probe.failed else 0


@cli.command("supervise", short_help="Keep programs running.")
@params.flag("--check", help="Only read the file, and list its children.")
@params.flag("--json", "as_json", help="What happens, as lines of JSON on stderr; with --check, the list on stdout.")
@click.argument("file", type=click.Path())
def supervise_command(check: bool, as_json: bool, file: str) -> int:
    """Keep the programs of a TOML file running, until a signal says otherwise.

    Exit status: 0 once all have ended for good, or were stopped by a signal; 1 if one had to be started too often.
    """
    from linx_trio import _cli_supervise

    return _cli_supervise.supervise(file, check=check, as_json=as_json)


@cli.command("completion", short_help="Print what makes a shell complete all this.")
@click.argument("shell", type=params.OneOf(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
def completion_command(shell: str) -> int:
    """Print what makes a shell complete the words of this command.

    For bash: eval "$(linx completion bash)" in ~/.bashrc; for zsh the same with zsh in ~/.zshrc; for fish:
    linx completion fish > ~/.config/fish/completions/linx.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "linx", _COMPLETE).source())
    return 0


# ---- running it ------------------------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """The exit status."""
    try:
        if instruction := os.environ.get(_COMPLETE):
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, "linx", _COMPLETE, instruction)
        if not arguments:
            warn(cli.get_help(click.Context(cli, info_name="linx")))
            return FAILED
        # Not cli.main(), which has statuses of its own.
        with cli.make_context("linx", list(arguments)) as ctx:
            return int(cli.invoke(ctx) or 0)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        return report(complaint(exc, arguments))
    except click.Abort:
        return 128 + 2
    except EXPECTED as exc:
        if isinstance(exc, BrokenPipeError) or os.environ.get("LINX_DEBUG"):
            raise
        return report(exc)
    except Exception as exc:
        if os.environ.get("LINX_DEBUG"):
            raise
        return report(Complaint(f"{type(exc).__name__}: {exc}", "this is a defect; LINX_DEBUG=1 shows where"))
