"""The first screen of a report: the frames of a clip as single pictures, and sentences that say what was learnt."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from evaluation.pictures import DRAWN, FRAME, PROMPT, cut, sheet
from evaluation.report.command import main
from tests.evaluation.test_report import row, task, write_result


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (3, 5, 1, 1, 3), dtype=np.uint8)
    true, reconstructed, drawn = np.broadcast_to(colours, (3, 5, 32, 32, 3))
    return {"true": true, "reconstructed": reconstructed, "generated": drawn[None], "num_prompt_frames": 2,
            "num_frames": 3}  # fmt: skip


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
    (tmp_path / "frames").mkdir()
    sheet(result).save(tmp_path / "frames" / "clip.png")
    about = {
        "model": "checkpoints/toto-motion", "source": "toyworld/motion/test/0", "num_prompt_frames": 2, "num_frames": 3,
        "sampling": {"temperature": 0.0, "top_k": None, "top_p": None}, "seeds": {"draws": 0},
        "tokens_per_second": 310.0, "seconds_per_frame": 0.21, "command": "toto generate",
    }  # fmt: skip
    (tmp_path / "frames" / "clip.json").write_text(json.dumps(about))
    return tmp_path


def test_the_first_screen_is_the_clip_and_what_was_learnt(folder, result):
    worse = task(0.20, 0.22, 0.34, 8)
    write_result(folder / "results" / "a.json", "x/nano", {"motion": worse, "digit": task(0.62, 0.41, 0.35)})
    flags = ["--results", str(folder / "results"), "--generations", str(folder / "frames")]
    main([*flags, "--output", str(folder / "report.html")])
    page = (folder / "report.html").read_text()
    first = page[page.index("<h1>") : page.index("<h2>")]
    assert first.count('class="given">\n<img') == 2 and first.count('class="drawn">\n<img') == 3
    shown = first.split("base64,")[1:]
    assert len(shown) == 10  # true and drawn, five times
    with Image.open(io.BytesIO(base64.b64decode(shown[9].partition('"')[0]))) as last:
        assert last.convert("RGB").getpixel((64, 64)) == tuple(result["generated"][0, 4, 0, 0])
    assert "toto-motion was given the first 2 frames of a clip and drew the next 3." in first
    assert (
        "of nano, digit leads most: 62.0 % right at layer 6, where the best measured floor, raw pixels, gets 35.0 %."
        in first
    )
    assert "2 of 4 comparisons hold, 2 fail." in first


def test_a_label_without_a_lead_is_said_so(folder):
    lost = task(0.20, 0.22, 0.34, 8)
    write_result(folder / "a.json", "x/nano", {"motion": lost})
    main(["--results", str(folder / "a.json"), "--output", str(folder / "report.html")])
    page = (folder / "report.html").read_text()
    assert "motion comes closest: 20.0 % right at layer 6, against 34.0 % of raw pixels." in page
    assert 'class="clip"' not in page
    bare = {"layers": [row(0.5, layer=0, head="linear", lr=1, val_accuracy=0.5)]}
    bare |= {"best": {"layer": 0, "head": "linear", "accuracy": 0.5}, "baselines": {}, "n_test": 100}
    (folder / "b.json").write_text(json.dumps({"model": "m", "data": {}, "versions": {}, "seeds": {}} | bare))
    main(["--results", str(folder / "b.json"), "--output", str(folder / "report.html")])
    assert "comes closest" not in (folder / "report.html").read_text()
