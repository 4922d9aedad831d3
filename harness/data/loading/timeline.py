"""Which frames a video has: their presentation times and key frames, from its packets, before anything is decoded.

One pass over the packets gives the list that everything else counts by. It leaves out what no player shows: packets
that an edit list hides, hidden reference frames of VP8 and VP9, empty packets (an AVI's dropped frames), and what
stands before the first key frame. Its length is the number of frames; frame i is the i-th by presentation time.

Legend: N frames.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import av

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MISCOUNT: Final = 2
"""Containers may promise a frame or two that the stream does not have."""
_SEEK_COST: Final = 15
"""What a seek costs, in decoded frames."""
_REORDERED: Final = ("h264", "hevc")
"""Codecs whose packets in an AVI come in decoding order with times in storage order: only counting helps."""
_BY_STREAM: Final = "mov"
_BY_FILE: Final = ("matroska", "flv", "avi")
"""Containers whose header says how long they are, mov for each stream. A missing end is noticed in these; an MPEG
transport or program stream, wmv, a bare stream, a gif, and a webm that was recorded live do not say it."""
_ROUNDING_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a video.

    Attributes:
        times_N: presentation times in units of the stream's time base, ascending; None where the container has no
            usable ones, and frames are known by the order they are decoded in.
        total: N.
        keys: presentation times of key frames, ascending; from each of them decoding may start.
        fps: frames a second, the header's average; 0 where it has none.
        has_keys: whether any packet is marked as a key frame; then nothing before the first of them is decoded.
        cut_off: says that the end is missing, or None.
        first: (pts, dts, size) of the stream's first packet.
    """

    times_N: tuple[int, ...] | None
    total: int
    keys: tuple[int, ...]
    fps: float
    has_keys: bool
    cut_off: str | None
    first: tuple[int | None, int | None, int]

    def parts(self, wanted: Sequence[int]) -> dict[int, list[int]]:
        """Wanted frames by the time of the key frame that decoding must start at."""
        assert self.times_N is not None
        parts: dict[int, list[int]] = {}
        for index in wanted:
            place = bisect_right(self.keys, self.times_N[index]) - 1
            parts.setdefault(self.keys[max(place, 0)], []).append(index)
        return parts

    def worth_seeking(self, parts: dict[int, list[int]]) -> bool:
        """Whether going from key frame to key frame decodes less than going on to the last wanted frame."""
        assert self.times_N is not None
        cost = 0
        for key, part in parts.items():
            cost += part[-1] - bisect_right(self.times_N, key - 1) + 1 + _SEEK_COST
        return cost < max(part[-1] for part in parts.values()) + 1


@dataclass(slots=True)
class _Packets:
    """What the pass over the packets collects.

    Attributes:
        shown: presentation time of each packet that is shown, None where it has none.
        keys: likewise of key frames, shown or not.
        end: latest end of a picture or sound, in seconds.
        first: (pts, dts, size) of the first one.
    """

    shown: list[int | None] = field(default_factory=list)
    keys: list[int | None] = field(default_factory=list)
    end: float = 0.0
    video_end: int = 0
    first: tuple[int | None, int | None, int] = (None, None, 0)


def read_timeline(container: Any, stream: Any) -> Timeline:
    """Read every packet once, and decode at most the first picture.

    Args:
        container: opened with `av.open`; afterwards it stands at its end.
        stream: its video stream.
    """
    packets = _read_packets(container, stream)
    fps, has_keys = float(stream.average_rate or 0), bool(packets.keys)
    times = [time for time in packets.shown if time is not None]
    usable = len(times) == len(packets.shown) == len(set(times)) and None not in packets.keys
    if _out_of_order(container, stream):
        usable = False
    cut_off = _missing_end(container, stream, packets, sorted(times), fps)
    if not usable:
        return Timeline(None, len(packets.shown), (), fps, has_keys, cut_off, packets.first)
    keys = sorted(key for key in packets.keys if key is not None)
    times.sort()
    if times and packets.keys and packets.keys[0] is not None and times[0] < packets.keys[0]:
        times = _decodable(container, stream, times)
    return Timeline(tuple(times), len(times), tuple(keys), fps, has_keys, cut_off, packets.first)


