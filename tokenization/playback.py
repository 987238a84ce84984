"""A video file as a player shows it: the stream, the frames with the times at which they are on show, their true shape.

Frames that an edit list hides are not given, timestamps and not counts say when a frame is on show, and pictures are
turned, mirrored and cropped as their display matrix and pixel aspect ratio ask. FFmpeg's own output is the reference.
"""

import io
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .image_processing_toto import CENTRE, resize_and_crop

try:  # optional: remote code on the Hub cannot require it
    import av
except ImportError:
    av = None

RESTARTS = {"mpegts", "mpeg"}  # containers whose timestamps may start anew or jump, as at the joint of two recordings
LONGEST_GAP = 10  # seconds; a longer jump in one of them is such a restart, as in FFmpeg, and not a held frame
SHORTEST = Fraction(1, 500)  # seconds for which a last frame is shown at least, to outlast the rounding of times
# swscale reduces frames that have LARGE times the pixels of a crop along their shorter side, or more, to FINER times as
# many, from which PIL makes the squares. Below that it costs more than it saves.
LARGE, FINER = 4, 3
# FFmpeg would start threads for each conversion of one frame; older versions of PyAV do not start any.
ONE_THREAD = {"threads": 1} if av is not None and int(av.__version__.split(".")[0]) >= 17 else {}
TOO_OLD = "resize is decoder, which this version of PyAV cannot do; pip install -U av, or choose pil."
NO_SIZE = {0, 2**32 - 1}  # in a RIFF header: the writer did not go back to fill in the size


_of_thread = threading.local()


def decode_on_one_thread() -> None:
    """Let videos that this thread opens from now on be decoded by one thread each, as other files are beside them."""
    _of_thread.is_one_of_several = True


def is_one_of_several() -> bool:
    """Whether `decode_on_one_thread` was called in this thread."""
    return getattr(_of_thread, "is_one_of_several", False)


class Damage(ValueError):
    """The file is truncated or corrupt; what came before is good."""


@dataclass
class Shown:
    """A frame on show from `time` until `until`, in ticks; index: its number among the frames that are shown."""

    frame: object
    index: int
    time: int | Fraction
    until: int | Fraction


@dataclass(frozen=True)
class Extent:
    """What the packets of a file say, without decoding: number of frames shown, times of the first and of the end.

    first, last: seconds, the last time at which a window of one frame can start; None if the packets have no times.
    """

    count: int
    first: Fraction | None
    last: Fraction | None


def open_video(file: str | Path | bytes):
    """The container and the video stream that a player shows.

    Raises:
        ValueError: PyAV is missing, or the file is not a video. FileNotFoundError: there is no such file.
    """
    if av is None:
        raise ValueError("reading videos requires PyAV; pip install av.")
    unreadable = "the file cannot be opened as a video: it is corrupt, truncated or not a video."
    try:
        container = av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no video file {file}.") from error
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(unreadable) from error
    stream = _stream_on_show(container)
    if stream is None:
        only_audio = bool(container.streams.audio)
        container.close()
        raise ValueError("the file holds only audio, no video stream." if only_audio else unreadable)
    return container, stream


def _stream_on_show(container):
    """FFmpeg's choice (the default stream, else the best one), but never a cover picture; None if there is no video."""
    kind = av.stream.Disposition
    films = [stream for stream in container.streams.video if not stream.disposition & kind.attached_pic]
    best = container.streams.best("video") if films else None
    if best is None or any(stream.index == best.index for stream in films):
        return best or next(iter(films), None)
    return next((stream for stream in films if stream.disposition & kind.default), films[0])


def frame_rate(stream) -> Fraction | None:
    """Frames per second on average, or None if it is unknown."""
    return stream.average_rate or stream.guessed_rate or None


