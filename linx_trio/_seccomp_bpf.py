"""Classic BPF over ``struct seccomp_data``, as seccomp(2) runs it: validating and evaluating programs.

A program is an array of ``struct sock_filter`` (code, jt, jf, k) with two registers, A and X, and 16 words of memory.
Its input are 16 32-bit words: the syscall's number, the architecture, the instruction pointer and six arguments, each
of the latter in two halves. All jumps lead forward. So one pass over the instructions, in order, sees each of them
after everything that can lead to it, and that makes it cheap to evaluate a program of whose input only a part is known:
where two ways meet, a value that differs between them is no longer known (`None`), and where a branch depends on such
a value both ways are taken. The outcome is then a set of what the program may return, never less than the truth. With
the whole input known it is the one value that the kernel would get.

Nothing here asks the kernel or any library anything.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

INSTRUCTION_LIMIT = 4096  # BPF_MAXINSNS
FARTHEST = 255  # how far a conditional jump can lead
DATA_SIZE = 64
DATA_WORDS = DATA_SIZE // 4
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 1, 4  # indices of words

KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
USER_NOTIF = 0x7FC00000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000
ACTION_MASK = 0xFFFF0000
DATA_MASK = 0x0000FFFF

X32_BIT = 0x40000000

_MASK = 0xFFFFFFFF
_MEMORY = 16


class Op:
    """The codes that are used by name below (linux/bpf_common.h)."""

    LD_ABS, LD_LEN, LD_IMM, LD_MEM = 0x20, 0x80, 0x00, 0x60
    LDX_LEN, LDX_IMM, LDX_MEM = 0x81, 0x01, 0x61
    ST, STX, TAX, TXA, NEG = 0x02, 0x03, 0x07, 0x87, 0x84
    JA, JEQ, JGT, JGE, JSET = 0x05, 0x15, 0x25, 0x35, 0x45
    RET_K, RET_A = 0x06, 0x16
    AND, DIV, LSH, RSH = 0x54, 0x34, 0x64, 0x74


RETURNS = (Op.RET_K, Op.RET_A)
FROM_X = 0x08
"""The source of an ALU or JMP instruction: X instead of k."""

_STORES = (Op.ST, Op.STX)
_LOADS = (Op.LD_MEM, Op.LDX_MEM)

_ALU: dict[int, Callable[[int, int], int]] = {
    0x04: operator.add,
    0x14: operator.sub,
    0x24: operator.mul,
    Op.DIV: operator.floordiv,
    0x44: operator.or_,
    Op.AND: operator.and_,
    Op.LSH: lambda a, b: a << (b & 31),
    Op.RSH: lambda a, b: a >> (b & 31),
    0xA4: operator.xor,
}
_JUMPS: dict[int, Callable[[int, int], bool]] = {
    Op.JEQ: operator.eq,
    Op.JGT: operator.gt,
    Op.JGE: operator.ge,
    Op.JSET: lambda a, b: a & b != 0,
}
_CODES = {
    *(Op.LD_ABS, Op.LD_LEN, Op.LD_IMM, Op.LDX_LEN, Op.LDX_IMM, Op.TAX, Op.TXA, Op.NEG, Op.JA),
    *(*_LOADS, *_STORES, *RETURNS),
    *(code | source for code in (*_ALU, *_JUMPS) for source in (0, FROM_X)),
}


def is_test(op: int) -> bool:
    """Whether it is a conditional jump."""
    return op & ~FROM_X in _JUMPS


def reads_a(op: int) -> bool:
    """Whether what it does depends on A."""
    return op in (Op.RET_A, Op.TAX, Op.ST, Op.NEG) or is_test(op) or op & ~FROM_X in _ALU


def reads_x(op: int) -> bool:
    """The same for X."""
    return op in (Op.TXA, Op.STX) or (op & FROM_X > 0 and (is_test(op) or op & ~FROM_X in _ALU))


def writes_a(op: int) -> bool:
    return op in (Op.LD_ABS, Op.LD_LEN, Op.LD_IMM, Op.LD_MEM, Op.TXA, Op.NEG) or op & ~FROM_X in _ALU


def writes_x(op: int) -> bool:
    return op in (Op.LDX_LEN, Op.LDX_IMM, Op.LDX_MEM, Op.TAX)


def uses_memory(op: int) -> bool:
    return op in (*_LOADS, *_STORES)


class Instruction(NamedTuple):
    """``struct sock_filter``."""

    code: int
    jt: int
    jf: int
    k: int


_FORMAT = struct.Struct("=HBBI")


def decode(program: bytes) -> list[Instruction]:
    """Raises `ValueError` for a length that is no number of instructions, or not between 1 and 4096 of them."""
    count, rest = divmod(len(program), _FORMAT.size)
    if rest or not 1 <= count <= INSTRUCTION_LIMIT:
        raise ValueError(
            f"a BPF program is 1 to {INSTRUCTION_LIMIT} instructions of {_FORMAT.size} bytes, not {len(program)} bytes"
        )
    return [Instruction(*fields) for fields in _FORMAT.iter_unpack(program)]


def encode(instructions: Iterable[Instruction]) -> bytes:
    """The program's bytes, in this machine's byte order."""
    return b"".join(_FORMAT.pack(*instruction) for instruction in instructions)


def check(program: bytes) -> None:
    """Raises `ValueError` for what the kernel would refuse with EINVAL, naming the instruction."""
    code = decode(program)
    for pc, instruction in enumerate(code):
        if wrong := _wrong(instruction, len(code) - pc - 1):
            raise ValueError(f"BPF instruction {pc} {tuple(instruction)} {wrong}")
    if code[-1].code not in RETURNS:
        raise ValueError(f"BPF instruction {len(code) - 1}, the last one, is no return")
    _check_memory(code)


def _wrong(instruction: Instruction, following: int) -> str | None:
    code, jt, jf, k = instruction
    if code not in _CODES:
        return "is none that seccomp(2) has"
    if code == Op.LD_ABS and (k >= DATA_SIZE or k % 4):
        return f"loads from offset {k}, which is no word of struct seccomp_data"
    if code in (*_LOADS, *_STORES) and k >= _MEMORY:
        return f"uses memory word {k}: there are {_MEMORY}"
    if code == Op.DIV and k == 0:
        return "divides by zero"
    if code in (Op.LSH, Op.RSH) and k > 31:
        return "shifts by more than 31 bits"
    farthest = k if code == Op.JA else max(jt, jf) if is_test(code) else -1
    return "jumps beyond the end" if farthest >= following else None


def _check_memory(code: Sequence[Instruction]) -> None:
    """What is read from memory must have been written there on every way."""
    written = [(1 << _MEMORY) - 1] * (len(code) + 1)
    written[0] = 0
    for pc, (op, jt, jf, k) in enumerate(code):
        valid = written[pc]
        if op in _LOADS and not valid >> k & 1:
            raise ValueError(f"BPF instruction {pc} reads memory word {k}, which may not have been written")
        if op in _STORES:
            valid |= 1 << k
        for after in following(op, jt, jf, k):
            written[pc + 1 + after] &= valid


def following(op: int, jt: int, jf: int, k: int) -> tuple[int, ...]:
    """Offsets of what the kernel's check takes to be next: behind a return too, though nothing gets there."""
    if op == Op.JA:
        return (k,)
    return (jt, jf) if is_test(op) else (0,)


