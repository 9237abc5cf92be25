"""From the words of a command line to values: anything at all is a value or a `ValueError` that says what is right."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import linx_trio as linx
from linx_trio import _causes, _cli_errors, _cli_mounts, _cli_ps, _cli_toml, _hints
from linx_trio import _cli_values as values
from linx_trio._cli_options import mount_order
from linx_trio._options import RLIMITS

NAMES = st.text("abcXYZ_09", min_size=1, max_size=5)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@pytest.mark.parametrize(
    "convert",
    [
        *(values.number, values.octal, values.seconds, values.pair, values.rlimit, values.id_map),
        *(values.tmpfs_size, values.volume, values.env_file, values.device_limit),
    ],
    ids=lambda convert: str(convert.__name__),
)
@given(text=st.text(max_size=12) | st.from_regex(r"[\d:,.=a-z-]{0,12}"))
def test_any_text_is_a_value_or_a_value_error(convert: object, text: str) -> None:
    assert callable(convert)
    with contextlib.suppress(ValueError):
        convert(text)


@given(st.integers(), st.sampled_from([str, hex, oct, bin]))
def test_numbers(number: int, form: object) -> None:
    assert callable(form)
    if number >= 0 or form is str:
        assert values.number(form(number)) == number


@given(st.floats(0, 1000, allow_subnormal=False).map(lambda x: round(x, 3)), st.sampled_from(list("smhd")))
def test_durations(amount: float, unit: str) -> None:
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    text = f"{amount:.3f}"
    if amount * factor > 4e6:
        with pytest.raises(ValueError, match="at most"):
            values.seconds(text + unit)
    else:
        assert math.isclose(values.seconds(text + unit), amount * factor, abs_tol=1e-9)
    assert math.isclose(values.seconds(text), amount, abs_tol=1e-9)


@given(st.sampled_from(sorted(RLIMITS)), st.integers(-1, 2**63), st.none() | st.integers(-1, 2**63))
def test_rlimits(name: str, soft: int, hard: int | None) -> None:
    def shown(limit: int) -> str:
        return "unlimited" if limit == -1 else str(limit)

    text = f"{name.upper()}={shown(soft)}" + ("" if hard is None else f":{shown(hard)}")
    assert values.rlimit(text) == (name, (soft, soft if hard is None else hard))


@given(st.dictionaries(NAMES, VALUES), st.booleans(), st.lists(st.tuples(NAMES, st.none() | VALUES)), st.lists(NAMES))
def test_environments(
    caller: dict[str, str], clear: bool, given: list[tuple[str, str | None]], unset: list[str]
) -> None:
    words = [name if value is None else f"{name}={value}" for name, value in given]
    if {name for name, _ in given} & set(unset):
        with pytest.raises(ValueError, match="also in --unsetenv"):
            values.environment(caller, clear=clear, given=words, unset=unset)
        return
    made = values.environment(caller, clear=clear, given=words, unset=unset)
    if not clear and not given and not unset:
        assert made is None
        return
    expected = {} if clear else {name: value for name, value in caller.items() if name not in unset}
    for name, value in given:
        if value is not None or name in caller:
            expected[name] = caller[name] if value is None else value
    assert made == expected


LINES = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(NAMES, st.none() | LINES)), st.sampled_from(["\n", "\r\n"]), st.lists(LINES, max_size=3))
def test_files_of_variables(items: list[tuple[str, str | None]], end: str, comments: list[str]) -> None:
    words = [name if value is None else f"{name}={value}" for name, value in items]
    assert values.env_file(end.join([*words, *(f" # {text}" for text in comments), ""])) == words


CAPS = st.lists(st.sampled_from(["kill", "net_raw", "CAP_CHOWN", "ALL"]), max_size=3)


@given(CAPS, CAPS, CAPS)
def test_capabilities(added: list[str], dropped: list[str], kept: list[str]) -> None:
    try:
        found = values.capabilities(added, dropped, kept)
    except ValueError:
        assert (kept and (added or dropped)) or (added and "ALL" not in dropped) or "ALL" in added
        return
    if kept:
        assert found == ("keep", kept)
    elif "ALL" in dropped:
        assert found == ("keep", added)
    else:
        assert found == (("drop", dropped) if dropped else None)


@given(st.integers(1, 2**40), st.integers(0, 2**40))
def test_swap_is_what_docker_means(memory: int, swap: int) -> None:
    assert values.swap(str(memory), str(memory + swap)) == swap
    assert values.swap(None, "-1") == "max"
    if swap:
        with pytest.raises(ValueError, match="less than"):
            values.swap(str(memory + swap), str(memory))


def test_what_may_be_given_up_can_be_spelled_like_its_option() -> None:
    spelled = ["cpu-affinity,limits", "--memory", "--sysctl", "oom_score_adj", "--rlimit"]
    assert values.optional(spelled) == {"cpu_affinity", "limits", "sysctls", "oom_score_adj", "rlimits"}


@given(st.lists(st.tuples(st.sampled_from(["fs_bind", "fs_tmpfs", "fs_dir"]), VALUES), max_size=8))
def test_mounts_keep_their_order(words: list[tuple[str, str]]) -> None:
    params: dict[str, object] = {
        name: tuple(value for other, value in words if other == name) for name in ("fs_bind", "fs_tmpfs", "fs_dir")
    }
    order = [name for word in words for name in (word[0], "uid")]
    assert mount_order(order, params) == [(name.removeprefix("fs_"), value) for name, value in words]


PATHS = st.text("ab/", max_size=4).map(lambda text: f"/{text}")
WORDS = st.one_of(
    st.tuples(st.just("size"), st.just("1M")),
    st.tuples(st.just("perms"), st.integers(0, 0o7777)),
    st.tuples(st.just("overlay_src"), PATHS),
    st.tuples(st.sampled_from(["tmpfs", "dir", "ro_overlay"]), PATHS.map(lambda path: f"{path}x")),
)
TAKERS = {"size": {"tmpfs"}, "perms": {"tmpfs", "dir"}, "overlay_src": {"ro_overlay"}}


@given(st.lists(WORDS, max_size=8))
def test_what_is_said_of_the_next_one_is_taken_or_refused(words: list[tuple[str, object]]) -> None:
    """Never lost, and never said of another one."""
    expected: list[tuple[str, list[tuple[str, object]]]] = []
    said: list[tuple[str, object]] = []
    for name, value in words:
        said.append((name, value))
        if name not in TAKERS:
            expected.append((name, said[:-1]))
            said = []
    wrong = bool(said)
    for name, before in expected:
        names = [other for other, _ in before]
        wrong |= any(name not in TAKERS[other] for other in names)
        wrong |= names.count("size") > 1 or names.count("perms") > 1
        wrong |= name == "ro_overlay" and names.count("overlay_src") < 2
    try:
        found = _cli_mounts.entries(words, rootless=False)
    except _cli_errors.Complaint:
        assert wrong
        return
    assert not wrong
    assert len(found) == len(expected)
    for entry, (name, before) in zip(found, expected, strict=True):
        mode = dict(before).get("perms", 0o755)
        match entry:
            case linx.mount.Tmpfs():
                assert (name, entry.mode, entry.size) == ("tmpfs", mode, dict(before).get("size"))
            case linx.mount.Dir():
                assert (name, entry.mode) == ("dir", mode)
            case linx.mount.Overlay():
                given = [os.path.abspath(str(value)) for other, value in before if other == "overlay_src"]
                assert (name, list(entry.lower)) == ("ro_overlay", given[::-1])


@given(PATHS, PATHS, st.sampled_from(["", ":ro", ":rw"]))
def test_volumes(src: str, dst: str, options: str) -> None:
    assert values.volume(f"{src}:{dst}{options}") == (src, dst, options == ":ro")


# ---- the file of `linx supervise` ------------------------------------------------------------------------------------


@given(st.text(max_size=200) | st.text("[]child={}\"'.=1#\n ", max_size=60).map(lambda text: "[[child]]\n" + text))
def test_any_file_is_read_or_complained_about(text: str) -> None:
    with contextlib.suppress(_cli_errors.Complaint):
        _cli_toml.parse(text, "file.toml")


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3))
def test_an_unknown_field_has_its_line(before: int, blank: int, which: int) -> None:
    child = '[[child]]\nid = "{}"\nargv = ["x"]\n' + "\n" * blank
    chunks = [child.format(n) for n in range(4)]
    chunks[which] += "wrogn = 1\n"
    text = "# comment: wrogn = 2\n" * before + "".join(chunks)
    line = text.splitlines().index("wrogn = 1") + 1
    with pytest.raises(_cli_errors.Complaint, match=rf"^file.toml:{line}: unknown field 'wrogn'"):
        _cli_toml.parse(text, "file.toml")


# ---- ps --------------------------------------------------------------------------------------------------------------


@given(st.text("ab ()\n1", max_size=15), st.sampled_from("RSZT"), st.integers(0, 99999), st.integers(0, 10**9))
def test_a_stat_is_read_whatever_the_name(name: str, state: str, parent: int, start: int) -> None:
    text = f"7 ({name}) {state} {parent} " + "0 " * 17 + f"{start} 0\n"
    assert _cli_ps.Stat.parse(text) == _cli_ps.Stat(7, name, state, parent, start)


def test_ages() -> None:
    shown = [_cli_ps.age(seconds) for seconds in (0, 59.9, 61, 3661, 90061)]
    assert shown == ["0s", "59s", "1m1s", "1h1m", "1d1h"]


def test_the_own_process_is_read_from_proc() -> None:
    stat = _cli_ps.Stat.parse(Path("/proc/self/stat").read_text())
    assert stat.state == "R"


# ---- errors and exit statuses ----------------------------------------------------------------------------------------


def test_hints_are_in_the_words_of_the_command_line() -> None:
    for kind, option in (("user", "--map-root-user"), ("mount", "--mount")):
        error = linx.SetupError(errno.EPERM, "clone", "net", f"run as root, or add '{kind}' to namespaces")
        assert _cli_errors.explain(error).endswith(f"(stage clone)\n  hint: run as root, or add {option}")


REMEDIES = {hint for hint in _hints._HINTS.values() if isinstance(hint, str)} | {r for _, r in _causes._NEEDED.values()}


@pytest.mark.parametrize("hint", sorted(REMEDIES))
def test_no_hint_has_an_argument_of_python_in_it(hint: str) -> None:
    told = _cli_errors.in_words(hint)
    assert not re.search(r"\b[a-z_]+=(?!\d)", told)
    assert not re.search(r"add '\w+'", told)


@given(st.integers(0, 255), st.integers(1, 64))
def test_exit_statuses(code: int, signum: int) -> None:
    assert _cli_errors.status_of(linx.Exited(code)) == code
    assert _cli_errors.status_of(linx.Signaled(signum)) == 128 + signum
    assert _cli_errors.status_of(linx.Aborted()) == 125
