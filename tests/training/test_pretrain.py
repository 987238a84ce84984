"""Pre-training through its real command: it learns, resumes bit for bit, and says what is wrong."""

import json
import os
import shutil
import signal
import subprocess

import held_up
import pytest
import torch
from tiny_run import FLAGS, save_tokenizer, tokenize

from training import find_model
from training.engine import checkpoints
from training.pretrain import main

STEPS = ["--max_steps", "12", "--save_steps", "4", "--logging_steps", "1"]


def losses(run):
    return [(r["step"], r.get("loss"), r.get("val_loss")) for r in map(json.loads, (run / "metrics.jsonl").open())]


@pytest.fixture(scope="module")
def whole_run(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(run)])
    return run


def test_a_run_folder_explains_itself(whole_run):
    assert [p.name for p in find_model.steps(whole_run)] == ["step_000004", "step_000008", "step_000012"]
    rows = [json.loads(line) for line in (whole_run / "metrics.jsonl").open()]
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == list(range(1, 13))
    assert {"tokens", "end_loss", "tokens_per_second", "mfu", "data_wait", "grad_norm"} <= set(trained[0])
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 12]
    assert json.loads((whole_run / "versions.json").read_text())["torch"] == torch.__version__
    assert "shards:" in (whole_run / "recipe.yaml").read_text()


def test_loss_falls_and_the_checkpoint_loads(whole_run):
    from transformers import AutoModelForCausalLM, AutoProcessor

    import modeling_toto  # noqa: F401
    import tokenization  # noqa: F401

    rows = [row for row in losses(whole_run) if row[1] is not None]
    assert rows[-1][1] < rows[0][1] - 0.1
    last = find_model.latest(whole_run)
    model, processor = AutoModelForCausalLM.from_pretrained(last), AutoProcessor.from_pretrained(last)
    assert model.config.vocab_size == 64 + processor.num_codes


def test_the_logged_loss_is_the_mean_over_codes(whole_run, shards):
    """The validation loss of the log equals one computed from the logits, code tokens only."""
    from modeling_toto import TotoConfig, TotoForCausalLM
    from training.engine.device import fast_autocast
    from training.rows.shard_rows import validation_rows

    last = find_model.latest(whole_run)
    rows = validation_rows(shards, None, TotoConfig.from_pretrained(last))
    with torch.no_grad(), fast_autocast(torch.device("cpu")):  # in the precision of the run
        logits = TotoForCausalLM.from_pretrained(last)(rows).logits.float()
    nats = torch.nn.functional.cross_entropy(logits[:, :-2].flatten(0, 1), rows[:, 1:-1].flatten())
    assert losses(whole_run)[-1][2] == pytest.approx(nats.item(), abs=1e-5)


def test_kill_and_resume_is_bit_exact(whole_run, shards, tmp_path):
    run = tmp_path / "killed"
    flags = [*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(run)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = held_up.start("training.pretrain", 7, tmp_path / "go", flags, env=environment, stdout=subprocess.DEVNULL)
    held_up.wait_for_rows(run, 7, process, checkpoint=True)  # six steps and a validation
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in find_model.steps(run)] == ["step_000004"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # as a kill inside a write leaves it
    main(["--resume", str(run)])
    assert losses(run) == losses(whole_run)
    final = "checkpoints/step_000012/model.safetensors"
    assert (run / final).read_bytes() == (whole_run / final).read_bytes()


def test_shards_behind_a_link_are_validated_too(shards, tmp_path):
    (tmp_path / "latest").symlink_to(shards)
    run = tmp_path / "run"
    flags = [*FLAGS, *STEPS, "--max_steps", "4", "--shards", str(tmp_path / "latest"), "--output_dir", str(run)]
    main([*flags, "--eval_steps", "2"])
    rows = list(map(json.loads, (run / "metrics.jsonl").open()))
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4], "more often than checkpoints"
    validation = next(row for row in rows if "val_loss" in row)
    assert validation["val_loss"] == pytest.approx(*validation["val_losses"].values(), rel=1e-6)


