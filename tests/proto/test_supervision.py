"""The state machine of supervision: what is decided, in what order, and that it never gets stuck.

`World` plays the shell: it does what it is told, and checks with every order that it makes sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from linx_trio._restarts import RESTARTED, End, Intensity, Restart, Strategy
from linx_trio._supervision import Order, Phase, Start, Stop, Supervision
from tests.proto.strategies import relaxed

PERMANENT, TRANSIENT, TEMPORARY = Restart


class World:
    """Children as they are: alive or not, up or not, told to end or not."""

    def __init__(
        self, strategy: str = "one_for_one", *, most: float = math.inf, within: float = 5.0, delay: float = 0.0
    ) -> None:
        self.machine = Supervision(Strategy(strategy), Intensity(most, within), lambda n: delay * n, 10.0)
        self.now = 0.0
        self.alive: dict[str, int] = {}
        self.ready: set[str] = set()
        self.told: list[str] = []
        self.log: list[str] = []
        self.unwanted: set[str] = set()
        """By command."""

    def do(self, orders: Iterable[Order]) -> None:
        for order in orders:
            match order:
                case Start(id, number):
                    assert id not in self.alive, "one incarnation at a time"
                    assert not self.machine.closing
                    assert id not in self.unwanted, "a commanded stop wins"
                    self.alive[id] = number
                    self.log.append(f"+{id}")
                case Stop(id, number):
                    assert self.alive[id] == number
                    assert id not in self.told, "told once"
                    self.told.append(id)
                    self.log.append(f"-{id}")

    def begin(self, *children: tuple[str, Restart]) -> None:
        self.do(self.machine.begin(children, self.now))

    def up(self, *ids: str) -> None:
        for id in ids:
            self.ready.add(id)
            self.do(self.machine.up(id, self.alive[id], self.now))

    def end(self, id: str, end: End = End.ABNORMAL) -> None:
        number = self.alive.pop(id)
        self.ready.discard(id)
        if id in self.told:
            self.told.remove(id)
        self.do(self.machine.ended(id, number, end, self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.machine.tick(self.now))

    def command(self, verb: str, id: str) -> None:
        if verb in ("stop", "remove"):
            self.unwanted.add(id)
        else:
            self.unwanted.discard(id)
        if verb == "add":
            self.do(self.machine.add(id, PERMANENT, self.now))
        else:
            self.do(getattr(self.machine, verb)(id, self.now))

    def close(self) -> None:
        self.do(self.machine.close(self.now))

    def phases(self) -> dict[str, str]:
        return {node.id: node.phase.value for node in self.machine}

    def happened(self) -> str:
        """Since it was last asked."""
        log, self.log = " ".join(self.log), []
        return log


def running(strategy: str = "one_for_one", kinds: str = "ppp", **options: float) -> World:
    """A world whose children a, b, c, … are up."""
    world = World(strategy, **options)
    kind = {"p": PERMANENT, "t": TRANSIENT, "y": TEMPORARY}
    children = [("abcdefgh"[i], kind[letter]) for i, letter in enumerate(kinds)]
    world.begin(*children)
    for id, _ in children:
        world.up(id)
    world.happened()
    return world


# ---- the beginning and the end -----------------------------------------------------------------------------------


def test_each_is_started_when_the_one_before_it_is_up() -> None:
    world = World()
    world.begin(("a", PERMANENT), ("b", PERMANENT), ("c", PERMANENT))
    assert world.happened() == "+a"
    world.up("a")
    assert world.happened() == "+b"
    assert not world.machine.settled
    world.up("b")
    world.up("c")
    assert world.happened() == "+c"
    assert world.machine.settled
    assert set(world.phases().values()) == {"running"}


def test_one_that_ends_for_good_lets_the_next_one_start() -> None:
    world = World()
    world.begin(("a", TRANSIENT), ("b", PERMANENT))
    world.end("a", End.NORMAL)
    assert world.happened() == "+a +b"
    assert world.phases() == {"a": "finished", "b": "starting"}


def test_one_that_cannot_be_started_holds_the_line_up() -> None:
    world = World(delay=1.0)
    world.begin(("a", PERMANENT), ("b", PERMANENT))
    world.end("a")
    assert world.phases() == {"a": "backoff", "b": "waiting"}
    assert world.machine.deadline == 1.0
    world.wait(0.5)
    assert world.happened() == "+a"
    world.wait(0.5)
    assert world.happened() == "+a"
    world.end("a")
    assert world.machine.deadline == 3.0, "the second delay"
    world.wait(2.0)
    world.up("a")
    assert world.happened() == "+a +b"


def test_all_end_in_the_reverse_order_one_after_the_other() -> None:
    world = running()
    world.close()
    assert world.happened() == "-c"
    world.end("c", End.NORMAL)
    assert world.happened() == "-b"
    assert not world.machine.over
    world.end("b")
    world.end("a")
    assert world.happened() == "-a"
    assert world.machine.over
    assert set(world.phases().values()) == {"stopped"}


def test_one_that_ends_by_itself_before_it_is_told_has_ended() -> None:
    world = running()
    world.close()
    world.end("a")
    world.end("c")
    world.end("b")
    assert world.happened() == "-c -b"
    assert world.machine.over


def test_it_is_over_when_all_have_ended_for_good() -> None:
    world = running(kinds="ty")
    world.end("a", End.NORMAL)
    assert not world.machine.over
    world.end("b")
    assert world.machine.over
    assert not world.machine.closing
    assert world.phases() == {"a": "finished", "b": "finished"}


def test_without_children_it_is_not_over_by_itself() -> None:
    world = World()
    world.begin()
    assert not world.machine.over
    assert world.machine.settled
    world.close()
    assert world.machine.over


# ---- strategies --------------------------------------------------------------------------------------------------


def test_one_for_one() -> None:
    world = running()
    world.end("b")
    assert world.happened() == "+b"
    assert world.phases() == {"a": "running", "b": "starting", "c": "running"}


def test_one_for_all() -> None:
    world = running("one_for_all", "pppp")
    world.end("b")
    assert world.happened() == "-d"
    world.end("d", End.NORMAL)
    world.end("c")
    assert world.happened() == "-c -a"
    world.end("a")
    assert world.happened() == "+a"
    world.up("a", "b", "c", "d")
    assert world.happened() == "+b +c +d"


def test_rest_for_one() -> None:
    world = running("rest_for_one", "pppp")
    world.end("b")
    world.end("d")
    world.end("c")
    assert world.happened() == "-d -c +b"
    world.up("b", "c", "d")
    assert world.happened() == "+c +d"
    assert world.machine["a"].number == 1


def test_the_delay_passes_while_the_others_are_being_stopped() -> None:
    world = running("one_for_all", "pp", delay=1.0)
    world.end("a")
    assert world.happened() == "-b"
    world.wait(1.0)
    assert world.happened() == ""
    world.end("b")
    assert world.happened() == "+a"


def test_a_group_waits_for_the_delay_of_the_one_that_failed() -> None:
    world = running("one_for_all", "pp", delay=1.0)
    world.end("b")
    world.end("a")
    assert world.happened() == "-a"
    world.wait(0.9)
    assert world.happened() == ""
    world.wait(0.1)
    assert world.happened() == "+a"


def test_temporaries_are_taken_along_and_not_brought_back() -> None:
    world = running("one_for_all", "pyp")
    world.end("a")
    world.end("c")
    world.end("b")
    world.up("a", "c")
    assert world.happened() == "-c -b +a +c"
    assert world.phases() == {"a": "running", "b": "finished", "c": "running"}


def test_a_temporary_that_had_finished_is_left_alone() -> None:
    world = running("one_for_all", "yp")
    world.end("a", End.NORMAL)
    world.end("b")
    assert world.happened() == "+b"
    assert world.phases() == {"a": "finished", "b": "starting"}


def test_one_that_is_being_restarted_by_command_takes_its_turn_in_a_group() -> None:
    world = running("one_for_all", "pp")
    world.command("restart", "a")
    world.end("b")
    assert world.happened() == "-a"
    world.end("a")
    assert world.happened() == "+a"
    world.up("a")
    assert world.happened() == "+b"


def test_a_transient_that_had_finished_is_started_with_its_group() -> None:
    world = running("one_for_all", "tp")
    world.end("a", End.NORMAL)
    assert world.happened() == ""
    world.end("b")
    assert world.happened() == "+a"
    world.up("a")
    assert world.happened() == "+b"


def test_the_end_of_one_that_is_not_restarted_concerns_nobody_else() -> None:
    world = running("one_for_all", "ytp")
    world.end("a")
    world.end("b", End.SHUTDOWN)
    assert world.happened() == ""
    assert world.phases() == {"a": "finished", "b": "finished", "c": "running"}


def test_a_second_failure_in_a_group_that_is_being_stopped_counts_once() -> None:
    world = running("one_for_all", "ppp", most=1)
    world.end("a")
    world.end("b")
    world.end("c")
    assert world.machine.culprit is None
    assert world.happened() == "-c +a"


def test_one_that_fails_while_its_group_comes_up_takes_all_down_again() -> None:
    world = running("one_for_all", "pp")
    world.end("b")
    world.end("a")
    world.up("a")
    assert world.happened() == "-a +a +b"
    world.end("b")
    assert world.happened() == "-a"


# ---- delays and limits -------------------------------------------------------------------------------------------


def test_too_many_restarts_stop_everything() -> None:
    world = running(most=2)
    world.end("b")
    world.end("b")
    assert world.happened() == "+b +b"
    world.end("b")
    assert world.machine.culprit == "b"
    assert world.happened() == "-c"
    world.end("c")
    world.end("a")
    assert world.machine.over
    assert world.phases() == {"a": "stopped", "b": "finished", "c": "stopped"}


def test_restarts_of_all_children_count_together() -> None:
    world = running(most=2)
    for id in "abc":
        world.end(id)
    assert world.machine.culprit == "c"


def test_commanded_restarts_do_not_count() -> None:
    world = running(kinds="p", most=0)
    for _ in range(3):
        world.command("restart", "a")
        world.end("a")
        world.up("a")
    assert world.machine.culprit is None


def test_delays_start_over_after_a_good_while() -> None:
    world = running(kinds="p", delay=1.0)
    deadlines = []
    for lived in (0, 9, 9, 10, 9):
        world.wait(lived)
        world.end("a")
        deadlines.append(world.machine.deadline - world.now)
        world.wait(deadlines[-1])
        world.up("a")
    assert deadlines == [1, 2, 3, 1, 2]
    world.command("restart", "a")
    world.end("a")
    for expected in (1, 2):
        world.wait(100)  # to come up, which it does not
        world.end("a")
        assert world.machine.deadline - world.now == expected
        world.wait(expected)


# ---- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["stop", "remove"])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_commanded_stop_wins_over_the_restart_of_a_child_that_ends_meanwhile(verb: str, strategy: Strategy) -> None:
    world = running(strategy)
    world.command(verb, "b")
    assert world.happened() == "-b"
    world.end("b", End.ABNORMAL)
    assert world.happened() == ""
    assert world.phases().get("b") == ("stopped" if verb == "stop" else None)


@pytest.mark.parametrize("verb", ["stop", "remove"])
def test_a_commanded_stop_wins_over_a_delayed_restart(verb: str) -> None:
    world = running(delay=1.0)
    world.end("b")
    world.command(verb, "b")
    world.wait(5.0)
    assert world.happened() == ""
    assert world.machine.deadline == math.inf


@pytest.mark.parametrize("verb", ["stop", "remove"])
def test_a_commanded_stop_wins_over_a_group_restart(verb: str) -> None:
    world = running("one_for_all")
    world.end("a")
    assert world.happened() == "-c"
    world.command(verb, "b")
    assert world.happened() == "-b", "and does not wait for its turn"
    world.end("b")
    world.end("c")
    world.up("a", "c")
    assert world.happened() == "+a +c"


def test_a_stopped_child_stays_so_when_its_group_is_restarted() -> None:
    world = running("one_for_all", "pp")
    world.command("stop", "a")
    world.end("a")
    world.end("b")
    assert world.happened() == "-a +b"
    assert world.phases() == {"a": "stopped", "b": "starting"}


def test_a_long_stop_blocks_nobody_else() -> None:
    world = running()
    world.command("restart", "c")
    world.end("a")
    world.command("remove", "b")
    world.command("add", "d")
    assert world.happened() == "-c +a -b +d"


def test_a_restart_command_does_not_wait_for_the_delay() -> None:
    world = running(kinds="p", delay=1.0)
    world.end("a")
    world.command("restart", "a")
    assert world.happened() == "+a"
    world.wait(5.0)
    assert world.happened() == "", "and the delay's end means nothing any more"


def test_delays_start_over_after_a_restart_command() -> None:
    world = running(kinds="p", delay=1.0)
    world.end("a")
    world.wait(1.0)
    world.end("a")
    assert world.machine.deadline == 3.0
    world.command("restart", "a")
    world.end("a")
    assert world.machine.deadline == 2.0


@pytest.mark.parametrize("kind", "pty")
def test_a_restart_command_starts_whatever_kind_it_is(kind: str) -> None:
    world = running(kinds=kind + "p")
    world.command("restart", "a")
    world.end("a")
    assert world.happened() == "-a +a"
    world.command("stop", "a")
    world.end("a")
    world.command("restart", "a")
    assert world.happened() == "-a +a"


def test_of_two_commands_the_later_one_counts_and_a_removal_is_final() -> None:
    world = running(kinds="pp")
    world.command("restart", "a")
    world.command("stop", "a")
    world.end("a")
    assert world.phases() == {"a": "stopped", "b": "running"}
    world.command("restart", "a")
    world.command("stop", "a")
    world.command("restart", "a")
    world.end("a")
    assert world.happened() == "-a +a -a +a"
    world.do(world.machine.remove("a", world.now))
    world.do(world.machine.restart("a", world.now))
    world.do(world.machine.stop("a", world.now))
    world.end("a")
    assert world.phases() == {"b": "running"}


def test_an_added_child_that_does_not_come_up_is_dropped() -> None:
    world = running(kinds="p", most=0)
    world.command("add", "z")
    world.end("z")
    assert world.phases() == {"a": "running"}
    assert world.machine.culprit is None
    world.command("add", "z")
    world.up("z")
    world.end("z")
    assert world.machine.culprit == "z", "once it has been up it is a child like others"


def test_an_added_child_that_ends_normally_at_once_is_kept() -> None:
    world = running(kinds="p", delay=1.0)
    world.command("add", "z")
    world.end("z", End.NORMAL)
    assert world.phases()["z"] == "backoff"
    world.wait(1.0)
    world.end("z")
    assert world.phases()["z"] == "backoff"


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_an_added_child_takes_its_turn_behind_those_it_depends_on(strategy: str) -> None:
    world = running(strategy, "pp")
    world.end("a")
    world.end("b")
    world.command("add", "c")
    assert world.happened() == "-b +a"
    world.up("a", "b")
    assert world.happened() == "+b +c"


def test_an_end_that_cannot_be_is_a_fault() -> None:
    world = running()
    with pytest.raises(AssertionError, match="incarnation 7 of 'a' cannot end"):
        world.machine.ended("a", 7, End.NORMAL, 0)


def test_news_of_a_former_incarnation_mean_nothing() -> None:
    world = World()
    world.begin(("a", PERMANENT))
    world.end("a")
    world.do(world.machine.up("a", 1, 0.0))
    assert world.phases() == {"a": "starting"}


# ---- properties --------------------------------------------------------------------------------------------------

strategies = st.sampled_from([strategy.value for strategy in Strategy])


@relaxed
@given(st.data(), strategies, st.lists(st.sampled_from(Restart), min_size=1, max_size=5), st.sampled_from([0.0, 1.0]))
def test_order_is_kept_whatever_ends_when(
    data: st.DataObject, strategy: str, kinds: list[Restart], delay: float
) -> None:
    """Without commands: nobody of a line is started before those in front of it are up, nor told to end before
    those behind it have ended."""
    names = [f"{i}" for i in range(len(kinds))]

    class Checked(World):
        def do(self, orders: Iterable[Order]) -> None:
            for order in orders:
                at = names.index(order.id)
                before, behind = names[:at], names[at + 1 :]
                if isinstance(order, Stop):
                    assert not self.alive.keys() & set(behind)
                elif strategy != "one_for_one" or order.number == 1:
                    assert all(id in self.ready or self.machine[id].phase is Phase.FINISHED for id in before) or (
                        strategy == "one_for_one"  # there, one in front may have come up, and ended again
                        and all(self.machine[id].number > 1 or id in self.ready for id in before if id in self.alive)
                    )
                    assert not self.alive.keys() & set(behind)
                super().do([order])

    world = Checked(strategy, delay=delay)
    world.begin(*zip(names, kinds, strict=True))
    for _ in range(data.draw(st.integers(0, 30))):
        moves = [("end", id) for id in world.alive] + [("up", id) for id in world.alive if id not in world.ready]
        if world.machine.deadline < math.inf:
            moves.append(("wait", ""))
        if not moves:
            assert world.machine.over
            break
        move, id = data.draw(st.sampled_from(moves))
        if move == "wait":
            world.wait(world.machine.deadline - world.now)
        elif move == "up":
            world.up(id)
        else:
            world.end(id, data.draw(st.sampled_from(End)))
    world.close()
    while world.alive:
        assert len(world.told) >= 1
        world.end(world.told[0])
    assert world.machine.over


class Life(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    @initialize(
        strategy=strategies,
        kinds=st.lists(st.sampled_from(Restart), max_size=4),
        most=st.sampled_from([0, 1, 3, math.inf]),
        delay=st.sampled_from([0.0, 0.5]),
    )
    def begin(self, strategy: str, kinds: list[Restart], most: float, delay: float) -> None:
        self.world = World(strategy, most=most, within=5.0, delay=delay)
        self.world.begin(*((f"c{i}", kind) for i, kind in enumerate(kinds)))
        self.added = 0
        self.restarts: list[float] = []

    def some(self, data: st.DataObject, ids: Iterable[str]) -> str:
        return data.draw(st.sampled_from(sorted(ids)))

    @precondition(lambda self: self.world.alive.keys() - self.world.ready)
    @rule(data=st.data())
    def comes_up(self, data: st.DataObject) -> None:
        self.world.up(self.some(data, self.world.alive.keys() - self.world.ready))

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), end=st.sampled_from(End))
    def ends(self, data: st.DataObject, end: End) -> None:
        world = self.world
        id = self.some(data, world.alive)
        node = world.machine[id]
        by_itself, trial, closing = node.phase is not Phase.STOPPING, node.on_trial, world.machine.closing
        world.end(id, end)
        if not by_itself:
            return
        assert not closing, "all are being stopped then"
        if trial and end is End.ABNORMAL:
            assert id not in world.machine
        elif RESTARTED[node.restart][end]:
            self.restarts = [*(t for t in self.restarts if t >= world.now - 5.0), world.now]
            exceeded = len(self.restarts) > world.machine._intensity.max_restarts
            assert (world.machine.culprit == id) == exceeded
            assert node.phase is Phase.FINISHED if exceeded else node.phase in ("backoff", "waiting", "starting")
        else:
            assert node.phase is Phase.FINISHED

    @precondition(lambda self: self.world.machine.deadline < math.inf)
    @rule(share=st.sampled_from([0.5, 1.0, 20.0]))
    def time_passes(self, share: float) -> None:
        self.world.wait((self.world.machine.deadline - self.world.now) * share)

    @precondition(lambda self: bool(list(self.world.machine)) and not self.world.machine.closing)
    @rule(data=st.data(), verb=st.sampled_from(["stop", "remove", "restart"]))
    def command(self, data: st.DataObject, verb: str) -> None:
        ids = {node.id for node in self.world.machine}
        id = self.some(data, ids)
        node = self.world.machine[id]
        if verb == "restart" and node.phase is Phase.STOPPING and node.then.value == "removed":
            return  # refused by the shell
        if verb == "stop" and node.phase is Phase.STOPPING and node.then.value == "removed":
            verb = "remove"
        self.world.command(verb, id)

    @precondition(lambda self: not self.world.machine.closing)
    @rule()
    def add(self) -> None:
        self.added += 1
        self.world.command("add", f"d{self.added}")

    @rule()
    def close(self) -> None:
        self.world.close()

    @invariant()
    def agrees_with_the_world(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        alive = {node.id for node in world.machine if node.phase in ("starting", "running", "stopping")}
        assert alive == set(world.alive)
        assert {node.id for node in world.machine if node.phase is Phase.RUNNING} <= world.ready
        assert set(world.told) <= {node.id for node in world.machine if node.phase is Phase.STOPPING}

    @invariant()
    def is_not_stuck(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        if any(node.phase is Phase.STOPPING for node in world.machine):
            assert world.told
        elif not world.alive and world.machine.deadline == math.inf:
            assert all(node.phase in ("stopped", "finished") for node in world.machine)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.close()
        while self.world.alive:
            self.world.end(self.world.told[-1])
        assert self.world.machine.over


TestLife = Life.TestCase
TestLife.settings = settings(relaxed, max_examples=60, stateful_step_count=40)
