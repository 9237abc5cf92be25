"""The entry point of the command ``linx``. It needs the extra ``cli``, and says so where that is missing."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

from linx_trio._cli_errors import FAILED

_MISSING = """\
linx: the command needs {module}, which is not installed here
  hint: pip install 'linx-trio[cli]'
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its status."""
    for name in ("stdin", "stdout", "stderr"):  # `linx run <&-`: Python has none then
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - theirs for good
    for module in ("click", "rich"):
        if importlib.util.find_spec(module) is None:
            sys.stderr.write(_MISSING.format(module=module))
            sys.exit(FAILED)
    try:
        from linx_trio._cli_app import run

        status = run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:  # before there was anything that it could be passed on to
        status = 128 + 2
    except BrokenPipeError:  # whoever read it has had enough; the interpreter's own flush would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + 13
    sys.exit(status)
