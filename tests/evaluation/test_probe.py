"""`toto probe` from a saved model and a dataset to the result file, and what it says about bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import paired_difference
from evaluation.probe.args import ProbeArgs, idle_flags, refuse_idle_flags
from evaluation.probe.command import main
from evaluation.probe.score import compare
from evaluation.probe.splits import FrameOrder
from training.publish.cards import model_card
from training.scores import accuracy_interval, wilson_interval


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An image folder with train and test: two classes, bright and dark, 40 + 24 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 24)):
        for number in range(count):
            name, base = (("bright", 150), ("dark", 20))[number % 2]
            path = folder / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((base + rng.integers(0, 80, (40, 32, 3))).astype(np.uint8)).save(path)
    return str(folder)


def probe(checkpoint, dataset, output, *flags) -> dict:
    if not {"ridge", "knn"} & set(flags) or "linear" in flags:
        flags = ("--epochs", "5", *flags)
    flags = ("--feature_cache", str(output.parent / "cache"), *flags)
    main(["--model", checkpoint, "--dataset", str(dataset), "--output", str(output), *flags])
    return json.loads(output.read_text())


def check_row(row: dict, n_test: int) -> None:
    assert row["head"] in ("linear", "attention") and row["lr"] > 0
    low, high = row["ci95"]
    assert 0 <= low <= row["accuracy"] <= high <= 1 and 0 <= row["val_accuracy"] <= 1
    assert (row["accuracy"] * n_test) == pytest.approx(round(row["accuracy"] * n_test))


def check_layer_0(results):
    """The chosen layer is compared with layer 0, unless it is layer 0."""
    best, layers, leads = results["best"], results["layers"], results["best"]["versus"]
    assert ("layer 0" in leads) == (best["layer"] != 0)
    if best["layer"] != 0:
        first = max((row for row in layers if row["layer"] == 0), key=lambda row: row["val_accuracy"])
        assert leads["layer 0"]["difference"] == pytest.approx(best["accuracy"] - first["accuracy"])


def test_images(checkpoint, pictures, tmp_path, capsys):
    flags = ("--label_column", "label", "--stride", "2")
    results = probe(checkpoint, pictures, tmp_path / "new" / "folder" / "probe.json", *flags)
    assert results["command"].startswith("toto probe --model ")
    assert results["model"] == checkpoint and results["versions"]["torch"] and results["seeds"]["heads"] == 0
    assert results["n_test"] == 24 and results["n_train"] == 32 and results["n_validation"] == 8
    assert "carved from train" in results["data"]["splits"]["validation"]["split"]
    assert [(r["layer"], r["head"]) for r in results["layers"]] == [
        (layer, head) for layer in range(4) for head in ("linear", "attention")
    ]
    for row in (*results["layers"], results["best"], *results["baselines"].values()):
        check_row(row, 24)
    best = results["best"]
    assert best["val_accuracy"] == max(row["val_accuracy"] for row in results["layers"])
    assert {k: best[k] for k in results["layers"][0]} in results["layers"]
    assert set(results["baselines"]) == {"pixels", "untrained"} == set(best["versus"]) - {"layer 0"}
    check_layer_0(results)
    assert len(results["baselines"]["untrained"]["layers"]) == 8
    assert results["baselines"]["pixels"]["accuracy"] == 1  # brightness is easy to see
    assert best["versus"]["pixels"]["verdict"] in ("below", "no significant difference")
    assert best["versus"]["pixels"]["difference"] == pytest.approx(best["accuracy"] - 1)
    assert results["chance"] == results["majority"] == 0.5
    text = capsys.readouterr().out
    assert " test images" in text and " clips" not in text and "files or rows" not in text
    assert "chosen on validation: layer" in text and "against pixels" in text and "wrote" in text
    assert "--stride: no effect on images, each of which is one frame" in text


def test_one_pass_serves_all_labels_and_is_repeatable(checkpoint, tmp_path):
    flags = ("--max_train", "24", "--max_eval", "16", "--num_frames", "3", "--heads", "linear")
    results = probe(checkpoint, "toyworld", tmp_path / "a.json", *flags)
    assert set(results["tasks"]) == {"digit", "texture", "motion"}
    task = results["tasks"][results["label"]]
    assert results["best"] == task["best"] and results["layers"] == task["layers"]
    margins = {
        label: t["best"]["val_accuracy"] - max(b["val_accuracy"] for b in t["baselines"].values())
        for label, t in results["tasks"].items()
    }
    assert margins[results["label"]] == max(margins.values())
    assert [s["split"] for s in results["data"]["splits"].values()] == ["train", "validation", "test"]
    assert results["n_test"] == 16 and results["n_validation"] == 4 and results["data"]["num_frames"] == 3
    again = probe(checkpoint, "toyworld", tmp_path / "b.json", *flags)
    assert again["tasks"] == results["tasks"]


def test_layers_best_and_numbers(checkpoint, pictures, tmp_path):
    every = probe(checkpoint, pictures, tmp_path / "a.json", "--baselines", "none")
    assert every["baselines"] == {}
    check_layer_0(every)
    best = probe(checkpoint, pictures, tmp_path / "b.json", "--baselines", "none", "--layers", "best")
    assert best["best"] == every["best"] and len(best["layers"]) == 1
    assert model_card(Path(checkpoint), results=[best])  # of a result without the rows of layer 0
    some = probe(checkpoint, pictures, tmp_path / "c.json", "--baselines", "untrained", "--layers", "2", "0", "1")
    assert sorted({row["layer"] for row in some["layers"]}) == [0, 1, 2]
    assert sorted({row["layer"] for row in some["baselines"]["untrained"]["layers"]}) == [0, 1, 2]
    check_layer_0(some)


def write_parquet(path, labels: list[int], classes: int | None = 2) -> None:
    """Noise under these labels. classes: how many of them have names; None: they are plain integers."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in labels]
    kind = Value("int64") if classes is None else ClassLabel(names=list("abcdef"[:classes]))
    schema = Features({"img": ImageFeature(), "label": kind})
    Dataset.from_dict({"img": images, "label": labels}, features=schema).to_parquet(path)


