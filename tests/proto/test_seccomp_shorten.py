"""What is made short decides as before: for all numbers, architectures and arguments; and it is short."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linx_trio import _seccomp_bpf as bpf
from linx_trio import _seccomp_compile, _seccomp_make, _seccomp_profiles
from linx_trio import _seccomp_shorten as shortening
from linx_trio._seccomp_bpf import Instruction, Op
from linx_trio._seccomp_compile import Comparison, Rule
from linx_trio.seccomp import Filter, allow_list, default, deny_list, from_bpf, from_oci, no_tty_injection
from tests.proto.seccomp_kernel import accepted
from tests.proto.test_seccomp_bpf import ARCH, REFUSALS, WORDS, bodies

I386 = 0x40000003
ACTIONS = [bpf.KILL_PROCESS, bpf.KILL_THREAD, bpf.TRAP, bpf.ERRNO | 1, bpf.ERRNO | 38, bpf.LOG, bpf.ALLOW]
ALLOW, REFUSE = Instruction(Op.RET_K, 0, 0, bpf.ALLOW), Instruction(Op.RET_K, 0, 0, bpf.ERRNO | 1)
ADD = 0x04
EDGES = {0, 1, bpf.X32_BIT - 1, bpf.X32_BIT, bpf.X32_BIT | 1, 2**31, 2**32 - 2, 2**32 - 1}


def constants(*programs: bytes) -> list[int]:
    """Theirs, and what is next to them."""
    found = {k for program in programs for _, _, _, k in bpf.decode(program)}
    return sorted({value + more & 0xFFFFFFFF for value in found for more in (-1, 0, 1)} | EDGES)


def some_arguments(values: Sequence[int], count: int, seed: int = 0) -> list[list[int]]:
    """Six of 64 bits: high half and low half are constants, bits of constants, or nothing."""
    chance = random.Random(seed)
    halves = [0, 0, *values, *(1 << bit for bit in range(32))]

    def half() -> int:
        return chance.choice(halves) | (chance.choice(halves) if chance.random() < 0.3 else 0)

    return [[(half() if chance.random() < 0.3 else 0) << 32 | half() for _ in range(6)] for _ in range(count)]


def assert_same(
    before: bytes, after: bytes, numbers: Iterable[int], arguments: Sequence[Sequence[int]], arches: Iterable[int]
) -> None:
    bpf.check(after)
    assert len(after) <= len(before)
    for nr, arch, six in itertools.product(numbers, arches, arguments):
        words = [0 if word is None else word for word in bpf.words_of(nr, arch, six)]
        expected = bpf.outcomes(before, words)
        assert len(expected) == 1
        assert bpf.outcomes(after, words) == expected, (nr, arch, six)


ARCHES = [ARCH, ARCH, ARCH + 1, ARCH - 1, I386, 0, 2**32 - 1]


@st.composite
def inputs(draw: st.DrawFn, program: bytes) -> tuple[list[int], list[list[int]], list[int]]:
    values = st.sampled_from(constants(program)) | st.integers(0, 2**32 - 1)
    wide = values | st.tuples(values, values).map(lambda halves: halves[0] << 32 | halves[1])
    return (
        draw(st.lists(values | st.integers(0, 12), min_size=5, max_size=10)),
        draw(st.lists(st.lists(wide, min_size=6, max_size=6), min_size=2, max_size=5)),
        [ARCH, draw(st.sampled_from(ARCHES))],
    )


def assert_decides_as_before(data: st.DataObject, program: bytes) -> bytes:
    bpf.check(program)
    made = shortening.shorten(program, ARCH)
    assert_same(program, made, *data.draw(inputs(program)))
    return made


# ---- what is composed -----------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 9) | st.integers(420, 470)
VALUES = st.integers(0, 3) | st.sampled_from([0x5412, 0x20000, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1])
COMPARISONS = st.builds(Comparison, st.integers(0, 2), st.integers(1, 7), VALUES, VALUES)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    tests = draw(st.lists(COMPARISONS, max_size=2, unique_by=lambda test: test.argument))
    return Rule(draw(NUMBERS), draw(st.sampled_from(ACTIONS)), tuple(tests))


@st.composite
def in_front(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return _seccomp_make.not_above(ARCH, draw(NUMBERS), draw(REFUSALS))
    values = draw(st.lists(WORDS, max_size=5))
    return _seccomp_make.only_with(ARCH, draw(NUMBERS), draw(st.integers(0, 2)), values, draw(REFUSALS))


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.lists(rules(), max_size=12),
    st.sampled_from(ACTIONS),
    st.lists(in_front(), max_size=3),
    st.booleans(),
)
def test_composed_programs_decide_as_before(
    data: st.DataObject, listed: list[Rule], otherwise: int, front: list[bytes], x32: bool
) -> None:
    leaves = _seccomp_compile._leaves(otherwise, listed)
    program = _seccomp_make.by_number(ARCH, leaves, otherwise, x32=x32)
    for first in front:
        program = _seccomp_make.chain(first, program)
    made = assert_decides_as_before(data, program)
    assert len(made) < len(program) or len(program) <= 10 * 8
    if x32 == (_seccomp_compile.machine().go == "amd64"):
        assert _seccomp_compile.compile_rules(otherwise, listed, front) == made


@pytest.mark.parametrize("seed", range(3))
def test_long_ones_are_crossed(seed: int) -> None:
    """No conditional jump leads to their returns, nor across the tree, from everywhere."""
    chance = random.Random(seed)
    load, test = Instruction(Op.LD_ABS, 0, 0, 16), Instruction(Op.JEQ, 1, 0, 7)
    leaves = {}
    for nr in chance.sample(range(1500), 700):
        plain = [Instruction(Op.RET_K, 0, 0, chance.choice(ACTIONS))]
        leaves[nr] = bpf.encode([load, test, *plain, ALLOW] if chance.random() < 0.1 else plain)
    program = _seccomp_make.by_number(ARCH, leaves, bpf.ERRNO | 38, x32=True)
    made = shortening.shorten(program, ARCH)
    assert len(made) < len(program)
    assert any(op == Op.JA for op, *_ in bpf.decode(made))
    assert_same(program, made, {*chance.sample(range(1501), 200), *EDGES}, [[7] * 6, [0] * 6], [ARCH])


# ---- whatever the kernel takes --------------------------------------------------------------------------------------

MEMORY = {Op.ST: Op.TAX, Op.STX: Op.TXA, Op.LD_MEM: Op.LD_IMM, Op.LDX_MEM: Op.LDX_IMM}


def without_memory(body: list[Instruction]) -> list[Instruction]:
    return [Instruction(MEMORY.get(op, op), jt, jf, k) for op, jt, jf, k in body[3:]]


@st.composite
def anything(draw: st.DrawFn) -> bytes:
    """With a gate for the architecture, mostly; tests of the number in between, and in many of them nothing else is
    done with it; no memory, mostly.
    """
    parts: list[Instruction] = []
    if draw(st.integers(0, 4)):
        parts += [Instruction(Op.LD_ABS, 0, 0, 4), Instruction(Op.JEQ, 1, 0, ARCH)]
        parts.append(Instruction(Op.RET_K, 0, 0, draw(REFUSALS)))
    memory, plain = draw(st.integers(0, 9)) == 0, draw(st.integers(0, 4))
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            test, nr = draw(st.sampled_from([Op.JEQ, Op.JGT, Op.JGE])), draw(st.integers(0, 9))
            parts += [Instruction(Op.LD_ABS, 0, 0, 0), Instruction(test, draw(st.integers(0, 1)), 0, nr)]
        if plain:
            parts.append(Instruction(Op.LD_ABS, 0, 0, draw(st.sampled_from([16, 20, 24]))))
        body = draw(bodies())
        for op, jt, jf, k in body if memory else without_memory(body):
            parts.append(Instruction(op, jt, jf, 16 + k if plain and op == Op.LD_ABS and k < 8 else k))
        test = draw(st.sampled_from([Op.JGT, Op.JSET]))
        parts += [Instruction(test, 1, 0, draw(WORDS)), Instruction(Op.RET_K, 0, 0, draw(REFUSALS))]
    return bpf.encode([*parts, Instruction(Op.RET_A, 0, 0, 0) if draw(st.integers(0, 3)) == 0 else ALLOW])


@settings(max_examples=200, deadline=None)
@given(st.data(), anything())
def test_whatever_is_given_decides_as_before(data: st.DataObject, program: bytes) -> None:
    assert_decides_as_before(data, program)


def gated(*body: tuple[int, int, int, int]) -> bytes:
    """It could be made shorter: nobody needs the end's test."""
    gate = [(Op.LD_ABS, 0, 0, 4), (Op.JEQ, 1, 0, ARCH), (Op.RET_K, 0, 0, bpf.KILL_PROCESS)]
    end = [(Op.LD_ABS, 0, 0, 4), (Op.JEQ, 0, 0, 1), (Op.RET_K, 0, 0, bpf.ALLOW)]
    return bpf.encode(Instruction(*instruction) for instruction in (*gate, *body, *end))


