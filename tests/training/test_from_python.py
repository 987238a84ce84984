"""`pretrain_model` of a notebook is `toto pretrain`; `load_run` loads what a run left."""

import json

import pytest
import torch
from tiny_run import CONFIG, FLAGS

from training import load_run, pretrain_model
from training.pretrain import main

SETTINGS = {"preset": "tiny", "config": CONFIG, "tokens_per_step": 256, "warmup_steps": 2, "max_steps": 2}


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    return pretrain_model(shards, output_dir=tmp_path_factory.mktemp("runs") / "run", **SETTINGS)


def test_a_run_from_python_is_that_of_the_command(run, shards, tmp_path):
    main([*FLAGS, "--shards", str(shards), "--max_steps", "2", "--output_dir", str(tmp_path / "run")])
    losses = [
        [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
        for folder in (run, tmp_path / "run")
    ]
    assert losses[0] == losses[1] and losses[0]
    recipes = [(folder / "recipe.yaml").read_text() for folder in (run, tmp_path / "run")]
    assert recipes[0] == recipes[1]


def test_the_folder_is_returned_and_goes_on(run, shards):
    assert (run / "checkpoints" / "step_000002").is_dir()
    assert pretrain_model(resume=run, max_steps=3) == run
    assert (run / "checkpoints" / "step_000003").is_dir()


def test_a_recipe_gives_defaults_and_keywords_win(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = pretrain_model(shards, recipe="tiny_cpu", max_grad_norm=None, **SETTINGS | {"max_steps": 1})
    assert run.parts[0] == "runs" and run.name.startswith("tiny_cpu-")
    recipe = (run / "recipe.yaml").read_text()
    assert "max_steps: 1\n" in recipe and "learning_rate: 0.002\n" in recipe and "max_grad_norm: null\n" in recipe


def test_sources_are_mappings_and_scale_is_the_commands(tmp_path):
    run = pretrain_model(sources=[{"data": "toyworld"}], scale="tiny", max_steps=1, output_dir=tmp_path / "run")
    assert "data: toyworld" in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_stepz": 3}, "There is no flag max_stepz; did you mean max_steps?"),
        ({"qqqq": 3}, "There is no flag qqqq; the flags are adam_beta1, "),
        ({"max_steps": 0}, "--max_steps is 0; it must be above 0"),
        ({"config": {"hidden_sizes": 3}}, "did you mean 'hidden_size'"),
        ({"output_dir": "."}, "is not empty"),
    ],
)
def test_mistakes_are_refused(shards, settings, sentence, tmp_path):
    (tmp_path / "file").touch()
    settings = {"output_dir": tmp_path / "new"} | settings
    settings["output_dir"] = tmp_path if settings["output_dir"] == "." else settings["output_dir"]
    with pytest.raises(ValueError, match=sentence):
        pretrain_model(shards, **settings)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="No data is named"):
        pretrain_model(output_dir=tmp_path / "new")


def test_load_run(run):
    model, processor = load_run(run)
    assert type(model).__name__ == "TotoForCausalLM" and not model.training and model.dtype == torch.float32
    assert processor.grid == model.config.grid_size


def test_load_run_loads_the_class_that_was_trained(run, tmp_path):
    from modeling_toto import TotoForVideoClassification

    model, processor = load_run(run)
    classifier = TotoForVideoClassification(model.config)
    classifier.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found, _ = load_run(tmp_path)
    assert type(found) is TotoForVideoClassification
    assert torch.equal(found.classifier.weight, classifier.classifier.weight)


def test_load_run_refuses_other_models(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(ValueError, match="is a ViTModel, not a model of this project"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no model folder"):
        load_run(tmp_path / "nothing")
