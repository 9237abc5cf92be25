"""A workload whose descendants do not want to go: ``family.py WORD…``.

Members, one or more for each word:

    child       an ordinary child
    grandchild  double-forked: its parent is gone
    session     a child in a session of its own, see setsid(2)
    daemon      double-forked and in a session of its own
    chain       eight generations, all alive
    orphans     eight generations in as many sessions, each but the last orphaned by its own exit
    reaper      a child subreaper (prctl(2)) with an orphan, which therefore stays with it
    sibling     cloned with CLONE_PARENT: a child of the leader's parent
    stopped     a child that has stopped itself
    busy        a child that uses all the CPU it gets

Manners:

    immune      everybody ignores every signal that can be ignored
    quiet       descendants give up the leader's standard streams
    leaderless  the leader exits with status 3 as soon as the family is complete
    undying     the leader takes back the parent-death signal that it was born with

When the family is complete the leader writes one line: the pids of all its members, its own first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

GENERATIONS = 8
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_PARENT = 0x8000
SYS_CLONE = {"x86_64": 56, "aarch64": 220}

MANNERS = set(sys.argv[1:]) & {"immune", "quiet", "leaderless", "undying"}
register, write_end = os.pipe()


def libc_call(name: str, *arguments: int) -> int:
    import ctypes  # here: few members need it, and it takes longer to import than all the rest

    return int(getattr(ctypes.CDLL(None), name)(*(ctypes.c_long(argument) for argument in arguments)))


def sign_in() -> None:
    os.write(write_end, b"%d " % os.getpid())
    os.close(write_end)
    if "quiet" in MANNERS:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)


def stay() -> NoReturn:
    sign_in()
    while True:
        signal.pause()


def born(life: Callable[[], NoReturn]) -> int:
    pid = os.fork()
    if pid == 0:
        life()
    return pid


def orphan(life: Callable[[], NoReturn]) -> None:
    def parent() -> NoReturn:
        born(life)
        os._exit(0)

    os.waitpid(born(parent), 0)


def in_own_session() -> NoReturn:
    os.setsid()
    stay()


def chain(left: int) -> NoReturn:
    if left > 1:
        born(lambda: chain(left - 1))
    stay()


def orphans(left: int) -> NoReturn:
    os.setsid()
    if left > 1:
        born(lambda: orphans(left - 1))
        os._exit(0)
    stay()


def reaper() -> NoReturn:
    libc_call("prctl", PR_SET_CHILD_SUBREAPER, 1)
    orphan(stay)
    stay()


def sibling() -> None:
    number = SYS_CLONE[os.uname().machine]
    if libc_call("syscall", number, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        stay()


def stopped() -> NoReturn:
    sign_in()
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def busy() -> NoReturn:
    sign_in()
    while True:
        pass


MEMBERS: dict[str, Callable[[], object]] = {
    "child": lambda: born(stay),
    "grandchild": lambda: orphan(stay),
    "session": lambda: born(in_own_session),
    "daemon": lambda: orphan(in_own_session),
    "chain": lambda: born(lambda: chain(GENERATIONS)),
    "orphans": lambda: born(lambda: orphans(GENERATIONS)),
    "reaper": lambda: born(reaper),
    "sibling": sibling,
    "stopped": lambda: born(stopped),
    "busy": lambda: born(busy),
}


def ignore_everything() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    if "immune" in MANNERS:
        ignore_everything()
    if "undying" in MANNERS:
        libc_call("prctl", PR_SET_PDEATHSIG, 0)
    for word in sys.argv[1:]:
        if word not in MANNERS:
            MEMBERS[word]()
    os.close(write_end)
    with open(register, "rb") as signed_in:
        pids = signed_in.read().decode()  # its end says that everybody has signed in
    os.write(1, f"{os.getpid()} {pids}\n".encode())
    if "leaderless" in MANNERS:
        os._exit(3)
    while True:
        signal.pause()


main()
