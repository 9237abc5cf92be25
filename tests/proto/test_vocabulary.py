"""Both sides speak the same words: what the agent that will run says of itself is what Python says."""

from __future__ import annotations

import subprocess

import pytest

import linx_trio as linx
from linx_trio import _agent
from linx_trio._proto import messages as m


@pytest.fixture(scope="module")
def description() -> dict[str, str]:
    described = subprocess.run([_agent.agent_path(), "--describe"], capture_output=True, text=True, check=True)
    assert described.stderr == ""
    return dict(line.split(": ", 1) for line in described.stdout.splitlines())


def test_nothing_else_is_described(description: dict[str, str]) -> None:
    assert set(description) == {"version", "hash", "commands", "keeper", "events", "stages", "steps", "namespaces"}


def test_version(description: dict[str, str]) -> None:
    assert description["version"] == linx.__version__


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("commands", m.COMMANDS),
        ("keeper", m.KEEPER),
        ("events", m.EVENTS),
        ("stages", m.STAGES),
        ("steps", m.STEPS),
        ("namespaces", m.NAMESPACES),
    ],
)
def test_words(description: dict[str, str], what: str, words: tuple[str, ...]) -> None:
    described = description[what].split()
    assert len(set(described)) == len(described)
    assert set(described) == set(words)


def test_namespaces_are_in_the_order_in_which_they_are_joined(description: dict[str, str]) -> None:
    assert tuple(description["namespaces"].split()) == m.NAMESPACES


def test_the_public_namespaces_are_those_of_the_wire() -> None:
    assert {member.value for member in linx.Namespace} == set(m.NAMESPACES)
