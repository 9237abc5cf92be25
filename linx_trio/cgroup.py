"""Cgroups of the version 2 hierarchy (``cgroups(7)``): groups of processes that are limited, measured, frozen and
killed together. For the limits of one session `linx_trio.Limits` does, as its option ``limits``.
"""

from linx_trio._cgroup_group import Cgroup
from linx_trio._cgroup_stats import Events, Stats
from linx_trio._limits import Limits

__all__ = ["Cgroup", "Events", "Limits", "Stats"]