# ---- evaluating -----------------------------------------------------------------------------------------------------

Word = int | None
"""32 bits, or unknown."""


class State(NamedTuple):
    """What is known before an instruction."""

    a: Word
    x: Word
    memory: tuple[Word, ...]

    def joined(self, other: State) -> State:
        if self == other:
            return self
        return State(
            _either(self.a, other.a),
            _either(self.x, other.x),
            tuple(_either(one, two) for one, two in zip(self.memory, other.memory, strict=True)),
        )


def _either(one: Word, two: Word) -> Word:
    return one if one == two else None


def words_of(nr: Word, arch: Word, arguments: Sequence[int | None] = ()) -> list[Word]:
    """The input: a syscall's number, the architecture, and as many of its six 64-bit arguments as are known."""
    words: list[Word] = [nr if nr is None else nr & _MASK, arch, None, None]
    for argument in (*arguments, *[None] * (6 - len(arguments))):
        words += (None, None) if argument is None else (argument & _MASK, argument >> 32 & _MASK)
    return words


class Reached(NamedTuple):
    """An instruction that may be executed, and where each of its ways leads: a test that can go both ways has two, the
    one where it is true first; what ends the program has none.
    """

    pc: int
    instruction: Instruction
    state: State
    ways: tuple[int, ...]


