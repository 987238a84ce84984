"""The Markdown page of a study: from files alone, the same bytes twice, with failures and what was not run."""

import json
import re
import shutil
from pathlib import Path

import pytest
from study_files import write_probe, write_tuned

from studies.probing.page import costs_lines, main, wrapped
from studies.probing.sections import SECTIONS
from training.publish.media_seen import Media, to_json

FLOORS = {"pixels": 0.4, "untrained": 0.5, "histogram": 0.45, "random_filters": 0.62, "hog": 0.8}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    files = folder / "docs" / "studies" / "probing"
    files.mkdir(parents=True)
    seen = to_json([Media("cifar10", "train", "image", frozenset({"train[0]"}), 2e6, 3.0)])
    for seed, accuracy in enumerate((0.60, 0.62, 0.64)):
        write_probe(files / f"cifar10_mixed_{seed}.json", accuracy, FLOORS, media=seen, command=f"toto probe {seed}")
        write_probe(files / f"cifar10_mae_{seed}.json", 0.7, heads=("linear",))
    write_probe(files / "cifar10_images_0.json", 0.62)
    write_probe(files / "heads_nano_0.json", 0.62)
    write_probe(files / "room_ordered_0.json", 0.6, {"pixels": 0.4, "untrained": 0.5})
    write_probe(files / "room_shuffled_0.json", 0.6)
    for media, gain in (("images", 0.0), ("videos", 0.1)):
        write_tuned(files / f"finetune_{media}_full.json", 0.6 + gain, "full")
        write_tuned(files / f"finetune_{media}_causal.json", 0.6, "causal", keep=media == "videos")
    toto = {"kind": "toto", "images_seen": 120000, "flops": 1.5e15, "cpu_seconds": 3600.0, "epochs": {"cifar10": 3.25}}
    costs = {
        "models": {"mixed_0": toto, "mae_0": {"kind": "mae", "cpu_seconds": 3000.0, "charged_cpu_seconds": 3030.0}}
    }
    costs |= {
        "tokenizer_training_cpu_seconds": 6000,
        "steps": {"tokenize/a": {"cpu_seconds": 600.0}, "x": {"cpu_seconds": 9}},
    }
    costs |= {"search": {"toto": {"0.001": 5.6, "0.002": 5.5}}}
    (files / "costs.json").write_text(json.dumps(costs))
    return folder


def run(study, markdown="docs/results.md", *flags):
    output = study / markdown
    files = study / "docs" / "studies" / "probing"
    main(["--output", str(output), "--results", str(files), "--figures", str(files), *flags])
    return output.read_text()


@pytest.fixture(scope="module")
def page(study):
    return run(study)


def unwrapped(page):
    """The page with a line per paragraph or item."""
    return re.sub(r"(?<=\S)\n *(?=[^\s|#`-])", " ", page)


def test_the_same_files_give_the_same_bytes(study, page):
    folder = study / "docs" / "studies" / "probing"
    before = {file.name: file.read_bytes() for file in folder.glob("*.png")}
    assert run(study) == page and sorted(before) == ["cifar10_layers.png", "room_layers.png"]
    assert {file.name: file.read_bytes() for file in folder.glob("*.png")} == before


def test_means_seeds_and_differences_stand_in_tables(page):
    line = next(line for line in page.splitlines() if line.startswith("| Toto (images and videos) |"))
    assert re.fullmatch(
        r"\| Toto \(images and videos\) \| 62.0 % \[\d+.\d, \d+.\d\] \| 60.0, 62.0, 64.0 \| layer 2, linear \| 200 \|",
        line,
    )
    assert re.search(
        r"\| Toto \(images and videos\) − raw pixels \| \+22.0 \[\+\d+.\d, \+\d+.\d\] \| paired \| holds \|", page
    )
    assert re.search(r"\| Toto \(images and videos\) − HOG \| -18.0 \[.*\] \| paired \| fails \|", page)
    assert re.search(
        r"\| Toto \(images and videos\) − random filters \| \+0.0 .* \| paired \| no significant difference \|", page
    )
    assert "| attention − linear | -5.0 [" in page


def test_lines_are_wrapped_and_stay_paragraphs(page):
    for length in range(60, 120):  # every word comes to the end of a line
        text = wrapped(f"{'a' * length} attention + MLP is no list, and 12. is no item - at a start of any line.")
        assert "\n" in text and not re.search(r"^([-+*]|\d+[.)]) ", text, flags=re.MULTILINE)
    for line in page.splitlines():
        assert len(line) <= 120 or line.startswith(("|", "![", "toto ")), line
    assert wrapped("| a | b |\n| --- | --- |") == "| a | b |\n| --- | --- |"


