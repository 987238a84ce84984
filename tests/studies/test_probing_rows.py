"""Rows of a study: what a file says of a head, a layer or a floor, means over seeds, and differences with intervals."""

import json

import numpy as np
import pytest
from study_files import CLASSES, TRUE, N, predictions, write_probe, write_tuned

from evaluation.metrics import paired_difference
from evaluation.results import ProbeResult
from studies.probing.rows import Entry, difference, interaction, interval, mean, read_seeds
from training.results import FinetuneResult
from training.scores import wilson_interval


def as_result(content):
    return (FinetuneResult if "checkpoint" in content else ProbeResult).from_json(content)


def read(folder, *entries, metric="accuracy"):
    results = {file: as_result(json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))}
    return [read_seeds(entry, results, metric) for entry in entries]


def test_seeds_are_files_of_one_name_and_no_others(tmp_path):
    for name in ("grid_16_1", "grid_16_0", "grid_16_upsampled", "grid_8", "other_grid_16_2"):
        write_probe(tmp_path / f"{name}.json", 0.6)
    wanted = [Entry("x", name) for name in ("grid_16", "grid_8", "grid_16_upsampled", "gri")]
    sixteen, eight, enlarged, none = read(tmp_path, *wanted)
    assert [seed.file.stem for seed in sixteen] == ["grid_16_0", "grid_16_1"]
    assert (len(eight), len(enlarged), none) == (1, 1, [])


def test_what_an_entry_takes_of_a_file(tmp_path):
    write_probe(tmp_path / "a_0.json", 0.8, {"pixels": 0.3})
    whats = ("best", "head=attention", "layer=0", "layer=last", "baseline=pixels", "majority")
    found = read(tmp_path, *(Entry(what, "a", what) for what in whats))
    values = [0.8, 0.75, 0.6, 0.6, 0.3, 1 / CLASSES]
    for what, (seed,), value in zip(whats, found, values, strict=True):
        assert seed.value == pytest.approx(value), what
        assert np.mean(seed.predicted == seed.true) == pytest.approx(value), what
    assert read(tmp_path, Entry("x", "a", "baseline=hog"), Entry("x", "a", "head=knn")) == [[], []]


def test_without_predictions_the_row_says_so(tmp_path):
    write_probe(tmp_path / "a.json", 0.8, {"pixels": 0.3}, keep=False)
    for what, layer in (("best", 2), ("head=attention", 2), ("layer=last", 4)):
        ((seed,),) = read(tmp_path, Entry(what, "a", what), metric="balanced_accuracy")
        assert seed.items is None and seed.row.layer == layer and seed.ci95 is None
    (seeds,) = read(tmp_path, Entry("x", "a"))
    assert interval(seeds, "accuracy") == seeds[0].ci95 == wilson_interval(160, N)
    result = json.loads((tmp_path / "a.json").read_text())
    del result["tasks"]["label"]["best"]["balanced_accuracy"]
    (tmp_path / "a.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"a.json has no balanced accuracy of best, and no predictions"):
        read(tmp_path, Entry("x", "a"), metric="balanced_accuracy")


def test_a_difference_is_that_of_the_means_and_is_paired(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.60, 0.80)):
        write_probe(tmp_path / f"a_{seed}.json", accuracy, {"pixels": 0.5})
    a, pixels = read(tmp_path, Entry("a", "a"), Entry("pixels", "a", "baseline=pixels"))
    found = difference(a, pixels, "accuracy")
    assert mean(a) == pytest.approx(0.7) and found.value == pytest.approx(0.2)
    assert found.why_unpaired is None and found.verdict == "holds"
    assert found.ci95[0] < 0.2 < found.ci95[1]
    one, reference = (
        difference(a[:1], pixels[:1], "accuracy"),
        paired_difference(predictions(0.7), predictions(0.5), TRUE),
    )
    assert one.value == pytest.approx(reference["difference"])
    assert one.ci95 == pytest.approx(reference["ci95"], abs=0.01)  # other draws
    # Unpaired, the same difference is less sure.
    unpaired = [[type(seed)(*list(vars(seed).values())[:5]) for seed in side] for side in (a, pixels)]
    loose = difference(*unpaired, "accuracy")
    assert "does not contain these predictions" in loose.why_unpaired
    assert loose.ci95[1] - loose.ci95[0] > found.ci95[1] - found.ci95[0]


