"""Videos are read as a player shows them: the frame on show at a time, what edit lists hide, shapes and mirrors."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from media import coded, make_coded, number_of
from PIL import Image

from tokenization.image_processing_toto import resize_and_crop
from tokenization.playback import Playback
from tokenization.sampling import Sampling
from tokenization.video import read_clip, read_windows

HOLDS = [0, 100, 200, 300, 2300, 2400, 2500, 2600, 4600, 4700, 4800, 4900, 5000, 5100]


def evenly(frames: int, fps: int = 30) -> list[int]:
    return [round(1000 * index / fps) for index in range(frames)]


def numbers(file, **sampling) -> list[list[int]]:
    """The numbers in the frames of every window."""
    windows = read_windows(file, Sampling(resolution=64, **sampling))
    return [[number_of(frame) for frame in clip.frames] for clip in windows]


def every_frame(file) -> list[int]:
    return [number for window in numbers(file, num_frames=1, stride=1) for number in window]


def until_damage(file) -> tuple[list[int], str]:
    """The numbers of the frames before the damage, and the sentence that reports it ("" if there is none)."""
    seen = []
    try:
        for clip in read_windows(file, Sampling(num_frames=1, stride=1, resolution=64)):
            seen.append(number_of(clip.frames[0]))
    except ValueError as error:
        return seen, str(error)
    return seen, ""


# --- The frame on show ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_held_frame_repeats_and_none_comes_early(tmp_path, suffix):
    path = make_coded(tmp_path / f"a.{suffix}", HOLDS)
    assert numbers(path, num_frames=16, fps=5) == [[0, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 5, 7, 7, 7]]
    assert numbers(path, num_frames=8, fps=10)[:3] == [[0, 1, 2, 3, 3, 3, 3, 3], [3] * 8, [3] * 7 + [4]]
    assert numbers(path, num_frames=5, fps=1) == [[0, 3, 3, 7, 7]]


def test_the_last_frame_is_held_for_its_duration(tmp_path):
    path = make_coded(tmp_path / "a.mp4", [0, 100, 200], last=1000, bf="0")
    assert numbers(path, num_frames=6, fps=5) == [[0, 2, 2, 2, 2, 2]]
    assert numbers(path, num_frames=3, fps=5) == [[0, 2, 2], [2, 2, 2]]


def test_a_last_frame_of_a_millisecond_is_seen(tmp_path):
    """An AVI with held frames counts in milliseconds, and says that its last frame lasts one."""
    path = make_coded(tmp_path / "a.avi", [0, 100, 300], codec="mpeg4")
    assert numbers(path, num_frames=1, fps=10) == [[0], [1], [1], [2]]


@pytest.mark.parametrize(("rate", "fps"), [(25, 10), (30, 12), (24, 7.5), (25, 60), (50, 29.97), (30, 7.5)])
def test_rates_are_exact_fractions(tmp_path, rate, fps):
    """The frame on show at k / fps is floor(k * rate / fps), over the whole length and without drift."""
    path = make_coded(tmp_path / "a.mkv", evenly(200, rate), **{"x264-params": "keyint=50"})
    step = Fraction(rate) / Fraction(fps).limit_denominator(1000)
    seen = [number for window in numbers(path, num_frames=1, fps=fps) for number in window]
    right = [min(199, int(k * step + Fraction(rate, 1000))) for k in range(len(seen))]  # within a millisecond
    assert seen == right and abs(len(seen) - 200 / step) <= 2


def test_windows_by_time_are_spread_over_the_time_on_show(tmp_path):
    path = make_coded(tmp_path / "a.mp4", [0, 100, 200, 300, 8300, 8400])
    assert numbers(path, num_frames=2, fps=10, views=(3, 1)) == [[0, 1], [3, 3], [4, 5]]


def test_times_that_start_anew_go_on(tmp_path):
    """Two recordings joined in a transport stream: the second starts at time 0 again."""
    content = bytearray(make_coded(tmp_path / "one.ts", evenly(20)).read_bytes() * 2)
    counters = {}
    for place in range(0, len(content), 188):  # a gap in the packets' counters would be damage
        stream = int.from_bytes(content[place + 1 : place + 3], "big") & 0x1FFF
        counters[stream] = counters.get(stream, -1) + (content[place + 3] >> 4 & 1)
        content[place + 3] = content[place + 3] & 0xF0 | counters[stream] & 0xF
    (tmp_path / "a.ts").write_bytes(content)
    seen = [number for window in numbers(tmp_path / "a.ts", num_frames=1, fps=30) for number in window]
    assert 38 <= len(seen) <= 42 and seen.count(19) <= 3 and seen[-1] == 19


# --- Edit lists ----------------------------------------------------------------------------------------------------


def cut_losslessly(path, frames: int):
    """Hide the first frames of an mp4 by its edit list, as a cut without new encoding does."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        ticks = sorted(packet.pts for packet in container.demux(stream) if packet.size)[frames]
        seconds = ticks * stream.time_base
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # version and flags, number of entries; then duration, first tick, rate
    length, start = (int.from_bytes(content[entry + at : entry + at + 4], "big") for at in (0, 4))
    content[entry : entry + 4] = round(length - 1000 * seconds).to_bytes(4, "big")
    content[entry + 4 : entry + 8] = (start + ticks).to_bytes(4, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("keyint", ["250", "20"])
def test_what_an_edit_list_hides_is_not_counted(tmp_path, keyint):
    path = cut_losslessly(make_coded(tmp_path / "a.mp4", evenly(107), g=keyint), 45)
    assert every_frame(path) == list(range(45, 107))  # whole and good: nothing is reported
    (clip,) = read_windows(path, Sampling(num_frames=8, stride=1, resolution=64, views=(1, 1)))
    assert clip.start == 27 and [number_of(frame) for frame in clip.frames] == list(range(72, 80))
    ends = numbers(path, num_frames=8, stride=1, views=(2, 1))
    assert ends == [list(range(45, 53)), list(range(99, 107))]
    by_time = numbers(path, num_frames=8, fps=30, views=(2, 1))
    assert [window[0] for window in by_time] == [45, 99]
    crops = list(read_windows(path, Sampling(num_frames=30, stride=2, resolution=16, crops=3)))
    assert len(crops) == 3 and all(clip.start + 59 <= 62 for clip in crops)


# --- Damage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_threads(monkeypatch):
    """Decode on a given number of threads."""

    def set_threads(count):
        real = av.open

        def opened(*args, **kwargs):
            container = real(*args, **kwargs)
            for stream in container.streams.video:
                stream.codec_context.thread_count = count
            return container

        monkeypatch.setattr(av, "open", opened)

    return set_threads


def kept(path, with_threads, monkeypatch) -> list[tuple[list[int], str]]:
    results = []
    for count in (1, 2, 8, 16, 32):
        with_threads(count)
        results.append(until_damage(path))
        monkeypatch.undo()
    return results


@pytest.mark.parametrize("share", [0.5, 0.75, 0.95])
def test_as_much_of_a_cut_file_is_kept_on_any_number_of_threads(tmp_path, with_threads, monkeypatch, share):
    path = make_coded(tmp_path / "a.mp4", evenly(120), options={"movflags": "faststart"})
    content = path.read_bytes()
    start = content.index(b"mdat") + 1500  # behind the first picture
    path.write_bytes(content[: start + int(share * (len(content) - start))])
    results = kept(path, with_threads, monkeypatch)
    assert all(result == results[0] for result in results)
    seen, words = results[0]
    assert seen == list(range(len(seen))) and len(seen) > 20 and "truncated" in words


def test_as_much_of_a_file_with_a_hole_is_kept_on_any_number_of_threads(tmp_path, with_threads, monkeypatch):
    path = make_coded(tmp_path / "a.mp4", evenly(120), options={"movflags": "faststart"}, g="30")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 150] = b"\xff" * 150
    path.write_bytes(content)
    results = kept(path, with_threads, monkeypatch)
    assert all(result == results[0] for result in results)
    assert 20 < len(results[0][0]) < 120 and "corrupt" in results[0][1]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx-vp9", "deadline": "realtime"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}, "g": "20"}),
        ("a.mp4", {"options": {"movflags": "faststart"}, "bf": "0"}),
    ],
)
def test_a_file_that_ends_early_says_so(tmp_path, name, how):
    path = make_coded(tmp_path / name, evenly(90), **how)
    assert until_damage(path) == (list(range(90)), "")
    content = path.read_bytes()
    for cut in (content[: int(0.6 * len(content))], content[: int(0.97 * len(content))]):
        path.write_bytes(cut)
        for file in (path, cut):
            seen, words = until_damage(file)
            assert seen == list(range(len(seen))) and len(seen) < 91 and "truncated" in words


