"""Small BPF programs, and two programs made one: what libseccomp cannot do."""

from __future__ import annotations

from collections.abc import Collection

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
