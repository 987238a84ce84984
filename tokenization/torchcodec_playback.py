"""Playback by torchcodec, optional: the same frames at the same times as PyAV's, from FFmpeg's decoders or NVDEC.

The times come from the packets, which PyAV reads without decoding, and torchcodec decodes the frames that are asked
for. Where the two would differ, PyAV decodes: videos of more than 8 bits, mirrored ones, and those whose packets do not
tell when each frame is on show. On a CPU the frames are equal in every bit if both have the same version of FFmpeg.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from .playback import RESTARTS, SHORTEST, Damage, Playback, Shown, av, in_ticks, is_one_of_several, open_video
from .sampling import DECODERS


def playback_of(file: str | Path | bytes, decoder: str = "pyav") -> Playback:
    """The frames of a video, by a decoder of DECODERS.

    Raises:
        ValueError: no such decoder, torchcodec is missing, or as `Playback`.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder is {decoder!r}; it must be {', '.join(DECODERS[:-1])} or {DECODERS[-1]}.")
    if decoder == "pyav":
        return Playback(file)
    return TorchcodecPlayback(file, "cuda" if decoder == "torchcodec-cuda" else "cpu")


def torchcodec_decoder():
    """torchcodec's class VideoDecoder.

    Raises:
        ValueError: it is not installed, or does not find FFmpeg's libraries.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        raise ValueError("the decoder torchcodec is not installed; pip install torchcodec, or choose pyav.") from error
    except (RuntimeError, OSError) as error:
        raise ValueError(
            "the decoder torchcodec does not find FFmpeg's libraries; install FFmpeg (apt install ffmpeg), or choose "
            "pyav."
        ) from error
    return VideoDecoder


class TorchcodecPlayback(Playback):
    """As `Playback`. device: "cpu", or "cuda" for NVDEC."""

    def __init__(self, file: str | Path | bytes, device: str = "cpu"):
        decoder = torchcodec_decoder()
        super().__init__(file)
        self.decoder, self.is_turned = None, False
        times = self._shown_times()
        if times is None or not self._is_plain():
            return
        threads = 1 if is_one_of_several() else 0  # 0: as many as FFmpeg sees fit
        source = file if isinstance(file, bytes) else str(file)
        try:
            self.decoder = decoder(
                source,
                stream_index=self.stream.index,
                dimension_order="NHWC",
                num_ffmpeg_threads=threads,
                device=device,
            )
        except (RuntimeError, ValueError) as error:
            raise Damage("the video is truncated or corrupt after frame 0.") from error
        self.times = times
        if len(self.decoder) != len(times):
            self.decoder = None

    def _is_plain(self) -> bool:
        """Whether torchcodec shows the frames as PyAV does, by the first of them."""
        container, stream = open_video(self.file)
        with container:
            try:
                first = next(container.decode(stream), None)
            except av.error.FFmpegError:
                return False
        if first is None or first.format.is_rgb or any(part.bits != 8 for part in first.format.components):
            return False
        matrix = first.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return True
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        self.is_turned = abs(b) > abs(a)
        return a * d - b * c > 0  # else mirrored

    def _shown_times(self) -> list[int] | None:
        """Timestamps of the frames on show, ascending, by the packets; None if these do not tell."""
        if self.container.format.name in RESTARTS:
            return None
        container, stream = open_video(self.file)
        times, key, self.packets = [], None, 0
        with container:
            try:
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        return None
                    if packet.dts is None and packet.pts is None and not packet.size:  # the one that ends the stream
                        continue
                    self.packets += 1
                    self.last_length = (packet.duration or 0) * packet.time_base
                    if packet.pts is None:
                        return None
                    key = packet.pts if key is None and packet.is_keyframe else key
                    if key is None or packet.pts < key or packet.is_discard or not packet.size:
                        return None
                    times.append(packet.pts)
            except av.error.FFmpegError:
                return None
        return sorted(times) if times and len(set(times)) == len(times) else None

    def frames(self, ticks: int) -> Iterator[Shown]:
        if self.decoder is None:
            yield from super().frames(ticks)
            return
        unit = in_ticks(self.stream.time_base, ticks)
        times = [time * unit for time in self.times]
        for index, (time, until) in enumerate(pairwise(times)):
            yield Shown(index, index, time, until)
        length = in_ticks(self.last_length, ticks) or in_ticks(self._gap, ticks)
        yield Shown(len(times) - 1, len(times) - 1, times[-1], times[-1] + max(length, in_ticks(SHORTEST, ticks)))
        self._check_end(len(times))

    def picture(self, frame, side: int | None = None) -> tuple[np.ndarray, Fraction]:
        if self.decoder is None:
            return super().picture(frame, side)
        if side is not None:
            raise ValueError("the decoder torchcodec gives whole frames; leave out resize=decoder, or choose pyav.")
        try:
            shown = self.decoder.get_frame_at(frame)
        except (RuntimeError, IndexError) as error:
            raise Damage(f"the video is truncated or corrupt after frame {frame}.") from error
        if abs(shown.pts_seconds - self.times[frame] * self.stream.time_base) > 1e-6:
            raise Damage(f"torchcodec shows frame {frame} at another time; choose the decoder pyav for this video.")
        return shown.data.cpu().numpy(), 1 / self.aspect if self.is_turned else self.aspect
