"""Ctrl-C in a training: the first writes a checkpoint and says how to go on, a second ends at once and says so too."""

import signal

import pytest
from tiny_run import FLAGS

import toto_cli
from training import find_model
from training.engine.loop import _Loop
from training.pretrain import main
from training.tokenizers.loop import TokenizerLoop
from training.train_tokenizer import main as train_tokenizer


def interrupted_at(step: int, loop: type, monkeypatch, times: int = 1) -> None:
    """Ctrl-C is typed, so many times, in this step of the next training with this loop."""
    take_step = loop.take_step

    def take(self, *args):
        if self.step + 1 == step:
            monkeypatch.setattr(loop, "take_step", take_step)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return take_step(self, *args)

    monkeypatch.setattr(loop, "take_step", take)


def flags(shards, run) -> list[str]:
    return [*FLAGS, "--shards", str(shards), "--max_steps", "6", "--save_steps", "100", "--output_dir", str(run)]


def test_the_first_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(shards, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    interrupted_at(3, _Loop, monkeypatch)
    with pytest.raises(SystemExit) as end:
        toto_cli.run(main, flags(shards, run))
    said = capsys.readouterr()
    assert end.value.code == 130
    assert "stopping after this step, with a checkpoint; Ctrl-C again ends at once" in said.err
    assert f"stopped by Ctrl-C; resume with: toto pretrain --resume {run}" in said.out and "next: " not in said.out
    assert [folder.name for folder in find_model.steps(run)] == ["step_000003"]
    main(["--resume", str(run)])
    said = capsys.readouterr().out
    assert find_model.latest(run).name == "step_000006" and f"--model {run}" in said.splitlines()[-1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_at_once(shards, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    interrupted_at(2, _Loop, monkeypatch, times=2)
    with pytest.raises(SystemExit) as end:
        toto_cli.run(main, flags(shards, run))
    assert end.value.code == 130 and not find_model.steps(run)
    assert f"stopped; go on with: toto pretrain --resume {run}" in capsys.readouterr().err


def test_a_tokenizers_training_stops_in_the_same_way(tmp_path, monkeypatch, capsys):
    import json

    from tiny_run import VQGAN

    run = tmp_path / "run"
    interrupted_at(2, TokenizerLoop, monkeypatch)
    short = ["--max_steps", "3", "--batch_size", "2", "--eval_frames", "4", "--dataset", "toyworld"]
    with pytest.raises(SystemExit) as end:
        toto_cli.run(train_tokenizer, ["--model", json.dumps(VQGAN), *short, "--output_dir", str(run)])
    said = capsys.readouterr().out
    assert end.value.code == 130 and "measured on 4 frames held out of training (one file or row in 20" in said
    assert f"stopped by Ctrl-C; resume with: toto train-tokenizer --resume {run}" in said
    train_tokenizer(["--resume", str(run)])
    assert f"next: toto evaluate-tokenizer --tokenizer {run} --dataset toyworld" in capsys.readouterr().out


def test_what_validates_is_said(shards, tmp_path, capsys):
    def said(*more: str) -> str:
        main([*flags(shards, tmp_path / str(len(list(tmp_path.iterdir())))), "--max_steps", "1", *more])
        return capsys.readouterr().out

    assert " validation rows (one item in 20 is held out of training)" in said()
    named = said("--val_shards", str(shards))
    assert " validation rows, sources" in named
    assert "no validation (switched off)" in said("--val_rows", "0")
