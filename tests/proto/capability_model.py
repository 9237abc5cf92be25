"""A thread's capabilities as `capabilities(7)`, `capset(2)` and `prctl(2)` describe them: what a policy's steps lead to
without a kernel.
"""

from __future__ import annotations

from linx_trio._capabilities import SECBIT_KEEP_CAPS, SETS, CapSets, Policy, Step, caps_of, mask_of

SETGID, SETUID, SETPCAP = (1 << bit for bit in (6, 7, 8))


class Refused(Exception):
    """The model's EPERM."""


class Model:
    """One thread, with one uid for all of its uids."""

    def __init__(self, sets: CapSets, uid: int) -> None:
        for name in SETS:
            setattr(self, name, mask_of(getattr(sets, name)))
        self.uid, self.keeps = uid, False

    effective: int
    permitted: int
    inheritable: int
    bounding: int
    ambient: int

    def _need(self, allowed: bool) -> None:
        if not allowed:
            raise Refused

    def take(self, step: Step) -> None:
        match step:
            case ("cap_drop_bounding", mask):
                self._need(bool(self.effective & SETPCAP))
                self.bounding &= ~mask
            case ("securebits", bits):
                self._need(bool(self.effective & SETPCAP))
                self.keeps = bool(bits & SECBIT_KEEP_CAPS)
            case ("cap_set_thread", effective, permitted, inheritable):
                reach = ~0 if self.effective & SETPCAP else self.inheritable | self.permitted
                self._need(not (permitted & ~self.permitted or effective & ~permitted or inheritable & ~reach))
                self._need(not inheritable & ~(self.inheritable | self.bounding))
                self.effective, self.permitted, self.inheritable = effective, permitted, inheritable
                self.ambient &= permitted & inheritable
            case ("cap_set_ambient", mask):
                self._need(not mask & ~(self.permitted & self.inheritable))
                self.ambient = mask
            case _:
                raise AssertionError(step)

    def set_ids(self, uid: int) -> None:
        self._need(bool(self.effective & SETUID and self.effective & SETGID))
        if self.uid == 0 != uid:
            self.permitted = self.permitted if self.keeps else 0
            self.effective = self.ambient = 0
        elif self.uid != 0 == uid:
            self.effective = self.permitted
        self.uid = uid

    def execute(self) -> CapSets:
        from_file = self.inheritable | self.bounding if self.uid == 0 else 0
        self.permitted = from_file | self.ambient
        self.effective = self.permitted if self.uid == 0 else self.ambient
        return CapSets(**{name: caps_of(getattr(self, name)) for name in SETS})


def executed(policy: Policy, caller: CapSets, uid: int, new_uid: int, last_cap: int) -> CapSets:
    """What a workload has that `caller`, as `uid`, starts as `new_uid`. Raises `Refused`."""
    thread = Model(caller, uid)
    before, after = policy.steps(caller, leaves_root=uid == 0 != new_uid, last_cap=last_cap)
    for step in before:
        thread.take(step)
    if new_uid != uid:
        thread.set_ids(new_uid)
    for step in after:
        thread.take(step)
    return thread.execute()