def test_sentences_follow_from_the_numbers(page):
    page = unwrapped(page)
    assert (
        "Toto (images and videos) is above untrained Toto (+12.0), layer 0 of Toto (+20.0), histogram of codes "
        "(+17.0), raw pixels (+22.0) and last layer of Toto (+20.0); below HOG (-18.0); not significantly different "
        "from random filters (+0.0)." in page
    )
    assert "Toto (images) is above raw pixels (+22.0) and untrained Toto (+12.0); below ViT-MAE (-8.0)." in page
    assert "ViT-MAE: linear is" not in page and re.search(r"^Attention is below linear", page, flags=re.MULTILINE)
    assert re.search(
        r"^Of \d+ comparisons \d+ hold, \d+ fail and \d+ show no significant difference\.$", page, flags=re.MULTILINE
    )


def test_names_and_numbers_read_well(tmp_path):
    splits = {part: {"split": part} for part in ("train", "validation", "test")}
    data = {"dataset": "DATA/cifar10", "num_frames": 16, "resolution": 16, "splits": splits}
    for seed in range(2):
        write_probe(tmp_path / f"cifar10_igpt_{seed}.json", 0.6, {"untrained": 0.4}, heads=("linear",), data=data)
    write_probe(tmp_path / "room_middle_0.json", 0.6, data=data | {"dataset": "room", "frame_order": "middle"})
    main(["--output", str(tmp_path / "r.md"), "--results", str(tmp_path)])
    page = unwrapped((tmp_path / "r.md").read_text())
    assert "Of 1 comparison 1 holds." in page and "\n\niGPT is above untrained iGPT (+20.0)." in page
    assert "test items; images of 16 pixels; 5 layers" in page  # whatever a clip of this model would have
    assert "test items; 16 frames of 16 pixels; 5 layers; heads: linear and attention; the middle frame only." in page


def test_seeds_that_overlap_are_reported(tmp_path):
    for seed, (toto, mae) in enumerate(((0.5, 0.45), (0.6, 0.55), (0.7, 0.65))):
        write_probe(tmp_path / f"cifar10_images_{seed}.json", toto)
        write_probe(tmp_path / f"cifar10_mae_{seed}.json", mae)
    main(["--output", str(tmp_path / "r.md"), "--results", str(tmp_path)])
    page = (tmp_path / "r.md").read_text()
    assert "ViT-MAE (+5.0, but seeds overlap)" in page and "| paired | holds, but seeds overlap |" in page


def test_what_was_not_run_is_named(page):
    assert "| iGPT | not run |" in page and "| cross-attention + MLP | not run |" in page
    assert "Not run: there is no `cifar10_videos*.json` or `cifar10_igpt*.json`." in page
    assert "Not run: there is no `grid_8*.json`, `grid_16*.json` or `grid_16_upsampled*.json`." in page


def test_the_committed_page_is_that_of_the_committed_files(tmp_path):
    """Only its figures differ where fonts do, so the page alone is compared."""
    docs = Path(__file__).parents[2] / "docs"
    shutil.copytree(docs / "studies" / "probing", tmp_path / "studies" / "probing")
    files = str(tmp_path / "studies" / "probing")
    main(["--output", str(tmp_path / "results.md"), "--results", files, "--figures", files])
    assert (tmp_path / "results.md").read_text() == (docs / "results.md").read_text()


def test_an_unpaired_difference_says_so(page):
    assert "| unpaired: finetune_images_causal.json does not contain these predictions |" in page
    assert "the gain of full attention after videos over causal attention after videos − the gain of full" in page


def test_costs_media_and_commands_are_there(page):
    assert "| model | images seen | epochs | FLOPs | CPU minutes | CPU minutes, everything included |" in page
    assert "| mixed_0 | 120,000 | cifar10 3.25 | 1.50e+15 | 60.0 | 170.0 |" in page
    assert "| mae_0 | — | — | — | 50.0 | 50.5 |" in page  # the tokenizer is not its cost
    assert "100 minutes for training the tokenizer and 10.0 for encoding" in page
    assert "| toto | 0.001: 5.600 | 0.002: 5.500 |" in page
    assert "| cifar10_mixed_0 | cifar10 | train | image | 1 | 2.0 M | 3.00 | — |" in page
    assert "| before | not recorded |" in page
    assert "toto probe 0\n" in page and "(studies/probing/cifar10_layers.png)" in page
    for line in page.splitlines():  # no table is torn
        assert not line.startswith("|") or line.endswith("|")


