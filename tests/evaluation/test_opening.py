"""Continued clips come first in a report: a film that browsers play, frames that wrap, and what was learnt in words."""

import base64
import io
import json
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image

from evaluation.pictures import DRAWN, FRAME, PROMPT, cut, panel, sheet, write_movie
from evaluation.report.clips import MANY, clip_facts, film
from evaluation.report.command import main
from evaluation.report.reading import Generation
from tests.evaluation.test_report import row, task, write_result


def continued(prompt, drawn, samples=1):
    """A clip whose frames have one colour each."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (2 + samples, prompt + drawn, 1, 1, 3), dtype=np.uint8)
    true, reconstructed, *generated = np.broadcast_to(colours, (2 + samples, prompt + drawn, 32, 32, 3))
    return {"true": true, "reconstructed": reconstructed, "generated": np.stack(generated), "num_prompt_frames": prompt,
            "num_frames": drawn}  # fmt: skip


def write_clip(folder, name, result, model="checkpoints/toto-motion", kind=".mp4"):
    folder.mkdir(exist_ok=True)
    sheet(result).save(folder / f"{name}.png")
    if kind:
        write_movie(folder / f"{name}{kind}", panel(result), 8)
    about = {
        "model": model, "source": f"toyworld/motion/test/{name}",
        "sampling": {"temperature": 0.0, "top_k": None, "top_p": None},
        "num_prompt_frames": result["num_prompt_frames"], "num_frames": result["num_frames"], "seeds": {"draws": 0},
        "tokens_per_second": 310.0, "seconds_per_frame": 0.21, "command": "toto generate",
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(about))


class Tags(HTMLParser):
    """All tags of a page with their attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag, **attributes):
        return [found for name, found in self.found if name == tag and attributes.items() <= found.items()]


def decoded(uri, kind):
    head, _, content = uri.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(content)


@pytest.fixture
def result():
    return continued(2, 3)


def test_a_sheet_is_cut_into_its_frames(result):
    rows = cut(sheet(result), 5)
    assert len(rows) == 3 and {len(each) for each in rows} == {5}
    for tiles, frames in zip(rows, (result["true"], result["reconstructed"], result["generated"][0]), strict=True):
        for tile, frame in zip(tiles, frames, strict=True):
            inside = np.asarray(tile)[FRAME:-FRAME, FRAME:-FRAME]
            assert inside.shape == (128, 128, 3) and (inside == frame[0, 0]).all()
    assert [tile.getpixel((0, 0)) for tile in rows[2]] == [PROMPT] * 2 + [DRAWN] * 3


def test_a_picture_that_is_no_sheet_is_not_cut():
    assert cut(Image.new("RGB", (2000, 300)), 16) is None


@pytest.fixture
def folder(result, tmp_path):
    write_clip(tmp_path / "frames", "clip", result)
    return tmp_path


def report(folder, *results):
    """The page of the clips in folder/frames and of result files."""
    flags = ["--generations", str(folder / "frames"), "--output", str(folder / "report.html")]
    main([*(["--results", *map(str, results)] if results else []), *flags])
    return (folder / "report.html").read_text()