def from_start(container: Any, stream: Any, timeline: Timeline) -> Iterator[Any]:
    """The stream's packets from the first one: of this container or, where that cannot go back, of the file.

    The packets of a file opened anew belong to another decoder, so each carries its own stream.
    """
    container.seek(0)
    packets = container.demux(stream)
    first = next(packets, None)
    if first is not None and (first.pts, first.dts, first.size) == timeline.first:
        yield first
        yield from packets
        return
    with av.open(container.name) as again:
        yield from again.demux(again.streams[stream.index])


def _read_packets(container: Any, stream: Any) -> _Packets:
    packets = _Packets()
    hidden = _HIDDEN.get(stream.codec_context.name)
    number, media = stream.index, {s.index: float(s.time_base) for s in container.streams if s.type in _TIMED}
    started = False
    for packet in container.demux([s for s in container.streams if s.index in media]):
        if not packet.size:
            continue
        if packet.pts is not None or packet.dts is not None:
            end = (packet.dts if packet.pts is None else packet.pts) + (packet.duration or 0)
            packets.end = max(packets.end, end * media[packet.stream_index])
            if packet.stream_index == number:
                packets.video_end = max(packets.video_end, end)
        if packet.stream_index != number:
            continue
        if packets.first[2] == 0:
            packets.first = (packet.pts, packet.dts, packet.size)
        if packet.is_keyframe:
            packets.keys.append(packet.pts)
            if not started:
                started = True
                packets.shown.clear()
        if not packet.is_discard and not (hidden is not None and hidden(packet)):
            packets.shown.append(packet.pts)
    return packets


_TIMED: Final = ("video", "audio")


def _vp8_hidden(packet: Any) -> bool:
    """Its frame tag says that the frame is not shown (RFC 6386, section 9.1)."""
    return not memoryview(packet)[0] >> 4 & 1


def _vp9_hidden(packet: Any) -> bool:
    """Its uncompressed header says so (VP9 bitstream specification, section 6.2). A superframe ends with a frame that
    is shown, whatever stands before."""
    raw = memoryview(packet)
    if raw[-1] & 0xE0 == 0xC0:
        return False
    bits = raw[0] << 8 | (raw[1] if len(raw) > 1 else 0)
    profile = (bits >> 13 & 1) | (bits >> 12 & 1) << 1
    place = 10 if profile == 3 else 11
    shows_existing, shown = bits >> place & 1, bits >> (place - 2) & 1
    return not shows_existing and not shown


_HIDDEN: Final = {"vp8": _vp8_hidden, "libvpx": _vp8_hidden, "vp9": _vp9_hidden, "libvpx-vp9": _vp9_hidden}


def _out_of_order(container: Any, stream: Any) -> bool:
    return container.format.name == "avi" and stream.codec_context.name in _REORDERED


def _decodable(container: Any, stream: Any, times: list[int]) -> list[int]:
    """Without the pictures that are shown before the first key frame and need what stood before it.

    Whether they do is not written in the packets, so the first picture that the decoder gives is the first one.
    """
    container.seek(0)
    started = False
    for packet in container.demux(stream):
        started = started or packet.is_keyframe
        frames = packet.decode() if started else []
        if frames:
            return [time for time in times if frames[0].pts is None or time >= frames[0].pts]
    return []


def _missing_end(container: Any, stream: Any, packets: _Packets, times: Sequence[int], fps: float) -> str | None:
    """Compare where the packets end with the length that the header promises."""
    name, base = container.format.name, float(stream.time_base)
    if name.startswith(_BY_STREAM) and stream.duration is not None:
        promised = (stream.duration + (stream.start_time or 0)) * base
        reached = packets.video_end * base
    elif name.startswith(_BY_FILE) and container.duration is not None:
        promised, reached = container.duration / av.time_base, packets.end
    else:
        return None
    pause = max((after - before for before, after in pairwise(times)), default=0) * base
    allowed = max(MISCOUNT / fps if fps else 0.0, pause) + _ROUNDING_S
    if promised - reached <= allowed:
        return None
    return f"it ends at {max(reached, 0):.2f} s, {promised:.2f} s are promised: it is cut off"
