"""Continuing clips: shapes, prompts kept, seeds, files written, and the sentence for each mistake."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.generate import draw_continuation, frame_counts, main, prompts_of, read_video
from evaluation.pictures import DRAWN, FRAME, PROMPT, enlarge, panel, sheet
from tokenization.toyworld import open_world


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def result(model, processor, clip):
    return draw_continuation(model, processor, clip, 1, 3, num_samples=2)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """10 frames of 40 x 32 pixels."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        for level in range(10):
            picture = np.full((32, 40, 3), 20 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_continued_clip(result, model, processor, clip):
    assert result["num_prompt_frames"] == 1 and result["num_frames"] == 3 and result["seconds"] > 0
    assert result["true"].shape == result["reconstructed"].shape == (4, 32, 32, 3)
    assert result["generated"].shape == (2, 4, 32, 32, 3)
    assert {result[key].dtype for key in ("true", "reconstructed", "generated")} == {np.dtype(np.uint8)}
    assert np.array_equal(result["true"], clip)
    for sample in result["generated"]:
        assert np.array_equal(sample[0], result["reconstructed"][0])  # the prompt, as tokens show it
    round_trip = processor.decode(processor(videos=clip, add_end_token=False)["input_ids"])
    assert np.array_equal(result["reconstructed"], round_trip[0])


def test_seeds_decide(model, processor, clip, result):
    def tokens(**options):
        torch.manual_seed(0)  # the global generator has no say
        return draw_continuation(model, processor, clip, 2, 2, **options)["generated"]

    assert np.array_equal(tokens(seed=3), tokens(seed=3))
    assert np.array_equal(tokens(seed=3), tokens(seed=3, parallel=4))
    assert np.array_equal(tokens(temperature=0.0, seed=1), tokens(temperature=0.0, seed=2))


def test_only_the_prompt_is_needed(model, processor, clip):
    result = draw_continuation(model, processor, clip[:2], 2, 2)
    assert len(result["true"]) == 2 and result["generated"].shape[1] == 4
    assert sheet(result).size == sheet(draw_continuation(model, processor, clip, 2, 2)).size  # empty places are drawn
    with pytest.raises(ValueError, match="1 frames, but the prompt needs 2"):
        draw_continuation(model, processor, clip[:1], 2, 2)


def test_frame_counts_follow_the_model(model):
    config = model.config  # 4 frames
    assert frame_counts(config, None, None) == (2, 2)
    assert frame_counts(config, 1, None) == (1, 3)
    assert frame_counts(config, None, 3) == (1, 3)
    assert frame_counts(config, None, 9) == (2, 9)  # beyond the context
    assert frame_counts(config, 3, 2) == (3, 2)
    assert frame_counts(config, 4, None) == (4, 1)
    with pytest.raises(ValueError, match="num_prompt_frames is 5, but the context of the model has only 4 frames"):
        frame_counts(config, 5, None)


def test_beyond_the_context(checkpoint, tmp_path, model, processor, clip, capsys):
    flags = ["--num_frames", "6", "--drop_frames", "2", "--recompute"]
    main(["--model", checkpoint, "--output", str(tmp_path / "long.gif"), *flags])
    output = capsys.readouterr()
    assert "2 prompt frames, 1 x 6 new ones" in output.out and "6/6" in output.err and "tok/s" in output.err
    about = json.loads((tmp_path / "long.json").read_text())
    assert about["drop_frames"] == 2 and about["recompute"] is True
    with Image.open(tmp_path / "long.gif") as movie:
        assert movie.n_frames == 8
    options = {"temperature": 0.0, "num_samples": 2}
    kept = draw_continuation(model, processor, clip, 2, 6, **options)["generated"]
    afresh = draw_continuation(model, processor, clip, 2, 6, **options, recompute=True)["generated"]
    assert kept.shape == (2, 8, 32, 32, 3) and np.array_equal(kept[:, :4], afresh[:, :4])
    fewer = draw_continuation(model, processor, clip, 2, 6, **options, drop_frames=3)["generated"]
    assert np.array_equal(kept[:, :4], fewer[:, :4]) and not np.array_equal(kept, fewer)


def test_sheet_and_panel(result):
    picture = np.asarray(sheet(result))
    assert picture.shape[1] > picture.shape[0] and enlarge(result["true"]).shape == (4, 128, 128, 3)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {PROMPT, DRAWN} <= colours
    movie = panel(result)
    assert len(movie) == 4 and movie.shape[1] % 2 == movie.shape[2] % 2 == 0
    place = (slice(FRAME, FRAME + 128), slice(FRAME, FRAME + 128))
    assert np.array_equal(movie[0][place], enlarge(result["true"])[0])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_one_file(checkpoint, tmp_path, suffix, capsys):
    output = tmp_path / "new" / f"clip{suffix}"
    main(["--model", checkpoint, "--output", str(output), "--top_k", "8", "--top_p", "0.9"])
    assert "2 prompt frames, 1 x 2 new ones" in (text := capsys.readouterr().out) and "tok/s" in text
    assert "s/frame" in text
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.width > 500
    about = json.loads(output.with_suffix(".json").read_text())
    assert about["source"] == "toyworld/simple/test/0/0" and about["sampling"]["top_k"] == 8
    assert about["command"].startswith("toto generate --model ")
    if suffix == ".gif":
        with Image.open(output) as movie:
            assert movie.n_frames == 4
    else:
        with av.open(str(output)) as movie:
            assert len(list(movie.decode(video=0))) == 4


def test_a_folder_of_several(checkpoint, tmp_path, video, capsys):
    flags = ["--num_prompt_frames", "1", "--num_frames", "2", "--num_samples", "2", "--temperature", "0", "--recompute"]
    main(["--model", checkpoint, "--output", str(tmp_path), "--video", "toyworld:cluttered:2", str(video), *flags])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{stem}.{suffix}" for stem in ("toyworld-cluttered-2", "short") for suffix in ("mp4", "png", "json")
    }
    assert "1 prompt frames, 2 x 2 new ones" in capsys.readouterr().out


