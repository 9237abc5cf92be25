"""Where a cgroup is: the texts of ``/proc/<pid>/cgroup`` and ``mountinfo`` as the kernel writes them, and as nobody
does; and what `enter` takes for a target.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linx_trio import _cgroups
from linx_trio._options import Namespace
from linx_trio._target import FILES, Target, check_target

# ---- /proc/<pid>/cgroup ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"0::/\n", b"/"),
        (b"0::/user.slice/a b\n", b"/user.slice/a b"),
        (b"0::/../sibling\n", b"/../sibling"),
        (b"9:name=systemd:/x\n4:memory:/y\n0::/z\n", b"/z"),
        (b"4:memory:/y\n1:cpu:/\n", None),
        (b"", None),
        (b"10::/x\n", None),
        (b"0::\n", None),
        (b"0::/gone (deleted)\n", b"/gone (deleted)"),
    ],
)
def test_paths(text: bytes, path: bytes | None) -> None:
    assert _cgroups.path_of(text) == path


# ---- mountinfo -------------------------------------------------------------------------------------------------------

UNIFIED = b"28 23 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    b"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
BELOW = b"50 1 0:25 /user.slice/me /mnt/mine rw - cgroup2 none rw\n"
STRANGE = b"51 1 0:25 / /mnt/with\\040space\\134and\\012more rw master:1 propagate_from:2 - cgroup2 none rw\n"
OUTSIDE = b"52 1 0:25 /.. /mnt/above rw - cgroup2 none rw\n"


@pytest.mark.parametrize(
    ("path", "mounts", "found"),
    [
        (b"/", UNIFIED, [b"/sys/fs/cgroup"]),
        (b"/a/b", UNIFIED, [b"/sys/fs/cgroup/a/b"]),
        (b"/a", HYBRID, [b"/sys/fs/cgroup/unified/a"]),
        (b"/", HYBRID, [b"/sys/fs/cgroup/unified"]),
        (b"/user.slice/me", BELOW, [b"/mnt/mine"]),
        (b"/user.slice/me/x", BELOW, [b"/mnt/mine/x"]),
        (b"/user.slice/meow", BELOW, []),
        (b"/user.slice", BELOW, []),
        (b"/", BELOW, []),
        (b"/user.slice/me/x", UNIFIED + BELOW, [b"/sys/fs/cgroup/user.slice/me/x", b"/mnt/mine/x"]),
        (b"/a b", STRANGE, [b"/mnt/with space\\and\nmore/a b"]),
        (b"/../sibling", UNIFIED, []),
        (b"/../sibling", OUTSIDE, [b"/mnt/above/sibling"]),
        (b"/a", b"", []),
        (b"/a", b"nonsense\n\n - cgroup2\n1 2 3 - cgroup2 x rw\n", []),
        (b"/a", UNIFIED.rstrip(b"\n"), [b"/sys/fs/cgroup/a"]),
        (b"/a", b"1 2 0:3 / /sys/fs/cgroup rw - cgroup cgroup rw\n", []),
    ],
)
def test_directories(path: bytes, mounts: bytes, found: list[bytes]) -> None:
    assert _cgroups.directories_of(path, mounts) == found


def escaped(text: bytes) -> bytes:
    """As the kernel writes a path there (``seq_path`` with ``" \\t\\n\\\\"``)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in text)


def is_name(text: bytes) -> bool:
    return not set(text) & set(b"/\0") and text not in (b".", b"..")


NAMES = st.binary(min_size=1, max_size=12).filter(is_name)
PATHS = st.lists(NAMES, max_size=4).map(lambda names: b"/" + b"/".join(names))


@given(root=PATHS, mount_point=PATHS, path=PATHS)
def test_any_names(root: bytes, mount_point: bytes, path: bytes) -> None:
    """Whatever the names are: found is what is below the mount's root, and nothing else."""
    line = b"28 23 0:25 %s %s rw shared:9 - cgroup2 cgroup2 rw\n" % (escaped(root), escaped(mount_point))
    found = _cgroups.directories_of(path, HYBRID.replace(b"cgroup2", b"other") + line)
    inside = Path("/") / os.fsdecode(path)
    if inside.is_relative_to(os.fsdecode(root)):
        (directory,) = found
        assert Path(os.fsdecode(directory)) == Path(os.fsdecode(mount_point)) / inside.relative_to(os.fsdecode(root))
    else:
        assert found == []