def test_one_file_is_split_in_three(checkpoint, tmp_path):
    """A file has no named splits: taking it for train and test would score the training clips."""
    write_parquet(tmp_path / "rows.parquet", [0, 1] * 25)
    results = probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "r.json", "--baselines", "none")
    sizes = {name: split["clips"] for name, split in results["data"]["splits"].items()}
    assert sizes == {"train": 32, "validation": 8, "test": 10}
    few = ("--baselines", "none", "--max_train", "10", "--max_eval", "20")
    results = probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "r.json", *few)
    sizes = {name: split["clips"] for name, split in results["data"]["splits"].items()}
    assert sizes == {"train": 10, "validation": 5, "test": 20}


def test_one_class_only(checkpoint, tmp_path):
    write_parquet(tmp_path / "rows.parquet", [1] * 20)
    with pytest.raises(ValueError, match="at least two classes are needed"):
        probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "x.json")


def test_rows_sorted_by_class_are_drawn_from_all_over(checkpoint, tmp_path):
    write_parquet(tmp_path / "rows.parquet", sorted([0, 1, 2, 3, 4, 5] * 10), classes=6)
    few = ("--max_train", "15", "--max_eval", "20", "--baselines", "none", "--heads", "linear")
    results = probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "x.json", *few)
    assert sum(row["n"] > 0 for row in results["tasks"]["label"]["per_class"]) >= 4


def test_validation_is_not_the_test_split(checkpoint, tmp_path):
    """Where the test split is called validation, as in ImageNet's tasks, the layer is chosen on images of train."""
    for split in ("train", "validation"):
        for number in range(20):
            most = "a" if split == "train" else "b"  # of three pictures in four
            label = most if number % 4 else "ab".replace(most, "")
            path = tmp_path / "data" / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(path)
    flags = ("--task", "imagenet-1k", "--baselines", "none", "--heads", "ridge", "--layers", "1")
    results = probe(checkpoint, tmp_path / "data", tmp_path / "r.json", *flags)
    assert results["n_test"] == 20 and "carved from train" in results["data"]["splits"]["validation"]["split"]
    assert results["majority"] == 0.25, "the class that most training clips have, which most test clips do not"


