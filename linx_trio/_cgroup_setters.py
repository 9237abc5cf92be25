"""The limits of a cgroup: one control file each, whose controller is enabled along the path when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Iterable

from linx_trio import _cgroup_files as files
from linx_trio import _limits
from linx_trio._limits import Limits


class Limited:
    """What of `Cgroup` is about limits."""

    _place: files.Place
    _parent: int

    @property
    def path(self) -> str:
        """Its directory in the file system."""
        return self._place.path

    def fileno(self) -> int:
        """The fd of its directory, owned by this object; for ``CLONE_INTO_CGROUP``. `ValueError` once it is closed."""
        if self._place.fd < 0:
            raise ValueError(f"{self!r}: it has been destroyed or closed")
        return self._place.fd

    def set_memory_max(self, value: int | str) -> None:
        """Bytes, ``"256M"`` or ``"max"``: above it the kernel reclaims, then kills (``memory.max``)."""
        self._set("memory", "memory.max", _limits.size(value, "memory_max"))

    def set_memory_high(self, value: int | str) -> None:
        """Above so much the kernel slows the group down, and reclaims (``memory.high``)."""
        self._set("memory", "memory.high", _limits.size(value, "memory_high"))

    def set_swap_max(self, value: int | str) -> None:
        """How much of it may be in swap (``memory.swap.max``)."""
        self._set("memory", "memory.swap.max", _limits.size(value, "swap_max"))

    def set_oom_group(self, value: bool) -> None:
        """Whether the kernel, for want of memory, kills all of it rather than one process (``memory.oom.group``)."""
        if not isinstance(value, bool):
            raise TypeError(f"oom_group must be True or False, not {value!r}")
        self._set("memory", "memory.oom.group", int(value))

    def set_pids_max(self, value: int | str) -> None:
        """How many processes and threads, or ``"max"`` (``pids.max``): ``fork(2)`` beyond it is EAGAIN."""
        self._set("pids", "pids.max", _limits.count(value, "pids_max"))

    def set_cpu_max(self, quota: int | str | None, period: int = 100_000) -> None:
        """`quota` microseconds of CPU time in each `period`, or ``"max"`` (``cpu.max``)."""
        self._write("cpu", "cpu.max", _limits.quota(quota, period))

    def set_cpu_weight(self, value: int) -> None:
        """Its share among siblings, 1..10000 (``cpu.weight``)."""
        self._set("cpu", "cpu.weight", _limits.weight(value, "cpu_weight"))

    def set_cpuset(self, value: str | Iterable[int]) -> None:
        """The CPUs that it may run on, ``"0-3,5"`` or their numbers (``cpuset.cpus``)."""
        self._set("cpuset", "cpuset.cpus", _limits.cpu_list(value, "cpuset"))

    def set_io_max(self, device: str | os.PathLike[str], **limits: int | str) -> None:
        """For a block device (``"8:0"`` or its path) any of ``rbps``, ``wbps``, ``riops``, ``wiops`` (``io.max``)."""
        where, checked = _limits.device(device, "device"), _limits.io_limits(limits, "limits")
        numbers = files.device_number(where) if where.startswith("/") else where
        self._write("io", "io.max", _limits.io_line(numbers, checked))

    def set_hugetlb_max(self, page_size: str, value: int | str) -> None:
        """Bytes in huge pages of a size like ``"2MB"`` (``hugetlb.2MB.max``)."""
        file = f"hugetlb.{_limits.page_size(page_size, 'page_size')}.max"
        self._set("hugetlb", file, _limits.size(value, "hugetlb_max"))

    def set_limits(self, limits: Limits) -> None:
        """All of them, one after the other."""
        for setting in limits.settings(files.device_number):
            self._write(*setting)

    def _set(self, controller: str, file: str, value: int | str) -> None:
        self._write(controller, file, str(value).encode())

    def _write(self, controller: str, file: str, value: bytes) -> None:
        self.fileno()
        if not self._has(file):
            self._enable(controller, file)
        files.write(self._place, file, value)

    def _has(self, file: str) -> bool:
        try:
            os.stat(file, dir_fd=self._place.fd)
        except OSError:
            return False
        return True

    def _enable(self, controller: str, file: str) -> None:
        """For this group, in the one above."""
        above = os.path.dirname(self.path)
        if self.path == self._place.top or not files.is_below(above, self._place.top):
            return  # it is the top: the file is there or not
        parent = files.Place(self._parent, above, self._place.top)
        files.enable(parent, {controller: f"{self.path}/{file}"})
