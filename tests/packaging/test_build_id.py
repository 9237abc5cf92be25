"""The hash that tells a stale agent: equal for equal sources, another one for any change of them."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from linx_trio import _build_id
from linx_trio._build_id import source_hash

# Few names and short contents: so that two trees are often nearly the same, which is where a hash could go
# wrong.
TREES = st.dictionaries(st.sampled_from(["a.c", "b.c", "a.h", "ab.c", "stages.def"]), st.binary(max_size=3), max_size=4)


def hash_of(files: Mapping[str, bytes]) -> str:
    """Return the hash of a directory that holds `files`."""
    with TemporaryDirectory() as directory:
        for name, content in files.items():
            path = Path(directory, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return source_hash(Path(directory))


@given(TREES)
def test_equal_sources_have_equal_hashes(files: dict[str, bytes]) -> None:
    assert hash_of(files) == hash_of(dict(reversed(files.items())))
    assert len(hash_of(files)) == 16
    int(hash_of(files), 16)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_in_which_a_directory_is_listed_does_not_count(
    monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=backwards)))
    parts = [b"a.c", b"1", b"a.h", b"22", b"b.c", b""]
    expected = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts))
    assert hash_of({"b.c": b"", "a.h": b"22", "a.c": b"1"}) == expected.hexdigest()[:16]


@given(TREES, TREES)
def test_different_sources_have_different_hashes(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assume(one != other)
    assert hash_of(one) != hash_of(other)


def test_bytes_that_move_from_one_file_to_the_next_are_a_change() -> None:
    assert hash_of({"a.c": b"xb.c", "b.c": b""}) != hash_of({"a.c": b"x", "b.c": b"b.c"})


@pytest.mark.parametrize("name", ["tests/unit.c", "notes.md", "main.o", ".#main.c", "main.c~"])
def test_what_is_not_compiled_does_not_count(name: str) -> None:
    assert hash_of({"main.c": b"1", name: b"2"}) == hash_of({"main.c": b"1"})


def test_the_build_can_run_the_file_by_itself() -> None:
    """It is run before the package exists: it may import nothing but the standard library."""
    assert _build_id.__file__ is not None
    for node in ast.walk(ast.parse(Path(_build_id.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").split(".")[0] in sys.stdlib_module_names
        elif isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= sys.stdlib_module_names