NUMBER, TWO = (Op.LD_ABS, 0, 0, 0), (Op.JEQ, 0, 1, 2)
RETURN = (Op.RET_K, 0, 0, bpf.ERRNO | 1)
OTHER_USES = {
    "masked": [NUMBER, (Op.AND, 0, 0, 0xFF), TWO, RETURN],
    "its bits tested": [NUMBER, (Op.JSET, 0, 1, 2), RETURN],
    "copied": [NUMBER, (Op.TAX, 0, 0, 0)],
    "negated": [NUMBER, (Op.NEG, 0, 0, 0), TWO, RETURN],
    "compared with X": [(Op.LDX_IMM, 0, 0, 2), NUMBER, (Op.JEQ | 8, 0, 1, 0), RETURN],
    "on one way only": [
        (Op.LD_ABS, 0, 0, 16), (Op.JEQ, 0, 1, 7), NUMBER, (Op.AND, 0, 0, 0xFF), TWO, RETURN,
    ],
    "returned": [NUMBER, (Op.JGT, 1, 0, 9), (Op.RET_A, 0, 0, 0)],
    "the architecture returned": [NUMBER, (Op.JGT, 2, 0, 9), (Op.LD_ABS, 0, 0, 4), (Op.RET_A, 0, 0, 0)],
    "stored": [NUMBER, (Op.ST, 0, 0, 0), (Op.LD_MEM, 0, 0, 0), TWO, RETURN],
    "memory for other things": [(Op.LD_IMM, 0, 0, 7), (Op.ST, 0, 0, 0)],
}  # fmt: skip


