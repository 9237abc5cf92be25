"""Packet-4 framing, without I/O: each payload is preceded by its length, 4 bytes, big-endian.

It is what `open_port/2` does with `{packet, 4}`. A stream cuts frames anywhere; the decoder gives the same
payloads however the bytes arrive. It keeps no more than one unfinished frame, and a length is checked as soon
as its four bytes are there: a peer that announces 4 GiB is refused before it has sent them.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["MAX_FRAME", "FrameDecoder", "FramingError", "encode_frame"]

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of a payload, unless the decoder is told otherwise. No term that `etf.encode` makes is longer."""

_HEADER: Final = 4
_length_at = struct.Struct(">I").unpack_from


class FramingError(ValueError):
    """A frame that is too long. There is no way back into step with the stream: close it.

    `frames` are the payloads that the same `feed` had completed before it, so that none is lost.
    """

    def __init__(self, problem: str, frames: tuple[bytes, ...] = ()) -> None:
        super().__init__(problem)
        self.frames = frames


def encode_frame(payload: bytes, *, max_frame: int = MAX_FRAME) -> bytes:
    """*payload* behind its length. Raises `FramingError` if it has more than *max_frame* bytes."""
    if len(payload) > max_frame:
        raise FramingError(_too_long(len(payload), max_frame))
    return len(payload).to_bytes(_HEADER, "big") + payload


class FrameDecoder:
    """Bytes as they arrive to payloads. *max_frame* is the longest payload that is accepted, in bytes."""

    def __init__(self, *, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()
        self._broken: str | None = None

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame, its header included. At the end of a whole stream it is 0."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The payloads that *data* completes, in order. They may be empty: a frame of length 0 is one.

        Raises `FramingError` for a frame that is too long, and from then on at every call.
        """
        if self._broken is not None:
            raise FramingError(self._broken)
        buffer = self._buffer
        source: bytes | bytearray
        if buffer or not isinstance(data, bytes):
            buffer += data
            source = buffer
        else:  # as a rule: whole frames, which need no copy
            source = data
        frames: list[bytes] = []
        start, size = 0, len(source)
        while (begin := start + _HEADER) <= size:
            (length,) = _length_at(source, start)
            if length > self._max_frame:
                self._broken = _too_long(length, self._max_frame)
                break
            end = begin + length
            if end > size:
                break
            frames.append(bytes(source[begin:end]))
            start = end
        if source is buffer:
            del buffer[:start]
        elif start < size:
            buffer += source[start:]
        if self._broken is not None:
            raise FramingError(self._broken, tuple(frames))
        return frames


def _too_long(length: int, max_frame: int) -> str:
    return f"a frame of {length} bytes, at most {max_frame} are allowed"