def extent(file: str | Path | bytes) -> Extent:
    """Read the packets of a file and say how many frames it shows, and when.

    Headers also count what an edit list hides, or state nothing (Matroska). Packets before the first key frame cannot
    be decoded.
    """
    container, stream = open_video(file)
    rate = frame_rate(stream)
    count, first, last, length, key = 0, None, None, 0, None
    with container:
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_corrupt:
                    continue
                if key is None and packet.is_keyframe:
                    key = packet.pts if packet.pts is not None else 0
                    count, first, last = 0, None, None
                if packet.is_discard or (key is not None and packet.pts is not None and packet.pts < key):
                    continue
                count, length = count + 1, packet.duration or 0
                if packet.pts is not None:
                    first = packet.pts if first is None else min(first, packet.pts)
                    last = packet.pts if last is None else max(last, packet.pts)
        except av.error.FFmpegError:
            pass  # whoever decodes the file reports its damage
        if first is None:
            return Extent(count, None, None)
        first, last, length = (value * stream.time_base for value in (first, last, length))
    return Extent(count, first, max(last, last + length - 1 / rate) if rate else last)


class Playback:
    """The frames of an opened video; the file is decoded once, from its start."""

    def __init__(self, file: str | Path | bytes):
        self.file = file
        self.container, self.stream = open_video(file)
        self.rate = frame_rate(self.stream)
        self.aspect = self.stream.sample_aspect_ratio or Fraction(1)
        self.last_packet = None
        self.announced = self._announced()
        self.packets = 0
        # Shared, since their setup costs as much as a frame.
        self.converter, self.reducer = (av.video.reformatter.VideoReformatter() for _ in range(2))
        self.centring = None  # kind of frame, graph

    def _announced(self) -> int:
        """Number of packets that a whole file has at least."""
        form, frames = self.container.format.name, self.stream.frames
        if form == "avi":  # whose header also counts empty chunks, which stand for held frames
            return 0
        # An edit list that starts late removes samples from the index of an mp4, and not from the number in its header.
        entries = getattr(self.stream, "index_entries", ()) if "mp4" in form else ()
        return len(entries) if entries and frames else int(0.9 * frames)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.container.close()

    def ticks(self, *durations: Fraction) -> int:
        """Ticks of a second in which times of frames, and `durations` in seconds, are whole numbers, and so fast."""
        known = (self.stream.time_base, self._gap, SHORTEST, *durations)
        return math.lcm(*(duration.denominator for duration in known))

    @property
    def _gap(self) -> Fraction:
        """Seconds from a frame to the next on average."""
        return 1 / self.rate if self.rate else Fraction(1)

    def frames(self, ticks: int) -> Iterator[Shown]:
        """Frames in the order of display, each with the time until which it is held, in `ticks` a second.

        Raises:
            Damage: after the last good frame.
        """
        gap, shortest = in_ticks(self._gap, ticks), in_ticks(SHORTEST, ticks)
        held = None
        try:
            for index, (frame, time) in enumerate(self._timed(gap, ticks)):
                if held is not None:
                    yield Shown(*held, time)
                held = frame, index, time
        except Damage:
            if held is not None:
                yield Shown(*held, held[-1] + max(gap, shortest))
            raise
        if held is not None:
            packet = self.last_packet
            length = in_ticks((packet.duration or 0) * packet.time_base, ticks) if packet else 0
            yield Shown(*held, held[-1] + max(length or gap, shortest))

    def _timed(self, gap: int | Fraction, ticks: int) -> Iterator[tuple]:
        """(frame, ticks), never going back: a frame without a timestamp, or from before the last, follows it."""
        longest = LONGEST_GAP * ticks if self.container.format.name in RESTARTS else math.inf
        last, shift = None, 0
        base, unit = None, in_ticks(self.stream.time_base, ticks)
        for frame in self._decoded():
            if frame.time_base != base:
                base = frame.time_base
                unit = in_ticks(base or self.stream.time_base, ticks)
            time = (last + gap if last is not None else shift) if frame.pts is None else frame.pts * unit + shift
            if last is not None and (time < last or time - last > longest):
                shift += last + gap - time
                time = last + gap
            last = time
            yield frame, time

    def _decoded(self) -> Iterator:
        """Frames until the damage, the same ones whatever the number of threads.

        How many frames a decoder still holds when it meets damage depends on its threads. So the rest is then decoded
        again on one thread, and the frames are kept that it gives before the damage.
        """
        count = 0
        if is_one_of_several():
            self.stream.codec_context.thread_count = 1
        else:
            self.stream.thread_type = "AUTO"
        try:
            for frame in self._until_damage(self.container, self.stream):
                yield frame
                count += 1
        except Damage:
            container, stream = open_video(self.file)
            with container:
                stream.codec_context.thread_count = 1
                for index, frame in enumerate(self._until_damage(container, stream)):
                    if index >= count:
                        yield frame
        self._check_end(count)

    def _check_end(self, count: int) -> None:
        """Raise Damage if the file ends before its header says, after `count` frames."""
        if self.packets < self.announced:
            raise Damage(
                f"the video is truncated: its header announces {max(self.announced, self.stream.frames)} frames, but "
                f"it has {self.packets}."
            )
        if _ends_early(self.file, self.container.format.name, self.stream.frames == 0):
            raise Damage(f"the video is truncated after frame {count}: the file is shorter than its header states.")

    def _until_damage(self, container, stream) -> Iterator:
        """Frames that are shown; damage anywhere raises Damage."""
        count, self.packets = 0, 0
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise Damage(f"the video is truncated or corrupt after frame {count}.")
                if packet.dts is not None or packet.pts is not None or packet.size:  # not the one that ends the stream
                    self.packets += 1
                    self.last_packet = packet
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise Damage(f"the video is truncated or corrupt after frame {count}.")
                    yield frame
                    count += 1
        except av.error.FFmpegError as error:
            raise Damage(f"the video is truncated or corrupt after frame {count}.") from error

    def picture(self, frame, side: int | None = None) -> tuple[np.ndarray, Fraction]:
        """A frame as uint8 (H, W, 3) RGB, turned and mirrored for display, and the width of its pixels per height.

        side: of the crops that will be made of it, for which swscale, FFmpeg's scaler, first reduces a large frame.
        The default gives all pixels.
        """
        matrix = frame.side_data.get("DISPLAYMATRIX")
        frame, aspect = (frame, self.aspect) if side is None else self._reduced(frame, side)
        picture = self.converter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
        if matrix is None:
            return picture, aspect
        # x' = a x + c y, y' = b x + d y: where x goes mostly to y', the picture is transposed; below 0, mirrored.
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if abs(b) > abs(a):
            picture, across, down, aspect = picture.transpose(1, 0, 2), c, b, 1 / aspect
        else:
            across, down = a, d
        return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1], aspect

    def _reduced(self, frame, side: int) -> tuple:
        """A frame, reduced if it is large for crops of `side` pixels, and the width of its pixels per height.

        It keeps its pixel format. So the conversion to RGB, which differs between formats and between even and odd
        sizes by more than the scaling does, is the same one with and without.
        """
        # Rare kinds are left as they are: swscale scales RGB as YUV, cannot write palettes, and scales fields apart.
        if frame.format.is_rgb or not frame.format.is_planar or frame.interlaced_frame:
            return frame, self.aspect
        width, height = frame.width, frame.height
        shorter = min(width * self.aspect, Fraction(height))
        if shorter < LARGE * side:
            return frame, self.aspect
        scale = FINER * side / shorter
        narrow, low = _reduced_side(width, width * self.aspect * scale), _reduced_side(height, height * scale)
        how = av.video.reformatter.Interpolation
        if not hasattr(how, "ACCURATE_RND"):
            raise ValueError(TOO_OLD)
        flags = how.BICUBIC | how.ACCURATE_RND
        frame = self._centred(frame)
        frame = self.reducer.reformat(frame, width=narrow, height=low, interpolation=flags, **ONE_THREAD)
        return frame, self.aspect * Fraction(width * low, narrow * height)

    def _centred(self, frame):
        """The same frame, but its colour samples are said to lie amid the pixels that share them.

        The conversion to RGB takes them so, even if the stream says that they lie at the left (H.264's default), and
        swscale does not: a reduced frame's colours would be half of its own, larger pixels beside their place.
        """
        kind = frame.width, frame.height, frame.format.name
        if self.centring is None or self.centring[0] != kind:
            graph = av.filter.Graph()
            start = graph.add_buffer(width=kind[0], height=kind[1], format=frame.format, time_base=Fraction(1, 1000))
            try:
                centre = graph.add("setparams", "chroma_location=center")
            except (av.error.FFmpegError, ValueError) as error:
                raise ValueError(TOO_OLD) from error
            graph.link_nodes(start, centre, graph.add("buffersink")).configure()
            self.centring = kind, graph
        self.centring[1].vpush(frame)
        return self.centring[1].vpull()