@pytest.mark.parametrize("body", OTHER_USES.values(), ids=list(OTHER_USES))
def test_what_does_more_than_comparing_comes_back(body: list[tuple[int, int, int, int]]) -> None:
    program = gated(*body)
    bpf.check(program)
    assert shortening.shorten(program, ARCH) == program


OWN = [(Op.LD_ABS, 0, 0, 4), (Op.JEQ, 0, 1, ARCH), (Op.RET_K, 0, 0, bpf.ALLOW)]
KILL, PERMIT = (Op.RET_K, 0, 0, bpf.KILL_PROCESS), (Op.RET_K, 0, 0, bpf.ALLOW)
ARCHITECTURES_APART = {
    "one more allowed": [(Op.JEQ, 0, 1, I386), PERMIT, KILL],
    "those above allowed": [(Op.JGT, 0, 1, ARCH), PERMIT, KILL],
    "those below killed": [(Op.JGE, 0, 1, ARCH), PERMIT, KILL],
    "half of them": [(Op.JGE, 0, 1, 2**31), PERMIT, KILL],
    "by their number": [NUMBER, TWO, PERMIT, KILL],
    "by an argument": [(Op.LD_ABS, 0, 0, 16), TWO, PERMIT, KILL],
    "computed": [(Op.LD_ABS, 0, 0, 16), (Op.RET_A, 0, 0, 0)],
}


@pytest.mark.parametrize("body", ARCHITECTURES_APART.values(), ids=list(ARCHITECTURES_APART))
def test_what_tells_other_architectures_apart_comes_back(body: list[tuple[int, int, int, int]]) -> None:
    junk = [(Op.JEQ, 0, 0, 1)] * 4  # which could go
    program = bpf.encode(Instruction(*instruction) for instruction in (*OWN, *junk, *body))
    bpf.check(program)
    assert shortening.shorten(program, ARCH) == program


