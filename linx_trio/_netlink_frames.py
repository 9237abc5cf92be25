"""Netlink messages as bytes (``netlink(7)``): their headers, what ends an answer, and the kernel's own words.

One datagram holds any number of messages, each ``nlmsghdr`` and payload, padded to four bytes. A request is answered by
any number of messages with its sequence number, and then by one that ends it: ``NLMSG_ERROR`` (with errno 0: it is
an acknowledgement) or, for a dump, ``NLMSG_DONE``. Pure: bytes in, data out. What the payloads mean is
pyroute2's affair.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")

NLMSG_ERROR, NLMSG_DONE = 2, 3
_CONTROL_TYPES = 0x10  # below: NOOP, OVERRUN and whatever else is for the transport

REQUEST, MULTI, ACK, ECHO, DUMP_INTERRUPTED = 0x1, 0x2, 0x4, 0x8, 0x10
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
DUMP = 0x300
_CAPPED, _ACK_TLVS = 0x100, 0x200

_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG


class FrameError(ValueError):
    """These bytes are no netlink messages."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `data` is all of it, header included."""

    type: int
    flags: int
    seq: int
    data: bytes

    @property
    def payload(self) -> bytes:
        return self.data[HEADER.size :]


def pack(type: int, flags: int, seq: int, payload: bytes) -> bytes:
    """A request, addressed to the kernel."""
    return HEADER.pack(HEADER.size + len(payload), type, flags, seq, 0) + payload


def split(datagram: bytes) -> list[Frame]:
    """The messages of a datagram. Raises `FrameError`."""
    frames = []
    at = 0
    while at < len(datagram):
        if len(datagram) - at < HEADER.size:
            raise FrameError(f"{len(datagram) - at} bytes are left, too few for a header")
        length, type, flags, seq, _port = HEADER.unpack_from(datagram, at)
        if not HEADER.size <= length <= len(datagram) - at:
            raise FrameError(f"a message of {length} bytes, where {len(datagram) - at} are left")
        frames.append(Frame(type, flags, seq, datagram[at : at + length]))
        at += (length + 3) & ~3
    return frames


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """``nlattr`` after ``nlattr``: type and value. Raises `FrameError`."""
    at = 0
    while at < len(data):
        if len(data) - at < _ATTRIBUTE.size:
            raise FrameError(f"{len(data) - at} bytes are left, too few for an attribute")
        length, type = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise FrameError(f"an attribute of {length} bytes, where {len(data) - at} are left")
        yield type & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def ending_of(frame: Frame) -> tuple[int, str]:
    """What a message that ends an answer says: errno, 0 for success, and the kernel's explanation or nothing.

    Raises `FrameError`.
    """
    payload = frame.payload
    if len(payload) < _INT.size:
        if frame.type == NLMSG_DONE and not payload:
            return 0, ""
        raise FrameError(f"the end of an answer has {len(payload)} bytes, too few for an errno")
    number = -_INT.unpack_from(payload)[0]
    if number < 0:
        if frame.type != NLMSG_DONE:
            raise FrameError(f"an errno of {number}")
        number = 0  # a dump's last return value
    if not frame.flags & _ACK_TLVS:
        return number, ""
    behind = _INT.size
    if frame.type == NLMSG_ERROR:
        if len(payload) < behind + HEADER.size:
            raise FrameError("an error without the header that it is about")
        about = HEADER.size if frame.flags & _CAPPED else HEADER.unpack_from(payload, behind)[0]
        behind += (about + 3) & ~3
    text = dict(attributes(payload[behind:])).get(_ERROR_TEXT, b"")
    return number, text.rstrip(b"\0").decode("utf-8", "replace")


class Answer:
    """What the kernel says to one request, as it comes in.

    Attributes:
        parts: the messages, without the one that ends it.
        done: whether it has ended.
        errno, text: how; 0 for success.
        interrupted: a dump during which the listed things changed: it may lack some, or have some twice.
    """

    def __init__(self, seq: int, *, dump: bool = False) -> None:
        self.seq = seq
        self.dump = dump
        self.parts: list[Frame] = []
        self.done = False
        self.errno = 0
        self.text = ""
        self.interrupted = False

    def feed(self, datagram: bytes) -> None:
        """Takes what is ours of it: what answers earlier requests, which nobody waits for any more, is dropped.

        Raises `FrameError`.
        """
        for frame in split(datagram):
            if frame.seq != self.seq or self.done:
                continue
            self.interrupted |= self.dump and bool(frame.flags & DUMP_INTERRUPTED)
            if frame.type == NLMSG_DONE or frame.type == NLMSG_ERROR:
                self.errno, self.text = ending_of(frame)
                self.done = True
            elif frame.type >= _CONTROL_TYPES:
                self.parts.append(frame)
