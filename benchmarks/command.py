"""The command line that the benchmarks share, and what they do with it: run tables, print them, write them as JSON.

A benchmark adds its own options to `parser`, makes its tables from them, and hands both to `run`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import trio

from benchmarks.harness import Table, as_json, measure, render
from benchmarks.machine import describe, stolen_seconds

QUICK_ROUNDS = 7

Report = list[dict[str, object]]
"""Tables as JSON."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the shared options say; `settle` in seconds, `parts` the numbers of the tables."""

    rounds: int
    settle: float
    seed: int
    quick: bool
    only: tuple[str, ...]
    parts: frozenset[int]
    json: Path | None

    def chosen(self, table: Table) -> Table:
        """`table` with the contenders that --only names, and with the smaller batches of --quick."""
        kept = tuple(c for c in table.contenders if any(fnmatchcase(c.name, glob) for glob in self.only))
        return replace(table, contenders=kept, sessions=max(table.sessions // (3 if self.quick else 1), 1))


def parser(prog: str, description: str, *, rounds: int, tables: int) -> argparse.ArgumentParser:
    """The shared options; `rounds` is the default, `tables` how many there are."""
    made = argparse.ArgumentParser(prog=prog, description=description)
    add = made.add_argument
    add("--rounds", type=int, metavar="N", help=f"rounds per table (default: {rounds}; quick: {QUICK_ROUNDS})")
    add("--quick", action="store_true", help="few rounds of small batches")
    add("--json", type=Path, metavar="FILE", help="write every sample there too")
    add("--only", default="*", metavar="NAMES", help="contenders, by comma, with * and ?: 'trio.*,raw-c'")
    parts = range(1, tables + 1)
    add("--part", type=int, action="append", choices=parts, help="only this table (may be repeated)")
    add("--settle", type=float, default=5.0, metavar="MS", help="pause before each batch (default: 5)")
    add("--seed", type=int, default=1, help="of the order inside the rounds (default: 1)")
    made.set_defaults(default_rounds=rounds, all_parts=parts)
    return made


def plan(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Plan:
    """The shared part of what was parsed. Leaves through `parser.error` if it makes no sense."""
    rounds = (QUICK_ROUNDS if args.quick else args.default_rounds) if args.rounds is None else args.rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, not {rounds}")
    if args.settle < 0:
        parser.error(f"--settle must not be negative, not {args.settle:g}")
    return Plan(
        rounds=rounds,
        settle=args.settle / 1e3,
        seed=args.seed,
        quick=args.quick,
        only=tuple(name.strip() for name in args.only.split(",")),
        parts=frozenset(args.part or args.all_parts),
        json=args.json,
    )


def refuse_unknown_names(parser: argparse.ArgumentParser, plan: Plan, tables: Iterable[Table]) -> None:
    """Leaves through `parser.error` if --only names nobody who is in `tables`."""
    known = {contender.name for table in tables for contender in table.contenders}
    for glob in plan.only:
        if not any(fnmatchcase(name, glob) for name in known):
            parser.error(f"--only {glob}: no such contender; there are {', '.join(sorted(known))}")


async def run_table(plan: Plan, table: Table) -> tuple[Report, bool]:
    """Run what --only leaves of `table` and print it; it as JSON, and whether all of it ran."""
    table = plan.chosen(table)
    if not table.contenders:
        return [], True
    result = await measure(table, rounds=plan.rounds, settle=plan.settle, seed=plan.seed)
    print(render(result) + "\n", flush=True)
    return [dict(as_json(result))], result.ok


def run(plan: Plan, benchmark: Callable[[], Awaitable[tuple[Report, bool]]], *distributions: str) -> int:
    """Say where this runs (with the versions of `distributions`), run `benchmark`, and return the exit status."""
    facts = describe(*distributions)
    for key, value in facts.items():
        print(f"{key:>10}  {value}")
    print(flush=True)
    stolen = stolen_seconds()
    tables, ok = trio.run(benchmark)
    stolen = stolen_seconds() - stolen
    print(f"cpu time stolen by the hypervisor meanwhile: {stolen:.1f} s; load now: {os.getloadavg()[0]:.2f}")
    if plan.json is not None:
        report = {"machine": facts, "seed": plan.seed, "stolen_seconds": stolen, "tables": tables}
        plan.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if not ok:
        print("something did not run: see above", file=sys.stderr)
    return 0 if ok else 1