def reached(code: Sequence[Instruction], words: Sequence[Word]) -> Iterator[Reached]:
    """All that a valid program may execute for this input, in order; with `None` in it, anything."""
    states: dict[int, State] = {0: State(0, 0, (0,) * _MEMORY)}
    while states:
        pc = min(states)  # so all that can lead there has been seen
        state = states.pop(pc)
        op, jt, jf, k = instruction = code[pc]
        after = state
        offsets: tuple[int, ...] = (0,)
        if op in RETURNS or (op == Op.DIV | FROM_X and state.x == 0):
            offsets = ()
        elif is_test(op):
            taken = _test(op, state, k)
            offsets = (jt,) if taken or jt == jf else (jf,) if taken is False else (jt, jf)
        elif op == Op.JA:
            offsets = (k,)
        else:
            after = _step(op, k, state, words)
        ways = tuple(pc + 1 + offset for offset in offsets)
        yield Reached(pc, instruction, state, ways)
        for way in ways:
            states[way] = states[way].joined(after) if way in states else after


def outcomes(program: bytes, words: Sequence[Word]) -> frozenset[Word]:
    """All that a valid program may return for this input; with `None` in it, anything."""
    found: set[Word] = set()
    for _, (op, _, _, k), state, _ in reached(decode(program), words):
        if op in RETURNS:
            found.add(k if op == Op.RET_K else state.a)
        elif op == Op.DIV | FROM_X and not state.x:
            found.add(KILL_THREAD)  # the kernel ends a program that divides by zero with 0
    return frozenset(found)


def _test(op: int, state: State, k: int) -> bool | None:
    operand = state.x if op & FROM_X else k
    return None if state.a is None or operand is None else test(op, state.a, operand)


def test(op: int, a: int, operand: int) -> bool:
    """Whether a conditional jump's condition is true."""
    return _JUMPS[op & ~FROM_X](a, operand)


def _step(op: int, k: int, state: State, words: Sequence[Word]) -> State:
    """The state after an instruction that neither branches nor returns."""
    a, x, memory = state
    match op:
        case Op.LD_ABS:
            a = words[k // 4]
        case Op.LD_LEN | Op.LD_IMM:
            a = DATA_SIZE if op == Op.LD_LEN else k
        case Op.LD_MEM:
            a = memory[k]
        case Op.LDX_LEN | Op.LDX_IMM:
            x = DATA_SIZE if op == Op.LDX_LEN else k
        case Op.LDX_MEM:
            x = memory[k]
        case Op.ST | Op.STX:
            memory = (*memory[:k], a if op == Op.ST else x, *memory[k + 1 :])
        case Op.TAX:
            x = a
        case Op.TXA:
            a = x
        case Op.NEG:
            a = None if a is None else -a & _MASK
        case Op.AND if k == 0:
            a = 0  # of whatever: how libseccomp asks for no bit of a word
        case _:
            operand = x if op & FROM_X else k
            a = None if a is None or operand is None else _ALU[op & ~FROM_X](a, operand) & _MASK
    return State(a, x, memory)