def test_no_split_is_used_twice(checkpoint, pictures, tmp_path):
    """Trained on what is called test, and scored on what is carved from it."""
    flags = ("--baselines", "none", "--heads", "ridge", "--layers", "1", "--train_split", "test")
    found = probe(checkpoint, pictures, tmp_path / "r.json", *flags)["data"]["splits"]
    assert found["train"]["split"] == "test" and "carved from test" in found["test"]["split"]
    assert sum(part["clips"] for part in found.values()) == 24
    with pytest.raises(ValueError, match="--train_split and --test_split both name the split 'test'"):
        probe(checkpoint, pictures, tmp_path / "x.json", "--train_split", "test", "--test_split", "test")


def test_whole_numbers_without_names(checkpoint, tmp_path):
    write_parquet(tmp_path / "rows.parquet", [10, 20, 40] * 20, classes=None)
    flags = ("--baselines", "none", "--heads", "ridge", "--layers", "1")
    found = probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "r.json", *flags)
    assert found["classes"] == 3 and [row["class"] for row in found["per_class"]] == ["10", "20", "40"]
    write_parquet(tmp_path / "ids.parquet", [10**8 * number for number in range(40)], classes=None)
    with pytest.raises(ValueError, match="No two clips have the same 'label'"):
        probe(checkpoint, tmp_path / "ids.parquet", tmp_path / "x.json", *flags)


def test_text_and_truth_values_are_classes(checkpoint, tmp_path, capsys):
    """Numbered in sorted order; printed and kept. The carved splits follow --split_seed, not --seed."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    pictures = [Image.fromarray(np.full((32, 32, 3), 200 * (k % 2) + k, np.uint8)) for k in range(40)]
    rows = {"image": pictures, "breed": ["dog", "cat"] * 20, "tame": [True, False] * 20, "weight": [1.5, 2.0] * 20}
    kinds = {"image": ImageFeature(), "breed": Value("string"), "tame": Value("bool"), "weight": Value("float32")}
    Dataset.from_dict(rows, Features(kinds)).to_parquet(tmp_path / "rows.parquet")
    flags = ("--heads", "ridge", "--layers", "1", "--baselines", "pixels", "--predictions")

    def kept(*more):
        found = probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "x.json", *flags, *more)
        return found, found["tasks"][found["label"]]["predictions"]

    found, first = kept("--label_column", "breed")
    assert found["class_names"] == ["cat", "dog"] and found["baselines"]["pixels"]["accuracy"] == 1
    number = [int(name.split("[")[1][:-1]) for name in first["items"]]
    assert first["label"] == [1 - row % 2 for row in number], "even rows are dogs"
    assert "2 classes of 'breed', numbered in the sorted order of their text: cat, dog" in capsys.readouterr().out
    assert kept("--label_column", "tame")[0]["class_names"] == ["False", "True"]
    assert kept("--label_column", "breed", "--seed", "1")[1]["items"] == first["items"]
    assert kept("--label_column", "breed", "--split_seed", "1")[1]["items"] != first["items"]
    with pytest.raises(ValueError, match="'weight' holds fractions"):
        kept("--label_column", "weight")
    with pytest.raises(ValueError, match="several label columns"):
        kept()


def test_what_cannot_be_a_label_is_reported(checkpoint, tmp_path):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature

    pictures = [Image.fromarray(np.full((32, 32, 3), 9 * k, np.uint8)) for k in range(12)]
    kinds = {"tags": (Sequence(ClassLabel(names=["a", "b"])), [[0, 1], [1]]), "label": (Value("float32"), [0.5, 1.0])}
    for column, (kind, values) in kinds.items():
        rows = {"image": pictures, column: list(values) * 6}
        Dataset.from_dict(rows, Features({"image": ImageFeature(), column: kind})).to_parquet(tmp_path / "r.parquet")
        asked = [] if column == "label" else ["--label_column", column]
        words = "holds several labels per row" if column == "tags" else "holds fractions"
        with pytest.raises(ValueError, match=words):
            probe(checkpoint, tmp_path / "r.parquet", tmp_path / "x.json", *asked)
    rows = {"image": pictures, "size": list(range(12)), "id": list(range(12))}
    kinds = Features({"image": ImageFeature(), "size": Value("int64"), "id": Value("int64")})
    Dataset.from_dict(rows, kinds).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="several label columns; name one with --label_column: size, id"):
        probe(checkpoint, tmp_path / "r.parquet", tmp_path / "x.json")


def test_a_run_whose_shards_are_gone_is_probed(checkpoint, pictures, tmp_path, capsys):

    import yaml

    run = tmp_path / "run"
    shutil.copytree(checkpoint, run / "checkpoints" / "step_000002")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"shards": str(tmp_path / "gone")}))
    flags = ("--baselines", "none", "--heads", "ridge", "--layers", "1")
    found = probe(str(run / "checkpoints" / "step_000002"), pictures, tmp_path / "r.json", *flags)
    assert found["media"] is None and "are gone" in capsys.readouterr().out


def test_too_few_of_the_classes(checkpoint, tmp_path):
    write_parquet(tmp_path / "rows.parquet", [0, 1] * 20, classes=6)
    with pytest.raises(ValueError, match=r"2 of 6 classes of 'label'\. If rows are sorted by class"):
        probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "x.json")


def test_a_task_sets_what_no_flag_sets(checkpoint, tmp_path):
    """CIFAR's columns, from a file of ours."""
    write_parquet(tmp_path / "rows.parquet", [0, 1] * 20)
    flags = ("--task", "cifar10", "--baselines", "none", "--heads", "linear")
    results = probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "x.json", *flags)
    assert results["label"] == "label" and results["n_test"] == 8
    with pytest.raises(ValueError, match="did you mean cifar10"):
        probe(checkpoint, tmp_path / "rows.parquet", tmp_path / "x.json", "--task", "cifar-10")