def test_fails_and_no_difference_are_distinguished(tmp_path):
    write_probe(tmp_path / "a.json", 0.6, {"pixels": 0.8, "hog": 0.6})
    a, pixels, hog = read(tmp_path, Entry("a", "a"), *(Entry(w, "a", f"baseline={w}") for w in ("pixels", "hog")))
    assert difference(a, pixels, "accuracy").verdict == "fails"
    assert difference(a, hog, "accuracy").verdict == "no significant difference"


def test_other_items_are_not_paired(tmp_path):
    for name in ("a", "b"):
        write_probe(tmp_path / f"{name}.json", 0.7)
    result = json.loads((tmp_path / "b.json").read_text())
    result["tasks"]["label"]["predictions"]["items"][0] = "test[999]"
    (tmp_path / "b.json").write_text(json.dumps(result))
    found = difference(*read(tmp_path, Entry("a", "a"), Entry("b", "b")), "accuracy")
    assert found.why_unpaired == "a.json and b.json are of different test items" and found.ci95 is not None


def test_clips_of_one_video_are_resampled_together(tmp_path):
    write_probe(tmp_path / "a.json", 0.7, {"pixels": 0.5})
    result = json.loads((tmp_path / "a.json").read_text())
    tight = difference(*read(tmp_path, Entry("a", "a"), Entry("p", "a", "baseline=pixels")), "accuracy")
    kept = result["tasks"]["label"]["predictions"]
    kept["items"] = [f"{number // 20}.mp4" for number in range(N)]  # ten videos
    (tmp_path / "a.json").write_text(json.dumps(result))
    wide = difference(*read(tmp_path, Entry("a", "a"), Entry("p", "a", "baseline=pixels")), "accuracy")
    assert wide.value == pytest.approx(tight.value)
    assert wide.ci95[1] - wide.ci95[0] > 2 * (tight.ci95[1] - tight.ci95[0])


def test_balanced_accuracy_of_the_commonest_is_one_class(tmp_path):
    write_probe(tmp_path / "a.json", 0.7)
    best, commonest = read(tmp_path, Entry("a", "a"), Entry("c", "a", "majority"), metric="balanced_accuracy")
    assert commonest[0].value == 1 / CLASSES
    found = difference(best, commonest, "balanced_accuracy")
    sides = [predictions(0.7), np.zeros_like(TRUE)]
    reference = paired_difference(*sides, TRUE, metric="balanced_accuracy")
    assert found.value == pytest.approx(reference["difference"]) and found.verdict == "holds"
    assert found.ci95 == pytest.approx(reference["ci95"], abs=0.01)  # the items come in another order


def test_an_interaction_is_a_difference_of_differences(tmp_path):
    for name, accuracy in (("vf", 0.8), ("vc", 0.6), ("if", 0.7), ("ic", 0.65)):
        write_tuned(tmp_path / f"{name}.json", accuracy, "full")
    vf, vc, f, c = read(tmp_path, *(Entry(name, name) for name in ("vf", "vc", "if", "ic")))
    found = interaction((vf, vc), (f, c), "accuracy")
    assert found.value == pytest.approx(0.15) and found.why_unpaired is None and found.verdict == "holds"
    write_tuned(tmp_path / "ic.json", 0.65, "full", keep=False)
    (c,) = read(tmp_path, Entry("ic", "ic"))
    loose = interaction((vf, vc), (f, c), "accuracy")
    assert loose.value == pytest.approx(0.15) and "ic.json does not contain" in loose.why_unpaired
    assert loose.ci95[1] - loose.ci95[0] > found.ci95[1] - found.ci95[0]
