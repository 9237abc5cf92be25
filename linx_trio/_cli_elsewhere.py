"""Options of ``unshare(1)``, ``bwrap(1)``, ``setpriv(1)``, ``nsenter(1)`` and ``docker run`` that this command does not
have, for those who are used to them: why, and what does the same here. ``docs/command.md`` has them too.
"""

from __future__ import annotations

from collections.abc import Mapping

_LABELS = "labels of security modules are not set here: runcon(1) or aa-exec(1), in front of CMD"
_CHECKPOINT = "the place to stand before the program runs is in the library: linx_trio.spawn"
_SETS = "--keep-caps CAP,… is what it has, in all five sets; --cap-drop CAP,… what it has not"
_IDS = "real, effective and saved ids are set together: --uid, --gid"
_LANDLOCK = "there is no Landlock here; --empty-root with --ro-bind and --bind shows only what is named"
_CPUS = "--cpus N, where 0.5 is half a CPU"

ELSEWHERE: Mapping[str, str] = {
    # bwrap
    "--add-seccomp-fd": "--seccomp FILE|FD takes one filter",
    "--args": "words of a file: xargs -a FILE linx run",
    "--argv0": "argv[0] is the program's name here; another one: -- bash -c 'exec -a NAME CMD'",
    "--as-pid-1": "so it is with --pid, unless --init is given",
    "--assert-userns-disabled": "--sysctl user.max_user_namespaces=0, with --map-root-user or another map",
    "--bind-data": "--file SRC DST, where SRC can be the number of an fd",
    "--bind-fd": "--bind SRC DST takes a path",
    "--block-fd": _CHECKPOINT,
    "--chmod": "--perms OCTAL, before the --tmpfs, --dir or --file",
    "--disable-userns": "--sysctl user.max_user_namespaces=0, with --map-root-user or another map",
    "--exec-label": _LABELS,
    "--file-label": _LABELS,
    "--info-fd": f"--json-fd FD tells how it ended; {_CHECKPOINT}",
    "--json-status-fd": "--json-fd FD tells how it ended, in a form of its own",
    "--lock-file": "flock FILE linx run …, see flock(1)",
    "--pidns": "to join namespaces: linx enter PID -- CMD",
    "--ro-bind-data": "--perms 0444 --file SRC DST, where SRC can be the number of an fd",
    "--ro-bind-fd": "--ro-bind SRC DST takes a path",
    "--sync-fd": _CHECKPOINT,
    "--tmp-overlay": "--overlay UPPER WORK DST, with two empty directories of yours on one file system",
    "--unshare-cgroup-try": "--unshare-cgroup is done or refused; 'linx doctor cgroup' says whether it works here",
    "--unshare-user-try": "--unshare-user is done or refused; 'linx doctor user' says whether it works here",
    "--userns": "to join namespaces: linx enter PID -- CMD",
    "--userns2": "to join namespaces: linx enter PID -- CMD",
    "--userns-block-fd": _CHECKPOINT,
    # unshare
    "--forward-signals": "so it is in any case",
    "--load-interp": "binfmt_misc is not registered here; with --map-root-user and --mount CMD can do it",
    "--map-subids": "--map-auto",
    "--mount-binfmt": "binfmt_misc is not mounted here; with --map-root-user and --mount CMD can do it",
    # nsenter
    "--follow-context": _LABELS,
    "--join-cgroup": "it is joined, unless --no-cgroup is given",
    "--no-fork": "'linx enter' waits in any case, and leaves nothing behind",
    "--preserve-credentials": "with another user namespace it is root there, or what --uid and --gid say",
    "--target": "the PID is the first argument: linx enter PID -- CMD",
    # setpriv
    "--ambient-caps": _SETS,
    "--apparmor-profile": _LABELS,
    "--bounding-set": _SETS,
    "--egid": _IDS,
    "--euid": _IDS,
    "--inh-caps": _SETS,
    "--landlock-access": _LANDLOCK,
    "--landlock-ro": _LANDLOCK,
    "--landlock-rule": _LANDLOCK,
    "--landlock-rw": _LANDLOCK,
    "--pdeathsig": "nothing is needed: it ends with linx, in whatever way that ends",
    "--reset-env": "--clearenv, and -e NAME=VALUE for what it needs",
    "--rgid": _IDS,
    "--ruid": _IDS,
    "--securebits": "they are not set here: setpriv(1), in front of CMD",
    "--selinux-label": _LABELS,
    # docker run
    "--cpu-period": _CPUS,
    "--cpu-quota": _CPUS,
    "--cpu-shares": "--cpu-weight N, 1 to 10000, where 100 is usual",
    "--detach": "in a shell: linx run … &; to keep it running: linx supervise FILE.toml",
    "-d": "in a shell: linx run … &; to keep it running: linx supervise FILE.toml",
    "--device": "--dev-bind SRC DST",
    "--entrypoint": "there is no image: the program stands behind --",
    "--group-add": "--groups GID,… are all that it has",
    "--memory-reservation": "nothing is reserved here; beyond --memory-high SIZE it is slowed down",
    "--name": "a session goes by its pid, which linx ps shows",
    "--network": "-n/--net is a fresh one, docker's 'none'; without it, it is the caller's, docker's 'host'",
    "--privileged": "it has the caller's rights in any case, unless they are taken away",
    "--publish": "without -n/--net its ports are the caller's; into a fresh network nothing leads",
    "--restart": "linx supervise FILE.toml",
    "--security-opt": "--no-new-privs, --seccomp FILE",
    "--shm-size": "--size 64M --tmpfs /dev/shm",
    "--stop-signal": "it is ended with SIGTERM, or with the signal that linx gets",
}
