"""What a model saw is read from its run or from media.json, and a score on any of it is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from evaluation.report.leakage import (
    ProbePart,
    check_overlap,
    ledger_rows,
    media_of_result,
    media_tested,
    require_no_overlap,
)
from evaluation.results import ProbeResult
from training.args import Source
from training.publish import media_seen as media_record
from training.publish.media_seen import Media, from_json, identify, media_seen, to_json, validated_on, write_media
from training.results import FinetuneResult
from training.rows.shard_rows import is_held_out

NAMES = [f"train[{number}]" for number in range(60)]


def write_shards(folder, dataset="../data/cifar10", split="train", names=NAMES, kind="image"):
    folder.mkdir(parents=True)
    half = len(names) // 2
    shards = []
    for number, part in enumerate((names[:half], names[half:])):
        file = f"{split}-{number:05d}.parquet"
        pq.write_table(pa.table({"source": part}), folder / file)
        shards.append({"file": file, "rows": len(part)})
    manifest = {"format": 1, "dataset": dataset, "split": split, "kind": kind, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_run(folder, sources=None, metrics=(), **recipe):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | ({"sources": sources} if sources else {})))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in metrics))
    return folder


def probed(items=None, **content) -> ProbeResult:
    """A result of `toto probe` with these entries; items: those of its predictions."""
    task = {"layers": [], "best": {"accuracy": 0.5}}
    if items is not None:
        task["predictions"] = {"items": items, "label": [0] * len(items), "predicted": [0] * len(items)}
    return ProbeResult.from_json({"label": "label", "n_test": 9, "tasks": {"label": task}} | content)


def result(dataset, split, items=None, train="train"):
    splits = {
        "train": {"split": train},
        "validation": {"split": "carved from train (seed 0)"},
        "test": {"split": split},
    }
    return probed(items, data={"dataset": dataset, "splits": splits})


@pytest.mark.parametrize(
    "recorded, split, name, found",
    [
        ("uoft-cs/cifar10", "train", "cifar10", "train"),
        ("/home/me/data/cifar10", "test", "cifar10", "test"),
        ("cifar10/plain_text/test-00000-of-00001.parquet", "train", "cifar10", "test"),
        ("media/kinetics400/val", "train", "kinetics400", "validation"),
        ("toyworld:cluttered", "test", "toyworld", "test"),
        ("clip.mp4", "train", "clip.mp4", "train"),
        ("train", "train", "train", "train"),
    ],
)
def test_a_data_set_is_known_by_its_name(recorded, split, name, found):
    assert identify(recorded, split) == (name, found)


def test_a_run_saw_its_shards_but_not_what_it_held_out(tmp_path):
    shards = write_shards(tmp_path / "shards")
    metrics = [
        {"step": 2, "tokens": 1000, "learning_rate": 1e-3, "sources": {"shards": {"share": 1.0, "epochs": 2.5}}},
        {"step": 2, "tokens": 1000, "val_loss": 3.0},
    ]
    run = write_run(tmp_path / "run", shards=str(shards), metrics=metrics)
    (seen,) = media_seen(run)
    assert (seen.dataset, seen.split, seen.kind) == ("cifar10", "train", "image")
    assert (seen.tokens, seen.epochs) == (1000, 2.5)
    held = {name for name in NAMES if is_held_out(name)}
    assert held and seen.items == set(NAMES) - held
    assert media_seen(run / "checkpoints" / "step_000002") == [seen]

    (all_of_it,) = media_seen(write_run(tmp_path / "b", shards=str(shards), val_shards=str(shards)))
    assert all_of_it.items == set(NAMES)


def test_validation_rows_are_held_out_items_or_shards_of_their_own(tmp_path):
    train = write_shards(tmp_path / "train")
    held = {name for name in NAMES if is_held_out(name)}
    given, media = validated_on(Source(str(train)))
    assert given == "../data/cifar10" and (media.dataset, media.split, media.items) == ("cifar10", "train", held)
    seen = media_seen(write_run(tmp_path / "run", shards=str(train)))
    tested = ProbePart("validation", media.dataset, media.split, media.items)
    assert not check_overlap(seen, [tested])

    same = write_shards(tmp_path / "same", names=[*sorted(held), "train[0]"])
    _, media = validated_on(Source(str(train), val_data=str(same)))
    (overlap,) = check_overlap(seen, [ProbePart("validation", media.dataset, media.split, media.items)])
    assert overlap.items == ("train[0]",) and not is_held_out("train[0]")
    assert validated_on(Source("toyworld:film"))[1] == Media("toyworld", "validation")
    assert validated_on(Source("user/photos", val_split="test"))[1] == Media("photos", "test")
    with pytest.raises(FileNotFoundError, match="There are no validation media photos_val"):
        validated_on(Source(str(train), val_data="photos_val"))


def test_no_more_shards_are_read_than_it_takes_to_name_every_item(tmp_path, monkeypatch):
    from training.rows import shard_rows

    names = [f"train[{number}]" for number in range(30)]
    shards = write_shards(tmp_path / "shards", names=names * 2)  # two, each with all names
    manifest, files, read = json.loads((shards / "manifest.json").read_text()), [], shard_rows.read_column
    monkeypatch.setattr(shard_rows, "read_column", lambda file, column: files.append(file) or read(file, column))
    run = write_run(tmp_path / "run", shards=str(shards))
    for known, opened in (({"kept": 30}, 1), ({"kept": 31}, 2), ({}, 2)):
        (shards / "manifest.json").write_text(json.dumps(manifest | known))
        files.clear()
        (seen,) = media_seen(run)
        assert seen.items == {name for name in names if not is_held_out(name)} and len(files) == opened


def test_a_mixture_has_a_medium_a_source_with_its_share(tmp_path):
    clips = write_shards(tmp_path / "clips", "pretrain_clips", names=["train/a.mp4", "train/lart_b.mp4"], kind="video")
    sources = [
        {"data": str(clips), "weight": 0.25, "val_data": str(clips)},
        {"data": "toyworld", "weight": 0.5},
        {"data": "uoft-cs/cifar10", "weight": 0.25, "kind": "image"},
    ]
    row = {"tokens": 800, "learning_rate": 1.0, "sources": {"clips": {"share": 0.3, "epochs": 4.0}}}
    clips, world, pixels = media_seen(write_run(tmp_path / "run", sources, [row]))
    assert clips.items == {"train/a.mp4", "train/lart_b.mp4"} and clips.tokens == pytest.approx(240)
    assert world == Media("toyworld", "train", "video", tokens=400)
    assert pixels == Media("cifar10", "train", "image", tokens=200)


def test_what_came_before_is_seen_too(tmp_path):
    first = write_run(tmp_path / "first", [{"data": "toyworld", "weight": 1}])
    second = write_run(tmp_path / "second", [{"data": "org/birds", "weight": 1}], init_from=str(first))
    assert [seen.dataset for seen in media_seen(second)] == ["toyworld", "birds"]
    tuned = write_run(tmp_path / "tuned", model=str(second), dataset="org/cats", train_split="train")
    assert [seen.dataset for seen in media_seen(tuned)] == ["toyworld", "birds", "cats"]
    stranger = write_run(tmp_path / "stranger", [{"data": "org/birds", "weight": 1}], init_from="someone/model")
    assert media_seen(stranger)[0] == Media("what model saw", "not recorded")
    kept = media_seen(second)
    write_media(second, second)
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    (first / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"sources": [{"data": str(tmp_path / "gone")}]}))
    assert media_seen(second) == kept  # the first one's shards are gone
    shutil.rmtree(first)
    assert media_seen(second) == kept
    assert media_seen("runs/a--b") is None  # no folder, and no name of a repository


def test_a_model_takes_its_media_along(tmp_path):
    shards = write_shards(tmp_path / "shards", "/home/me/cifar10")
    run = write_run(tmp_path / "run", shards=str(shards))
    (tmp_path / "model").mkdir()
    assert media_seen(tmp_path / "model") is None and media_seen("facebook/dino-vitb8") is None
    text = write_media(run, tmp_path / "model").read_text()
    assert media_seen(tmp_path / "model") == media_seen(run) and "/home" not in text

    write_media(run, run)
    (shards / "manifest.json").unlink()
    for file in shards.glob("train-*"):
        file.unlink()
    shards.rmdir()
    assert media_seen(run) == media_seen(tmp_path / "model")
    (run / "media.json").unlink()
    with pytest.raises(FileNotFoundError, match="are gone"):
        media_seen(run)


ROWS = frozenset(f"train[{number}]" for number in range(50_000))


@pytest.mark.parametrize(
    "items, most_bytes",
    [
        (None, 4),
        (frozenset({"a/1.mp4", "b.mp4"}), 30),
        (ROWS, 80),
        (frozenset(name for name in ROWS if not is_held_out(name)), 80),
        (frozenset({"train[0]", "train[7]", "train[8]", "train[9]"}), 80),
        (frozenset({"train[0]", "b.mp4"}), 30),
        (frozenset(name for name in NAMES if is_held_out(name)), 120),
        (frozenset(), 2),
    ],
)
def test_a_record_is_short_and_exact(items, most_bytes):
    media = [Media("cats", "train", "image", items, tokens=5.0, epochs=1.5)]
    rows = json.loads(json.dumps(to_json(media)))
    assert from_json(rows) == media and len(json.dumps(rows[0]["items"])) <= most_bytes


def test_of_many_names_the_split_counts_whole_but_rules_still_hold(monkeypatch):
    monkeypatch.setattr(media_record, "MOST_NAMES", 2)
    kept = from_json(to_json(seen("a.mp4", "b.mp4", "lart_1.mp4", dataset="copy")))
    assert kept == [Media("copy", "train"), Media("copy", "train", items=frozenset({"lart_1.mp4"}))]
    with pytest.raises(ValueError, match="lart_1"):
        require_no_overlap("nano", kept, media_tested(result("media/k400", "validation")))


def test_a_result_carries_its_media(tmp_path):
    write_shards(tmp_path / "shards")
    run = write_run(tmp_path / "run", shards=str(tmp_path / "shards"))
    assert media_of_result(probed(model=str(run))) == media_seen(run)
    record = to_json(media_seen(run))
    assert media_of_result(probed(model="gone/run", media=record)) == media_seen(run)
    assert media_of_result(probed(model=str(run), media=None)) is None  # not recorded at the time
    assert media_of_result(probed(model="facebook/dino-vitb8")) is None
    with pytest.raises(ValueError, match="damaged"):
        media_of_result(probed(model="gone/run", media=[{"name": "x"}]))


def test_a_damaged_record_is_reported(tmp_path):
    (tmp_path / "media.json").write_text('{"format": 1, "media": [{"name": "x"}]}')
    with pytest.raises(ValueError, match="damaged"):
        media_seen(tmp_path)
    (tmp_path / "media.json").write_text('{"format": 2, "media": []}')
    with pytest.raises(ValueError, match="format 2"):
        media_seen(tmp_path)


def test_a_result_says_what_it_tested():
    parts = media_tested(result("cifar10/test-0.parquet", "train", ["train[1]"]))
    assert parts[2] == ProbePart("test", "cifar10", "test", frozenset({"test[1]"}))
    parts = media_tested(result("org/cats", "carved from train (seed 3)"))
    assert [(part.part, part.split) for part in parts] == [
        ("train", "train"),
        ("validation", "train"),
        ("test", "train"),
    ]
    names = {"train": {"name": "train: train"}, "test": {"name": "test: from train (seed 0)"}}
    data = {"dataset": "org/cats", "attention_mode": "full", "splits": names}
    content = {"model": "m", "checkpoint": "c", "data": data, "best": {"accuracy": 0.5, "correct": 1}, "n_test": 2}
    tuned = media_tested(FinetuneResult.from_json(content))
    assert tuned == [ProbePart("train", "cats", "train"), ProbePart("test", "cats", "train")]
    with pytest.raises(ValueError, match=r"data\.splits"):
        media_tested(probed())


def seen(*items, dataset="cats", split="train"):
    return [Media(dataset, split, items=frozenset(items) or None)]


@pytest.mark.parametrize(
    "media, test, told",
    [
        (
            seen("train[1]", "train[2]"),
            ("carved from train (seed 0)", ["train[2]", "train[9]"]),
            "1 items such as train.2.",
        ),
        (seen("train[1]"), ("carved from train (seed 0)", None), "the whole split counts"),
        (seen(), ("carved from train (seed 0)", ["train[9]"]), "the whole split counts"),
        (seen(split="test"), ("test", None), "cats .test. and is scored on CATS .test."),
        (seen("test/a/1.mp4", split="test"), ("test", ["a/1.mp4"]), "a/1.mp4"),
        (seen("a/1.mp4", split="test"), ("test", ["test/a/1.mp4"]), "a/1.mp4"),
    ],
)
def test_a_score_on_seen_media_is_refused(media, test, told):
    with pytest.raises(ValueError, match=f"^nano was trained on .*{told}"):
        require_no_overlap("nano", media, media_tested(result("org/CATS", *test)))


@pytest.mark.parametrize(
    "media, test",
    [
        (seen("train[1]"), ("carved from train (seed 0)", ["train[9]"])),  # the same split, other items
        (seen("1.mp4"), ("test", ["1.mp4"])),  # names repeat across splits
        (seen(dataset="dogs", split="test"), ("test", None)),
        (seen("a/1.mp4", split="test"), ("test", ["b/1.mp4"])),
    ],
)
def test_other_media_are_fine(media, test):
    require_no_overlap("nano", media, media_tested(result("org/cats", *test)))


def test_lart_clips_are_kinetics():
    kinetics = media_tested(result("media/kinetics-400", "validation"))
    clips = seen("train/lart_01.mp4", "train/cups.mp4", dataset="pretrain_clips")
    with pytest.raises(
        ValueError, match=r"lart_\* are validation clips of Kinetics, 1 items such as train/lart_01\.mp4"
    ):
        require_no_overlap("nano", clips, kinetics)
    with pytest.raises(ValueError, match="Kinetics"):
        require_no_overlap("nano", seen(dataset="pretrain_clips"), kinetics)  # items not on record
    with pytest.raises(ValueError, match="Kinetics"):
        require_no_overlap("nano", seen("lart_02.mp4", dataset="copy"), kinetics)
    with pytest.raises(ValueError, match="Kinetics"):
        require_no_overlap("nano", clips, media_tested(result("/media/k400/val", "train")))
    require_no_overlap("nano", seen("train/cups.mp4", dataset="pretrain_clips"), kinetics)
    require_no_overlap("nano", seen("lart/cups.mp4", dataset="copy"), kinetics)
    require_no_overlap("nano", clips, media_tested(result("ucf101", "test")))


def test_probing_the_training_split_is_listed_and_no_fault():
    parts = media_tested(result("org/cats", "test"))
    assert [overlap.tested.part for overlap in check_overlap(seen(), parts)] == ["train", "validation"]
    require_no_overlap("nano", seen(), parts)
    media = [*seen("train[1]", "train[2]"), Media("toyworld", "train", "video", tokens=5.0, epochs=1.5)]
    cats, world, other = ledger_rows({"nano": media, "dino": None}, {"nano": parts})
    assert cats == {
        **{"model": "nano", "medium": "cats", "split": "train", "kind": None, "items": 2, "tokens": None},
        **{"epochs": None, "read_by_probes": ["train", "validation"]},
    }
    assert (world["items"], world["tokens"], world["epochs"], world["read_by_probes"]) == (None, 5.0, 1.5, [])
    assert (other["model"], other["medium"], other["items"]) == ("dino", "not recorded", None)
