"""Fine-tuning through its real command: it learns, resumes bit for bit, averages, and says what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import held_up
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import CONFIG, SIDE, save_tokenizer

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForImageClassification, TotoForVideoClassification
from tokenization import TotoProcessor
from training import classification, find_model
from training.architectures import load_model
from training.classification import Classify, load_classifier
from training.engine.optim import Average, layer_factors
from training.finetune import main
from training.finetune_args import AugmentArgs
from training.results import FinetuneResult

COLOURS = {"black": (20, 20, 20), "red": (235, 10, 10), "white": (240, 240, 240)}
STEPS = ["--max_steps", "12", "--save_steps", "4", "--logging_steps", "1", "--warmup_steps", "2"]
ONE_STEP = ["--max_steps", "1", "--warmup_steps", "0"]
FAST = ["--batch_size", "8", "--per_device_batch_size", "4", "--learning_rate", "5e-3", "--workers", "2"]
VARIED = ["--augment", "rand", "--mixup", "0.8", "--cutmix", "1.0", "--ema_decay", "0.9", "--drop_path", "0.3"]


def picture(colour, seed, size=(40, 36)):
    noise = np.random.default_rng(seed).integers(-25, 26, (*size, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def save_pictures(folder, counts):
    for split, count in counts.items():
        for number, (name, colour) in enumerate(COLOURS.items()):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                picture(colour, 1000 * number + k + 100 * len(split)).save(folder / split / name / f"{k}.png")
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """A Toto that has learnt nothing, with its processor."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    TotoForCausalLM(TotoConfig.from_preset("tiny", **CONFIG)).save_pretrained(folder)
    processor = TotoProcessor.from_visual_tokenizer(save_tokenizer(folder / "tokenizer"))
    processor.with_sizes(SIDE, CONFIG["num_frames"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three colours; a train and a test split."""
    return save_pictures(tmp_path_factory.mktemp("pictures"), {"train": 15, "test": 6})


def finetune(run, pretrained, dataset, *flags):
    main(["--model", str(pretrained), "--dataset", str(dataset), "--output_dir", str(run), *STEPS, *FAST, *flags])
    return run


def numbers(run):
    """What must be the same of two runs that are: all but times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    keys = ("step", "loss", "grad_norm", "val_loss", "val_accuracy", "next_token_loss", "accuracy")
    rows = [{key: row[key] for key in keys if key in row} for row in rows]
    last = find_model.latest(run)
    result = json.loads((run / "results.json").read_text())
    return rows, (last / "model.safetensors").read_bytes(), result["best"], (run / "predictions.json").read_text()


@pytest.fixture(scope="module")
def plain(pretrained, pictures, tmp_path_factory):
    return finetune(
        tmp_path_factory.mktemp("runs") / "plain", pretrained, pictures, "--max_steps", "48", "--save_steps", "8"
    )


@pytest.fixture(scope="module")
def varied(pretrained, pictures, tmp_path_factory):
    return finetune(tmp_path_factory.mktemp("runs") / "varied", pretrained, pictures, *VARIED)


def test_colours_are_learnt_and_reported(plain, pictures):
    result = json.loads((plain / "results.json").read_text())
    best, splits = result["best"], result["data"]["splits"]
    assert result["n_test"] == 18 and best["accuracy"] == best["correct"] / 18 > 0.8
    assert best["ci95"][0] < best["accuracy"] <= best["ci95"][1] and result["media"] is None
    assert result["command"].startswith("toto finetune --model ") and "--max_steps 48" in result["command"]
    assert result["settings"]["max_steps"] == 48 and result["settings"]["dataset"] == str(pictures)
    assert (splits["train"]["clips"], splits["validation"]["clips"]) == (36, 9)  # a fifth of the files is carved off
    assert "from train" in splits["validation"]["name"] and splits["test"]["name"] == "test: test"
    rows = [json.loads(line) for line in (plain / "metrics.jsonl").open()]
    trained, validated = [r for r in rows if "loss" in r], [r for r in rows if "val_loss" in r]
    assert [r["step"] for r in trained] == list(range(1, 49)) and trained[-1]["loss"] < trained[0]["loss"]
    assert {"accuracy", "grad_norm", "mfu", "tokens_per_second", "sources", "learning_rate"} <= set(trained[0])
    assert [r["step"] for r in validated] == [8, 16, 24, 32, 40, 48]
    top = max(validated, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert (best["step"], best["val_accuracy"]) == (top["step"], top["val_accuracy"])


def test_a_checkpoint_is_a_classifier_with_its_processor_and_names(plain, pictures):
    from transformers import AutoModelForImageClassification, AutoProcessor

    folder = json.loads((plain / "results.json").read_text())["checkpoint"]
    model, processor = AutoModelForImageClassification.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is TotoForImageClassification and model.config.id2label == dict(enumerate(sorted(COLOURS)))
    assert model.config.label2id["white"] == 2 and model.feature_layer == model.config.num_hidden_layers
    told = json.loads((plain / "predictions.json").read_text())
    files = [Image.open(pictures / source) for source in told["sources"]]
    with torch.no_grad():
        predictions = model(**processor(images=files)).logits.argmax(1).tolist()
    assert predictions == told["predictions"]
    # Also under its own head with a hard label, as transformers' Trainer would call it.
    assert model(**processor(images=files[:2]), labels=torch.tensor([0, 2])).loss.ndim == 0


def test_kill_and_resume_gives_the_same_numbers(varied, pretrained, pictures, tmp_path):
    """Crops, mixing, drop path and averaged weights; killed by SIGKILL after a checkpoint."""
    run = tmp_path / "killed"
    flags = ["--model", str(pretrained), "--dataset", str(pictures), "--output_dir", str(run), *STEPS, *FAST, *VARIED]
    options = {"env": {**os.environ, "HF_HUB_OFFLINE": "1"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = held_up.start("training.finetune", 7, tmp_path / "go", flags, **options)
    held_up.wait_for_rows(run, 7, process, checkpoint=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert find_model.steps(run) and not (run / "results.json").exists()
    main(["--resume", str(run)])
    assert numbers(run) == numbers(varied)


def test_loaded_weights_are_aligned_and_still_tied(pretrained):
    """Where they are not, some CPUs round otherwise than for new ones, and a resumed run goes its own way."""
    config = TotoConfig.from_pretrained(pretrained)
    model = load_model("toto", pretrained, config)
    for loaded in (model, load_classifier(pretrained, config, "image")):
        assert not any(weight.data_ptr() % 64 for weight in loaded.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.fixture(scope="module")
def half(varied, tmp_path_factory):
    run = tmp_path_factory.mktemp("half") / "run"
    shutil.copytree(varied, run)
    for step in ("000008", "000012"):
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
    (run / "results.json").unlink()
    return run


def test_other_threads_and_micro_batches_change_nothing_but_rounding(varied, half, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(half, run)
    main(["--resume", str(run), "--workers", "0", "--per_device_batch_size", "2"])
    for ours, theirs in zip(numbers(run)[0], numbers(varied)[0], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == pytest.approx(theirs[key], rel=1e-2) for key in ours if key != "val_accuracy")


def test_a_run_killed_before_its_test_is_tested_by_resuming(varied, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(varied, run)
    (run / "results.json").unlink()
    main(["--resume", str(run)])
    assert numbers(run)[2] == numbers(varied)[2]


def test_averages_are_saved_and_the_weights_next_to_them(varied):
    from safetensors.torch import load_file

    last = find_model.latest(varied)
    averages = load_file(last / "model.safetensors")
    weights = {}
    for file in (last / "training_state" / "weights").glob("*.safetensors"):
        weights |= load_file(file)
    assert set(weights) <= set(averages)
    assert any(not torch.equal(weights[name], averages[name]) for name in weights)


def test_averages_are_those_of_torch():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from training.engine.optim import Average

    torch.manual_seed(0)
    model, decay = torch.nn.Linear(3, 2), 0.15  # below 2 / 11, the decay of the first step: constant from there on
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs.update_parameters(model)  # the first call copies
    average, before = Average(model, decay), model.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        average.update(step)
        theirs.update_parameters(model)
    with average.applied():
        assert torch.equal(model.weight, theirs.module.weight) and not torch.equal(model.weight, before)
    # Until then the decay of step k is (1 + k) / (10 + k).
    average, before = Average(model, 0.999), model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    average.update(1)
    assert torch.allclose(average.put_aside()["weight"], before + 9 / 11)


def test_micro_batches_add_up_and_averages_are_validated(pretrained, monkeypatch):
    """AdamW would hardly notice a loss that is not divided; averages of zeros would be noticed."""
    model = TotoForImageClassification.from_pretrained(pretrained, feature_layer=2, num_labels=3).eval()
    clips = SimpleNamespace(codes=np.zeros((1, 1, 4, 4), np.uint16), kind="image")
    options = {"is_mixed": False, "drop_path": None, "ema_decay": 0.5}
    draw = np.random.default_rng(0)
    rows = [{"codes": draw.integers(0, 32, (1, 4, 4)), "target": np.eye(3, dtype=np.float32)[k % 3]} for k in range(4)]
    rows = [row | {"number": k} for k, row in enumerate(rows)]
    whole = Classify(model, None, clips, (4, 1), 4, **options).losses(model, rows, torch.device("cpu"))[0]
    halves = Classify(model, None, clips, (2, 2), 4, **options)
    parts = [halves.losses(model, rows[k : k + 2], torch.device("cpu"))[0] for k in (0, 2)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)

    torch._foreach_zero_(halves.average.averages)
    seen = []
    monkeypatch.setattr(
        classification,
        "score",
        lambda *_: seen.append(model.classifier.weight.abs().sum().item()) or {"loss": 1.0, "correct": 1, "total": 2},
    )
    halves.validate(None, model, None, 1)
    assert seen == [0] and model.classifier.weight.any()


def test_the_rotation_never_drops_the_best(pretrained, pictures, tmp_path):
    run = finetune(tmp_path / "run", pretrained, pictures, "--save_steps", "1", "--keep_checkpoints", "1")
    best = json.loads((run / "results.json").read_text())["best"]["step"]
    left = [int(path.name[5:]) for path in find_model.steps(run)]
    assert sorted({best, 12}) == left
    assert find_model.resolve_model(str(run)) == str(run / "checkpoints" / f"step_{best:06d}")
    (run / "results.json").write_text('{"best": {}}')  # of toto probe, say
    assert find_model.resolve_model(str(run)) == str(run / "checkpoints" / f"step_{max(left):06d}")


@pytest.mark.parametrize(
    "flags",
    [
        ["--attention_mode", "full", "--pooler", "mean", "--augment", "crop", "--mixup", "0.5"],
        ["--attention_mode", "prefix", "--prefix_length", "9", "--next_token_loss", "backbone", "--ema_decay", "0.9"],
        [
            "--next_token_loss",
            "stop_gradient",
            "--feature_layer",
            "1",
            "--gradient_checkpointing",
            "--drop_path",
            "0.2",
        ],
    ],
    ids=["full", "prefix and next tokens", "stop gradient"],
)
def test_clips_with_every_attention_and_both_joint_losses(pretrained, tmp_path, monkeypatch, flags):
    toyworld = [
        "--label_column",
        "digit",
        "--max_train",
        "40",
        "--max_validation",
        "8",
        "--max_test",
        "8",
        "--max_steps",
        "2",
    ]
    update, steps = Average.update, []
    monkeypatch.setattr(Average, "update", lambda self, step: steps.append(step) or update(self, step))
    run = finetune(tmp_path / "run", pretrained, "toyworld", *toyworld, *flags)
    assert steps == ([1, 2] if "--ema_decay" in flags else [])
    model = TotoForVideoClassification.from_pretrained(find_model.latest(run))
    assert model.config.num_labels == 10 and model.config.problem_type == "single_label_classification"
    assert model.config.attention_mode == (flags[1] if flags[0] == "--attention_mode" else "causal")
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in row]
    if "--next_token_loss" in flags:
        assert all(3 < row["next_token_loss"] < 6 for row in rows)  # log(96 ids) is 4.56
    assert ("accuracy" in rows[0]) == ("--mixup" not in flags)


def test_more_frames_and_another_rope_base(pretrained, tmp_path):
    toyworld = [
        "--label_column",
        "motion",
        "--max_train",
        "40",
        "--max_validation",
        "8",
        "--max_test",
        "8",
        "--max_steps",
        "2",
    ]
    frames = ["--num_frames", "8", "--rope_theta", "50000", "--batch_size", "2"]
    run = finetune(tmp_path / "run", pretrained, "toyworld", *toyworld, *frames)
    config = TotoConfig.from_pretrained(find_model.latest(run))
    assert (config.num_frames, config.max_position_embeddings) == (8, 130)
    assert config.rope_parameters["rope_theta"] == 50000
    assert json.loads((find_model.latest(run) / "processor_config.json").read_text())["num_frames"] == 8


def test_layers_learn_more_slowly_the_deeper_they_are(pretrained):
    model = TotoForImageClassification.from_pretrained(pretrained, feature_layer=2, num_labels=3)
    factors = layer_factors(model, 2, 0.5)
    by_name = {name: factors.get(p, 1.0) for name, p in model.named_parameters()}
    assert by_name["model.embed_tokens.weight"] == 0.125
    assert by_name["model.layers.0.mlp.up_proj.weight"] == by_name["model.layers.0.input_layernorm.weight"] == 0.25
    assert by_name["model.layers.1.self_attn.q_proj.weight"] == 0.5
    assert by_name["classifier.weight"] == by_name["pooler.query"] == 1


def test_drop_path_drops_rows_in_training_only_and_keeps_the_mean(pretrained):
    from training.architectures import DropPath

    model = TotoForImageClassification.from_pretrained(pretrained, feature_layer=2, num_labels=3)
    ids = torch.full((1, 18), 70)
    untouched = model.eval()(input_ids=ids).logits
    path = DropPath(model.model.layers, 0.5, seed=0)
    names = set(model.state_dict())
    assert torch.equal(model(input_ids=ids).logits, untouched)
    model.train()
    found = []
    for number in range(30):
        path.draw([number], ids.device)
        found.append((path.scales[0].tolist(), model(input_ids=ids).logits))
    assert {tuple(scales) for scales, _ in found} == {(1.0, 0.0), (1.0, 2.0)}  # the first block is never dropped
    shallow = TotoForImageClassification.from_pretrained(pretrained, feature_layer=1, num_labels=3)
    shallow.load_state_dict(model.state_dict())
    for scales, logits in found:
        if scales[1] == 0:
            assert torch.allclose(logits, shallow(input_ids=ids).logits, atol=1e-5)
    path.draw([3], ids.device)
    again = path.scales.clone()
    path.draw([1, 2, 3], ids.device)
    assert torch.equal(path.scales[2:], again) and set(model.state_dict()) == names


def test_validation_is_never_the_test_split(tmp_path):
    """Where the test split is called validation, as in the ImageNet recipes, validation is carved from train."""
    from training.finetune_args import LabelledArgs
    from training.rows.labelled_media import LabelledMedia

    folder = save_pictures(tmp_path / "pictures", {"train": 6, "validation": 3})
    args = LabelledArgs(dataset=str(folder), label_column="label", test_split="validation")
    train, validation, test = LabelledMedia(args, 1).splits(32)
    names = [{item.name for item in split} for split in (train, validation, test)]
    assert not names[0] & names[1] and not names[1] & names[2]
    assert {name.split("/")[0] for name in names[1]} == {"train"}


def test_recordings_stay_on_one_side_of_carved_splits(tmp_path):
    """The 25 groups of UCF101's names: without --group_by nearly every test group was also in train."""
    from tokenization.sources.labelled import group_of
    from training.finetune_args import LabelledArgs
    from training.rows.labelled_media import LabelledMedia

    for group in range(1, 26):
        for clip in range(1, 6):
            path = tmp_path / ("Archery", "Bowling")[group % 2] / f"v_Sport_g{group:02d}_c{clip:02d}.png"
            path.parent.mkdir(exist_ok=True)
            picture((9 * group, 0, 0), clip, (8, 8)).save(path)

    def groups(**flags):
        splits = LabelledMedia(LabelledArgs(dataset=str(tmp_path), **flags), 1).splits(32)
        return [{group_of(item.name, r"_g\d+") for item in split} for split in splits]

    train, validation, test = groups(group_by=r"_g\d+")
    assert not train & test and not train & validation and not validation & test
    assert len(train | validation | test) == 25 and min(map(len, (train, validation, test))) >= 4
    assert groups(group_by=r"_g\d+", split_seed=1)[2] != test
    train, _, test = groups()
    assert train & test, "files alone are split without --group_by"


def test_groups_without_an_effect_are_reported(pretrained, tmp_path, capsys):
    data = save_pictures(tmp_path / "data", {"train": 8, "validation": 4, "test": 4})
    said = "--group_by: no effect, since no split was carved"
    finetune(tmp_path / "whole", pretrained, data, "--group_by", r"(\d)", *ONE_STEP)
    assert said in capsys.readouterr().out
    shutil.rmtree(data / "validation")
    finetune(tmp_path / "carved", pretrained, data, "--group_by", r"(\d)", *ONE_STEP)
    assert said not in capsys.readouterr().out
    content = json.loads((tmp_path / "carved" / "results.json").read_text())
    assert FinetuneResult.from_json(content).to_json() == content


def test_text_labels_are_classes(pretrained, tmp_path, capsys):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows = {"image": [picture(COLOURS[name], k) for k, name in enumerate(("red", "black") * 12)]}
    rows["colour"] = ["red", "black"] * 12
    Dataset.from_dict(rows, Features({"image": ImageFeature(), "colour": Value("string")})).to_parquet(
        tmp_path / "rows.parquet"
    )
    bad(tmp_path, pretrained, tmp_path / "rows.parquet", "--batch_size", "4", "--per_device_batch_size", "4")
    assert "2 classes of 'colour', numbered in the sorted order of their text: black, red" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["data"]["class_names"] == ["black", "red"] == list(result["best"]["accuracy_by_class"])
    assert TotoConfig.from_pretrained(result["checkpoint"]).id2label == {0: "black", 1: "red"}


def test_rows_are_the_same_for_any_number_of_processes(pretrained, pictures):
    from training.args import Source
    from training.finetune_args import LabelledArgs
    from training.rows.augment import Augment
    from training.rows.clips import Clips
    from training.rows.labelled_media import LabelledMedia
    from training.rows.labelled_rows import LabelledRows
    from training.rows.mixture import RowStream

    media = LabelledMedia(LabelledArgs(dataset=str(pictures)), 1)
    clips = Clips(media.splits(40)[0], "label")
    args = AugmentArgs(augment="rand", mixup=0.8, cutmix=1.0)

    def streams(world, workers):
        for rank in range(world):
            rows = LabelledRows(clips, 3, args, Augment(32, 0.3, True, 2, 9), 0, workers)
            yield RowStream([(Source("pictures"), rows)], 0, rank, world)

    (one,), two = streams(1, 3), list(streams(2, 0))
    expected = [row for _, row in one.take(80)]  # two epochs and more
    found = [row for pair in zip(*(stream.take(40) for stream in two), strict=True) for _, row in pair]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["number"] == theirs["number"]
        assert np.array_equal(ours["frames"], theirs["frames"]) and np.array_equal(ours["target"], theirs["target"])
    assert all(row["target"].sum() == pytest.approx(1, abs=1e-5) for row in expected)


class Numbered:
    """Twelve clips of one value each, of three classes."""

    labels, sources = np.arange(12) % 3, list(map(str, range(12)))
    codes = np.arange(12)[:, None, None, None] * np.ones((1, 1, 4, 4), int)

    def __len__(self):
        return 12

    def pixels(self, index):
        return np.full((1, 8, 8, 3), 20 * index, np.uint8), int(self.labels[index])


def test_targets_orders_and_partners_by_hand():
    from training.rows.labelled_rows import LabelledRows

    rows = LabelledRows(Numbered(), 3, AugmentArgs(augment="none", label_smoothing=0.3), None, 5)
    epochs = [[rows.row(12 * epoch + k) for k in range(12)] for epoch in range(2)]
    orders = [[int(row["codes"].flat[0]) for row in epoch] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12)) and orders[0] != orders[1]
    wanted = [[0.8 if k == clip % 3 else 0.1 for k in range(3)] for clip in orders[0]]
    np.testing.assert_allclose([row["target"] for row in epochs[0]], wanted, rtol=1e-6)

    draws = []

    def augment(frames, generator):
        draws.append(generator.random())
        return frames

    mixed = LabelledRows(Numbered(), 3, AugmentArgs(augment="crop", mixup=0.8), augment, 5)
    found = [mixed.row(k) for k in range(12)]
    assert len(set(draws)) == 24, "a clip and its partner are varied anew in every row"
    assert len({row["target"].round(3).tobytes() for row in found}) > 9, "and so are the partner and the shares"


def test_splits_share_no_file_and_small_classes_keep_their_numbers(tmp_path):
    from training.finetune_args import LabelledArgs
    from training.rows.clips import Clips, same_classes
    from training.rows.labelled_media import LabelledMedia

    folder = save_pictures(tmp_path / "data", {"train": 10, "validation": 4})
    shutil.rmtree(folder / "validation" / "black")  # numbers of a folder without one class differ
    media = LabelledMedia(LabelledArgs(dataset=str(folder)), 1)
    splits = [Clips(split, "label") for split in media.splits(32)]
    assert same_classes(splits, "label") == sorted(COLOURS)
    train, validation, test = splits
    assert (len(train), len(validation), len(test)) == (24, 6, 8)  # what was named validation is the test
    assert not set(train.sources) & set(validation.sources)
    for split in splits:
        names = [source.split("/")[-2] for source in split.sources]
        assert [sorted(COLOURS)[label] for label in split.labels] == names


def test_files_that_are_decoded_when_needed_give_the_same_rows(pictures):
    from training.finetune_args import LabelledArgs
    from training.rows.clips import Clips
    from training.rows.labelled_media import LabelledMedia

    media = LabelledMedia(LabelledArgs(dataset=str(pictures)), 1)
    kept, read = (Clips(media.splits(32)[0], "label", is_kept=is_kept) for is_kept in (True, False))
    assert read.frames is None and np.array_equal(kept.labels, read.labels)
    for k in range(0, len(kept), 5):
        assert np.array_equal(kept.pixels(k)[0], read.pixels(k)[0]) and kept.pixels(k)[1] == read.pixels(k)[1]


def bad(tmp_path, pretrained, dataset, *flags):
    main(["--model", str(pretrained), "--dataset", str(dataset), "--output_dir", str(tmp_path / "run"), *STEPS, *flags])


def table(path, labels, as_classes=None):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    kind = Value("int64") if as_classes is None else ClassLabel(names=as_classes)
    rows = {"image": [picture((9 * k % 255, 99, 99), k) for k in range(len(labels))]}
    features = {"image": ImageFeature()}
    if labels[0] is not None:
        rows, features = rows | {"label": labels}, features | {"label": kind}
    Dataset.from_dict(rows, Features(features)).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([None] * 12, "has no label column"),
        ([1] * 12, "All training clips have the same 'label'"),
        (list(range(5, 25)), "No two clips have the same 'label'"),
        ([0, 1, -1, 1] * 5, r"train have no 'label' \(missing or hidden"),
        ([0, 1], "only one file or row"),
    ],
)
def test_labels_that_are_invalid(tmp_path, pretrained, labels, words):
    with pytest.raises(ValueError, match=words):
        bad(tmp_path, pretrained, table(tmp_path / "data.parquet", labels))
    assert not (tmp_path / "run").exists()


def test_media_that_the_model_saw_are_no_test(tmp_path, pretrained, pictures, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(pretrained, model)
    seen = [{"dataset": pictures.name, "split": "test", "kind": "image"}]
    (model / "media.json").write_text(json.dumps({"format": 1, "media": seen}))
    monkeypatch.setattr("training.finetune.read_clips", None)
    with pytest.raises(ValueError, match=rf"was trained on {pictures.name} \(test\) and is scored on"):
        finetune(tmp_path / "run", model, pictures)
    with pytest.raises(TypeError):  # it goes on to read them
        finetune(tmp_path / "run", model, pictures, "--allow_seen")


def test_hidden_test_labels_are_refused_before_any_clip_is_tokenized(tmp_path, pretrained, monkeypatch):
    (tmp_path / "data").mkdir()
    table(tmp_path / "data" / "train-0.parquet", [0, 1] * 6)
    table(tmp_path / "data" / "test-0.parquet", [-1] * 4)
    monkeypatch.setattr("training.rows.clips._encode", lambda *_: pytest.fail("clips were tokenized"))
    with pytest.raises(ValueError, match=r"Split test .* has no 'label' .*; name another --test_split"):
        bad(tmp_path, pretrained, tmp_path / "data")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--label_column", "colour"], "has no label column 'colour'; it has label"),
        (["--train_split", "training"], "has no split 'training'; it has"),
        (["--test_split", "held"], "has no split 'held'"),
        (["--attention_mode", "prefix"], "needs --prefix_length"),
        (["--attention_mode", "prefix", "--prefix_length", "40"], "prefix_length is 40, but a row has only 18 ids"),
        (["--attention_mode", "full", "--next_token_loss", "backbone"], "--next_token_loss does not work with full"),
        (["--attention_mode", "both"], "attention_mode is 'both'; choose one of"),
        (["--feature_layer", "9"], "the model has layers 0 .* to 2"),
        (["--resolution", "20"], "--resolution is 20; it must be a multiple of the visual tokenizer's stride"),
        (["--batch_size", "12"], "12 rows per process; they must be a multiple of --per_device_batch_size 8"),
        (["--mixup", "0.8"], "cannot be blended"),
        (["--drop_path", "1"], "--drop_path is 1.0; it must be at least 0 and below 1"),
        (["--scale", "tiny"], "'--scale' is unknown"),
        (["--liger"], "'--liger' is unknown"),
        (["--fps", "8", "--stride", "2"], "--stride would have no effect next to --fps"),
        (["--smallest_crop", "0.5"], "--smallest_crop would have no effect with --augment none"),
        (["--augment", "crop", "--rand_operations", "1"], "--rand_operations would have no effect with --augment crop"),
        (["--epochs", "2"], "--max_steps would have no effect next to --epochs"),
        (["--prefix_length", "4"], "--prefix_length would have no effect under causal attention"),
        (["--next_token_loss_weight", "2"], "--next_token_loss_weight would have no effect without --next_token_loss"),
    ],
)
def test_bad_settings_get_a_sentence(tmp_path, pretrained, pictures, flags, words):
    with pytest.raises(ValueError, match=words):
        bad(tmp_path, pretrained, pictures, *flags)
    assert not (tmp_path / "run").exists()


def test_other_models_and_tokenizers_get_a_sentence(tmp_path, pretrained, pictures):
    alone = tmp_path / "alone"
    TotoForCausalLM.from_pretrained(pretrained).save_pretrained(alone)
    with pytest.raises(ValueError, match="has no visual tokenizer; pass --tokenizer"):
        bad(tmp_path, alone, pictures)
    other = save_tokenizer(tmp_path / "other", num_codes=16)
    with pytest.raises(ValueError, match="has 16 codes, but the model has 32"):
        bad(tmp_path, alone, pictures, "--tokenizer", str(other))
    (alone / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ValueError, match="is a GPT2LMHeadModel; only a Toto of tokens can be fine-tuned"):
        bad(tmp_path, alone, pictures)


def test_typed_steps_win_over_the_epochs_of_a_recipe():
    from training.finetune_args import LabelledArgs, refuse_idle_flags

    data = LabelledArgs(dataset="folder", epochs=3)
    assert refuse_idle_flags(["--max_steps", "5"], data, AugmentArgs()).epochs is None
    assert refuse_idle_flags(["--seed", "5"], data, AugmentArgs()).epochs == 3


def test_what_is_settled_or_gone_is_reported_when_resuming(half, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(half, run)
    with (run / "recipe.yaml").open("a") as file:  # as earlier versions wrote it
        file.write("scale: full\nliger: false\n")
    with pytest.raises(ValueError, match=r"--attention_mode is full, but the run was started with None .*--model"):
        main(["--resume", str(run), "--attention_mode", "full"])


def test_the_card_has_classes_call_and_test(plain):
    from training.publish.cards import model_card
    from training.publish.push import run_facts

    folder = find_model.resolve_model(json.loads((plain / "results.json").read_text())["checkpoint"])
    metrics, recipe = run_facts(type(plain)(folder))
    card = model_card(folder, metrics=metrics, recipe=recipe, repo_id="someone/colours")
    best = json.loads((plain / "results.json").read_text())["best"]
    assert "pipeline_tag: image-classification" in card and "Classes: black, red, white." in card
    assert f"({best['correct']} of 18). The test split was scored once" in card and f"of step {best['step']}" in card
    assert "AutoModelForImageClassification.from_pretrained(repo" in card and "toto finetune" in card
    assert str(plain.parent) not in card and "pictures" in card


@pytest.mark.parametrize("dataset", ["toyworld:cups", "cater"])
def test_cells_of_a_grid_have_their_own_scores(dataset, pretrained, tmp_path):
    """Top 5 and the distance on the grid, from the kept predictions; CATER is read with its lists."""
    flags = ["--label_column", "cell", "--max_train", "40", "--max_validation", "4", "--max_test", "12"]
    flags += ["--resolution", "64"]
    if dataset == "cater":
        write_cater(tmp_path / "cater")
        dataset, flags = f"cater:{tmp_path / 'cater'}", ["--stride", "1"]
    run = finetune(tmp_path / "run", pretrained, dataset, *flags, *ONE_STEP, "--num_frames", "2")
    result = FinetuneResult.from_json(json.loads((run / "results.json").read_text()))
    kept = json.loads((run / "predictions.json").read_text())
    cells = [tuple(map(int, kept["classes"][number].split(","))) for number in range(len(kept["classes"]))]
    steps = [
        abs(cells[a][0] - cells[b][0]) + abs(cells[a][1] - cells[b][1])
        for a, b in zip(kept["labels"], kept["predictions"], strict=True)
    ]
    assert result.best.grid_l1 == pytest.approx(np.mean(steps))
    assert result.best.accuracy <= result.best.top5 <= 1


def write_cater(folder):
    """A folder in CATER's layout: 24 videos for training and 5 for the test, in the first 24 cells."""
    import av

    for name, count in (("train", 24), ("val", 5)):
        lines = []
        for number in range(count):
            file = folder / "videos" / f"CATER_new_{name}{number}.avi"
            file.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(file), "w") as container:
                stream = container.add_stream("mpeg4", rate=24)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for grey in range(4):
                    frame = np.full((48, 64, 3), 40 * grey + number, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            lines.append(f"{file.name} {number}\n")
        (folder / "lists" / "localize").mkdir(parents=True, exist_ok=True)
        (folder / "lists" / "localize" / f"{name}.txt").write_text("".join(lines))


RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes" / "finetune").glob("*.yaml"))
PAPER = {"imagenet_causal": "82.2", "imagenet_full": "82.6", "imagenet_joint": "no number in the paper"}
PAPER |= {"cater_16": "62.8", "cater_32": "72.9", "tiny_finetune": "nothing published", "cups_16": "nothing published"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_its_row_and_runs_small(path, pretrained, pictures, tmp_path):
    header = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("Expected: ", "Ours: ", "Hardware: ", "Command: ", f"finetune --recipe {path.stem}", PAPER[path.stem]):
        assert word in header, f"{path.name} does not say {word}"
    data = ["--dataset", str(pictures), "--label_column", "label", "--test_split", "test"]
    if "imagenet" not in path.stem:
        data = ["--dataset", "toyworld", "--label_column", "digit", "--max_train", "40"]
        data += ["--max_validation", "4", "--max_test", "4"]
    small = ["--epochs", "0.2", "--batch_size", "4", "--per_device_batch_size", "2", "--output_dir", str(tmp_path)]
    small += ["--resolution", "32"] if "imagenet" in path.stem else []
    main(["--recipe", str(path), "--model", str(pretrained), *data, *small])
    assert 0 <= json.loads((tmp_path / "results.json").read_text())["best"]["accuracy"] <= 1


def test_every_row_of_the_paper_has_a_recipe():
    assert {path.stem for path in RECIPES} == set(PAPER)


def test_two_processes_give_the_numbers_of_one(varied, pretrained, pictures, tmp_path):
    """Crops, mixtures, dropped blocks and averages do not depend on who makes them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "training.finetune", "--model", str(pretrained), "--dataset", str(pictures), *STEPS, *FAST]
    command += [*VARIED, "--max_steps", "4", "--output_dir", str(tmp_path / "run")]
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (tmp_path / "run", varied)]
    found, expected = ([row["loss"] for row in of_run if "loss" in row][:3] for of_run in rows)
    assert found == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "run" / "results.json").is_file()
