"""Cards of fixed models and tokenizers equal those in `cards/` to the letter; those that ship follow from their files.

After a deliberate change of the wording, run this file with `REWRITE_CARDS=1`, which writes these cards again.
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from evaluation.metrics import accuracy, paired_difference, verdict
from evaluation.results import ProbeResult
from modeling_toto import TotoConfig, TotoForCausalLM, TotoForImageClassification, TotoForVideoClassification
from training.publish.cards import model_card, tokenizer_card

CARDS = Path(__file__).parent / "cards"
SHIPPED = Path(__file__).parents[2] / "checkpoints"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES |= {"vocab_size": 96, "tokens_per_frame": 4, "max_position_embeddings": 66}
TOKENIZER = {"name": "/home/someone/toto-tokenizer-64", "fingerprint": "13ed709c28b8c859"}
FIGURES = {"psnr": 23.504, "ssim": 0.87, "codes_used": 500, "num_codes": 512, "perplexity": 206.2, "num_frames": 500}
FIGURES |= {"shift_equality": 0.41267}
MOTION_TOKENIZER = {"name": "visual_tokenizer", "fingerprint": "4ec66de7a8eb9737"}
# The shards of the last parts of the models that ship, which are not kept: rows, tokens, kind, name of the data.
SHARDS = {
    "photos": (16000, 4096000, "image", "toyworld:photos"),
    "cluttered": (700, 1433600, "video", "toyworld:cluttered"),
    "simple": (600, 1228800, "video", "toyworld"),
    "film": (700, 1433600, "video", "toyworld:film"),
    "rows_last": (20000, 20480000, "video", "toyworld:motion:max_objects=5", MOTION_TOKENIZER),
}


NANO_PROBES = ("probe_room_actions", "probe_room_actions_recordings", "probe_cifar10", "probe")


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def assert_card(card: str, name: str, folder: Path = CARDS) -> None:
    file = folder / f"{name}.md"
    if os.environ.get("REWRITE_CARDS"):
        file.write_text(card)
    assert card == file.read_text()
    assert not [line for line in card.splitlines() if len(line) > 120 and not line.startswith("|")]


def save(folder: Path, kind=TotoForCausalLM, **fields) -> Path:
    """A Hugging Face folder; of the processor the card reads only its settings."""
    with torch.random.fork_rng():
        kind(TotoConfig(**SIZES, **fields)).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"resolution": 16}}))
    return folder


def write_manifest(folder: Path, rows: int, tokens: int, kind: str, dataset: str, tokenizer: dict = TOKENIZER) -> str:
    folder.mkdir(parents=True)
    counts = {"num_sequences": rows, "num_tokens": tokens, "kind": kind, "dataset": dataset, "split": "train"}
    (folder / "manifest.json").write_text(json.dumps(counts | {"tokenizer": tokenizer}))
    return str(folder)


def test_a_model_without_a_record(tmp_path):
    assert_card(model_card(save(tmp_path / "toto-bare"), license="mit"), "bare")


def test_a_pretrained_model(tmp_path):
    shards = write_manifest(tmp_path / "shards", 1200, 76800, "video", "user/clips")
    recipe = {
        "preset": "tiny",
        "init_from": "/home/someone/earlier",
        "shards": shards,
        "val_shards": None,
        "output_dir": "runs/a",
    }
    recipe |= {"max_steps": 2000, "learning_rate": 0.002, "seed": 0}
    best = {"layer": 1, "head": "linear", "val_accuracy": 0.5, "accuracy": 0.5, "ci95": [0.469, 0.531]}
    best["versus"] = {"pixels": {"difference": 0.2, "ci95": [0.157, 0.243]}}
    best["versus"]["layer 0"] = {"difference": 0.1, "ci95": [0.061, 0.139]}
    first = {"layer": 0, "head": "linear", "accuracy": 0.4, "ci95": [0.37, 0.431]}
    probe = {"data": {"dataset": "/home/someone/digits", "num_frames": 1}, "n_test": 1000, "label": "digit"}
    probe |= {"best": best, "baselines": {"pixels": {"head": "linear", "accuracy": 0.3, "ci95": [0.272, 0.329]}}}
    probe |= {"layers": [first | {"head": "attention", "accuracy": 0.1}, first, best]}
    card = model_card(
        save(tmp_path / "toto-pretrained"),
        metrics={"step": 2000, "val_loss": 2.0794},
        recipe=recipe,
        results=[probe],
        repo_id="someone/toto-pretrained",
    )
    assert str(tmp_path) not in card
    assert_card(card, "pretrained")


def versus(low: float, high: float) -> dict:
    return {"difference": (low + high) / 2, "ci95": [low, high]}


def test_a_card_says_what_is_not_significant_and_which_losses_are_of_training_media(tmp_path):
    source = {"weight": 0.5, "dataset": "user/clips", "split": "validation", "rows": 24, "loss": 2.0, "seen": None}
    sources = [
        source | {"name": "clips"},
        source | {"name": "film", "loss": 1.0, "rows": None, "seen": "the same items"},
    ]
    validation = {"command": "-", "model": "-", "sources": sources, "loss": 1.5, "clean_loss": 2.0, "versions": {}}
    best = {"layer": 1, "head": "linear", "val_accuracy": 0.5, "accuracy": 0.5, "ci95": [0.2, 0.8]}
    best["versus"] = {"pixels": versus(-0.1, 0.5), "untrained": versus(0.1, 0.3), "histogram": versus(-0.2, -0.1)}
    best["versus"]["layer 0"] = versus(-0.2, 0.1)
    floors = {name: {"head": "linear", "accuracy": 0.3, "ci95": [0.1, 0.5]} for name in ("pixels", "untrained")}
    data = {"dataset": "rooms", "num_frames": 8, "leave_one_group_out": r"\d{8}", "groups": 4}
    left_out = {"data": data, "n_test": 70, "label": "action", "best": best, "baselines": floors}
    fixed = left_out | {"data": {"dataset": "halls", "num_frames": 8, "groups": 6}}
    fixed["best"] = best | {"layer": 2, "val_accuracy": 0.4, "versus": {"pixels": versus(0.1, 0.2)}}
    folder = save(tmp_path / "toto-mixture")
    card = model_card(folder, metrics={"step": 9, "val_loss": 1.5}, validation=validation, results=[left_out, fixed])
    assert "# Layer 2 had the best probe" in card, "that of halls is above all its floors"
    assert_card(card, "mixture")
    seen = validation | {"sources": [each | {"seen": "the same items"} for each in sources], "clean_loss": None}
    card = model_card(folder, metrics={"step": 9, "val_loss": 1.5}, validation=seen)
    assert "it has no validation loss. Their mean loss is 1.5000 nats" in re.sub(r"\s+", " ", card)
    assert "type: loss" not in card and "Nothing has been measured" not in card


def test_a_name_ends_no_cell_of_the_table(tmp_path):
    best = {"layer": 1, "head": "linear", "accuracy": 0.5, "ci95": [0.4, 0.6]}
    probe = {"data": {"dataset": "left|right"}, "n_test": 10, "label": "side", "best": best}
    card = model_card(save(tmp_path / "toto"), results=[probe])
    assert r"| left\|right, side | **this model** | 1, linear | 50.0 |" in card


@pytest.mark.parametrize("medium", ["image", "video"])
def test_a_finetuned_classifier(medium, tmp_path):
    kind = {"image": TotoForImageClassification, "video": TotoForVideoClassification}[medium]
    names = {k: f"class {k}" for k in range(24 if medium == "image" else 3)}
    labels = {"id2label": names, "label2id": {name: k for k, name in names.items()}}
    folder = save(tmp_path / f"toto-{medium}s", kind, **labels)
    metrics = {"step": 30, "val_loss": 1.0, "val_accuracy": 0.5, "val_rows": 1200}
    if medium == "image":
        best = {"accuracy": 0.4722, "correct": 1700, "step": 20, "val_accuracy": 0.51}
        metrics["test"] = {"best": best, "n_test": 3600}
    recipe = {"model": "/home/someone/run", "dataset": "/home/someone/pets", "label_smoothing": 0.1, "epochs": 2}
    assert_card(model_card(folder, metrics=metrics, recipe=recipe, repo_id=f"someone/{folder.name}"), medium)


@pytest.mark.parametrize("kind", ["dvae", "vqgan"])
def test_a_tokenizer(kind, tmp_path):
    from training.tokenizers.args import AdversarialArgs, RelaxationArgs, TokenizerArgs, TokenizerOptimArgs

    (tmp_path / "pictures").mkdir()
    model = SimpleNamespace(
        config=SimpleNamespace(resolution=64, stride=8, num_codes=512),
        parameters=lambda: [torch.empty(900, 1000), torch.empty(54321)],
    )
    split = {"eval_split": "held_out"} if kind == "dvae" else {}
    args = TokenizerArgs(kind=kind, dataset=["toyworld", str(tmp_path / "pictures")], output_dir="runs/a", **split)
    special = RelaxationArgs()
    if kind == "vqgan":
        special = AdversarialArgs(perceptual="lpips", perceptual_files=[str(tmp_path / "vgg.pth"), "/data/lin.pth"])
    card = tokenizer_card(model, (args, special, TokenizerOptimArgs()), {"toyworld": FIGURES}, 3240.4)
    assert_card(card, kind)


@pytest.mark.parametrize(("name", "files"), [("toto-nano", NANO_PROBES), ("toto-motion", ("scores",))])
def test_a_model_that_ships_has_the_card_of_its_files(name, files, tmp_path):
    """The paragraph on earlier runs is written by hand."""
    folder = SHIPPED / name
    committed = (folder / "README.md").read_text()
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", committed, re.S)[1])
    for source in recipe["sources"]:
        source["data"] = write_manifest(tmp_path / source["data"], *SHARDS[source["data"]])
    if not recipe["sources"]:  # its shards are a folder of the machine, which the card does not name
        recipe["shards"] = write_manifest(tmp_path / "rows_last", *SHARDS["rows_last"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    results = [read(folder / f"{file}.json") for file in files]
    facts = {"metrics": rows[-1], "recipe": recipe, "repo_id": f"checkpoints/{name}"}
    if (folder / "validation.json").is_file():
        facts["validation"] = read(folder / "validation.json")
        assert facts["validation"]["loss"] == pytest.approx(rows[-1]["val_loss"], rel=2e-3)  # of the run
    card = model_card(folder, results=results, **facts)
    start = re.compile(r"^Training started from (?:.+\n)+", re.M)
    (by_hand,) = start.findall(committed)
    assert len(start.findall(card)) == 1
    assert_card(start.sub(lambda _: by_hand, card), "README", folder)


@pytest.mark.parametrize("name", NANO_PROBES)
def test_probes_of_toto_nano_have_all_floors(name):
    result = ProbeResult.from_json(read(SHIPPED / "toto-nano" / f"{name}.json"))
    for task in result.tasks.values():
        assert task.best.versus.keys() >= {"pixels", "untrained", "histogram"}
        assert "layer 0" in task.best.versus or task.best.layer == 0


@pytest.mark.parametrize("name", NANO_PROBES)
def test_intervals_of_toto_nano_follow_from_its_predictions(name):
    result = ProbeResult.from_json(read(SHIPPED / "toto-nano" / f"{name}.json"))
    for task in result.tasks.values():
        kept, best = task.predictions, task.best
        others = kept.baselines | ({"layer 0": kept.selected["layer=0"].predicted} if best.layer else {})
        assert best.versus.keys() == others.keys()
        assert best.accuracy == pytest.approx(accuracy(kept.predicted, kept.label))
        for floor, predicted in others.items():
            again = paired_difference(kept.predicted, predicted, kept.label, result.seeds["heads"], groups=kept.groups)
            found = best.versus[floor]
            assert [found.difference, *found.ci95] == pytest.approx([again["difference"], *again["ci95"]])
            assert found.verdict == verdict(again["ci95"])
        if "room_actions" in name:
            recordings = [re.search(r"\d{8}_\d{6}", item)[0] for item in kept.items]
            assert kept.groups == recordings and result.data.groups == len(set(recordings)) == 4


def test_continuations_of_other_data_have_no_row_in_a_card():
    result = json.loads((SHIPPED.parent / "docs" / "studies" / "nano_horizons.json").read_text())
    with pytest.raises(ValueError, match="The continuations of toyworld have no masks and events"):
        model_card(SHIPPED / "toto-nano", results=[result])