# --- Shapes --------------------------------------------------------------------------------------------------------

CORNERS = np.array([[40, 100], [160, 220]])  # top left, top right; bottom left, bottom right

# a, b, c, d of the matrix, and the corners as `ffmpeg -i FILE` writes them: x' = a x + c y, y' = b x + d y
SHOWN = {
    (1, 0, 0, 1): [[40, 100], [160, 220]],
    (-1, 0, 0, 1): [[100, 40], [220, 160]],
    (1, 0, 0, -1): [[160, 220], [40, 100]],
    (-1, 0, 0, -1): [[220, 160], [100, 40]],
    (0, 1, -1, 0): [[160, 40], [220, 100]],
    (0, -1, 1, 0): [[100, 220], [40, 160]],
    (0, 1, 1, 0): [[40, 160], [100, 220]],
    (0, -1, -1, 0): [[220, 100], [160, 40]],
}


def quarters(width: int, height: int) -> np.ndarray:
    grey = np.kron(CORNERS, np.ones((height // 2, width // 2))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def corners(frame: np.ndarray) -> np.ndarray:
    side = len(frame)
    return frame[side // 4 :: side // 2, side // 4 :: side // 2, 0].astype(int)


def by_ffmpeg(path) -> np.ndarray:
    """The first frame as the ffmpeg binary writes it, with square pixels."""
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg binary")
    raw = path.with_suffix(".png")
    scale = "scale=iw*sar:ih:flags=bicubic,setsar=1"
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(path), "-vf", scale, "-frames:v", "1", "-update", "1", str(raw)]
    subprocess.run(command, check=True)
    return np.asarray(Image.open(raw).convert("RGB"))


@pytest.mark.parametrize("matrix", SHOWN)
def test_pictures_are_turned_and_mirrored(tmp_path, matrix):
    path = make_coded(tmp_path / "a.mp4", [0, 40], [quarters(96, 64)] * 2, matrix=matrix, crf="4")
    frame = read_clip(path, Sampling(num_frames=1, resolution=32)).frames[0]
    assert np.abs(corners(frame) - SHOWN[matrix]).max() <= 4


@pytest.mark.parametrize("matrix", SHOWN)
def test_pictures_are_turned_as_by_ffmpeg(tmp_path, matrix):
    path = make_coded(tmp_path / "a.mp4", [0, 40], [quarters(96, 64)] * 2, matrix=matrix, crf="4")
    right = resize_and_crop(by_ffmpeg(path), 32)
    frame = read_clip(path, Sampling(num_frames=1, resolution=32)).frames[0]
    assert np.abs(frame.astype(int) - right).mean() < 1.5


def stripes(width: int, height: int) -> np.ndarray:
    """A picture that gets brighter from left to right."""
    return np.tile(np.linspace(20, 220, width).astype(np.uint8)[None, :, None], (height, 1, 3))


@pytest.mark.parametrize(
    ("aspect", "matrix", "edges"),
    [  # grey at the left and right edges of the crop: of 20..220 over the width
        (Fraction(2), None, (83, 157)),  # 96 x 72 on show as 192 x 72: the middle 37.5 %
        (Fraction(1), None, (45, 195)),  # the middle 75 %
        (Fraction(1, 2), None, (20, 220)),  # 48 x 72: all of the width
        (Fraction(4, 3), None, (64, 176)),  # 128 x 72: 56 %
        (Fraction(2), (-1, 0, 0, 1), (157, 83)),
    ],
)
def test_pixels_have_the_shape_on_show(tmp_path, aspect, matrix, edges):
    path = make_coded(tmp_path / "a.mp4", [0, 40], [stripes(96, 72)] * 2, aspect=aspect, matrix=matrix, crf="4")
    frame = read_clip(path, Sampling(num_frames=1, resolution=64)).frames[0]
    assert np.abs(frame[32, [0, -1], 0].astype(int) - edges).max() <= 5


def test_pixels_of_a_turned_picture_are_turned(tmp_path):
    path = make_coded(
        tmp_path / "a.mp4", [0, 40], [stripes(96, 72)] * 2, aspect=Fraction(2), matrix=(0, 1, -1, 0), crf="4"
    )
    frame = read_clip(path, Sampling(num_frames=1, resolution=64)).frames[0]
    assert np.abs(frame[[0, -1], 32, 0].astype(int) - (83, 157)).max() <= 5


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(16, 11), Fraction(1, 2)])
def test_pixels_have_the_shape_that_ffmpeg_gives_them(tmp_path, aspect):
    path = make_coded(tmp_path / "a.mp4", [0, 40], [stripes(96, 72)] * 2, aspect=aspect, crf="4")
    right = resize_and_crop(by_ffmpeg(path), 64)
    frame = read_clip(path, Sampling(num_frames=1, resolution=64)).frames[0]
    assert np.abs(frame.astype(int) - right).mean() < 1.5


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {"codec": "libx264", "pixels": "yuv420p10le"}),
        ("a.mkv", {"codec": "libx264", "pixels": "yuv444p"}),
        ("a.mp4", {"codec": "libx265", "pixels": "yuv420p10le", "x265-params": "log-level=none"}),
        ("a.webm", {"codec": "libvpx-vp9", "pixels": "yuv420p", "deadline": "realtime"}),
    ],
)
def test_depths_and_codecs(tmp_path, name, how):
    path = make_coded(tmp_path / name, evenly(20), **how)
    assert every_frame(path) == list(range(20))
    grey = read_clip(path, Sampling(num_frames=1, resolution=64)).frames[0, ..., 0]
    assert abs(int(grey[16, 16]) - 16) <= 4  # frame 0 is dark all over


