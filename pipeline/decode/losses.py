"""How much of a recording a decoder never gave: three lengths of one file, and what lies between them.

A header can lie, so what it states is held against what the packets state while they are decoded, and both against
what came out.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, Stage, TrackError

MISSING_S = 1.0
"""Less than this may be missing, at a cut end or of damaged packets: FFmpeg steps over those as over padding."""

NO_TIME = -(2**63)
"""In place of the time of a frame that has none of its own, such as the second one of a packet."""

# Containers round their packets' times to a millisecond, and Vorbis blocks that are counted back from the end of
# a page come some 10 ms early and late in turn: that evens out. A clock that runs back by more starts anew, as
# where recordings are chained.
_JITTER_S = 0.005
_RESTART_S = 1.0


class Numbers:
    """A column of many integers: a list takes them, four times as quickly as an array, in which they are kept."""

    def __init__(self) -> None:
        self._recent: list[int] = []
        self._kept = array("q")
        self.append = self._recent.append

    def __len__(self) -> int:
        return len(self._kept) + len(self._recent)

    def pack(self) -> None:
        """Move what was appended into eight bytes each, where a list takes forty."""
        self._kept.extend(self._recent)
        self._recent.clear()

    def read(self) -> NDArray[np.int64]:
        """Return all of them."""
        self.pack()
        return np.array(self._kept, np.int64)


@dataclass
class PacketLog:
    """What the packets of a stream tell while they are decoded.

    Args:
        sizes_bytes: Size of each packet; of one that cannot be decoded, below 0.
        positions: Where each packet begins in the file, -1 where it is not known.
        durations: Duration of each packet that is to be heard, in ticks of the stream.
        duration_s: Their sum in seconds, once all are read.
        times: Time of each decoded frame in the ticks of frames, or ``NO_TIME``.
        num_samples: Samples of each decoded frame.
        links: Numbers of frames at which another recording begins, with a clock of its own.
        other_end_bytes: Where the last packet of other streams ends, such as of a video beside the music.
        other_bytes: Size of the packets of other streams.
        page_bytes: Of ogg, where the page lies with which the recording begins; None once another one was seen.
    """

    sizes_bytes: Numbers = field(default_factory=Numbers)
    positions: Numbers = field(default_factory=Numbers)
    durations: Numbers = field(default_factory=Numbers)
    duration_s: float = 0.0
    times: Numbers = field(default_factory=Numbers)
    num_samples: Numbers = field(default_factory=Numbers)
    links: list[int] = field(default_factory=list)
    other_end_bytes: int = 0
    other_bytes: int = 0
    page_bytes: int | None = None

    def pack(self) -> None:
        """Keep what was told so far in less memory."""
        for numbers in (self.sizes_bytes, self.positions, self.durations, self.times, self.num_samples):
            numbers.pack()

    def note_page(self, page_bytes: int, is_first: bool) -> None:
        """Note in which page of an ogg file the next packet begins.

        FFmpeg lets a flac stream's clock begin at 0 and sets it right where its first page ends, by whole hours
        where the stream is a part of another: there a jump is no gap.

        Args:
            page_bytes: Where the page lies.
            is_first: Whether the packet is the first of a recording.
        """
        if is_first:
            self.links.append(len(self.times))
            self.page_bytes = page_bytes
        elif self.page_bytes is not None and page_bytes != self.page_bytes:
            self.links += [max(0, len(self.times) - 1), len(self.times)]  # a packet may lie on both pages
            self.page_bytes = None

    @property
    def end_bytes(self) -> int:
        """Where in the file the last packet ends, of whatever stream."""
        positions = self.positions.read()
        ends = positions + np.abs(self.sizes_bytes.read())
        return max(self.other_end_bytes, int(ends.max(initial=0, where=(ends > positions) & (positions >= 0))))

    @property
    def is_damaged(self) -> bool:
        """Whether there are packets that cannot be decoded."""
        return bool((self.sizes_bytes.read() < 0).any())

    def count_bytes(self) -> tuple[int, int, int, int]:
        """Return the sizes of packets that decode, and of those that do not: before, between and behind them."""
        sizes = self.sizes_bytes.read()
        good = np.flatnonzero(sizes > 0)
        if not good.size:
            return 0, 0, 0, -int(sizes.sum())
        parts = np.split(sizes, [good[0], good[-1] + 1])
        before, between, behind = (-int(part[part < 0].sum()) for part in parts)
        return int(sizes[good].sum()), before, between, behind

    def sum_gaps(self, tick_s: float, sample_rate_hz: int) -> float:
        """Return how many seconds are missing between decoded frames by their own clock.

        Args:
            tick_s: Unit of ``times``.
            sample_rate_hz: Rate of the decoded frames.
        """
        times, num_samples = self.times.read(), self.num_samples.read()
        is_known = times != NO_TIME
        decoded_s = (np.cumsum(num_samples) - num_samples) / sample_rate_hz
        ahead_s = times[is_known] * tick_s - decoded_s[is_known]
        recordings = np.searchsorted(self.links, np.flatnonzero(is_known), side="right")
        jumps_s = np.diff(ahead_s)[np.diff(recordings) == 0]
        return float(jumps_s[(np.abs(jumps_s) > _JITTER_S) & (jumps_s > -_RESTART_S)].sum())


@dataclass(frozen=True)
class Lengths:
    """The lengths of one file.

    Args:
        decoded_s: What came out.
        packets_s: What the packets state, with what is missing between them.
        stated_s: What the header states, if it does.
        present_share: How many of the bytes that the header states are there; over 1 where there are more.
        lost_share: Size of what stands for music and cannot be decoded, by the size of what can.
        is_exact: Whether the header counts both bytes and samples of PCM, which then have to agree.
    """

    decoded_s: float
    packets_s: float = 0.0
    stated_s: float | None = None
    present_share: float = 1.0
    lost_share: float = 0.0
    is_exact: bool = False

    def require_agreement(self) -> None:
        """Hold header, packets and what was decoded against each other.

        Raises:
            TrackError: More than ``MISSING_S`` is missing, or the header contradicts itself by as much.
        """
        stated_s = self.stated_s
        if self.present_share != 1:
            stated_s = max(stated_s or 0.0, max(self.decoded_s, self.packets_s) / min(self.present_share, 1.0))
        packets_s = max(self.packets_s, self.decoded_s * self.present_share)
        if max(stated_s or 0.0, packets_s) - self.decoded_s > MISSING_S:
            stated = "no length" if stated_s is None else f"{stated_s:.1f} s"
            message = (
                f"expected {stated} by the header and {packets_s:.1f} s by its packets, "
                f"found {self.decoded_s:.1f} s: the file is cut short or damaged"
            )
            raise TrackError(Stage.DECODE, Reason.TRUNCATED, message)
        if self.is_exact and stated_s is not None and self.decoded_s - stated_s > MISSING_S:
            message = (
                f"expected {stated_s:.1f} s by the number of samples in the header, found "
                f"{self.decoded_s:.1f} s by its size of a sample: one of them is wrong, and all would be noise"
            )
            raise TrackError(Stage.DECODE, Reason.UNREADABLE, message)
        lost_s = self.decoded_s * self.lost_share
        is_confirmed = stated_s is not None and abs(stated_s - self.decoded_s) <= MISSING_S
        if lost_s > MISSING_S and not is_confirmed:
            message = f"some {lost_s:.1f} s of the music are damaged: as many bytes are in no packet that decodes"
            raise TrackError(Stage.DECODE, Reason.UNREADABLE, message)