def test_other_heads_predictions_and_comparison(checkpoint, pictures, tmp_path, capsys):
    heads = ("--heads", "linear", "cross_attention_mlp", "ridge", "logistic", "knn", "--layers", "1", "3")
    every = probe(checkpoint, pictures, tmp_path / "a.json", *heads, "--predictions", "--batch_norm")
    assert [row["head"] for row in every["layers"][:5]] == list(heads[1:6])
    kept = every["tasks"]["label"]["predictions"]
    right = sum(a == b for a, b in zip(kept["label"], kept["predicted"], strict=True))
    assert right / 24 == every["best"]["accuracy"] and len(set(kept["items"])) == 24
    assert list(kept["selected"]) == [*(f"head={head}" for head in heads[1:6]), "layer=1", "layer=3"]
    for what, told in kept["selected"].items():
        key, value = what.split("=")
        rows = [row for row in every["layers"] if str(row[key]) == value]
        row = next(row for row in rows if (row["layer"], row["head"]) == (told["layer"], told["head"]))
        assert row["val_accuracy"] == max(each["val_accuracy"] for each in rows)
        right = sum(a == b for a, b in zip(kept["label"], told["predicted"], strict=True))
        assert right / 24 == row["accuracy"]
    assert sum(row["n"] for row in every["per_class"]) == 24 == sum(map(sum, every["confusion"]))
    assert (tmp_path / "a.png").stat().st_size > 10_000 and not (tmp_path / "a.partial").exists()
    probe(checkpoint, pictures, tmp_path / "b.json", "--predictions", "--seed", "1")
    capsys.readouterr()
    main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").stat().st_size > 10_000 and "paired" in capsys.readouterr().out


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video folder with train and test: two classes, bright and dark, 8 + 6 videos of eight frames."""
    import av

    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 8), ("test", 6)):
        for number in range(count):
            name, base = (("bright", 150), ("dark", 20))[number % 2]
            path = folder / split / name / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 80, (8, 32, 32, 3))
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=10, options={"crf": "8"})
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                for picture in (base + noise).astype(np.uint8):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode())
    return str(folder)


def test_clips_of_a_video_are_averaged_and_resampled_together(checkpoint, videos, tmp_path):
    flags = ("--num_frames", "4", "--stride", "1", "--baselines", "pixels", "--heads", "linear", "--layers", "2")
    clips = probe(checkpoint, videos, tmp_path / "a.json", *flags)
    whole = probe(checkpoint, videos, tmp_path / "b.json", *flags, "--average_clips", "--predictions")
    assert clips["n_test"] == 12 and whole["n_test"] == 6
    assert len(set(whole["tasks"]["label"]["predictions"]["items"])) == 6
    assert whole["baselines"]["pixels"]["accuracy"] == 1


def test_views_of_test_videos_and_the_middle_of_the_others(checkpoint, videos, tmp_path):
    quick = ("--num_frames", "4", "--stride", "1", "--baselines", "pixels", "--heads", "linear", "--layers", "2")
    found = probe(checkpoint, videos, tmp_path / "a.json", *quick, "--views", "3", "2", "--predictions")
    assert found["n_train"] + found["n_validation"] == 8 and found["n_test"] == 6 and found["data"]["views"] == [3, 2]
    assert found["data"]["splits"]["test"] == {"split": "test", "clips": 36, "sources": 6}
    assert len(set(found["tasks"]["label"]["predictions"]["items"])) == 6
    assert found["baselines"]["pixels"]["accuracy"] == 1
    task = probe(checkpoint, videos, tmp_path / "b.json", *quick, "--task", "ucf101", "--group_by", r"\d+")
    assert task["data"]["views"] == [5, 3] and task["data"]["splits"]["test"]["clips"] == 90 and task["n_test"] == 6
    for flags, words in (
        (("--views", "3"), "--views takes two numbers"),
        (("--views", "3", "2", "--train_split", "test"), "and there is none; give --views 1 1"),
        (("--views", "3", "2", "--average_clips"), "leave one of them out"),
    ):
        with pytest.raises(ValueError, match=words):
            probe(checkpoint, videos, tmp_path / "c.json", *quick, *flags)
    with pytest.raises(ValueError, match="omit the views"):
        probe(checkpoint, "toyworld", tmp_path / "c.json", "--views", "3", "2")
    middle = probe(checkpoint, videos, tmp_path / "d.json", *quick, "--views", "1", "1", "--train_split", "test")
    assert middle["n_test"] + middle["n_train"] + middle["n_validation"] == 6
    every = probe(
        checkpoint, videos, tmp_path / "e.json", *quick, "--task", "ucf101", "--group_by", r"\d+", "--average_clips"
    )
    assert every["data"]["views"] is None and every["data"]["splits"]["test"]["clips"] == 12


def test_views_of_images_are_their_crops(checkpoint, pictures, tmp_path):
    flags = ("--baselines", "none", "--heads", "ridge", "--layers", "1", "--max_eval", "20")
    found = probe(checkpoint, pictures, tmp_path / "a.json", *flags, "--views", "1", "3")
    assert found["n_test"] == 20 and found["data"]["splits"]["test"]["clips"] == 60
    with pytest.raises(ValueError, match="Images have one window; give --views 1 3, not 5 3"):
        probe(checkpoint, pictures, tmp_path / "b.json", *flags, "--views", "5", "3")
    write_parquet(
        tmp_path / "test.parquet", [0] * 40 + [1] * 40
    )  # sorted by class, and drawn from all over all the same
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.parquet").write_bytes((tmp_path / "test.parquet").read_bytes())
    found = probe(checkpoint, tmp_path / "data", tmp_path / "c.json", *flags, "--views", "1", "3")
    assert min(row["n"] for row in found["per_class"]) > 3


def test_orders_of_frames_by_hand():
    frames = np.arange(5)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)

    def order(name, source="a", seed=0):
        return FrameOrder(name, seed)(frames, source)[:, 0, 0, 0].tolist()

    assert order("ordered") == [0, 1, 2, 3, 4] and order("reversed") == [4, 3, 2, 1, 0] and order("middle") == [2]
    shuffled = [order("shuffled", source, seed) for source in "abc" for seed in (0, 1)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in shuffled) and len(set(map(tuple, shuffled))) > 3
    assert order("shuffled") == shuffled[0]
    facts = [FrameOrder(name, seed).facts() for name in ("reversed", "middle", "shuffled") for seed in (0, 1)]
    assert len(set(map(str, facts))) == 4, "features of other orders have other keys in the cache"


def test_differences_are_over_videos_where_they_have_several_clips():
    """Right on all clips of four videos against none: a hundred clips would be certain, four videos are not."""
    true, videos = np.zeros(100, int), [f"video {number // 25}" for number in range(100)]
    found = [compare(true, {"pixels": 1 - true}, true, items, seed=0)["pixels"] for items in (videos, list(range(100)))]
    assert [each.difference for each in found] == [1, 1]
    assert [each.verdict for each in found] == ["no significant difference", "above"]
    assert found[0].ci95[0] == 0 < 0.9 < found[1].ci95[0]


def test_floors_and_orders_of_frames(checkpoint, tmp_path):
    flags = (
        "--max_train",
        "24",
        "--max_eval",
        "16",
        "--num_frames",
        "4",
        "--heads",
        "linear",
        "--label_column",
        "motion",
    )
    floors = ("--baselines", "random_filters", "histogram", "hog")
    plain = probe(checkpoint, "toyworld", tmp_path / "a.json", *flags, *floors)
    assert list(plain["baselines"]) == ["random_filters", "histogram", "hog"]
    middle = probe(
        checkpoint, "toyworld", tmp_path / "b.json", *flags, "--baselines", "none", "--frame_order", "middle"
    )
    assert middle["data"]["frame_order"] == "middle"
    assert middle["layers"] != plain["layers"]


def test_groups_are_left_out_one_by_one(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for split, recordings in (("train", "abc"), ("test", "xy")):
        for recording in recordings:
            for number in range(8):
                name, base = (("bright", 150), ("dark", 20))[number % 2]
                path = tmp_path / "data" / split / name / f"{recording}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((base + rng.integers(0, 80, (32, 32, 3))).astype(np.uint8)).save(path)
    groups = ("--group_by", r"(\w)_\d", "--baselines", "pixels")
    flags = (*groups, "--leave_one_group_out", "--predictions", "--heads", "linear", "ridge")
    results = probe(checkpoint, tmp_path / "data", tmp_path / "r.json", *flags)
    assert results["n_test"] == 16 and results["n_validation"] == 8  # one recording of the three
    assert results["baselines"]["pixels"]["accuracy"] == 1 and results["data"]["leave_one_group_out"]
    with pytest.raises(ValueError, match="--leave_one_group_out needs --group_by"):
        probe(checkpoint, tmp_path / "data", tmp_path / "x.json", "--leave_one_group_out")
    with pytest.raises(ValueError, match="does not match the name"):
        probe(checkpoint, tmp_path / "data", tmp_path / "x.json", "--group_by", "zzz")


def test_intervals_are_over_groups(checkpoint, tmp_path, capsys):
    """16 test pictures of 4 recordings: their number is reported, and every interval is the bootstrap over them."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for number in range(16):
            path = tmp_path / split / "ab"[number % 2] / f"r{number // 4}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(path)
    flags = ("--baselines", "pixels", "--heads", "ridge", "--layers", "1", "--predictions")
    grouped = probe(checkpoint, tmp_path, tmp_path / "r.json", *flags, "--group_by", r"r\d")
    alone = probe(checkpoint, tmp_path, tmp_path / "s.json", *flags)
    assert "resample the 4 groups of --group_by in test as wholes" in capsys.readouterr().out
    assert grouped["data"]["groups"] == 4 and "groups" not in alone["data"]
    kept = grouped["tasks"]["label"]["predictions"]
    assert kept["groups"] == [re.search(r"r\d", item).group() for item in kept["items"]]
    right = np.array(kept["predicted"]) == kept["label"]
    assert grouped["best"]["ci95"] == accuracy_interval(right, kept["groups"]) != alone["best"]["ci95"]
    assert alone["best"]["ci95"] == wilson_interval(right.sum(), 16)
    versus = grouped["best"]["versus"]["pixels"]
    pixels = kept["baselines"]["pixels"]
    found = paired_difference(kept["predicted"], pixels, kept["label"], 0, groups=kept["groups"])
    assert versus["ci95"] == found["ci95"] != alone["best"]["versus"]["pixels"]["ci95"]


