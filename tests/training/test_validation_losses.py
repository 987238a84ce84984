"""Validation losses by source, outside the run, and which of their media the model was trained on."""

import json

import pytest
import torch
from tiny_run import CONFIG, FRAMES, SIDE, save_tokenizer, tokenize

from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization import TotoProcessor
from training.args import Source
from training.publish.media_seen import MEDIA_FILE, Media, to_json
from training.publish.validation import ValidationResult, clean_loss, judge, mean_loss, of_run
from training.rows.shard_rows import validation_rows
from training.validation_losses import main

SEEN = [Media("toyworld", "train", "video")]


@pytest.fixture(scope="module")
def validation(shards, tmp_path_factory):
    """Shards of the validation split."""
    return tokenize(tmp_path_factory.mktemp("shards") / "val", shards.parent / "tokenizer", "validation", 6)


@pytest.fixture
def model(shards, tmp_path):
    """A random model with the tokenizer of the shards and a record of its media."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    TotoForCausalLM(TotoConfig.from_preset("tiny", **CONFIG)).save_pretrained(folder)
    processor = TotoProcessor.from_visual_tokenizer(shards.parent / "tokenizer").with_sizes(SIDE, FRAMES)
    processor.save_pretrained(folder)
    (folder / MEDIA_FILE).write_text(json.dumps({"format": 1, "media": to_json(SEEN)}))
    return folder


def sources(shards, validation) -> list[dict]:
    return [
        {"name": "clean", "data": str(shards.parent / "gone"), "val_data": str(validation), "weight": 0.75},
        {"name": "held_out", "data": str(shards), "weight": 0.25},
    ]


def test_losses_and_what_was_seen(model, shards, validation, tmp_path, capsys):
    """The training shards of a source with validation data need not exist any more."""
    file = tmp_path / "validation.json"
    flags = ["--sources", *map(json.dumps, sources(shards, validation))]
    main(["--model", str(model), "--output", str(file), "--val_rows", "5", "--per_device_batch_size", "2", *flags])
    result = ValidationResult.from_json(json.loads(file.read_text()))
    net = TotoForCausalLM.from_pretrained(model).eval()
    wanted = {}
    for name, rows in (
        ("clean", validation_rows(shards, validation, net.config, 5)),
        ("held_out", validation_rows(shards, None, net.config, 5)),
    ):
        with torch.no_grad():
            logits = net(rows).logits[:, :-2].transpose(1, 2)
        wanted[name] = torch.nn.functional.cross_entropy(logits, rows[:, 1:-1]).item(), len(rows)
    found = {each.name: each for each in result.sources}
    for name, (loss, rows) in wanted.items():
        assert found[name].loss == pytest.approx(loss, rel=2e-3) and found[name].rows == rows  # bf16 on some CPUs
    assert wanted["clean"][0] != pytest.approx(wanted["held_out"][0], rel=4e-3)
    assert (found["clean"].dataset, found["clean"].split, found["clean"].seen) == ("toyworld", "validation", None)
    assert found["held_out"].split == "train" and found["held_out"].seen.startswith("the same split")
    assert result.loss == pytest.approx(0.75 * found["clean"].loss + 0.25 * found["held_out"].loss, rel=1e-6)
    assert result.clean_loss == found["clean"].loss
    assert f"of media that were not trained on: {result.clean_loss:.4f}" in capsys.readouterr().out


def test_means_are_weighted_and_leave_out_what_was_seen(shards, validation):
    given = [Source(**each) for each in sources(shards, validation)]
    given.append(Source(str(validation), weight=0.5, name="more", val_data=str(validation)))
    found = [judge(source, loss, 4, SEEN) for source, loss in zip(given, (2.0, 9.0, 4.0), strict=True)]
    assert clean_loss(found) == pytest.approx((0.75 * 2 + 0.5 * 4) / 1.25)
    assert mean_loss(found) == pytest.approx((0.75 * 2 + 0.25 * 9 + 0.5 * 4) / 1.5)
    assert clean_loss(found[1:2]) is None
    with pytest.raises(ValueError, match="media of the model are not recorded"):
        judge(given[0], 2.0, 4, None)


def test_the_losses_of_a_run_are_judged_while_its_shards_exist(shards, validation):
    metrics = {"val_losses": {"clean": 2.0, "held_out": 9.0}}
    recipe = {"sources": sources(shards, validation)}
    found = of_run(metrics, recipe, SEEN)
    assert [(each.name, each.loss, bool(each.seen)) for each in found] == [
        ("clean", 2.0, False),
        ("held_out", 9.0, True),
    ]
    as_flags = {"sources": [json.dumps(each) for each in recipe["sources"]]}
    assert of_run(metrics, as_flags, SEEN) == found
    gone = {"sources": [recipe["sources"][0] | {"val_data": str(shards.parent / "gone")}, recipe["sources"][1]]}
    assert of_run(metrics, gone, SEEN) == []
    assert of_run(metrics, recipe, None) == of_run({}, recipe, SEEN) == []
    photos = {
        "sources": [recipe["sources"][0] | {"weight": 0.5}, {"name": "photos", "data": "user/photos", "weight": 0.5}]
    }
    losses = {"val_losses": {"clean": 2.0, "photos": 3.0}}
    assert of_run(losses, photos, SEEN) == [], "its held-out items are not known by name"
    photos["sources"][1]["val_split"] = "test"
    assert [each.seen for each in of_run(losses, photos, SEEN)] == [None, None]
    only = {"val_losses": {"train": 9.0}}
    (alone,) = of_run(only, {"shards": str(shards), "val_shards": None}, SEEN)
    assert alone.seen
    assert of_run(only, {"shards": str(shards)}, SEEN) == [], "a card's recipe does not have the validation shards"


def test_a_model_of_another_tokenizer_is_refused(model, shards, validation, tmp_path):
    other = save_tokenizer(tmp_path / "other", seed=1)
    TotoProcessor.from_visual_tokenizer(other).with_sizes(SIDE, FRAMES).save_pretrained(model)
    words = ["--shards", str(shards), "--val_shards", str(validation), "--output", str(tmp_path / "x.json")]
    with pytest.raises(ValueError, match="has codes of the visual tokenizer "):
        main(["--model", str(model), *words])
