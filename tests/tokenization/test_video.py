"""Videos become the right frames at the right times, and damaged ones a sentence each."""

import av
import numpy as np
import pytest
from media import grey_of, make_audio, make_truncated, make_video

from tokenization.image_processing_toto import resize_and_crop
from tokenization.sampling import Sampling
from tokenization.video import read_clip, read_windows, view_positions


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=60)


def indices(clip) -> list[int]:
    """Which source frame each frame of a clip is, read off its grey level."""
    greys = clip.frames.reshape(len(clip.frames), -1).mean(1)
    return [int(np.abs(greys[i] - np.array([grey_of(k) for k in range(60)])).argmin()) for i in range(len(greys))]


def test_windows_do_not_overlap_and_keep_the_stride(video):
    clips = list(read_windows(video, Sampling(num_frames=4, stride=4, resolution=16)))
    assert [clip.start for clip in clips] == [0, 16, 32]
    assert [indices(clip) for clip in clips] == [[0, 4, 8, 12], [16, 20, 24, 28], [32, 36, 40, 44]]
    assert all(clip.frames.shape == (4, 16, 16, 3) and clip.frames.dtype == np.uint8 for clip in clips)
    assert clips[0].fps == pytest.approx(25 / 4) and clips[0].source == str(video)


def test_a_clip_needs_no_frames_after_its_last(tmp_path):
    assert (
        len(
            list(
                read_windows(make_video(tmp_path / "a.mp4", frames=13), Sampling(num_frames=4, stride=4, resolution=16))
            )
        )
        == 1
    )


def test_bytes_and_file_give_the_same(video):
    from_file = next(read_windows(video, Sampling(num_frames=4, resolution=16)))
    from_bytes = next(read_windows(video.read_bytes(), Sampling(num_frames=4, resolution=16)))
    assert np.array_equal(from_file.frames, from_bytes.frames)


@pytest.mark.parametrize(
    ("fps", "expected"), [(12.5, [0, 2, 4, 6]), (25, [0, 1, 2, 3]), (50, [0, 0, 1, 1]), (10, None)]
)
def test_resampling_by_time(video, fps, expected):
    clip = next(read_windows(video, Sampling(num_frames=4, fps=fps, resolution=16)))
    assert clip.fps == fps
    if expected is None:  # 2.5 source frames a step: the nearest one, either of two at a tie
        assert np.abs(np.array(indices(clip)) - np.array([0, 2.5, 5, 7.5])).max() <= 0.5
    elif fps <= 25:
        assert indices(clip) == expected
    else:  # above the video's own rate frames repeat
        assert len(set(indices(clip))) < 4