def test_without_libx264(monkeypatch, result, tmp_path):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    from evaluation.pictures import write_movie

    write_movie(tmp_path / "a.mp4", panel(result), 7.5)
    with av.open(str(tmp_path / "a.mp4")) as movie:
        assert movie.streams.video[0].codec_context.name == "mpeg4" and len(list(movie.decode(video=0))) == 4


def test_a_video_that_ends_after_the_prompt(video):
    assert len(read_video(str(video), 2, 2, 3, None, 32).frames) == 4
    assert len(read_video(str(video), 2, 2, 4, None, 32).frames) == 2
    with pytest.raises(ValueError, match=r"short.mp4: the video is too short: it has 10 frames"):
        read_video(str(video), 4, 2, 4, None, 32)


def test_a_clip_of_the_embedded_world_by_its_name():
    for name, source in (("toyworld:3", "simple/test/0/3"), ("toyworld:motion", "motion/test/0/0")):
        assert read_video(name, 2, 1, 4, None, 64).source == f"toyworld/{source}"
    panned = read_video("toyworld:motion:pan=100:2", 2, 1, 4, None, 64)
    assert panned.source == "toyworld/motion/test/0/2"
    assert np.array_equal(panned.frames, open_world("motion:pan=100", "test", num_frames=3).clip(2)["video"])


def test_mistakes_get_a_sentence(checkpoint, tmp_path):
    def run(*flags):
        main(["--model", checkpoint, "--output", str(tmp_path), *flags])

    with pytest.raises(FileNotFoundError, match=r"there is no video file .*none.mp4"):
        run("--video", str(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match="num_prompt_frames is 5, but the context of the model has only 4 frames"):
        run("--num_prompt_frames", "5")
    with pytest.raises(ValueError, match=r"drop_frames is .*; set 1 to 3"):
        run("--num_frames", "9", "--drop_frames", "4")
    with pytest.raises(ValueError, match="parallel is 1000; set 1 to"):
        run("--parallel", "1000")
    with pytest.raises(ValueError, match="toyworld has no variant"):
        run("--video", "toyworld:nowhere:1")
    with pytest.raises(ValueError, match="toyworld:VARIANT:INDEX"):
        run("--video", "toyworld:a:b:1")
    with pytest.raises(ValueError, match="--num_samples is 0; it must be at least 1"):
        run("--num_samples", "0")
    with pytest.raises(ValueError, match="--top_k, --top_p would have no effect at --temperature 0"):
        run("--temperature", "0", "--top_k", "8", "--top_p", "0.9")
    with pytest.raises(ValueError, match="--stride would have no effect next to --fps"):
        run("--video", "a.mp4", "--stride", "4", "--fps", "8")
    with pytest.raises(ValueError, match="--fps would have no effect on toyworld"):
        run("--fps", "8")
    with pytest.raises(ValueError, match="--output is one file, but there are 2 videos"):
        main(["--model", checkpoint, "--output", "a.mp4", "--video", "toyworld:0", "toyworld:1"])
    with pytest.raises(FileNotFoundError, match="no model folder"):
        main(["--model", str(tmp_path / "no" / "model"), "--output", str(tmp_path)])


@pytest.fixture
def pictures(tmp_path):
    """Four pictures of 40 x 32 pixels, named 2, 3, 10 and 11, each with its own brightness, and a note."""
    for number in (2, 3, 10, 11):
        Image.new("RGB", (40, 32), (20 * number,) * 3).save(tmp_path / f"view{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_folder_of_pictures_is_one_clip_in_the_order_of_their_numbers(pictures):
    clip = read_video(str(pictures), 2, 2, 4, None, 32)
    assert clip.frames.shape == (4, 32, 32, 3) and clip.fps > 0
    assert clip.frames[:, 0, 0, 0].tolist() == [40, 60, 200, 220]
    assert len(read_video(str(pictures), 3, 5, 4, None, 32).frames) == 3  # the prompt, without true frames
    (pictures / "videos").mkdir()
    (pictures / "videos" / "b.mp4").touch()
    with pytest.raises(ValueError, match=r"is a folder of videos; name the ones to continue, such as .*videos/b.mp4"):
        read_video(str(pictures / "videos"), 2, 2, 4, None, 32)
    with pytest.raises(ValueError, match="4 pictures, but the prompt needs 5; give more of them"):
        read_video(str(pictures), 5, 1, 4, None, 32)


def test_pictures_are_one_clip_in_the_order_given(pictures):
    files = [str(pictures / f"view{number}.png") for number in (11, 2, 3)]
    assert prompts_of(files) == [tuple(files)]
    clip = read_video(tuple(files), 2, 1, 4, None, 32)
    assert clip.frames[:, 0, 0, 0].tolist() == [220, 40, 60]
    assert prompts_of(["toyworld:motion:3", "a.mp4"]) == ["toyworld:motion:3", "a.mp4"]
    with pytest.raises(ValueError, match="--video has pictures and other clips"):
        prompts_of([*files, "toyworld"])
    with pytest.raises(ValueError, match="on pictures, each of which is one frame"):
        main(["--model", "m", "--output", "o.gif", "--video", *files, "--stride", "2"])


def test_a_turntable_is_a_prompt():
    clip = read_video("toyworld:turntable:turn=12:3", 2, 2, 4, None, 64)
    assert np.array_equal(clip.frames, open_world("turntable:turn=12", "test", num_frames=4).clip(3)["video"])