# --- Streams -------------------------------------------------------------------------------------------------------


def make_two(path, dispositions, sizes=((64, 64), (64, 64))):
    """Two video streams, of the numbers from 0 and from 100."""
    with av.open(str(path), "w") as container:
        streams = []
        for size, disposition in zip(sizes, dispositions, strict=True):
            is_cover = disposition == "attached_pic"
            stream = container.add_stream("mjpeg" if is_cover else "libx264", rate=30)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if is_cover else "yuv420p"
            stream.disposition = av.stream.Disposition[disposition] if disposition else av.stream.Disposition(0)
            streams.append((stream, size, is_cover))
        for index in range(20):
            for k, (stream, size, is_cover) in enumerate(streams):
                if not is_cover or index == 0:
                    frame = av.VideoFrame.from_ndarray(coded(index + 100 * k, size), format="rgb24")
                    container.mux(stream.encode(frame))
        for stream, _, _ in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "dispositions", "sizes", "first"),
    [
        ("a.mkv", (None, "default"), ((64, 64), (64, 64)), 100),
        ("a.mkv", ("default", None), ((64, 64), (128, 128)), 0),
        ("a.mp4", ("attached_pic", "default"), ((128, 128), (64, 64)), 100),
        ("a.mp4", ("default", "attached_pic"), ((64, 64), (256, 256)), 0),
    ],
)
def test_the_default_stream_is_read_and_no_cover(tmp_path, name, dispositions, sizes, first):
    path = make_two(tmp_path / name, dispositions, sizes)
    assert every_frame(path) == list(range(first, first + 20))


def test_frames_without_a_time_base_have_that_of_the_stream(tmp_path):
    """As frames of other versions of PyAV may be."""
    from types import SimpleNamespace

    make_coded(tmp_path / "a.mp4", evenly(4))
    with Playback(tmp_path / "a.mp4") as playback:
        ticks = playback.ticks()
        times = [shown.time for shown in playback.frames(ticks)]
    with Playback(tmp_path / "a.mp4") as playback:
        decoded = playback._decoded
        playback._decoded = lambda: (SimpleNamespace(pts=frame.pts, time_base=None) for frame in decoded())
        assert [shown.time for shown in playback.frames(ticks)] == times
    assert len(set(times)) == 4
