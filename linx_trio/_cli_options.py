"""The options of ``linx run``, ``sandbox`` and ``enter``.

A name is that of unshare(1), bwrap(1), setpriv(1) or docker-run(1), where one of them has one. Where a letter means
different things there, it is unshare's: ``-m`` is the mount namespace (``docker run``: memory), ``-u`` uts (user),
``-i`` ipc (interactive), ``-C`` and ``--cgroup`` the cgroup namespace. ``-t`` is docker's, as unshare has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from linx_trio import _cli_values as values
from linx_trio._cli_params import (
    GID,
    NUMBER,
    PATH,
    SECONDS,
    UID,
    OneOf,
    Value,
    count_or_max,
    cpu_numbers,
    cpus,
    flag,
    many,
    together,
)

KINDS = {"m": "mount", "u": "uts", "i": "ipc", "n": "net", "p": "pid", "U": "user", "C": "cgroup", "T": "time"}

# ---- namespaces ------------------------------------------------------------------------------------------------------

NAMESPACES = together(
    "Namespaces, and the ids in them",
    *(
        flag(
            f"-{letter}", f"--{kind}", *([] if kind in ("mount", "time") else [f"--unshare-{kind}"]),
            f"ns_{kind}", help=f"A fresh {kind} namespace.",
        )
        for letter, kind in KINDS.items()
    ),
    flag("--unshare-all", help="All eight, and the caller mapped to itself unless another map is asked for."),
    flag("--share-net", help="With --unshare-all: all but the network namespace."),
    flag("-r", "--map-root-user", help="Root inside is the caller outside. Implies --user."),
    flag("-c", "--map-current-user", help="The caller has its own ids inside too. Implies --user."),
    flag("--map-auto", help="Root inside is the caller, and the ids from 1 on those of subuid(5). Implies --user."),
    click.option("--map-user", type=UID, metavar="UID", help="The caller is UID inside. Implies --user."),
    click.option("--map-group", type=GID, metavar="GID", help="The caller's group is GID inside. Implies --user."),
    many("--map-users", type=Value("map", values.id_map), metavar="INSIDE:OUTSIDE:COUNT",
         help="A line of the uid map. Implies --user. Repeatable."),
    many("--map-groups", type=Value("map", values.id_map), metavar="INSIDE:OUTSIDE:COUNT",
         help="A line of the gid map. Implies --user. Repeatable."),
    click.option("--setgroups", type=OneOf(["allow", "deny"]), help="With a map: whether setgroups(2) works."),
)  # fmt: skip

NAMES = together(
    "Settings of namespaces",
    click.option("--hostname", metavar="NAME", help="The host's name, in a fresh uts namespace."),
    click.option("--domainname", metavar="NAME", help="The NIS domain's name, in a fresh uts namespace."),
    many("--sysctl", type=Value("setting", values.pair), metavar="NAME=VALUE",
         help="A setting of a fresh namespace, like net.ipv4.ip_forward=1. Repeatable."),
)  # fmt: skip

CLOCKS = together(
    "Settings of namespaces",
    many("--time-offset", type=Value("offset", values.pair), metavar="CLOCK=SECONDS",
         help="Added to the clock 'monotonic' or 'boottime'. Implies --time. Repeatable."),
    click.option("--monotonic", metavar="SECONDS", help="The same as --time-offset monotonic=SECONDS."),
    click.option("--boottime", metavar="SECONDS", help="The same as --time-offset boottime=SECONDS."),
    flag("--init", help="A small process is pid 1, reaps, and passes signals on (needs --pid)."),
)  # fmt: skip

JOINED = together(
    "What is joined",
    *(
        flag(f"-{letter}", f"--{kind}", f"ns_{kind}", help=f"Join its {kind} namespace.")
        for letter, kind in KINDS.items()
    ),
    flag("-a", "--all", "ns_all", help="Join all of them, which is what happens if none is named."),
    flag("--no-cgroup", help="Stay in the caller's cgroup; else its own is joined too."),
    many(
        "--unshare",
        metavar="KIND,…",
        help="Fresh ones inside of these, of mount, uts, ipc, cgroup and net; the options below are about them.",
    ),
)

# ---- the file system -------------------------------------------------------------------------------------------------

ROOT = together(
    "The file system",
    click.option("-R", "--root", type=PATH, metavar="DIR", help="Becomes /, and nothing of the old root remains."),
    flag("--empty-root", help="/ is an empty tmpfs, as bwrap has it; fill it with the options below."),
    flag("--read-only", help="When all is mounted, the mount at / becomes read-only; what is mounted below does not."),
    click.option("--propagation", type=OneOf(["private", "slave", "shared", "unchanged"]),
                 help="What is mounted later: stays here (private, as without it), also comes from the host (slave), "
                 "or goes both ways (shared)."),
)  # fmt: skip

MOUNTS = together(
    "The file system, in the order of these options",
    many("--bind", "fs_bind", nargs=2, type=PATH, metavar="SRC DST",
         help="A file or directory of the host, without device nodes and set-user-ID."),
    many("--ro-bind", "fs_ro_bind", nargs=2, type=PATH, metavar="SRC DST", help="The same, read-only."),
    many("--dev-bind", "fs_dev_bind", nargs=2, type=PATH, metavar="SRC DST",
         help="The same as --bind, with device nodes."),
    many("--bind-try", "fs_bind_try", nargs=2, type=PATH, metavar="SRC DST",
         help="The same as --bind; skipped where SRC is missing."),
    many("--ro-bind-try", "fs_ro_bind_try", nargs=2, type=PATH, metavar="SRC DST",
         help="The same as --ro-bind; skipped where SRC is missing."),
    many("--dev-bind-try", "fs_dev_bind_try", nargs=2, type=PATH, metavar="SRC DST",
         help="The same as --dev-bind; skipped where SRC is missing."),
    many("-v", "--volume", "fs_volume", type=Value("volume", values.volume), metavar="SRC:DST[:ro]",
         help="The same as --bind or --ro-bind, as docker has it."),
    many("--overlay-src", "fs_overlay_src", type=PATH, metavar="SRC",
         help="A layer for the overlay that follows; each one on top of those before it."),
    many("--overlay", "fs_overlay", nargs=3, type=PATH, metavar="UPPER WORK DST",
         help="These layers below UPPER, where what is written goes; WORK is empty, on its file system."),
    many("--ro-overlay", "fs_ro_overlay", metavar="DST", help="These layers, read-only."),
    many("--size", "fs_size", type=Value("size", values.tmpfs_size), metavar="SIZE",
         help="Of the --tmpfs that follows: bytes, or like 64M or 50%."),
    many("--perms", "fs_perms", type=Value("mode", values.octal), metavar="OCTAL",
         help="The access mode of the --tmpfs, --dir or --file that follows."),
    many("--tmpfs", "fs_tmpfs", metavar="DST", help="An empty tmpfs."),
    many("--proc", "fs_proc", metavar="DST", help="The proc of the fresh PID namespace."),
    flag("--mount-proc", "fs_mount_proc", help="The same as --proc /proc."),
    many("--dev", "fs_dev", metavar="DST", help="A minimal /dev."),
    many("--mqueue", "fs_mqueue", metavar="DST", help="The POSIX message queues of the ipc namespace."),
    many("--dir", "fs_dir", metavar="DST", help="A directory."),
    many("--symlink", "fs_symlink", nargs=2, metavar="TARGET DST", help="A symbolic link at DST."),
    many("--file", "fs_file", nargs=2, metavar="SRC DST",
         help="A copy of the file SRC, or of what the fd of that number has."),
    many("--remount-ro", "fs_remount_ro", metavar="DST",
         help="The mount at DST becomes read-only; those below do not."),
)  # fmt: skip
"""Their order on the command line is that in which they are done."""

# ---- the process -----------------------------------------------------------------------------------------------------

PROCESS = together(
    "The process",
    click.option("-w", "--workdir", "--chdir", "--wd", "--cwd", "chdir", metavar="DIR",
                 help="The working directory, inside."),
    many("-e", "--env", metavar="NAME[=VALUE]", help="A variable; without a value, the caller's."),
    many("--env-file", type=PATH, metavar="FILE",
         help="Variables of a file, a line for each, as docker has it; --env counts more."),
    many("--setenv", nargs=2, metavar="NAME VALUE", help="The same as --env NAME=VALUE."),
    many("--unsetenv", metavar="NAME", help="Takes a variable away."),
    flag("--clearenv", help="Begin with an empty environment."),
    click.option("--uid", "-S", "--setuid", "--reuid", "uid", type=UID, metavar="UID",
                 help="The user, by number or name."),
    click.option("--gid", "-G", "--setgid", "--regid", "gid", type=GID, metavar="GID",
                 help="The group, by number or name."),
    many("--groups", metavar="GID,…", help="The supplementary groups."),
    flag("--clear-groups", help="No supplementary groups."),
    flag("--keep-groups", help="The caller's supplementary groups, also with --uid."),
    flag("--init-groups", help="Those that the user is in, by initgroups(3)."),
    click.option("--umask", type=Value("mode", values.octal), metavar="OCTAL", help="See umask(2)."),
    click.option("--nice", type=NUMBER, metavar="N", help="Added to the caller's."),
    click.option("--oom-score-adj", type=NUMBER, metavar="N", help="-1000 to 1000, see proc(5)."),
    click.option("--cpu-affinity", type=Value("cpus", cpu_numbers), metavar="LIST",
                 help="CPUs like 0-3,5, by sched_setaffinity(2)."),
    many("--rlimit", "--ulimit", "rlimit", type=Value("limit", values.rlimit),
         metavar="NAME=SOFT[:HARD]", help="A limit of getrlimit(2), like nofile=1024. Repeatable."),
    many("--preserve-fd", metavar="FD,…", help="Open fds that it gets under the same numbers, as podman has it."),
    click.option("--preserve-fds", type=NUMBER, metavar="N", help="The N fds from 3 on, as podman has it."),
)  # fmt: skip

PRIVILEGES = together(
    "Privileges",
    many("--cap-drop", metavar="CAP,…|ALL", help="Take capabilities away."),
    many("--cap-add", metavar="CAP,…", help="With --cap-drop ALL: except these."),
    many("--keep-caps", metavar="CAP,…|none", help="Exactly these, in all five sets."),
    flag("--no-new-privs", help="No set-user-ID, no file capabilities (PR_SET_NO_NEW_PRIVS)."),
    click.option("--seccomp", metavar="FILE|default",
                 help="A filter: Docker's or OCI's JSON, a BPF program, the fd of one, or the built-in 'default'."),
)  # fmt: skip

LIMITS = together(
    "Limits",
    click.option("--memory", metavar="SIZE", help="At most so much, like 256M; beyond it, killed."),
    click.option("--memory-swap", metavar="SIZE", help="Memory and swap together, as docker has it; -1: unlimited."),
    click.option("--memory-high", metavar="SIZE", help="Beyond it, slowed down."),
    click.option("--swap", metavar="SIZE", help="Swap alone; 0 is none."),
    click.option("--pids-limit", type=Value("count", count_or_max), metavar="N", help="Processes and threads."),
    click.option("--cpus", type=Value("cpus", cpus), metavar="N", help="CPU time: 0.5 is half a CPU."),
    click.option("--cpu-weight", type=NUMBER, metavar="N", help="The share among siblings, 1 to 10000."),
    click.option("--cpuset-cpus", metavar="LIST", help="The CPUs to run on, like 0-3,5."),
    *(
        many(f"--device-{what}", type=Value("limit", values.device_limit), metavar="DEVICE:RATE", help=help)
        for what, help in (
            ("read-bps", "Bytes a second read from a block device, like /dev/sda:10M."),
            ("write-bps", "Bytes a second written to it."),
            ("read-iops", "Reads a second."),
            ("write-iops", "Writes a second."),
        )
    ),
    click.option("--cgroup-path", "--cgroup-parent", "cgroup_path", metavar="PATH",
                 help="The cgroup to be born into; with limits, the parent of the one that is made."),
    many("--optional", metavar="NAME,…",
         help="What may be given up where it cannot be had: limits, rlimits, nice, …"),
)  # fmt: skip

RUNNING = together(
    "Running it",
    flag("-t", "--tty", help="On a terminal of its own, with yours attached to it."),
    click.option("--timeout", type=SECONDS, metavar="DURATION", help="End it after so long; the exit status is 124."),
    click.option("--stop-timeout", type=SECONDS, default="5", show_default=True, metavar="DURATION",
                 help="Between the signal that ends it and SIGKILL."),
    flag("--json", "as_json", help="How it ended, as a line of JSON on stderr."),
    click.option("--json-fd", type=NUMBER, metavar="FD", help="The same, on that fd."),
    flag("-f", "--fork", "--kill-child", "--die-with-parent", "--new-session", "--rm", "--interactive", "as_always",
         help="For those who are used to it: that is so in any case.", hidden=True),
)  # fmt: skip

ARGV = click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD [ARG]…")
SETTINGS: dict[str, Any] = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


def mount_order(order: Sequence[str | None], params: dict[str, Any]) -> list[tuple[str, Any]]:
    """The file system's options in the order of the command line, each with its value."""
    left = {name: list(params[name]) for name in params if name.startswith("fs_") and isinstance(params[name], tuple)}
    found: list[tuple[str, Any]] = []
    for name in order:
        if name in left:
            found.append((name.removeprefix("fs_"), left[name].pop(0)))
        elif name == "fs_mount_proc":
            found.append(("proc", "/proc"))
    return found
