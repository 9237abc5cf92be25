"""A workload that never stops forking: ``bomb.py fork|comet UID``. With a UID other than -1 it becomes that user first
(RLIMIT_NPROC does not bind root).

    fork    every process forks for ever; writes ``full`` when it has met its limit of processes
    comet   each process lives just long enough to fork the next one; writes ``flying`` after some generations. The
            workload itself stays
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

COMETS = 12
GENERATIONS = 5


def say(word: bytes) -> None:
    with contextlib.suppress(BlockingIOError):  # said often enough
        os.write(1, word)


def fork_loop() -> NoReturn:
    met = False
    while True:
        try:
            os.fork()
        except BlockingIOError:
            if not met:
                say(b"full\n")
            met = True


def comet() -> NoReturn:
    generation = 0
    while True:
        try:
            if os.fork() != 0:
                os._exit(0)
        except BlockingIOError:
            continue
        generation += 1
        if generation == GENERATIONS:
            say(b"flying\n")


def main() -> NoReturn:
    kind, uid = sys.argv[1], int(sys.argv[2])
    if uid != -1:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.set_blocking(1, False)
    if kind == "fork":
        fork_loop()
    for _ in range(COMETS):
        if os.fork() == 0:
            comet()
    while True:
        signal.pause()


main()
