"""The evaluator and the validator of BPF programs, against the real kernel; and what is made of programs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from linx_trio import _seccomp_bpf as bpf
from linx_trio import _seccomp_filter, _seccomp_make
from linx_trio._seccomp_bpf import Instruction, Op
from tests.proto.seccomp_kernel import accepted, asked

NATIVE = _seccomp_filter.native()
assert NATIVE is not None
ARCH = NATIVE.token
UNUSED = 5000
"""A syscall that no kernel has."""

WORDS = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1), st.sampled_from([2**31, 2**32 - 1, ARCH, UNUSED]))
ARGUMENTS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), min_size=6, max_size=6)
ALLOW, REFUSE = Instruction(Op.RET_K, 0, 0, bpf.ALLOW), Instruction(Op.RET_K, 0, 0, bpf.ERRNO | 1)
ALU = [code | source for code in bpf._ALU for source in (0, 8)]
OTHER = -1
BRANCHES = [code | source for code in bpf._JUMPS for source in (0, 8)]


@st.composite
def bodies(draw: st.DrawFn) -> list[Instruction]:
    """Valid instructions, none of which returns; all jumps stay inside, or go right behind."""
    length = draw(st.integers(1, 12))
    body = [Instruction(Op.ST, 0, 0, word) for word in range(3)]
    for following in reversed(range(length)):
        kind = draw(st.sampled_from([*ALU, *BRANCHES, Op.LD_ABS, Op.LD_ABS, Op.LD_ABS, OTHER]))
        way = st.integers(0, following)
        if kind == OTHER:
            simple = [Op.LD_LEN, Op.LD_IMM, Op.LDX_LEN, Op.LDX_IMM, Op.TAX, Op.TXA, Op.NEG]
            code = draw(st.sampled_from([*simple, Op.LD_MEM, Op.LDX_MEM, Op.ST, Op.STX, Op.JA]))
            k = WORDS if code in simple else way if code == Op.JA else st.integers(0, 2)
            body.append(Instruction(code, 0, 0, draw(k)))
        elif kind == Op.LD_ABS:  # all but the instruction pointer, which only the kernel knows
            body.append(Instruction(kind, 0, 0, 4 * draw(st.sampled_from([0, 1, *range(4, 16)]))))
        elif kind in BRANCHES:
            body.append(Instruction(kind, draw(way), draw(way), draw(WORDS)))
        else:
            k = st.integers(0, 31) if kind in (Op.LSH, Op.RSH) else WORDS.filter(bool) if kind == Op.DIV else WORDS
            body.append(Instruction(kind, 0, 0, draw(k)))
    return body


def saying_errno(body: list[Instruction]) -> bytes:
    """Its A, cut to 12 bits, as an errno."""
    gate = [Instruction(Op.LD_ABS, 0, 0, 0), Instruction(Op.JEQ, 1, 0, UNUSED), ALLOW]
    tail = [Instruction(0x54, 0, 0, 0xFFF), Instruction(0x44, 0, 0, bpf.ERRNO), Instruction(Op.RET_A, 0, 0, 0)]
    return bpf.encode([*gate, *body, *tail])


def result_of(outcome: bpf.Word) -> int | str:
    assert outcome is not None
    return "killed" if outcome == bpf.KILL_THREAD else -(outcome & 0xFFFF)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(bodies(), ARGUMENTS), min_size=20, max_size=40))
def test_the_evaluator_is_the_kernels(cases: list[tuple[list[Instruction], list[int]]]) -> None:
    questions = [(saying_errno(body), UNUSED, arguments) for body, arguments in cases]
    expected = []
    for program, nr, arguments in questions:
        bpf.check(program)
        (outcome,) = bpf.outcomes(program, bpf.words_of(nr, ARCH, arguments))
        expected.append(result_of(outcome))
    assert asked(questions) == expected


def test_the_corners_of_arithmetic_are_the_kernels() -> None:
    questions = []
    for code, a, x in itertools.product(
        [alu | 8 for alu in bpf._ALU], (0, 1, 5, 2**32 - 1), (0, 1, 31, 32, 33, 63, 64)
    ):
        body = [Instruction(Op.LDX_IMM, 0, 0, x), Instruction(Op.LD_IMM, 0, 0, a), Instruction(code, 0, 0, 0)]
        questions.append((saying_errno(body), UNUSED, [0] * 6))
    outcomes = [next(iter(bpf.outcomes(program, bpf.words_of(nr, ARCH)))) for program, nr, _ in questions]
    assert asked(questions) == [result_of(outcome) for outcome in outcomes]


CODES = st.sampled_from(sorted(bpf._CODES)) | st.integers(0, 0xFF) | st.integers(0, 0xFFFF)
SMALL = st.integers(0, 20) | st.sampled_from([31, 32, 60, 63, 64, 68, 2**31, 2**32 - 1])
ANY = st.builds(Instruction, CODES, st.integers(0, 4), st.integers(0, 4), SMALL)
LIKELY = st.builds(
    Instruction,
    st.sampled_from([Op.ST, Op.STX, Op.LD_MEM, Op.LDX_MEM, Op.JEQ, Op.JA, Op.LD_ABS, Op.DIV, Op.LSH]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 4),
)
RETURNS = st.builds(Instruction, st.sampled_from([Op.RET_K, Op.RET_A]), st.just(0), st.just(0), SMALL)
PROGRAMS = st.tuples(
    st.lists(ANY | LIKELY, max_size=6), st.lists(RETURNS, min_size=1, max_size=3) | st.lists(ANY, max_size=1)
)


def is_valid(program: bytes) -> bool:
    try:
        bpf.check(program)
    except ValueError:
        return False
    return True


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking asks often
@given(st.lists(PROGRAMS.map(lambda parts: bpf.encode([*parts[0], *parts[1]])), min_size=50, max_size=100))
def test_the_validator_is_the_kernels(programs: list[bytes]) -> None:
    verdicts = accepted(programs)
    assert [
        program.hex() for program, valid in zip(programs, verdicts, strict=True) if is_valid(program) != valid
    ] == []


def test_the_validator_agrees_on_every_code_and_on_the_limits() -> None:
    programs = [bpf.encode([Instruction(code, 0, 0, 4), ALLOW]) for code in range(0x200)]
    programs += [bpf.encode([ALLOW] * length) for length in (0, 1, 4096, 4097)]
    programs += [bpf.encode([Instruction(Op.LD_ABS, 0, 0, k), ALLOW]) for k in range(70)]
    load, store = Instruction(Op.LD_MEM, 0, 0, 1), Instruction(Op.ST, 0, 0, 1)
    programs += [bpf.encode([ALLOW, load, ALLOW]), bpf.encode([store, ALLOW, load, ALLOW])]  # nothing gets there
    verdicts = accepted(programs)
    assert [is_valid(program) for program in programs] == verdicts
    assert any(verdicts)
    assert not all(verdicts)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (b"", "not 0 bytes"),
        (b"1234567", "not 7 bytes"),
        (bpf.encode([ALLOW]) * 4097, "not 32776 bytes"),
        (bpf.encode([Instruction(0x94, 0, 0, 2), ALLOW]), r"instruction 0 \(148, 0, 0, 2\) is none that"),
        (bpf.encode([Instruction(Op.LD_ABS, 0, 0, 64), ALLOW]), "loads from offset 64"),
        (bpf.encode([Instruction(Op.JEQ, 0, 1, 0), ALLOW]), "instruction 0 .* jumps beyond the end"),
        (bpf.encode([Instruction(Op.LD_MEM, 0, 0, 3), ALLOW]), "reads memory word 3"),
        (bpf.encode([ALLOW, Instruction(Op.TAX, 0, 0, 0)]), "instruction 1, the last one, is no return"),
    ],
)
def test_an_invalid_program_is_refused_by_name(program: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        bpf.check(program)


@given(bodies(), ARGUMENTS, st.sets(st.integers(0, 15)))
def test_what_is_not_known_adds_outcomes_only(body: list[Instruction], arguments: list[int], hidden: set[int]) -> None:
    program = bpf.encode([*body, Instruction(Op.JSET, 0, 1, 3), REFUSE, Instruction(Op.RET_A, 0, 0, 0)])
    words = [0 if word is None else word for word in bpf.words_of(UNUSED, ARCH, arguments)]
    known = bpf.outcomes(program, words)
    assert len(known) == 1
    found = bpf.outcomes(program, [None if i in hidden else word for i, word in enumerate(words)])
    assert known <= found or None in found


REFUSALS = st.sampled_from([bpf.KILL_PROCESS, bpf.KILL_THREAD, bpf.TRAP, bpf.ERRNO | 1, bpf.ERRNO | 38])


@st.composite
def deciding(draw: st.DrawFn, verdicts: st.SearchStrategy[int]) -> bytes:
    """Returns in several places, also in its middle."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        parts += [*draw(bodies()), Instruction(Op.JGT, 1, 0, draw(WORDS)), Instruction(Op.RET_K, 0, 0, draw(verdicts))]
    return bpf.encode([*parts, Instruction(Op.RET_K, 0, 0, draw(verdicts))])


