"""What the command's options are made of: their types, the decorators that declare them, and the commands that have
them, for click.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from linx_trio import _cli_values as values

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

ORDER = "linx_trio.order"
"""In a context's ``meta``: the names of the parameters given, in the order of the command line, repeated ones too."""


class Command(click.Command):
    """One whose options end at the first word that is none; it remembers in which order they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        taken = args[: args.index("--")] if "--" in args else args
        for word in ("-it", "-ti"):
            if word in taken and any("-i" in param.opts for param in self.params):
                raise click.UsageError(
                    f"{word} is docker's; here -i is the ipc namespace, as with unshare(1). "
                    "Write -t: standard input is passed on anyway",
                    ctx,
                )
        try:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError as exc:
            exc.ctx = exc.ctx or ctx  # click's parser does not always say
            raise
        ctx.meta[ORDER] = [param.name for param in order]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In sections: they are many."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(SECTIONS.get(param, "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType


class TargetFirst(Command):
    """One whose first argument may also stand before the options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-"):
            target, *others = args
            found, _, _ = self.make_parser(ctx).parse_args([*others])
            argv = found.get("argv")
            first = [found["target"]] if isinstance(found.get("target"), str) else []  # click has a mark for none
            place = len(others) - len([*first, *(argv if isinstance(argv, (tuple, list)) else ())])
            args = [*others[:place], target, *others[place:]]
        return super().parse_args(ctx, args)


class OneOf(click.Choice):  # type: ignore[type-arg]  # generic only in newer ones
    """What is none of them gets the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is none of them{values.nearest(str(value), map(str, self.choices))}", param, ctx)


class Value(ParamType):
    """What one of the pure functions makes of a word."""

    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


PATH = click.Path()
NUMBER = Value("number", values.number)
SECONDS = Value("seconds", values.seconds)
UID = Value("uid", lambda text: values.account(text, "uid"))
GID = Value("gid", lambda text: values.account(text, "gid"))


SECTIONS: dict[click.Parameter, str] = {}
"""Below which heading the help has an option."""


def together(title: str, *options: Decorator[Any]) -> Decorator[Any]:
    """One decorator of several, which appear in their order, below that heading."""

    def decorate(function: Any) -> Any:
        before = len(getattr(function, "__click_params__", ()))
        for option in reversed(options):
            function = option(function)
        SECTIONS.update((param, title) for param in function.__click_params__[before:])
        return function

    return decorate


def many(*names: str, **more: Any) -> Decorator[Any]:
    """One that can be repeated."""
    return click.option(*names, multiple=True, **more)


def flag(*names: str, help: str, **more: Any) -> Decorator[Any]:
    return click.option(*names, is_flag=True, help=help, **more)


def count_or_max(text: str) -> int | str:
    return "max" if text in ("max", "unlimited", "-1") else values.number(text)


def cpus(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of CPUs, like 0.5") from None


def cpu_numbers(text: str) -> frozenset[int]:
    from linx_trio._limits import cpu_list

    found: set[int] = set()
    for part in str(cpu_list(text, "CPUs")).split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
