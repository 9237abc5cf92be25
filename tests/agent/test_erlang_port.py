"""A stock Erlang opens the agent as a Port, and lives through what the protocol's examples show."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from linx_trio import _agent

SCRIPT = Path(__file__).parent / "programs" / "port.escript"

# As Erlang prints them. `parked` says that a program other than the workload is still there at that point.
EXPECTED = """
{checkpoint,[{status,spawned,host},{status,ready,host},{parked,true},{status,running},{status,exited,0},{exit_status,0}]}.
{exit_code,[{status,spawned,host},{status,ready,host},{status,running},{status,exited,42},{exit_status,0}]}.
{signal,[{status,spawned,host},{status,ready,host},{status,running},{status,signaled,15},{exit_status,0}]}.
{signal_buffered,[{status,spawned,host},{status,ready,host},{parked,true},{status,running},{status,signaled,15},{exit_status,0}]}.
{signal_before_ready,[{status,spawned,host},{status,ready,host},{status,running},{status,signaled,9},{exit_status,0}]}.
{abort,[{status,spawned,host},{status,ready,host},{parked,true},{status,aborted,host},{exit_status,0}]}.
{abort_before_ready,[{status,spawned,host},{status,ready,host},{status,aborted,host},{exit_status,0}]}.
{abort_while_running,[{status,spawned,host},{status,ready,host},{status,running},{status,signaled,9},{exit_status,0}]}.
{namespaces,[{status,spawned,host},{status,ready,1},{status,running},{status,signaled,9},{exit_status,0}]}.
{no_such_program,[{status,spawned,host},{status,ready,host},{error,2,execve},{exit_status,0}]}.
{no_such_directory,[{status,spawned,host},{status,ready,host},{error,2,chdir},{exit_status,0}]}.
{no_argv,[{error,22,request},{exit_status,0}]}.
{bad_namespace,[{error,22,request},{exit_status,0}]}.
{no_such_target,[{error,2,open_ns_user},{exit_status,0}]}.
{environment,[{status,spawned,host},{status,ready,host},{status,running},{status,exited,0},{exit_status,0}]}.
{environment_map,[{status,spawned,host},{status,ready,host},{status,running},{status,exited,0},{exit_status,0}]}.
{unknown_keys,[{status,spawned,host},{status,ready,host},{status,running},{status,exited,0},{exit_status,0}]}.
{closed_while_parked,[{status,spawned,host},{status,ready,host},{parked,true},closed,gone]}.
{closed_while_running,[{status,spawned,host},{status,ready,host},{status,running},closed,gone]}.
"""


def test_transcripts() -> None:
    escript = shutil.which("escript")
    if escript is None:
        pytest.skip("erlang-base is not installed (apt-get install erlang-base)")
    done = subprocess.run(
        [escript, SCRIPT, _agent.agent_path()], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110
    )
    assert done.stdout.splitlines() == EXPECTED.strip().splitlines(), done.stderr
    assert done.returncode == 0, done.stderr
