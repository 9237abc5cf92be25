"""Network namespaces, configured from outside, and labs of them: see `open` and `Lab`."""

from __future__ import annotations

from linx_trio._lab import Host, Lab, LabLink, Node, Switch
from linx_trio._net import Monitor, Net, open
from linx_trio._net_links import LinkLike
from linx_trio._net_objects import Address, Change, Link, LinkStats, Neighbour, NextHop, Qdisc, Route, Rule

__all__ = [
    "Address",
    "Change",
    "Host",
    "Lab",
    "LabLink",
    "Link",
    "LinkLike",
    "LinkStats",
    "Monitor",
    "Neighbour",
    "Net",
    "NextHop",
    "Node",
    "Qdisc",
    "Route",
    "Rule",
    "Switch",
    "open",
]
