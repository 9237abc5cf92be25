"""Makes command.svg, from what a real terminal shows: ``python docs/images/command.py``. It needs tmux(1) and rich."""

from __future__ import annotations

from attach import picture

SCRIPT = [
    ("$ ", "PS1='inside# ' linx run -trpu --mount-proc --hostname inside -- sh"),
    ("inside# ", "ps -o pid,comm; uname -n; stty size"),
    ("inside# ", "sleep 1000"),
    ("sleep 1000", "^C"),
    ("inside# ", "exit 3"),
    ("$ ", "echo status $?; linx doctor user net seccomp"),
    ("$ ", "linx run --hostnam x -- true"),
]

if __name__ == "__main__":
    picture("command", "linx", SCRIPT, 30)
