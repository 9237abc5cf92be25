"""Which sources an agent was compiled from.

An installed wheel carries its agent with it. An editable install does not compile anything by itself:
somebody edits ``agent_c/``, forgets to install again, and an old agent answers to new Python. So the build
compiles a hash of the sources into the agent (``--describe`` prints it), and at run time the package, where
it finds ``agent_c/`` beside itself, computes the hash anew and compares.

The build hook runs this file by its path, before the package can be imported: standard library only, and
nothing from the rest of ``linx_trio``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["source_hash"]

_SUFFIXES = frozenset({".c", ".h", ".def"})
_HEX_DIGITS = 16


def source_hash(agent_c: Path) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the agent's sources.

    Covers the names and the contents of ``*.c``, ``*.h`` and ``*.def`` directly in `agent_c` (not its
    tests, nor hidden files), in the order of their names. Each part is preceded by its length, so that no
    two different source trees can yield the same input.

    Raises `OSError` if `agent_c` or one of the files cannot be read.
    """
    sources = (p for p in agent_c.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))
    digest = hashlib.sha256()
    for path in sorted(sources, key=lambda p: p.name):
        for part in (path.name.encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:_HEX_DIGITS]