def test_the_architecture_may_be_the_first_of_a_range() -> None:
    tests = [(Op.LD_ABS, 0, 0, 4), (Op.JEQ, 0, 0, 1), (Op.JEQ, 0, 0, 1), (Op.JGE, 0, 1, ARCH)]
    program = bpf.encode(Instruction(*instruction) for instruction in (*tests, PERMIT, KILL))
    assert shortening.shorten(program, ARCH) == program


def test_it_is_never_longer() -> None:
    program = bpf.encode([Instruction(ADD, 0, 0, 5), Instruction(Op.RET_A, 0, 0, 0)])
    assert shortening.shorten(program, ARCH) == program


def test_other_architectures_may_have_any_one_answer() -> None:
    program = _seccomp_make.chain(
        _seccomp_make.only_with(ARCH, 7, 0, [1, 2], bpf.ERRNO | 1), _seccomp_make.not_above(ARCH, 450, bpf.ERRNO | 38)
    )
    made = shortening.shorten(program, ARCH)
    assert len(made) < len(program)
    assert bpf.outcomes(made, bpf.words_of(None, I386)) == {bpf.ALLOW}
    assert shortening.shorten(gated(), ARCH) == bpf.encode([*bpf.decode(gated())[:3], ALLOW])


@pytest.mark.parametrize(
    ("start", "expected"), [((ADD, 0, 0, 5), 6), ((ADD | 8, 0, 0, 0), 1), ((Op.TXA, 0, 0, 0), 1)], ids=["A", "A+X", "X"]
)
def test_registers_are_zero_at_the_beginning(start: tuple[int, int, int, int], expected: int) -> None:
    """Though the number is in A where what is left begins."""
    gate = [(Op.LD_ABS, 0, 0, 4), (Op.JEQ, 1, 0, ARCH), (Op.RET_K, 0, 0, bpf.KILL_PROCESS)]
    tests = [*[NUMBER, (Op.JGT, 0, 0, 9)] * 4, (Op.LD_ABS, 0, 0, 16), (Op.JEQ, 1, 0, 3), RETURN]
    code = [start, (Op.TAX, 0, 0, 0), *gate, *tests, (Op.TXA, 0, 0, 0), (ADD, 0, 0, 1), (Op.RET_A, 0, 0, 0)]
    program = bpf.encode(Instruction(*instruction) for instruction in code)
    made = shortening.shorten(program, ARCH)
    assert len(made) < len(program)
    for nr in (0, 9, 10, 77):
        assert bpf.outcomes(program, bpf.words_of(nr, ARCH, [3])) == {expected}
        assert bpf.outcomes(made, bpf.words_of(nr, ARCH, [3])) == {expected}


def test_division_by_zero_stays_what_it_is() -> None:
    """An argument of 0 ends the program, though nobody needs the quotient."""
    load = [(Op.LD_ABS, 0, 0, 16), (Op.TAX, 0, 0, 0), (Op.LD_IMM, 0, 0, 7), (Op.DIV | 8, 0, 0, 0)]
    made = shortening.shorten(gated(*load), ARCH)
    assert len(made) < len(gated(*load))
    assert bpf.outcomes(made, bpf.words_of(1, ARCH, [0])) == {bpf.KILL_THREAD}
    assert bpf.outcomes(made, bpf.words_of(1, ARCH, [1])) == {bpf.ALLOW}


ARGUMENT = (Op.LD_ABS, 0, 0, 16)
BITS = st.integers(0, 7)


def shortened(*body: tuple[int, int, int, int]) -> bytes:
    program = gated(*body)
    bpf.check(program)
    made = shortening.shorten(program, ARCH)
    bpf.check(made)
    assert len(made) < len(program)
    return made


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(BITS, BITS | st.just(0), st.integers(1, 2)), min_size=1, max_size=3), st.booleans())
def test_bits_are_tested(tests: list[tuple[int, int, int]], equal: bool) -> None:
    """Each a mask, a value and the error: against what is meant, not against the evaluator."""
    body = []
    for mask, value, error in tests:
        value = mask if equal else value
        refuse = (Op.RET_K, 0, 0, bpf.ERRNO | error)
        body += [ARGUMENT, (Op.AND, 0, 0, mask), (Op.JEQ, 0, 1, value), refuse]
    made = shortened(*body)
    for given_value in (*range(8), 2**31, 2**32 - 1):
        found = [bpf.ERRNO | error for mask, value, error in tests if given_value & mask == (mask if equal else value)]
        assert bpf.outcomes(made, bpf.words_of(5, ARCH, [given_value])) == {(*found, bpf.ALLOW)[0]}