def test_accumulation_changes_nothing_but_rounding(shards, tmp_path, whole_run):
    run = tmp_path / "accumulated"
    flags = ["--per_device_batch_size", "1", "--shards", str(shards), "--output_dir", str(run)]
    main([*FLAGS, *STEPS, *flags])
    for ours, theirs in zip(losses(run), losses(whole_run), strict=True):
        assert (
            ours[1] == pytest.approx(theirs[1], rel=1e-4)
            if theirs[1]
            else ours[2] == pytest.approx(theirs[2], rel=1e-4)
        )


def test_a_damaged_checkpoint_is_passed_over(whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    weights = run / "checkpoints" / "step_000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert find_model.latest(run).name == "step_000008"


def test_a_non_finite_loss_stops_with_a_sentence(shards, tmp_path):
    run = tmp_path / "diverged"
    with pytest.raises(ValueError, match=r"not finite at step \d+ .*; lower --learning_rate.*checkpoint"):
        main([*FLAGS, *STEPS, "--learning_rate", "1e30", "--shards", str(shards), "--output_dir", str(run)])


def test_a_full_disk_keeps_the_last_good_checkpoint(whole_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    from modeling_toto import TotoForCausalLM

    model = TotoForCausalLM.from_pretrained(find_model.latest(run))
    with pytest.raises(OSError, match=r"disk is full.*step_000016.*--resume .*last checkpoint is .*step_000012"):
        checkpoints.save(run, 16, model, None, {}, {}, None)
    assert find_model.latest(run).name == "step_000012"
    assert not list((run / "checkpoints").glob(".*"))


def test_a_disk_that_fills_up_under_the_moments_is_reported(whole_run, tmp_path, monkeypatch):
    import safetensors.torch

    def full(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"disk is full.*step_000014.*last checkpoint is .*step_000012"):
        main(["--resume", str(run), "--max_steps", "14"])
    assert not list((run / "checkpoints").glob(".*"))


def test_a_budget_may_be_given_and_raised_when_a_run_is_resumed(whole_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for late in ("step_000008", "step_000012"):
        shutil.rmtree(run / "checkpoints" / late)
    main(["--resume", str(run), "--max_minutes", "1e-6"])
    assert find_model.latest(run).name == "step_000007"  # judged by two steps
    assert "max_minutes is 1e-06 and was None: the losses differ" in capsys.readouterr().out
    main(["--resume", str(run), "--max_minutes", "60"])
    assert find_model.latest(run).name == "step_000012"


def test_bad_calls_get_a_sentence(whole_run, shards, tmp_path):
    with pytest.raises(ValueError, match=r"not empty.*--resume"):
        main([*FLAGS, "--shards", str(shards), "--output_dir", str(whole_run)])
    with pytest.raises(ValueError, match="--shards DIR"):
        main(FLAGS)
    with pytest.raises(FileNotFoundError, match="not a folder of token shards"):
        main([*FLAGS, "--shards", str(tmp_path), "--output_dir", str(tmp_path / "a")])
    with pytest.raises(ValueError, match="must be a multiple of the 64 code tokens"):
        main([*FLAGS, "--tokens_per_step", "100", "--shards", str(shards), "--output_dir", str(tmp_path / "b")])
    with pytest.raises(ValueError, match=r"is a TotoForCausalLM, not of --architecture gpt2; use --architecture llama"):
        main([*FLAGS, "--architecture", "gpt2", "--init_from", str(whole_run), "--shards", str(shards)])
    with pytest.raises(ValueError, match=r"--report_to trackio: .* or it is not installed"):
        main([*FLAGS, "--report_to", "trackio", "--shards", str(shards), "--output_dir", str(tmp_path / "d")])
    for flag in ("keep_checkpoints", "max_minutes", "eval_steps"):
        with pytest.raises(ValueError, match=f"--{flag} is .*; it must be above 0"):
            main([*FLAGS, f"--{flag}", "-1", "--shards", str(shards)])
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        main(["--resume", str(tmp_path / "nothing")])
    other = tokenize(tmp_path / "other", save_tokenizer(tmp_path / "t", num_codes=64), clips=20)
    with pytest.raises(ValueError, match="do not fit the model"):
        main([*FLAGS, "--shards", str(other), "--output_dir", str(tmp_path / "c")])
    assert not (tmp_path / "c").exists()
