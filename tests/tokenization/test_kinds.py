"""Every suffix that the decoder reads is read, as what the file is and not as its suffix is mostly used."""

import shutil

import av
import numpy as np
import pytest
from media import grey_of, make_image, make_video
from PIL import Image

from tokenization.sampling import Sampling
from tokenization.sources.kinds import STILLS, VIDEOS, kind_of
from tokenization.sources.open import open_source

SIZES = Sampling(num_frames=4, stride=1, resolution=16)
# Suffix -> (FFmpeg's name of the container, a codec that it takes).
CONTAINERS = {
    **dict.fromkeys([".3g2", ".3gp", ".f4v", ".ismv", ".m4v", ".mp4", ".MP4"], ("mp4", "mpeg4")),
    **dict.fromkeys([".mov", ".qt", ".mj2"], ("mov", "mpeg4")),
    **dict.fromkeys([".mkv", ".mk3d"], ("matroska", "mpeg4")),
    **dict.fromkeys([".ts", ".m2ts", ".mts", ".m2t"], ("mpegts", "mpeg2video")),
    **dict.fromkeys([".mpg", ".mpeg", ".mpe", ".MPG"], ("mpeg", "mpeg1video")),
    **dict.fromkeys([".avi", ".divx", ".xvid"], ("avi", "mpeg4")),
    **dict.fromkeys([".asf", ".wmv"], ("asf", "wmv2")),
    **dict.fromkeys([".mjpeg", ".mjpg"], ("mjpeg", "mjpeg")),
    **dict.fromkeys([".ogv", ".ogm"], ("ogg", "libtheora")),
    **dict.fromkeys([".h264", ".264"], ("h264", "libx264")),
    **dict.fromkeys([".m1v", ".mpv"], ("mpeg1video", "mpeg1video")),
    ".m2v": ("mpeg2video", "mpeg2video"),
    ".vob": ("vob", "mpeg2video"),
    ".webm": ("webm", "libvpx-vp9"),
    ".ivf": ("ivf", "libvpx-vp9"),
    ".flv": ("flv", "flv1"),
    ".rm": ("rm", "rv10"),
    ".mxf": ("mxf", "mpeg2video"),
    ".nut": ("nut", "mpeg4"),
    ".y4m": ("yuv4mpegpipe", "rawvideo"),
    ".amv": ("amv", "amv"),
    ".wtv": ("wtv", "mpeg2video"),
}


def write(path, container, codec, frames=8):
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height = 176, 144  # a size that every codec takes
        stream.pix_fmt = "yuvj420p" if codec in ("mjpeg", "amv") else "yuv420p"
        for index in range(frames):
            picture = np.full((144, 176, 3), grey_of(5 * index), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def test_every_container_is_a_video(tmp_path):
    """Bytes that no writer here can make (.gxf, .dv, ...) are left to the decoder; their suffixes are listed all the
    same."""
    written = set()
    for suffix, (container, codec) in CONTAINERS.items():
        try:
            write(tmp_path / f"a{suffix}", container, codec)
            written.add(f"a{suffix}")
        except (av.error.FFmpegError, av.codec.codec.UnknownCodecError, ValueError):
            (tmp_path / f"a{suffix}").unlink(missing_ok=True)
    assert len(written) >= 25, f"hardly anything can be written: {sorted(written)}"
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "video" and source.listed == len(written) and not source.left
    read = {clip.source for clip in source}
    assert not source.skipped and read == written


def animate(path, frames=8, **options):
    pictures = [Image.fromarray(np.full((24, 32, 3), grey_of(5 * index), np.uint8)) for index in range(frames)]
    form = "PNG" if path.suffix.lower() in (".apng", ".png") else None
    pictures[0].save(path, form, save_all=True, append_images=pictures[1:], duration=100, **options)


@pytest.mark.parametrize("name", ["a.gif", "a.apng", "a.png", "a.GIF", "a%03d.png"])
def test_animated_pictures_are_clips(tmp_path, name):
    animate(tmp_path / name)
    make_image(tmp_path / "still.gif", (9, 9, 9))
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "video" and source.left == {"images beside videos (--kind image reads them)": {".gif": 1}}
    clips = list(source)
    assert [(clip.source, clip.start, clip.fps) for clip in clips] == [(name, 0, 10.0), (name, 4, 10.0)]
    greys = [frame[8, 8, 0] for clip in clips for frame in clip.frames]
    assert np.abs(np.array(greys, int) - [grey_of(5 * k) for k in range(8)]).max() <= 2
    (alone,) = open_source(str(tmp_path / "still.gif"), "train", SIZES)
    assert alone.frames.shape[0] == 1 and kind_of(tmp_path / name) == "video"


def test_among_pictures_an_animation_is_a_picture(tmp_path):
    for index in range(3):
        make_image(tmp_path / f"{index}.png", (9, 9, 9))
    animate(tmp_path / "a.gif")
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "image" and [clip.source for clip in source] == ["0.png", "1.png", "2.png", "a.gif"]


def test_every_kind_of_picture(tmp_path):
    Image.init()
    written = []
    for suffix in sorted(STILLS):
        try:
            Image.new("RGB", (24, 16), (200, 0, 0)).save(tmp_path / f"a{suffix}", Image.EXTENSION[suffix])
            written.append(f"a{suffix}")
        except (KeyError, OSError):  # a format that this PIL does not write
            (tmp_path / f"a{suffix}").unlink(missing_ok=True)
    source = open_source(str(tmp_path), "train", SIZES)
    assert len(written) > 15 and [clip.source for clip in source] == written and not source.skipped


def test_typescript_is_no_video(tmp_path):
    (tmp_path / "index.ts").write_text("Given = 1;\n" * 50)
    shutil.copy(make_video(tmp_path / "a.mp4", frames=4), tmp_path / "b.mp4")
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.listed == 2 and source.left == {"no media": {".ts": 1}}


def test_sound_and_text_are_no_videos():
    assert not {".wav", ".mp3", ".ogg", ".flac", ".m4a", ".mka", ".txt", ".srt", ".vtt", ".json", ".npy"} & VIDEOS
