"""The probing study's driver: its commands are ones that the verbs take, its results name no folder of the machine."""

import json
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers.hf_argparser import HfArgumentParser

from evaluation.probe.args import ProbeArgs, of_task
from studies.probing import steps as study_steps
from studies.probing.collect import add_floors
from studies.probing.pretrain_peer import PeerArgs
from studies.probing.run import NANO, Study, StudyArgs
from studies.probing.steps import PEER, ROOT, best_rate, carry_out
from tokenization.tokenize_dataset import TokenizeArgs
from training import finetune, pretrain
from training.flags import parse


@pytest.fixture
def args(tmp_path) -> StudyArgs:
    for name in ("cifar10", "pretrain_clips", "room_actions"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return StudyArgs(
        str(tmp_path / "data"), str(tmp_path / "work"), str(tmp_path / "out"), minutes=1.0, comparison_minutes=1.0
    )


def of_dataclass(kind, flags: list[str]):
    return HfArgumentParser(kind).parse_args_into_dataclasses(flags)[0]


def test_every_command_is_one_that_its_verb_takes(args):
    study = Study(args)
    for name, count in Counter(step.name for step in study.steps).items():
        assert count == 1, name
    assert len({step.made for step in study.steps}) == len(study.steps)
    trained = set()
    for step in study.steps:
        verb, *flags = [*step.command, *(["--learning_rate", "0.002"] if step.rates else [])]
        if verb == "tokenize":
            of_dataclass(TokenizeArgs, flags)
        elif verb == "pretrain":
            _, data, run, optim = parse(pretrain.TYPES, flags, "toto pretrain", "")
            assert sum(source.weight for source in data.mixture()) == pytest.approx(1)
            assert run.max_steps in (15, 5, 3) and optim.warmup_steps <= run.max_steps  # of 1, 1/3, 1/9 minutes
            trained.add(run.output_dir)
        elif verb == "probe":
            probe = of_dataclass(ProbeArgs, flags)
            probe = of_task(probe, flags) if probe.task else probe
            assert probe.model in {*trained, str(NANO)} and probe.output == str(step.made) and probe.predictions
        elif verb == "finetune":
            model, _, _, run, _ = parse(finetune.TYPES, flags, "toto finetune", "")
            assert model.model in trained and step.made.parent.name == f"finetune_{step.name.split('/')[1]}"
        else:
            assert verb == PEER
            trained.add(of_dataclass(PeerArgs, flags).output_dir)


def test_peers_get_the_time_and_the_search_of_the_toto_of_images(args):
    steps = {step.name: step.command for step in Study(args).steps}
    for kind in ("mae", "igpt"):
        minutes = [
            float(steps[name][steps[name].index("--minutes") + 1])
            for name in (f"search/{kind}_0.001", f"pretrain/{kind}_0")
        ]
        assert minutes == [pytest.approx(args.comparison_minutes / 9), args.comparison_minutes]
    for kind in ("images", "mae", "igpt"):
        assert sum(name.startswith(f"search/{kind}_") for name in steps) == 5
    toto = steps["pretrain/images_0"]
    assert int(toto[toto.index("--max_steps") + 1]) == 15 * args.comparison_minutes


def test_a_toy_study_does_not_write_among_the_real_numbers(args):
    with pytest.raises(ValueError, match="give another --output"):
        StudyArgs(args.data, args.work, toy=True)
    toy = Study(replace(args, toy=True))
    assert not {step.made for step in toy.steps} & {step.made for step in Study(args).steps}


def test_rate_of_the_lowest_validation_loss_and_no_rate_of_an_unfinished_search(tmp_path):
    rates = {rate: tmp_path / rate for rate in ("0.1", "0.2", "0.3")}
    for rate, losses in (("0.1", [3.0, 2.0]), ("0.2", [4.0, 1.0])):
        rates[rate].mkdir()
        rows = "".join(json.dumps({"step": step, "val_loss": loss}) + "\n" for step, loss in enumerate(losses))
        (rates[rate] / "metrics.jsonl").write_text(rows)
    with pytest.raises(FileNotFoundError):
        best_rate(rates)
    rates["0.3"].mkdir()
    (rates["0.3"] / "study.json").write_text('{"val_loss": 1.5}')
    assert best_rate(rates) == "0.2"


def test_collected_results_name_no_folder_and_carry_their_media(args):
    study = Study(args)
    model = study.run("mae_0")
    model.mkdir(parents=True)
    (model / "study.json").write_text(
        json.dumps(
            {
                "kind": "mae",
                "dataset": str(study.data / "cifar10"),
                "val_loss": 1,
                "cpu_seconds": 2,
                "preparation_cpu_seconds": 3,
            }
        )
    )
    media = [{"dataset": "cifar10", "split": "train", "items": None}]
    (model / "media.json").write_text(json.dumps({"format": 1, "media": media}))
    result = {"command": f"toto probe --model {model}", "model": str(model), "predictions": [1]}
    result |= {"tasks": {"label": {"predictions": {"predicted": [1]}}}}
    (study.work / "results").mkdir()
    (study.work / "results" / "cifar10_mae_0.json").write_text(json.dumps(result))
    tuned = study.run("finetune_images_full")
    tuned.mkdir()
    (tuned / "results.json").write_text(json.dumps({"model": str(model), "checkpoint": str(tuned), "n_test": 2}))
    (tuned / "predictions.json").write_text('{"predictions": [1, 0]}')
    study.collect()
    found = json.loads((study.work.parent / "out" / "finetune_images_full.json").read_text())
    assert found["checkpoint"] == "WORK/runs/finetune_images_full" and found["predictions"] == {"predictions": [1, 0]}
    found = json.loads((study.work.parent / "out" / "cifar10_mae_0.json").read_text())
    assert found["model"] == "WORK/runs/mae_0" and found["media"][0]["dataset"] == "cifar10"
    assert "predictions" not in found and found["tasks"]["label"]["predictions"] == {"predicted": [1]}
    costs = json.loads((study.work.parent / "out" / "costs.json").read_text())
    assert list(costs["models"]) == ["mae_0"] and costs["models"]["mae_0"]["dataset"] == "DATA/cifar10"
    assert costs["models"]["mae_0"]["charged_cpu_seconds"] == 5
    assert costs["tokenizer_training_cpu_seconds"] == 6480
    for file in (study.work.parent / "out").iterdir():
        assert str(study.work.parent) not in file.read_text()


def probed(predicted: list[int], **floors) -> dict:
    """What a result of `toto probe` says of five test images."""
    row = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    baselines = dict.fromkeys(floors, row)
    kept = {"items": list("abcde"), "label": [0, 1, 0, 1, 1], "predicted": predicted, "baselines": floors}
    task = {"best": row | {"versus": {}}, "baselines": baselines, "predictions": kept}
    return {"command": "toto probe", "label": "label", "seeds": {"heads": 0}, **task, "tasks": {"label": task}}


def test_floors_of_another_probe_are_paired_and_only_of_the_same_images():
    result = probed([0, 1, 0, 1, 1], untrained=[0, 0, 0, 0, 0])
    floors = probed([0, 0, 0, 0, 0], hog=[1, 1, 0, 1, 0])
    add_floors(result, floors)
    task = result["tasks"]["label"]
    assert task["best"]["versus"]["hog"]["difference"] == pytest.approx(2 / 5)
    assert result["best"] == task["best"] and result["baselines"] == task["baselines"]
    assert list(task["baselines"]) == list(task["predictions"]["baselines"]) == ["untrained", "hog"]
    floors["tasks"]["label"]["predictions"]["items"][0] = "z"
    with pytest.raises(ValueError, match="are of different images"):
        add_floors(result, floors)


def test_a_step_is_timed_and_a_started_run_resumes(args, monkeypatch, capsys):
    study = Study(args)
    ran = []
    monkeypatch.setattr(study_steps.subprocess, "run", lambda command, **how: ran.append((command, how)))
    step = next(step for step in study.steps if step.name == "search/mixed_0.001")
    carry_out(step, study.work, 1)
    (study.run("lr_0.001")).mkdir(parents=True)
    (study.run("lr_0.001") / "recipe.yaml").write_text("")
    carry_out(step, study.work, 1)
    (first, how), (second, _) = ran
    assert first[1:3] == ["-m", "training.pretrain"] and how["env"]["OMP_NUM_THREADS"] == "1"
    assert second[1:] == ["-m", "training.pretrain", "--resume", str(study.run("lr_0.001"))]
    assert "$ toto pretrain --resume" in capsys.readouterr().out
    peer = next(step for step in study.steps if step.name == "search/mae_0.001")
    carry_out(peer, study.work, 1)
    assert ran[2][0][1:4] == ["-m", PEER, "--kind"] and ran[2][1]["cwd"] == ROOT and find_spec(PEER)
    assert f"$ python -m {PEER} --kind mae" in capsys.readouterr().out
    assert json.loads((study.work / "times/search/mixed_0.001.json").read_text())["seconds"] > 0


def test_missing_data_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder cifar10/"):
        StudyArgs(str(tmp_path), str(tmp_path))


def test_searches_and_models_of_another_machine_stay(args):
    output = Path(args.output)
    output.mkdir()
    losses = {"0.0005": 0.7, "0.001": 0.8, "0.002": 0.9, "0.004": 0.95, "0.008": 0.99}
    known = {"models": {"mixed_0": {"kind": "toto"}}, "search": {"mae": losses, "images": {"0.001": 5.0}}}
    (output / "costs.json").write_text(json.dumps(known))
    study = Study(args)
    steps = {step.name: step for step in study.steps}
    assert steps["pretrain/mae_0"].line()[-2:] == ["--learning_rate", "0.0005"]
    assert not any(name.startswith("search/mae_") for name in steps) and "search/images_0.001" not in steps
    with pytest.raises(FileNotFoundError):  # of the other rates of images
        steps["pretrain/images_0"].line()
    run = study.run("images_lr_0.0005")
    (run / "checkpoints" / "step_000003").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 2, "val_loss": 4.5}\n')
    study.collect()
    costs = json.loads((output / "costs.json").read_text())
    assert costs["models"] == known["models"] and costs["search"]["mae"] == losses
    assert costs["search"]["images"] == {"0.0005": 4.5, "0.001": 5.0}