def test_media_that_the_model_saw_are_refused_before_anything_is_computed(checkpoint, pictures, tmp_path, monkeypatch):
    """By the probe, by --compare and by the card, unless the result is marked as a control."""
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    seen = [{"dataset": Path(pictures).name, "split": "test", "kind": "image"}]
    (model / "media.json").write_text(json.dumps({"format": 1, "media": seen}))
    quick = ("--heads", "ridge", "--layers", "1", "--baselines", "none")
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.probe.splits.extract", None)
        with pytest.raises(
            ValueError, match=r"was trained on pictures\d+ \(test\) and is scored on pictures\d+ \(test\)"
        ):
            probe(str(model), pictures, tmp_path / "r.json", *quick)
    allowed = probe(str(model), pictures, tmp_path / "r.json", *quick, "--allow_seen")
    assert allowed["control"] == "test items may be among those that the model was trained on"
    clean = probe(checkpoint, pictures, tmp_path / "s.json", *quick)
    main(["--compare", str(tmp_path / "r.json"), str(tmp_path / "s.json")])
    model_card(checkpoint, results=[allowed, clean])
    (tmp_path / "t.json").write_text(json.dumps({k: v for k, v in allowed.items() if k != "control"}))
    with pytest.raises(ValueError, match="is scored on"):
        main(["--compare", str(tmp_path / "s.json"), str(tmp_path / "t.json")])
    with pytest.raises(ValueError, match="is scored on"):
        model_card(checkpoint, results=[json.loads((tmp_path / "t.json").read_text())])