def _reduced_side(size: int, wanted: Fraction) -> int:
    """The first number from `wanted` on that is even or odd as `size` is; `size` if that is less."""
    least = math.ceil(wanted)
    return min(size, least + (size - least) % 2)


def in_ticks(duration: Fraction, ticks: int) -> int | Fraction:
    """A duration in seconds as a number of ticks, exactly: whole if the ticks were chosen for it."""
    count = duration * ticks
    return count.numerator if count.denominator == 1 else count


def crop_of(picture: tuple[np.ndarray, Fraction], resolution: int, position=CENTRE) -> np.ndarray:
    """A square crop, uint8 (R, R, 3), of a picture of `Playback.picture` in the shape in which it is shown."""
    return resize_and_crop(picture[0], resolution, position, float(picture[1]))


def _ends_early(file: str | Path | bytes, form: str, is_fragmented: bool) -> bool:
    """Whether a file is shorter than the header of its container says: of Matroska, AVI, and mp4 in fragments.

    FFmpeg takes the end of such a file for the end of the video. Other mp4 files have an index to compare with, and
    transport streams may end anywhere.
    """
    if not isinstance(file, bytes) and not Path(file).is_file():
        return False  # an address
    with io.BytesIO(file) if isinstance(file, bytes) else Path(file).open("rb") as opened:
        total = opened.seek(0, io.SEEK_END)
        opened.seek(0)
        if "matroska" in form:
            return _matroska_end(opened.read(4096)) > total
        if form == "avi":
            size = int.from_bytes(opened.read(8)[4:], "little")
            return size not in NO_SIZE and size + 8 > total + 1  # an odd size may or may not be padded
        return "mp4" in form and is_fragmented and _boxes_end(opened) > total


def _matroska_end(head: bytes) -> int:
    """Where the segment ends by its header, in bytes; 0 if that is not stated, as in a live stream."""

    def number(place: int) -> tuple[int, int]:
        length = 9 - head[place].bit_length()  # its first set bit tells how many bytes follow
        value = int.from_bytes(head[place : place + length], "big") & ((1 << 7 * length) - 1)
        return (0 if value == (1 << 7 * length) - 1 else value), place + length

    size, place = number(4)
    place += size  # behind the EBML header
    if place + 12 > len(head) or head[place : place + 4] != b"\x18\x53\x80\x67":
        return 0
    size, place = number(place + 4)
    return place + size if size else 0


def _boxes_end(opened) -> int:
    """Where the last fragment of an mp4 ends by its header, in bytes."""
    place = end = 0
    while True:
        opened.seek(place)
        head = opened.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if len(head) < 8 or size < 8:
            return end
        place += size
        if head[4:8] in (b"moof", b"mdat"):  # what else stands behind them may not be a box
            end = place