def test_bits_that_are_used_later_stay() -> None:
    for returned in (0, 4):
        made = shortened(ARGUMENT, (Op.AND, 0, 0, 4), (Op.JEQ, 1, 0, returned), (Op.RET_A, 0, 0, 0))
        for value in range(8):
            expected = bpf.ALLOW if value & 4 == returned else value & 4
            assert bpf.outcomes(made, bpf.words_of(5, ARCH, [value])) == {expected}


@pytest.mark.parametrize("way", [(1, 0), (0, 1)])
def test_what_one_way_needs_is_kept(way: tuple[int, int]) -> None:
    made = shortened((Op.LDX_IMM, 0, 0, 9), ARGUMENT, (Op.JEQ, *way, 7), PERMIT, (Op.TXA, 0, 0, 0), (Op.RET_A, 0, 0, 0))
    for value in (6, 7):
        expected = 9 if (value == 7) == (way == (1, 0)) else bpf.ALLOW
        assert bpf.outcomes(made, bpf.words_of(5, ARCH, [value])) == {expected}


def test_two_ways_meet() -> None:
    """In front of what both need only one of them can be."""
    ways = [(Op.LD_IMM, 0, 0, 3), (Op.JA, 0, 0, 1), (Op.LD_IMM, 0, 0, 4)]
    for end in ([(Op.RET_A, 0, 0, 0)], [(Op.TAX, 0, 0, 0), ARGUMENT, (ADD | 8, 0, 0, 0), (Op.RET_A, 0, 0, 0)]):
        made = shortened(ARGUMENT, (Op.JEQ, 0, 2, 7), *ways, *end)
        for value in (6, 7):
            expected = (3 if value == 7 else 4) + (value if len(end) > 1 else 0)
            assert bpf.outcomes(made, bpf.words_of(5, ARCH, [value])) == {expected}


# ---- what people use ------------------------------------------------------------------------------------------------


def unshortened(make: object, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The preset's program as it was composed."""
    with monkeypatch.context() as patched:
        patched.setattr(_seccomp_compile, "shorten", lambda program, arch: program)
        program = make.__wrapped__(*([frozenset()] if make is _seccomp_profiles.default else []))  # type: ignore[attr-defined]
    assert isinstance(program, bytes)
    return program


@pytest.mark.parametrize(
    ("make", "limit"),
    [(_seccomp_profiles.default, 100), (_seccomp_profiles.no_tty_injection, 15)],
    ids=["default", "tty"],
)
def test_a_preset_is_short_and_decides_as_before(make: object, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every number that there is."""
    before = unshortened(make, monkeypatch)
    after = (default() if make is _seccomp_profiles.default else no_tty_injection()).program
    assert len(after) // 8 < limit
    assert 3 * len(after) < len(before)
    values = [value for value in constants(before) if value > 600] + list(range(20))
    numbers = sorted({*range(601), *constants(before)})
    assert_same(before, after, numbers, some_arguments(values, 3), [ARCH])
    looked_at = ["ioctl", "clone", "socket", "socketpair", "personality", "read", "mount", "clone3"]
    chosen = [nr for nr in map(_seccomp_compile.number_of, looked_at) if nr is not None]
    assert_same(before, after, chosen, some_arguments(values, 400), [ARCH])
    assert_same(before, after, [0, *chosen, 5000, *EDGES], some_arguments(values, 3), ARCHES)


def test_every_maker_shortens_but_from_bpf() -> None:
    everything = _seccomp_profiles.words(_seccomp_profiles.ALLOWED)
    rule = {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]}
    filters: list[Filter] = [
        default(),
        default(allow=["mount"]),
        no_tty_injection(),
        allow_list(everything),
        deny_list(everything),
        from_oci({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}),
        from_oci({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": everything, "action": "SCMP_ACT_ALLOW"}]}),
    ]
    for filter in filters:
        assert shortening.shorten(filter.program, ARCH) == filter.program
    assert accepted([filter.program for filter in filters]) == [True] * len(filters)
    long = gated()
    assert from_bpf(long).program == long != shortening.shorten(long, ARCH)