def test_an_overlap_writes_nothing(study, tmp_path):
    file = study / "docs" / "studies" / "probing" / "cifar10_mae_0.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"media": to_json([Media("cats", "test")])}))
    with pytest.raises(ValueError, match=r"The model of cifar10_mae_0 .* was trained on cats \(test\)"):
        main(["--output", str(tmp_path / "new" / "r.md"), "--results", str(file.parent)])
    file.write_text(before)
    assert not (tmp_path / "new").exists()


def test_costs_need_the_models_alone():
    assert "none (not timed) for encoding" in costs_lines({"models": {}, "tokenizer_training_cpu_seconds": 60})[1]
    (lines,) = costs_lines({"models": {"mixed_0": {"kind": "toto", "cpu_seconds": 60.0}}})
    assert lines.splitlines()[-1].endswith("| mixed_0 | 1.0 |")


def test_unequal_budgets_are_listed():
    """A Toto is charged for its tokenizer too."""
    models = {
        "images_0": {"kind": "toto", "cpu_seconds": 960.0, "flops": 4e13, "images_seen": 23040},
        "mae_0": {"kind": "mae", "cpu_seconds": 720.0, "charged_cpu_seconds": 732.0, "flops": 3e13, "images_seen": 5},
    }
    costs = {"models": models, "tokenizer_training_cpu_seconds": 6000}
    assert not any("equal budget" in line for line in costs_lines(costs))
    models["igpt_0"] = models["mae_0"] | {"cpu_seconds": 660.0, "images_seen": 1000}
    (told,) = [line for line in costs_lines(costs) if "equal budget" in line]
    assert told.startswith(
        "Toto (images), ViT-MAE and iGPT are not compared at equal budget: their steps took 16.0, 12.0"
    )
    assert "12.0 and 11.0 CPU minutes and 4.00e+13, 3.00e+13 and 3.00e+13 FLOPs, on 23,040, 5 and 1,000 images" in told
    assert told.endswith("everything included, it was 116.0, 12.2 and 12.2 minutes.")


def test_a_search_that_ends_at_an_edge_says_so():
    search = {"a": {"0.1": 2.0, "0.2": 1.0}, "b": {"0.1": 2.0, "0.2": 1.0, "0.4": 3.0}, "c": {"1e-3": 1.0, "0.1": 4.0}}
    told = costs_lines({"models": {}, "search": search})[-1]
    assert told.endswith("so a better one may exist: a (0.2, the highest) and c (1e-3, the lowest).")


def test_recordings_left_out_are_listed(tmp_path):
    data = {"dataset": "org/rooms", "resolution": 64, "leave_one_group_out": r"(\d)\]", "splits": {}}
    data["splits"] = {part: {"split": part} for part in ("train", "validation", "test")}
    for name, best in (("room_ordered_0", 0.8), ("room_middle_0", 0.6)):
        write_probe(tmp_path / f"{name}.json", best, {"pixels": 0.3}, data=data)
    main(["--output", str(tmp_path / "r.md"), "--results", str(tmp_path), "--figures", str(tmp_path)])
    text = unwrapped((tmp_path / "r.md").read_text())
    ten = ", ".join(["80 % of 20"] * 9)  # by the last figure of their number; the first 160 of 200 are right
    assert f"Per recording, frames in order is correct on {ten} and 80 % of 20." in text
    assert "If these 10 recordings are resampled instead of clips" in text and "middle frame only +" in text


def test_sections_name_only_what_they_have():
    for section in SECTIONS:
        known = [entry.name for entry in section.entries]
        assert len(set(known)) == len(known)
        for claim in section.claims:
            sides = [name for side in claim for name in ((side,) if isinstance(side, str) else side)]
            assert set(sides) <= set(known), claim
        assert set(section.curves) <= set(known) and bool(section.curves) == bool(section.figure)


def test_costs_alone_are_not_results(tmp_path):
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(ValueError, match="no result of toto probe"):
        main(["--output", str(tmp_path / "r.md"), "--results", str(tmp_path)])