def test_the_first_screen_is_the_clip_and_what_was_learnt(folder, result):
    worse = task(0.20, 0.22, 0.34, 8)
    write_result(folder / "results" / "a.json", "x/nano", {"motion": worse, "digit": task(0.62, 0.41, 0.35)})
    page = report(folder, folder / "results")
    first = page[page.index("<h1>") : page.index("<h2>")]
    tags = Tags(first)
    assert len(tags.of("video")) == 1
    assert len(tags.of("figure", **{"class": "given"})) == 2 and len(tags.of("figure", **{"class": "drawn"})) == 3
    frames = [attributes for attributes in tags.of("img") if attributes["alt"].startswith("Frame ")]
    assert len(frames) == 5
    with Image.open(io.BytesIO(decoded(frames[4]["src"], "image/png"))) as last:
        side = last.height // 3
        seen = [last.convert("RGB").getpixel((side // 2, side // 2 + k * side)) for k in range(3)]
    expected = (result["true"], result["reconstructed"], result["generated"][0])
    assert seen == [tuple(rows[4, 0, 0]) for rows in expected]
    assert first.index("<video") < first.index('class="clip"') < first.index("leads most")
    assert "toto-motion was given the first 2 frames of a clip and drew the next 3." in first
    assert (
        "of nano, digit leads most: 62.0 % right at layer 6, where the best measured floor, raw pixels, gets 35.0 %."
        in first
    )
    assert "2 of 4 comparisons hold, 1 shows no significant difference and 1 is lost." in first


def test_the_film_is_whole_in_the_page_and_of_a_kind_that_browsers_play(folder, result):
    (video,) = Tags(report(folder)).of("video")
    assert {"controls", "loop", "muted", "playsinline"} <= set(video) and "autoplay" not in video
    with av.open(io.BytesIO(decoded(video["src"], "video/mp4"))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert not container.streams.audio
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert np.abs(np.stack(frames).astype(int) - panel(result)).mean() < 4
    with Image.open(io.BytesIO(decoded(video["poster"], "image/png"))) as poster:
        assert poster.size == frames[0].shape[1::-1]
        assert np.abs(np.asarray(poster.convert("RGB")).astype(int) - panel(result)[-1]).mean() < 6


@pytest.mark.parametrize("kind", [".mp4", ".gif", None])
def test_other_films_are_pictures_that_move(tmp_path, kind, result):
    """MPEG-4, which a PyAV without x264 writes, is written again, as no browser plays it; a GIF is kept."""
    write_clip(tmp_path / "frames", "clip", result, kind=kind if kind == ".gif" else None)
    if kind == ".mp4":
        with av.open(str(tmp_path / "frames" / "clip.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.height, stream.width = panel(result).shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in panel(result):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    found = film(Generation(tmp_path / "frames" / "clip.png", None))
    if kind is None:
        assert found is None
        return
    assert not found["is_video"]
    with Image.open(io.BytesIO(decoded(found["source"], "image/webp" if kind == ".mp4" else "image/gif"))) as movie:
        assert movie.is_animated and movie.n_frames == 5
    tags = Tags(report(tmp_path))
    assert not tags.of("video") and len(tags.of("img", src=found["source"])) == 1


def test_every_clip_is_shown_once_and_the_first_stays_open(tmp_path):
    write_clip(tmp_path / "frames", "a", continued(2, 3))
    write_clip(tmp_path / "frames", "b", continued(8, 56))
    write_clip(tmp_path / "frames", "c", continued(1, 1, samples=2))
    page = report(tmp_path)
    tags = Tags(page)
    assert len(tags.of("video")) == 3 and len({video["src"] for video in tags.of("video")}) == 3
    pictures = [attributes["src"] for attributes in tags.of("img")]
    assert len(pictures) == 5 + 64 + 2 == len(set(pictures))
    assert page.count('class="scroll sheet"') == 0  # no sheet that has to be scrolled sideways
    assert [attributes["class"] for attributes in tags.of("div") if "clip" in attributes.get("class", "").split()] == [
        "clip", "clip many", "clip"
    ]  # fmt: skip
    assert page.count("<summary>Frame by frame</summary>") == 2 and page.index("<details>") > page.index(
        "More continued"
    )
    assert "was given the first frame of a clip and drew the next frame." in page
    assert "<span>drawn 1</span><span>drawn 2</span>" in page


def test_frames_wrap_at_any_width():
    """The columns of a clip are as many as fit, also of a clip of 64 frames: the grid has no fixed number of them."""
    from evaluation.report import page

    style = (page.Path(page.__file__).with_name("templates") / "style.css").read_text()
    rules = [line for line in style.splitlines() if line.startswith((".clip{", ".clip.many{"))]
    assert len(rules) == 2 and all("repeat(auto-fill,minmax(" in rule for rule in rules)
    assert 16 <= MANY < 56


def test_a_picture_that_is_no_sheet_is_shown_whole(tmp_path):
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (2000, 300)).save(tmp_path / "frames" / "other.png")
    facts = clip_facts(Generation(tmp_path / "frames" / "other.png", None))
    assert facts["columns"] == [] and facts["film"] is None and facts["sheet"].startswith("data:image/png")
    assert len(Tags(report(tmp_path)).of("img", src=facts["sheet"])) == 1


def test_a_label_without_a_lead_is_said_so(folder):
    lost = task(0.20, 0.22, 0.34, 8)
    write_result(folder / "a.json", "x/nano", {"motion": lost, "digit": lost})
    main(["--results", str(folder / "a.json"), "--output", str(folder / "report.html")])
    page = (folder / "report.html").read_text()
    assert "motion comes closest: 20.0 % right at layer 6, against 34.0 % of raw pixels." in page
    assert 'class="clip"' not in page
    write_result(folder / "a.json", "x/nano", {"motion": lost})
    main(["--results", str(folder / "a.json"), "--output", str(folder / "report.html")])
    said = "motion is 20.0 % right at layer 6: below its best measured floor, raw pixels, with 34.0 %."
    assert said in (folder / "report.html").read_text()
    bare = {"layers": [row(0.5, layer=0, head="linear", lr=1, val_accuracy=0.5)]}
    bare |= {"best": {"layer": 0, "head": "linear", "accuracy": 0.5}, "baselines": {}, "n_test": 100}
    (folder / "b.json").write_text(json.dumps({"model": "m", "data": {}, "versions": {}, "seeds": {}} | bare))
    main(["--results", str(folder / "b.json"), "--output", str(folder / "report.html")])
    assert "its best measured floor" not in (folder / "report.html").read_text()