def test_time_resampling_survives_milliseconds(tmp_path):
    """Matroska rounds times to milliseconds: 30 fps at a step of 4 frames must still hit frames 0, 4, 8..."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(50):
            picture = np.full((32, 32, 3), grey_of(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    clip = read_clip(path, Sampling(num_frames=8, fps=7.5, resolution=16))
    assert indices(clip) == list(range(0, 32, 4))


def test_random_crops_are_seeded_and_lose_no_window(video):
    def read(seed):
        return list(
            read_windows(video, Sampling(num_frames=4, stride=4, resolution=16, crops=3, seed=seed), source="a")
        )

    first, again, other = read(0), read(0), read(1)
    assert all(np.array_equal(a.frames, b.frames) and a.start == b.start for a, b in zip(first, again, strict=True))
    assert [clip.start for clip in first] != [clip.start for clip in other]
    assert len(first) >= 3 * 2 and 0 in [clip.start for clip in first]


def test_the_centre_is_taken_and_the_picture_is_not_squeezed(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, 32:64] = 200  # the middle third is the centre crop
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frame = read_clip(path, Sampling(num_frames=1, resolution=16)).frames[0]
    assert frame[:, 2:-2].min() > 180


def test_views_of_a_test(video, tmp_path):
    """Windows from the first to the last that fits, overlapping where they must; crops along the longer side."""

    def read(**how):
        return Sampling(num_frames=4, stride=4, resolution=16, **how)

    clips = list(read_windows(video, read(views=(4, 1))))  # 60 frames, a window spans 13: starts in 0 to 47
    assert sorted(indices(clip) for clip in clips) == [
        [start, start + 4, start + 8, start + 12] for start in (0, 16, 31, 47)
    ]
    assert [indices(clip) for clip in read_windows(video, read(views=(1, 3)))] == [[24, 28, 32, 36]] * 3
    by_rate = list(read_windows(video, Sampling(num_frames=4, fps=25 / 4, resolution=16, views=(2, 1))))
    assert sorted(clip.start for clip in by_rate) == [0, 47] and len(by_rate) == 2
    # 7.5 of 25 frames: sixteen of them end at the fiftieth frame, and the last window at the sixtieth
    ends = [round(clip.start + 50) for clip in read_windows(video, Sampling(fps=7.5, resolution=16, views=(5, 1)))]
    assert len(ends) == 5 and max(ends) == 59
    short = make_video(tmp_path / "short.mp4", frames=51)
    assert len(list(read_windows(short, Sampling(fps=7.5, resolution=16, views=(5, 3))))) == 15
    unsaid = make_video(tmp_path / "a.mkv", frames=60)  # whose header does not state the number of frames
    assert sorted(clip.start for clip in read_windows(unsaid, read(views=(4, 1)))) == [0, 16, 31, 47]
    with pytest.raises(ValueError, match="too short: it has 60 frames"):
        list(read_windows(video, Sampling(num_frames=16, stride=4, views=(5, 3))))
    with pytest.raises(ValueError, match="cannot be combined with random crops"):
        list(read_windows(video, read(crops=2, views=(5, 3))))


def test_sideways_recordings_are_turned(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:, :32] = 200  # bright on the left, which a quarter turn clockwise puts on top
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # version and flags, times, ids, duration ... then the 3 x 3 matrix
    quarter = [0, 0x00010000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in quarter)
    path.write_bytes(content)
    frame = read_clip(path, Sampling(num_frames=1, resolution=16)).frames[0]
    assert frame[:6].min() > 150 and frame[-6:].max() < 50


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda p: make_video(p, frames=10),
            "too short: it has 10 frames, and a clip of 4 frames at stride 4 needs 13",
        ),
        (make_audio, "holds only audio, no video stream"),
        (lambda p: p.write_bytes(b"not a video at all" * 100), "cannot be opened as a video"),
        (lambda p: p.write_bytes(b""), "cannot be opened as a video"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, make, words):
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(ValueError, match=words):
        list(read_windows(path, Sampling(num_frames=4, stride=4, resolution=16)))
    with pytest.raises(ValueError, match=r"bad\.mp4: "):
        read_clip(path, Sampling(num_frames=4, stride=4, resolution=16))


def test_a_truncated_video_keeps_the_windows_before_the_damage(tmp_path):
    path = make_truncated(tmp_path / "cut.mp4", frames=60)
    clips, windows = [], read_windows(path, Sampling(num_frames=4, stride=2, resolution=16))
    with pytest.raises(ValueError, match="truncated"):
        for clip in windows:
            clips.append(clip)
    assert 0 < len(clips) < 7
    assert indices(clips[0]) == [0, 2, 4, 6]


def test_a_video_cut_before_its_index_is_a_sentence(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="corrupt, truncated or not a video"):
        list(read_windows(path))


def test_nonsense_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no video file"):
        list(read_windows(tmp_path / "nothing.mp4"))
    with pytest.raises(ValueError, match="stride is 0; it must be at least 1"):
        list(read_windows(tmp_path / "nothing.mp4", Sampling(stride=0)))


def test_views_are_spread_evenly():
    assert view_positions(1, 1) == [(0.5, (0.5, 0.5))]
    views = view_positions(5, 3)
    assert len(views) == len(set(views)) == 15
    assert sorted({time for time, _ in views}) == [0, 0.25, 0.5, 0.75, 1]
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = 10, 20, 30
    for picture in (wide, wide.transpose(1, 0, 2)):  # along whichever side is longer
        crops = [resize_and_crop(picture, 10, place) for _, place in view_positions(1, 3)]
        assert [int(crop[5, 5, 0]) for crop in crops] == [10, 20, 30]
    with pytest.raises(ValueError, match="1 or more"):
        view_positions(0, 1)
