"""Figures of runs in the report: loss along a row and over frames, mixtures, and runs over each other."""

import json
import re

import numpy as np
import pytest
import yaml

from evaluation.predictors import Predictors
from evaluation.report.command import main
from evaluation.report.run_figures import frames_svg, map_svg, overlay_svg

FRAMES, SIDE = 4, 2
PLACES = FRAMES * SIDE * SIDE


def rows(losses, flops_per_token):
    found = []
    for step, loss in enumerate(losses, start=1):
        shares = {"rows": 3 * step, "share": 0.5, "epochs": 1.25, "loss": loss}
        sources = {"clips": shares, "pictures": shares | {"epochs": None, "loss": None}}
        cost = {"tokens": 1000 * step, "flops": 1000 * step * flops_per_token}
        found.append({"step": step, "loss": loss, "sources": sources, **cost})
    last = {"step": step, "tokens": 1000 * step, "val_loss": losses[-1] + 0.1}
    return [*found, last | {"val_losses": {"clips": losses[-1], "pictures": losses[-1] + 0.2}}]


def write_run(folder, losses, flops_per_token):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(losses, flops_per_token)))
    maps = {"clips": [2.0 + k / PLACES for k in range(PLACES)], "pictures": [3.0] * PLACES}
    content = {"step": 3, "num_frames": FRAMES, "grid": [SIDE, SIDE], "sources": maps}
    (folder / "loss_maps.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    first, second = write_run(root / "narrow", [6.0, 5.0, 4.5], 10.0), write_run(root / "wide", [6.1, 4.5, 4.0], 90.0)
    (second / "changes.txt").write_text("Resumed after step 2 with changes:\n- world: 2 and was 1.\n- threads is 1.\n")
    main(["--runs", str(first), str(second), "--output", str(root / "report.html")])
    return (root / "report.html").read_text()


def test_runs_lie_over_each_other_against_tokens_and_compute(page):
    for against in ("tokens", "flops"):
        assert f'aria-label="Loss against {against} of the runs narrow, wide."' in page
    assert "narrow 4.600" in page and "wide 4.100" in page  # the last validation losses


def test_the_page_says_where_in_a_row_the_loss_is(page):
    told = re.search(r"Validation loss of wide on clips along a row. Mean of each frame: ([\d., ]+) nats", page)[1]
    means = np.array([2.0 + k / PLACES for k in range(PLACES)]).reshape(FRAMES, -1).mean(1)
    assert [float(mean) for mean in told.split(", ")] == pytest.approx(means, abs=0.006)
    assert page.count("Where in the frames the loss of") == 4  # two runs of two sources


def test_mixtures_and_changes_are_reported(page):
    assert "<td>pictures</td><td>9</td><td>50.00%</td><td>not known</td><td>—</td>" in page
    assert "Resumed after step 2 with changes: world: 2 and was 1; threads is 1." in page


def test_maps_are_next_to_those_of_the_predictors():
    codes = np.random.default_rng(0).integers(0, 8, (40, FRAMES, SIDE, SIDE))
    predictors = Predictors(codes, 8)
    maps = predictors.maps(codes)
    assert {name: places.shape for name, places in maps.items()} == dict.fromkeys(
        Predictors.names, (FRAMES, SIDE, SIDE)
    )
    losses = {name: predictors.nats(name, codes).mean() for name in maps}
    assert {name: places.mean() for name, places in maps.items()} == pytest.approx(losses)
    assert maps["previous_frame"][0] == pytest.approx(maps["bigram"][0])  # a first frame has none before it
    model = {"step": 1, "num_frames": FRAMES, "grid": [SIDE, SIDE], "sources": {"clips": [2.0] * PLACES}}
    listed = {name: places.ravel().tolist() for name, places in maps.items()}
    drawn = map_svg("run", "clips", model, listed)
    low = min(2.0, *(places.min() for places in maps.values()))
    assert f"for model, unigram, bigram, previous frame; from {low:.2f} to" in drawn
    assert "previous frame" in frames_svg("run", "clips", model, listed)
    of_images = {name: places[:1].ravel().tolist() for name, places in maps.items()}  # one frame, for a pack of four
    assert "for model, unigram" in map_svg("run", "clips", model, of_images)


def test_a_run_that_does_not_log_compute_is_named():
    with pytest.raises(ValueError, match="The run old does not log flops; it is older than this version"):
        overlay_svg([("old", [{"step": 1, "loss": 5.0, "tokens": 10}])], "flops")


def test_losses_of_pixels_are_not_nats(tmp_path):
    """A run that regresses patches has squared errors; it lies over no run of nats."""
    runs = [write_run(tmp_path / name, [6.0, 5.0], 10.0) for name in ("codes", "patches", "patch_codes")]
    for run, target in zip(runs, ("code", "patch", "code"), strict=True):
        recipe = {"architecture": "llama" if run.name == "codes" else "patches", "shards": None}
        recipe["config"] = json.dumps({"prediction_target": target, "patch_size": 8})
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["--runs", *map(str, runs), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    for name, unit in (("codes", "nats"), ("patches", "mean squared error"), ("patch_codes", "nats")):
        assert f"Loss of {name} over training, in {unit} per" in page
        assert re.search(rf"Validation loss of {name} on clips along a row. [^\"]* {unit}\.", page)
        assert re.search(rf"the loss of {name} on clips is: [^\"]* {unit}\.", page)
    assert "tokens of the runs codes, patch_codes." in page and "of the runs patches" not in page
    assert page.count('<th scope="col">mean squared error per patch</th>') == 1


PHONE = 350  # CSS pixels of a figure on a phone of 390


def figures_of(page):
    """(svg, caption) of every drawn figure of a page."""
    found = re.findall(
        r"<figure[^>]*>(<svg role.*?</svg>)\s*(?:<figcaption>(.*?)</figcaption>)?", page, flags=re.DOTALL
    )
    return [(svg, re.sub(r"\s+", " ", caption)) for svg, caption in found]


def smallest_text(svg):
    """Size of a figure's smallest text on a phone, in CSS pixels."""
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", svg)]
    assert sizes
    return min(sizes) * min(1, PHONE / width)


def test_every_figure_has_a_sentence_and_is_there_once(page):
    figures = figures_of(page)
    assert len(figures) == 2 + 2 * (1 + 2 * 2)  # over each other; of each run the losses, and two of each source
    for svg, caption in figures:
        assert re.match(r"[A-Za-z].{20,}\.$", caption), svg[:200]
    labels = [re.search('aria-label="([^"]*)"', svg)[1] for svg, _ in figures]
    assert len(set(labels)) == len(labels)
    captions = " ".join(caption for _, caption in figures)
    assert "wide ends with the lowest validation loss, 4.100, 0.500 less than narrow." in captions
    assert "Training loss" not in captions and "Validation loss is 4.100 nats per code token after 3 steps." in captions
    # The places of clips cost 2 + k / 16: the first frame 2.09, the last 2.84, and the last place of a frame most.
    assert (
        "Frames of clips do not get easier along a row: the first costs 2.09 nats per code token, the last 2.84."
        in captions
    )
    assert (
        "the hardest on average over all frames is row 2, column 2 (2.56 nats), the easiest row 1, column 1 (2.38 nats)"
        in captions
    )


def test_texts_of_figures_are_legible_on_a_phone(page):
    for svg, _ in figures_of(page):
        assert smallest_text(svg) >= 8, svg[:200]
    many = {"step": 1, "num_frames": 16, "grid": [SIDE, SIDE], "sources": {"clips": [2.0] * 16 * SIDE * SIDE}}
    shown = map_svg("run", "clips", many, None)
    assert smallest_text(shown) >= 8 and "maps of frames 1, 6, 11, 16, for model" in shown


def test_a_run_with_one_row_has_no_empty_axis(tmp_path):
    first = write_run(tmp_path / "first", [6.0], 10.0)
    (first / "loss_maps.json").unlink()
    second = write_run(tmp_path / "second", [6.0, 5.0], 10.0)
    for runs in ([first], [first, second]):
        main(["--runs", *map(str, runs), "--output", str(tmp_path / "report.html")])
        page = (tmp_path / "report.html").read_text()
        assert "Validation loss is 6.100 nats per code token after 1 steps. A curve needs two logged steps." in page
        assert "Loss of first" not in page and "of the runs" not in page
    assert "Loss of second over training" in page


def test_runs_of_one_cost_are_not_drawn_twice(tmp_path):
    runs = [write_run(tmp_path / name, [6.0, 5.0], 10.0) for name in ("a", "b")]
    main(["--runs", *map(str, runs), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "Loss against tokens of the runs a, b." in page and "Loss against flops" not in page
