"""Filters made short. The kernel translates, compiles and tries a filter whenever it is installed: length is time.

What is composed of several programs asks again and again for what was known before: the architecture, and the number.
Here each is asked once. The number goes nowhere but into comparisons with constants (`_compared` makes sure of it, else
nothing is done). Those constants cut the numbers into ranges inside of which all such comparisons come out alike, so
one number of a range shows what is left of the program for all of them: the tests of arguments, and what those need.
Mostly that is a return. A binary search leads from the number to what is left.

All jumps lead forward, so a program is a directed graph without cycles, and it can be made from its ends. A node is an
instruction and the nodes behind it. Equal nodes are one (hash-consing, as in decision diagrams), so equal ends of
different programs are found by themselves. What a node's way on reads of the registers is known when the node is made:
so an instruction that nobody needs never becomes one, nor does a test both of whose ways are the same. That goes in
three steps: the graph of the whole program for the architecture (`_built`), of that what is left for each range
(`_restricted`), and the search among the ranges (`_search`). At last the nodes that are needed are laid out
(`_laid_out`), again from the end: a node's number is greater than those of the nodes behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from linx_trio import _seccomp_bpf as bpf
from linx_trio._seccomp_bpf import Instruction, Op

_EXCEPTIONS = 3
"""Of a range, at most."""

_LOAD_NUMBER = (Op.LD_ABS, bpf.NUMBER * 4)

_A, _X = 1, 2
"""Registers, in a set of them."""


@lru_cache(maxsize=64)  # a list is composed anew whenever it is given
def shorten(program: bytes, arch: int) -> bytes:
    """A program that decides the same, for all inputs: shorter, or the given one.

    It is the given one where it uses the number or the architecture otherwise than to compare it with constants, where
    it uses memory, or where it does not treat all architectures alike but `arch`. (The kernel's check of memory goes by
    position, so nodes that use it could not be laid out in any order. Nothing that is composed here has it.)
    """
    code = bpf.decode(program)
    numbers, architectures = _compared(code, bpf.NUMBER), _compared(code, bpf.ARCHITECTURE)
    if numbers is None or architectures is None or any(bpf.uses_memory(op) for op, *_ in code):
        return program
    elsewhere: set[bpf.Word] = set()
    for other in (architectures | {0, arch + 1}) - {arch}:
        elsewhere |= bpf.outcomes(program, bpf.words_of(None, other))
    otherwise = elsewhere.pop()
    if elsewhere or otherwise is None:
        return program
    graph = _Graph()
    whole = _built(graph, code, bpf.words_of(None, arch))
    leaves = {nr: _restricted(graph, whole, nr) for nr in sorted(numbers)}
    native = graph.node(*_LOAD_NUMBER, _search(graph, _runs(graph, leaves)))
    test = graph.test(Op.JEQ, arch, native, graph.node(Op.RET_K, otherwise))
    made = _laid_out(graph, graph.node(Op.LD_ABS, bpf.ARCHITECTURE * 4, test))
    return bpf.encode(made) if len(made) < len(code) else program


def _compared(code: Sequence[Instruction], word: int) -> set[int] | None:
    """The first ones of the ranges that the program tells apart by this word of its input; `None` if it does anything
    else with it than to compare it with constants.
    """
    firsts = {0}
    holding: set[int] = set()  # where A may be the word
    for pc, (op, jt, jf, k) in enumerate(code):
        holds = pc in holding
        if holds and bpf.reads_a(op):
            if op not in (Op.JEQ, Op.JGT, Op.JGE):
                return None
            firsts |= {k, k + 1} if op == Op.JEQ else {k + 1} if op == Op.JGT else {k}
        if bpf.writes_a(op):
            holds = op == Op.LD_ABS and k == word * 4
        if holds:
            holding |= {pc + 1 + way for way in bpf.following(op, jt, jf, k)}
    return {first for first in firsts if first >> 32 == 0}


def _written(op: int) -> int:
    return _A * bpf.writes_a(op) | _X * bpf.writes_x(op)


class _Graph:
    """Nodes by their numbers: an operation, its constant, and the one or two nodes behind it."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int, int, int]] = []
        self._numbers: dict[tuple[int, int, int, int], int] = {}
        self._needs: list[int] = []

    def needs(self, node: int, registers: int) -> bool:
        """Whether it makes a difference what is in them."""
        return self._needs[node] & registers > 0

    def node(self, op: int, k: int, after: int = -1) -> int:
        """A return, or an instruction with one way on. It may be the node behind it, if nobody needs what it does."""
        if op in bpf.RETURNS:
            return self._number(op, k, -1, -1)
        if op == Op.LD_ABS:
            after = self._holding(after, k)
        if not self.needs(after, _written(op)) and op != Op.DIV | bpf.FROM_X:  # which may end the program
            return after
        if op == Op.AND:
            test, bits, yes, no = self.nodes[after]
            if test == Op.JEQ and not (self.needs(yes, _A) or self.needs(no, _A)):
                if bits == 0:
                    return self.test(Op.JSET, k, no, yes)
                if bits == k and k & (k - 1) == 0:  # a single bit
                    return self.test(Op.JSET, k, yes, no)
        return self._number(op, k, after, after)

    def test(self, op: int, k: int, yes: int, no: int) -> int:
        """A conditional jump."""
        if yes == no:
            return yes
        if op == Op.JSET and self.nodes[no][0] == Op.JSET and self.nodes[no][2] == yes:
            _, more, _, no = self.nodes[no]
            k |= more  # one of these bits or one of those
        return self._number(op, k, yes, no)

    def _number(self, op: int, k: int, yes: int, no: int) -> int:
        number = self._numbers.setdefault((op, k, yes, no), len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append((op, k, yes, no))
            later = 0 if op in bpf.RETURNS else self._needs[yes] | self._needs[no]
            self._needs.append(later & ~_written(op) | _A * bpf.reads_a(op) | _X * bpf.reads_x(op))
        return number

    def _holding(self, node: int, k: int) -> int:
        """What is left of it where A is the word at `k` already: it need not be loaded again."""
        tests = [node]
        found: dict[int, int] = {}
        for at in tests:
            op, _, yes, no = self.nodes[at]
            if bpf.is_test(op):
                tests += [way for way in (yes, no) if way not in tests]
        for at in sorted(tests):  # from the ends
            op, value, yes, no = self.nodes[at]
            if bpf.is_test(op):
                found[at] = self.test(op, value, found[yes], found[no])
            else:
                found[at] = yes if (op, value) == (Op.LD_ABS, k) else at
        return found[node]


def _built(graph: _Graph, code: Sequence[Instruction], words: Sequence[bpf.Word]) -> int:
    """What is left of the program for this input. It may find anything in A."""
    at: dict[int, int] = {}
    for pc, (op, _, _, k), _, ways in reversed(list(bpf.reached(code, words))):
        after = [at[way] for way in ways]
        if not after:  # a return, or a division by zero
            at[pc] = graph.node(op, k) if op in bpf.RETURNS else graph.node(Op.RET_K, bpf.KILL_THREAD)
        elif op == Op.JA or bpf.is_test(op):
            at[pc] = after[0] if len(after) == 1 else graph.test(op, k, *after)
        else:
            at[pc] = graph.node(op, k, after[0])
    return graph.node(Op.LD_IMM, 0, at[0])


def _restricted(graph: _Graph, root: int, nr: int) -> int:
    """What is left for this number. A node that is got at with the number in A, and also without, counts as two."""
    found: dict[tuple[int, bool], list[tuple[int, bool]]] = {}
    todo = [(root, False)]
    while todo:
        here = at, holds = todo.pop()
        if here in found:
            continue
        op, k, yes, no = graph.nodes[at]
        if op in bpf.RETURNS:
            ways = []
        elif not bpf.is_test(op):
            ways = [(yes, (op, k) == _LOAD_NUMBER or (holds and not bpf.writes_a(op)))]
        elif holds:
            ways = [(yes if bpf.test(op, nr, k) else no, True)]
        else:
            ways = [(yes, False), (no, False)]
        found[here] = ways
        todo += ways
    made: dict[tuple[int, bool], int] = {}
    for here in sorted(found):  # from the ends
        op, k, _, _ = graph.nodes[here[0]]
        after = [made[way] for way in found[here]]
        if not after:
            made[here] = here[0]
        elif len(after) == 2:
            made[here] = graph.test(op, k, *after)
        elif bpf.is_test(op) or (op, k) == _LOAD_NUMBER:
            made[here] = after[0]
        else:
            made[here] = graph.node(op, k, after[0])
    return made[root, False]


_Runs = list[tuple[int, int]]
"""The first number of each, up to the next one's, and their node."""


def _runs(graph: _Graph, leaves: dict[int, int]) -> _Runs:
    """A single number whose neighbours are alike is an exception in their range: one comparison instead of two. Few to
    a range, since they are tried one after the other.
    """
    runs: _Runs = []
    for first, leaf in leaves.items():
        if not runs or runs[-1][1] != leaf:
            runs.append((first, leaf))

    def is_exception(i: int) -> bool:
        return 0 < i < len(runs) - 1 and runs[i - 1][1] == runs[i + 1][1] and runs[i][0] + 1 == runs[i + 1][0]

    merged: _Runs = []
    i = 0
    while i < len(runs):
        first, node = runs[i]
        end = i + 2 * _EXCEPTIONS
        while i < end and is_exception(i + 1):
            node = graph.test(Op.JEQ, *runs[i + 1], node)
            i += 2
        merged.append((first, node))
        if not is_exception(i + 1):
            i += 1
    return merged


def _search(graph: _Graph, runs: _Runs) -> int:
    """With the number in A."""
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    below, above = _search(graph, runs[:middle]), _search(graph, runs[middle:])
    return graph.test(Op.JGE, runs[middle][0], above, below)


def _laid_out(graph: _Graph, root: int) -> list[Instruction]:
    """A node that is too far from one in front of it is got at by a jump on the way; a return is simply repeated."""
    needed = {root}
    for node in range(root, -1, -1):
        if node in needed:
            needed |= {way for way in graph.nodes[node][2:] if way >= 0}
    made: list[Instruction] = []  # the last one first
    places: dict[int, int] = {}

    def distance(node: int) -> int:
        return len(made) - 1 - places[node] if node in places else bpf.INSTRUCTION_LIMIT

    def bring(ways: Iterable[int], farthest: int) -> None:
        """Makes them no farther away than that from what comes in front."""
        while far := [way for way in ways if distance(way) > farthest]:
            op, k, _, _ = graph.nodes[far[0]]
            there = Instruction(op, 0, 0, k) if op in bpf.RETURNS else Instruction(Op.JA, 0, 0, distance(far[0]))
            places[far[0]] = len(made)
            made.append(there)

    for node in sorted(needed):
        op, k, yes, no = graph.nodes[node]
        if bpf.is_test(op):
            bring((yes, no), bpf.FARTHEST)
            here = Instruction(op, distance(yes), distance(no), k)
        elif op not in bpf.RETURNS:
            bring((yes,), 0)
            here = Instruction(op, 0, 0, k)
        elif node == root:
            here = Instruction(op, 0, 0, k)
        else:
            continue  # it is brought to where it is needed
        places[node] = len(made)
        made.append(here)
    return made[::-1]
