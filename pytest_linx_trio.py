"""The pytest plugin as pytest sees it: options, hooks and fixtures, and nothing else. See docs/testing.md.

pytest imports this in every run of an environment that has linx-trio, also where no test has to do with it. So it lies
beside the package, whose import would bring trio along, and imports what does the work when that is first asked for:
`linx_trio.pytest_plugin`, where also the types are.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from linx_trio.pytest_plugin import Lab, Netns, Requirements, Sandboxes, Services, Workloads

_MARKER = "linx"
_MARKER_HELP = (
    "linx(requires=(), leaks=None): `requires` names features of linx_trio.probe(); where one of them does not work, "
    "the test is skipped with the reason. `leaks` switches the check for leaks on or off for this test."
)
_LEAKS = ("off", "linx", "all")
_failed = pytest.StashKey[bool]()
_requirements: pytest.StashKey[Requirements] = pytest.StashKey()


# ---- options -------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("linx", "linx-trio")
    group.addoption(
        "--linx-must-work",
        action="store_true",
        help="a test whose `linx` mark requires what does not work here fails, instead of being skipped",
    )
    leaks = "which tests fail if they leave processes, fds, network links or cgroups behind: "
    choices = "'linx' (those with a fixture or the mark of this plugin), 'all', or 'off'"
    group.addoption("--linx-leaks", choices=_LEAKS, default=None, help=leaks + choices)
    parser.addini("linx_leaks", leaks + choices, default="linx")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER_HELP)
    if config.getini("linx_leaks") not in _LEAKS:
        raise pytest.UsageError(f"linx_leaks must be one of {', '.join(_LEAKS)}, not {config.getini('linx_leaks')!r}")


# ---- what tests require --------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    required = _required(item)
    if not required:
        return
    if _requirements not in item.config.stash:
        from linx_trio.pytest_plugin import Requirements

        all_of_them = [name for other in item.session.items for name in _names_of(other)]
        item.config.stash[_requirements] = Requirements(all_of_them)
    reason = item.config.stash[_requirements].reason_against(required)
    if reason is not None and item.config.getoption("--linx-must-work"):
        pytest.fail(f"{reason}\n(a test that requires it fails because of --linx-must-work)", pytrace=False)
    if reason is not None:
        pytest.skip(reason)


def _required(item: pytest.Item) -> list[str]:
    """What the item's marks name. A mark with anything else in it is an error of the test."""
    for mark in item.iter_markers(_MARKER):
        unknown = sorted(mark.kwargs.keys() - {"requires", "leaks"})
        requires = mark.kwargs.get("requires", ())
        if mark.args or unknown:
            what = f"not {unknown[0]!r}" if unknown else f"by keyword: {mark.args!r}"
            pytest.fail(f"pytest.mark.linx takes requires= and leaks=, {what}", pytrace=False)
        if isinstance(requires, str) or not _is_names(requires):
            pytest.fail(f"pytest.mark.linx(requires={requires!r}) must be a set of names", pytrace=False)
        if mark.kwargs.get("leaks") not in (None, True, False):
            pytest.fail(f"pytest.mark.linx(leaks={mark.kwargs['leaks']!r}) must be True or False", pytrace=False)
    return _names_of(item)


def _is_names(value: Any) -> bool:
    return isinstance(value, (set, frozenset, list, tuple)) and all(isinstance(name, str) for name in value)


def _names_of(item: pytest.Item) -> list[str]:
    found = [mark.kwargs.get("requires", ()) for mark in item.iter_markers(_MARKER)]
    return [name for names in found if not isinstance(names, str) and _is_names(names) for name in sorted(names)]


# ---- what tests leave behind ---------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def _linx_nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if not _is_watched(request):
        yield
        return
    from linx_trio._pytest_leaks import Watch

    watch = Watch(alone="PYTEST_XDIST_WORKER" not in os.environ)
    yield
    left = watch.leaks(with_fds=not request.node.stash.get(_failed, False))
    if left:
        pytest.fail("\n  ".join(["the test has left behind:", *left]), pytrace=False)


def _is_watched(request: pytest.FixtureRequest) -> bool:
    marks = list(request.node.iter_markers(_MARKER))
    for mark in marks:  # the closest one first
        if mark.kwargs.get("leaks") is not None:
            return bool(mark.kwargs["leaks"])
    which = request.config.getoption("--linx-leaks") or request.config.getini("linx_leaks")
    return which == "all" or (which == "linx" and (bool(marks) or _uses_ours(request)))


def _uses_ours(request: pytest.FixtureRequest) -> bool:
    info = getattr(request.node, "_fixtureinfo", None)
    found = () if info is None else info.name2fixturedefs.values()
    return any(
        definition.func.__module__ == __name__ and definition.func.__name__ != _linx_nothing_left.__name__
        for definitions in found
        for definition in definitions[-1:]
    )


# ---- fixtures ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def workload() -> AsyncIterator[Workloads]:
    """Starts workloads that end with the test: ``session = await workload(argv, ready=linx.ready.tcp(8080))``."""
    from linx_trio.pytest_plugin import Workloads, check_trio

    check_trio()
    async with Workloads() as start:
        yield start


@pytest.fixture(scope="module")
def workload_module() -> Iterator[Services]:
    """Starts workloads that end with the module, for tests of any kind: ``service = workload_module(argv)``."""
    from linx_trio.pytest_plugin import Services

    with Services() as start:
        yield start


@pytest.fixture(scope="session")
def workload_session() -> Iterator[Services]:
    """Starts workloads that end with the run, for tests of any kind: ``service = workload_session(argv)``."""
    from linx_trio.pytest_plugin import Services

    with Services() as start:
        yield start


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandboxes]:
    """Starts sandboxes that end with the test: ``session = await sandbox(argv, writable=[tmp_path])``."""
    from linx_trio.pytest_plugin import Sandboxes, check_trio

    check_trio()
    async with Sandboxes() as start:
        yield start


@pytest.fixture
async def netns() -> AsyncIterator[Netns]:
    """A network namespace of the test's own, with ``lo`` up: ``await netns.workload(argv)``, ``netns.net``."""
    from linx_trio.pytest_plugin import Netns, check_trio

    check_trio()
    async with Netns.open() as ours:
        yield ours


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A `linx_trio.net.Lab` of the test's own."""
    from linx_trio.pytest_plugin import Lab, check_trio

    check_trio()
    async with Lab() as ours:
        yield ours