def test_where_it_is_mounted() -> None:
    assert _cgroups.mounts_of(HYBRID + STRANGE) == [
        (b"/sys/fs/cgroup/unified", b"0:38"),
        (b"/mnt/with space\\and\nmore", b"0:25"),
    ]
    assert _cgroups.mounts_of(b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n") == []


@given(cgroup=st.binary(max_size=200), mounts=st.binary(max_size=300))
def test_any_bytes(cgroup: bytes, mounts: bytes) -> None:
    assert all(isinstance(found, tuple) for found in _cgroups.mounts_of(mounts))
    path = _cgroups.path_of(b"0::/" + cgroup)
    assert path is not None
    assert path.startswith(b"/")
    assert all(isinstance(found, bytes) for found in _cgroups.directories_of(path, mounts))


def test_our_own_is_found() -> None:
    """If this machine has one: there, we are in the list of its processes."""
    path = _cgroups.path_of(Path("/proc/self/cgroup").read_bytes())
    directories = _cgroups.directories_of(path or b"/", Path("/proc/self/mountinfo").read_bytes())
    for directory in directories if path is not None else []:
        assert str(os.getpid()) in (Path(os.fsdecode(directory)) / "cgroup.procs").read_text().split()


# ---- targets ---------------------------------------------------------------------------------------------------------


class WithFd:
    def fileno(self) -> int:
        raise AssertionError("nobody is asked before the session is entered")


class Sessional:
    """What looks like a session."""

    host_pid = 7

    def __repr__(self) -> str:
        return "<a session>"


@pytest.mark.parametrize("target", [1, 2**80, "/proc/1", b"/proc/1", Path("/proc/1"), WithFd(), Sessional()])
@pytest.mark.parametrize("join_cgroup", [True, False])
def test_targets(target: Any, join_cgroup: bool) -> None:
    assert check_target(target, None, join_cgroup) == Target(target, None, join_cgroup)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (7, "/proc/7"),
        ("/x/y", "/x/y"),
        (b"/x/\xff", "/x/\udcff"),
        (Path("/x"), "/x"),
        (Sessional(), "<a session>"),
    ],
)
def test_names(target: Any, name: str) -> None:
    assert check_target(target, None, True).name == name


@given(target=st.one_of(st.integers(max_value=0), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_no_targets(target: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="target") as raised:
        check_target(target, None, True)
    assert repr(target) in str(raised.value)


@pytest.mark.parametrize("target", ["", b"", "a\0", b"\0", "\ud800", WithFd, object(), {"pid": 1}, 1j])
def test_other_no_targets(target: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="target"):
        check_target(target, None, True)


@given(kinds=st.sets(st.sampled_from(Namespace)), as_text=st.booleans())
def test_namespaces(kinds: set[Namespace], as_text: bool) -> None:
    given_ = [kind.value if as_text else kind for kind in kinds]
    expected = frozenset(kind.value for kind in kinds)
    assert check_target(1, given_, True).namespaces == expected
    assert check_target(1, iter(given_), True).namespaces == expected


@pytest.mark.parametrize(
    ("namespaces", "says"), [("net", "'net'"), (["typo"], "'typo'"), (["mnt"], "'mnt'"), ([1], "1"), (1, "1")]
)
def test_no_namespaces(namespaces: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        check_target(1, namespaces, True)
    assert says in str(raised.value)


@pytest.mark.parametrize("join_cgroup", [None, 0, 1, "no"])
def test_join_cgroup(join_cgroup: Any) -> None:
    with pytest.raises(TypeError, match="join_cgroup"):
        check_target(1, None, join_cgroup)


def test_the_files_of_the_kinds_are_the_kernels() -> None:
    present = {name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")}
    assert present <= set(FILES.values())
    assert set(FILES) == {kind.value for kind in Namespace}
