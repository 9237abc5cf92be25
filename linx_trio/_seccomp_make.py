"""Small BPF programs, and several programs made one: what libseccomp cannot do, or not as fast."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from linx_trio import _seccomp_bpf as bpf
from linx_trio._seccomp_bpf import Instruction, Op


def chain(first: bytes, second: bytes, undecided: int = bpf.ALLOW) -> bytes:
    """One program: where `first` returns `undecided`, `second` decides.

    Every such return of `first` becomes a jump to `second`, which finds its registers as it would alone: zero. (Memory
    is written before it is read, in every program.) `first` may not return what it has computed.
    """
    code = bpf.decode(first)
    for pc, (op, _, _, k) in enumerate(code):
        if op == Op.RET_A:
            raise ValueError(f"BPF instruction {pc} of the first program returns what nobody knows beforehand")
        if op == Op.RET_K and k == undecided:
            code[pc] = Instruction(Op.JA, 0, 0, len(code) - pc - 1)
    return bpf.encode([*code, Instruction(Op.LD_IMM, 0, 0, 0), Instruction(Op.TAX, 0, 0, 0)]) + second


def by_number(arch: int, leaves: Mapping[int, bytes], default: int, *, x32: bool) -> bytes:
    """One program: for each native syscall the one of its number, for the others the action `default`. Other
    architectures are killed, and so is x32, where there is one.

    A binary search among ranges of numbers that are treated alike. That matters at every syscall that the workload
    makes, and when the program is installed: the kernel then tries all numbers, to see which are always allowed.
    """
    otherwise = _returning(default)
    runs: list[tuple[int, list[Instruction]]] = [(0, otherwise)]
    for number, program in sorted(leaves.items()):
        code = bpf.decode(program)
        if code[0].code not in (Op.RET_K, Op.LD_ABS):
            code.insert(0, Instruction(Op.LD_IMM, 0, 0, 0))  # it finds its registers as it would alone
        if runs[-1][0] == number:
            runs.pop()
        if not runs or runs[-1][1] != code:
            runs.append((number, code))
        if code != otherwise:
            runs.append((number + 1, otherwise))
    if x32:
        runs += [
            (bpf.X32_BIT, _returning(bpf.KILL_PROCESS)),
            (0xFFFFFFFF, otherwise),
        ]  # -1 is what ptrace(2) makes of any
    tree = [Instruction(Op.LD_ABS, 0, 0, bpf.NUMBER * 4), *_search(runs)]
    return bpf.encode(
        [
            Instruction(Op.LD_ABS, 0, 0, bpf.ARCHITECTURE * 4),
            Instruction(Op.JEQ, 1, 0, arch),
            *_returning(bpf.KILL_PROCESS),
            *tree,
        ]
    )


def _returning(action: int) -> list[Instruction]:
    return [Instruction(Op.RET_K, 0, 0, action)]


def _search(runs: Sequence[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Each run of numbers reaches to the next one's first."""
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    below, above = _search(runs[:middle]), _search(runs[middle:])
    first = runs[middle][0]
    if len(below) > bpf.FARTHEST:
        return [Instruction(Op.JGE, 0, 1, first), Instruction(Op.JA, 0, 0, len(below)), *below, *above]
    return [Instruction(Op.JGE, len(below), 0, first), *below, *above]


def only_with(arch: int, nr: int, index: int, values: Collection[int], otherwise: int) -> bytes:
    """Allows everything but the syscall `nr` with another low half of an argument than `values`: that is `otherwise`.

    For arguments of type int or unsigned int, of which the kernel ignores the high half. At most 250 values.
    """
    tests = [Instruction(Op.JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return bpf.encode(
        [
            Instruction(Op.LD_ABS, 0, 0, bpf.ARCHITECTURE * 4),
            Instruction(Op.JEQ, 0, len(tests) + 4, arch),
            Instruction(Op.LD_ABS, 0, 0, bpf.NUMBER * 4),
            Instruction(Op.JEQ, 0, len(tests) + 2, nr),
            Instruction(Op.LD_ABS, 0, 0, (bpf.ARGUMENTS + 2 * index) * 4),
            *tests,
            Instruction(Op.RET_K, 0, 0, otherwise),
            Instruction(Op.RET_K, 0, 0, bpf.ALLOW),
        ]
    )


def not_above(arch: int, last: int, otherwise: int) -> bytes:
    """Allows everything but the native syscalls with a number greater than `last`: those are `otherwise`."""
    return bpf.encode(
        [
            Instruction(Op.LD_ABS, 0, 0, bpf.ARCHITECTURE * 4),
            Instruction(Op.JEQ, 0, 4, arch),
            Instruction(Op.LD_ABS, 0, 0, bpf.NUMBER * 4),
            Instruction(Op.JGT, 0, 2, last),
            Instruction(Op.JGE, 1, 0, bpf.X32_BIT),  # x32's, which are not native
            Instruction(Op.RET_K, 0, 0, otherwise),
            Instruction(Op.RET_K, 0, 0, bpf.ALLOW),
        ]
    )