def test_the_chosen_row_is_kept_alone_whatever_its_head(checkpoint, pictures, tmp_path):
    """With --layers best, where the first head is of another kind than the chosen one."""
    flags = ("--baselines", "none", "--heads", "linear", "ridge", "--layers", "best", "--epochs", "1")
    found = probe(checkpoint, pictures, tmp_path / "r.json", *flags)
    best = {key: value for key, value in found["best"].items() if key != "versus"}
    assert found["layers"] == [best] and best["head"] == "ridge"


def test_a_carved_validation_that_is_to_be_left_out(checkpoint, tmp_path):
    for split in ("train", "test"):
        for number in range(12):
            path = tmp_path / split / "ab"[number % 2] / f"{'xyz'[number % 3]}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(path)
    flags = ("--group_by", r"(\w)_\d", "--baselines", "none", "--heads", "ridge", "--leave_one_group_out")
    with pytest.raises(
        ValueError, match=r"carved from train \(seed 0\) holds only the group '[xyz]', which is left out"
    ):
        probe(checkpoint, tmp_path, tmp_path / "r.json", *flags)


def test_a_group_is_left_out_of_all_splits(checkpoint, tmp_path):
    """Where each class is one recording, heads that never saw it are always wrong, whatever train has of it."""
    for split in ("train", "validation", "test"):
        for number in range(12):
            name, base, recording = (("bright", 150, "x"), ("dark", 20, "y"), ("grey", 90, "z"))[number % 3]
            path = tmp_path / split / name / f"{recording}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), base + number, np.uint8)).save(path)
    flags = ("--group_by", r"(\w)_\d", "--baselines", "pixels", "--heads", "knn", "--layers", "1")
    assert probe(checkpoint, tmp_path, tmp_path / "all.json", *flags)["best"]["accuracy"] > 0.8
    left_out = probe(checkpoint, tmp_path, tmp_path / "out.json", *flags, "--leave_one_group_out")
    assert left_out["baselines"]["pixels"]["accuracy"] == left_out["best"]["accuracy"] == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--label_column", "colour"], "no label column 'colour'; it has label"),
        (["--layers", "9"], r"layers 0 \(embeddings\) to 3, not 9"),
        (["--layers", "deep"], "--layers takes all, best or layer numbers"),
        (["--heads", "mlp"], "--heads has no 'mlp'; choose from linear, attention"),
        (
            ["--baselines", "gist"],
            "--baselines has no 'gist'; choose from pixels, untrained, random_filters, histogram, hog",
        ),
        (["--baselines", "none", "pixels"], "--baselines is none pixels; leave out none, or all the others"),
        (["--max_train", "0"], "--max_train is 0; it must be at least 1"),
        (["--stride", "0"], "--stride is 0; it must be at least 1"),
        (["--heads", "ridge", "knn", "--epochs", "3"], "--epochs would have no effect on the heads ridge, knn, which"),
        (["--heads", "attention", "ridge", "--batch_norm"], "--batch_norm would have no effect without linear heads"),
        (["--stride", "2", "--fps", "5"], "--stride would have no effect next to --fps"),
        (["--compare", "a.json", "b.json"], "--dataset, --epochs, .* would have no effect with --compare"),
        (["--test_split", "exam"], "has no split 'exam'"),
    ],
)
def test_bad_flags(checkpoint, pictures, tmp_path, flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        probe(checkpoint, pictures, tmp_path / "x.json", *flags)
    assert not (tmp_path / "x.json").exists()


def test_clips_longer_than_the_model(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="pass --num_frames 4"):
        probe(checkpoint, "toyworld", tmp_path / "x.json", "--num_frames", "8", "--max_train", "20")


def test_another_rope_base_is_a_marked_control(checkpoint, pictures, tmp_path, capsys):
    flags = ("--baselines", "none", "--heads", "linear", "--layers", "3")
    plain = probe(checkpoint, pictures, tmp_path / "a.json", *flags)
    control = probe(checkpoint, pictures, tmp_path / "b.json", *flags, "--rope_base", "2")
    assert "control" not in plain and control["control"] == "RoPE base changed to 2 without training"
    assert "control: RoPE base changed to 2 without training" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--rope_base is -1; it must be above 0"):
        probe(checkpoint, pictures, tmp_path / "c.json", "--rope_base", "-1")


def test_flags_of_other_heads_and_media_are_said_to_have_no_effect(pictures):
    args = ProbeArgs(model="m", output="x.json", dataset=pictures, heads=["linear", "ridge"])
    argv = ["--max_tokens", "9", "--fps", "5", "--frame_order=reversed"]
    assert idle_flags(args, argv, "image") == [
        "--fps, --frame_order: no effect on images, each of which is one frame",
        "--max_tokens: no effect without heads on tokens (attention, cross_attention_mlp)",
    ]
    assert idle_flags(replace(args, heads=["attention"]), argv, "video") == []
    with pytest.raises(ValueError, match="--fps would have no effect on toyworld, which is drawn"):
        refuse_idle_flags(replace(args, dataset="toyworld:film"), ["--fps", "5"])


def test_cells_of_a_grid_have_their_own_scores(checkpoint, tmp_path, capsys):
    """Clips of CATER's layout: top 5 and the distance on the grid stand in every row, and only there."""
    folder = tmp_path / "cater"
    rng = np.random.default_rng(0)
    for split, numbers in (("train", range(24)), ("val", range(20, 26))):
        lines = []
        for number in numbers:
            file = folder / "videos" / f"CATER_new_{split}{number}.avi"
            file.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(file), "w") as container:
                stream = container.add_stream("mpeg4", rate=24)
                stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
                for frame in rng.integers(0, 255, (4, 32, 48, 3), np.uint8):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            lines.append(f"{file.name} {number % 24}\n")
        (folder / "lists" / "localize").mkdir(parents=True, exist_ok=True)
        (folder / "lists" / "localize" / f"{split}.txt").write_text("".join(lines))
    flags = ("--stride", "1", "--heads", "attention", "ridge", "--layers", "0", "2", "--baselines", "pixels")
    found = probe(checkpoint, f"cater:{folder}", tmp_path / "x.json", *flags, "--predictions")
    kept, best = found["predictions"], found["best"]
    a, b = np.array(kept["label"]), np.array(kept["predicted"])
    assert best["grid_l1"] == pytest.approx((abs(a % 6 - b % 6) + abs(a // 6 - b // 6)).mean())
    for row in (*found["layers"], found["baselines"]["pixels"]):
        assert row["accuracy"] <= row["top5"] <= 1 and 0 <= row["grid_l1"] <= 10
    assert found["data"]["splits"]["test"]["split"] == "test" and found["classes"] == 36
    assert "mean distance on the grid" in capsys.readouterr().out
    plain = probe(checkpoint, "toyworld", tmp_path / "y.json", "--max_train", "60", "--max_eval", "16", *FAST_TOY)
    assert "top5" not in plain["best"] and "grid_l1" not in plain["best"]


FAST_TOY = ("--label_column", "motion", "--heads", "ridge", "--layers", "1", "--baselines", "none", "--num_frames", "2")