@given(
    st.sampled_from([bpf.ALLOW, bpf.TRACE | 7]),
    deciding(st.sampled_from([bpf.ALLOW, bpf.TRACE | 7]) | REFUSALS),
    deciding(REFUSALS | st.sampled_from([bpf.ALLOW, bpf.LOG, bpf.TRACE])),
    st.lists(ARGUMENTS, min_size=1, max_size=5),
)
def test_a_chain_asks_the_second_where_the_first_is_undecided(
    undecided: int, first: bytes, second: bytes, inputs: list[list[int]]
) -> None:
    both = _seccomp_make.chain(first, second, undecided)
    bpf.check(both)
    for arguments in inputs:
        words = bpf.words_of(UNUSED, ARCH, arguments)
        expected = bpf.outcomes(first, words)
        if expected == {undecided}:
            expected = bpf.outcomes(second, words)
        assert bpf.outcomes(both, words) == expected


def test_a_chains_first_may_not_compute_what_it_returns() -> None:
    with pytest.raises(ValueError, match="instruction 0 of the first"):
        _seccomp_make.chain(bpf.encode([Instruction(Op.RET_A, 0, 0, 0)]), bpf.encode([ALLOW]))


@given(st.integers(0, 5), st.lists(WORDS, max_size=8), WORDS, st.integers(0, 2**32 - 1))
def test_only_with_looks_at_the_low_half(index: int, values: list[int], low: int, high: int) -> None:
    program = _seccomp_make.only_with(ARCH, UNUSED, index, values, bpf.ERRNO | 97)
    bpf.check(program)
    arguments = [7] * 6
    for word in (low, *values):
        arguments[index] = high << 32 | word
        expected = bpf.ALLOW if word in values else bpf.ERRNO | 97
        assert bpf.outcomes(program, bpf.words_of(UNUSED, ARCH, arguments)) == {expected}
        assert bpf.outcomes(program, bpf.words_of(UNUSED + 1, ARCH, arguments)) == {bpf.ALLOW}
        assert bpf.outcomes(program, bpf.words_of(UNUSED, ARCH ^ 1, arguments)) == {bpf.ALLOW}


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 40) | st.integers(0, 600), deciding(REFUSALS), max_size=6),
    st.integers(0, 300),
    st.booleans(),
    st.lists(ARGUMENTS, min_size=1, max_size=3),
)
def test_each_number_has_its_program(leaves: dict[int, bytes], plain: int, x32: bool, inputs: list[list[int]]) -> None:
    alike = dict.fromkeys(range(100, 100 + plain), bpf.encode([ALLOW]))  # also trees that no single jump crosses
    single = {
        number: bpf.encode([Instruction(bpf.Op.RET_K, 0, 0, bpf.ERRNO | number % 7)])
        for number in range(700, 700 + plain)
    }
    program = _seccomp_make.by_number(ARCH, {**alike, **single, **leaves}, bpf.ERRNO | 38, x32=x32)
    bpf.check(program)
    edges = {0, 99, 100, 99 + plain, 100 + plain, 699, 700, 699 + plain, 700 + plain, 10**6, bpf.X32_BIT - 1, -1}
    for number in edges | leaves.keys():
        leaf = {**alike, **single, **leaves}.get(number)
        for arguments in inputs:
            words = bpf.words_of(number, ARCH, arguments)
            assert bpf.outcomes(program, words) == ({bpf.ERRNO | 38} if leaf is None else bpf.outcomes(leaf, words))
        assert bpf.outcomes(program, bpf.words_of(number, ARCH ^ 1)) == {bpf.KILL_PROCESS}
    for number in (bpf.X32_BIT, bpf.X32_BIT | 1, 2**32 - 2):
        assert bpf.outcomes(program, bpf.words_of(number, ARCH)) == {bpf.KILL_PROCESS if x32 else bpf.ERRNO | 38}


def test_not_above_is_about_native_numbers() -> None:
    program = _seccomp_make.not_above(ARCH, 450, bpf.ERRNO | 38)
    bpf.check(program)
    for nr, arch in itertools.product(
        (0, 450, 451, 10**6, bpf.X32_BIT - 1, bpf.X32_BIT, bpf.X32_BIT | 451, -1), (ARCH, 3)
    ):
        expected = bpf.ERRNO | 38 if arch == ARCH and 450 < nr < bpf.X32_BIT else bpf.ALLOW
        assert bpf.outcomes(program, bpf.words_of(nr, arch)) == {expected}
