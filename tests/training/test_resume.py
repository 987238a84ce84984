"""Resuming: exact after any kill, and what changed is said, with what it does to exactness."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import FLAGS, save_tokenizer, tokenize

from training import find_model
from training.engine import checkpoints
from training.engine.changes import redistributed
from training.pretrain import main

STEPS = ["--max_steps", "8", "--save_steps", "4", "--logging_steps", "1", "--val_rows", "2"]


def losses(run):
    return [row.get("loss") for row in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in row]


def test_random_kills_lose_nothing():
    """Shards, mixtures and pixels; one rank and two; with accumulation and without; one kill or two in a row."""
    script = str(Path(__file__).with_name("kill_resume.py"))
    command = [sys.executable, script, "--kills", "6", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result["kills"] >= 6 and result["resumed"] and result["lost"] == result["not_exact"] == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    shards = tokenize(root / "shards", save_tokenizer(root / "tokenizer"), clips=24)
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(root / "run")])
    return root / "run"


@pytest.fixture
def half(whole, tmp_path):
    """The run as it stood after step 4."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step_000008")
    return run


def test_nothing_is_said_where_nothing_changed(whole, half, capsys):
    main(["--resume", str(half)])
    assert "changes" not in capsys.readouterr().out and not (half / "changes.txt").exists()
    assert losses(half) == losses(whole)


@pytest.mark.parametrize(
    ("flags", "words", "is_exact"),
    [
        (["--save_steps", "2"], "save_steps is 2 and was 4: the losses stay exact", True),
        (["--per_device_batch_size", "2"], "per_device_batch_size is 2 and was 8: .*differ by rounding", None),
        (["--learning_rate", "1e-2"], "learning_rate is 0.01 and was 0.0003: the losses differ from those", False),
        (["--seed", "5"], "seed is 5 and was 0: other rows from here on, so the losses differ", False),
        (["--init_from", "a/b"], "init_from is a/b and was None: that has no effect, since the check", True),
        (["--max_steps", "12"], "max_steps is 12 and was 8: the losses differ", False),
    ],
)
def test_a_changed_setting_is_reported(whole, half, capsys, flags, words, is_exact):
    import re

    main(["--resume", str(half), *flags])
    told = capsys.readouterr().out
    assert re.search("Resumed after step 4 with changes:\n- " + words, told), told
    assert (half / "changes.txt").read_text() in told + "\n"
    ours, theirs = losses(half)[:8], losses(whole)
    assert ours[:4] == theirs[:4]
    if is_exact is None:
        assert ours == pytest.approx(theirs, rel=1e-4)
    else:
        assert (ours == theirs) == is_exact


@pytest.mark.parametrize("flags", [["--preset", "base"], ["--config", "{}"], ["--architecture", "gpt2"]])
def test_another_model_is_refused(half, flags):
    with pytest.raises(ValueError, match=f"{flags[0]} is {flags[1]}, but the run was started with .*--init_from"):
        main(["--resume", str(half), *flags])


def test_a_run_extended_and_killed_remembers_what_it_was_asked_for(half):
    """Killed after recipe.yaml was written again, before the next checkpoint."""
    recipe = (half / "recipe.yaml").read_text()
    (half / "recipe.yaml").write_text(recipe.replace("max_steps: 8", "max_steps: 12"))
    main(["--resume", str(half)])
    assert len(losses(half)) == 12


def test_a_run_stopped_before_its_first_checkpoint_starts_again(whole, half, capsys):
    shutil.rmtree(half / "checkpoints")
    main(["--resume", str(half)])
    assert "has no checkpoint yet, so the run starts again" in capsys.readouterr().out
    assert losses(half) == losses(whole)


def test_the_runs_own_shards_by_another_path_are_not_a_change(half, capsys, monkeypatch):
    from training.flags import read_recipe

    shards = Path(read_recipe(half)["shards"])
    monkeypatch.chdir(shards.parent)
    main(["--resume", str(half), "--shards", shards.name])
    assert "changes" not in capsys.readouterr().out


def test_rotation_never_prefers_a_damaged_checkpoint(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    weights = run / "checkpoints" / "step_000008" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    main(["--resume", str(run), "--keep_checkpoints", "1", "--save_steps", "1", "--max_steps", "6"])
    assert [path.name for path in find_model.steps(run)] == ["step_000006"]
    assert (run / "checkpoints" / "damaged_step_000008").is_dir()


def test_tokens_count_on_where_a_step_becomes_another(half):
    main(["--resume", str(half), "--tokens_per_step", "512"])
    rows = [json.loads(line) for line in (half / "metrics.jsonl").open()]
    assert [row["tokens"] for row in rows if "loss" in row] == [256, 512, 768, 1024, 1536, 2048, 2560, 3072]


def test_changed_shards_are_reported(whole, half, tmp_path, capsys):
    from training.flags import read_recipe

    shards = Path(read_recipe(half)["shards"])
    more = tokenize(tmp_path / "more", shards / "processor", clips=30)
    main(["--resume", str(half), "--shards", str(more)])
    told = capsys.readouterr().out
    assert "shards is" in told and "The source 'more' is new" in told and "The source 'shards' was removed" in told


def test_a_damaged_checkpoint_is_passed_over_by_its_checksum(whole, tmp_path, capsys):
    """The length is right and the weights can be read: only the checksum knows."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)

    def damage(checkpoint):
        content = bytearray((checkpoint / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (checkpoint / "model.safetensors").write_bytes(content)

    damage(run / "checkpoints" / "step_000008")
    assert find_model.latest(run).name == "step_000008"  # its files are all there
    main(["--resume", str(run)])
    assert "step_000008 is skipped: the checksum of model.safetensors is wrong" in capsys.readouterr().out
    assert losses(run) == losses(whole)
    for checkpoint in find_model.steps(run):
        damage(checkpoint)
    with pytest.raises(FileNotFoundError, match="holds no undamaged checkpoint"):
        main(["--resume", str(run)])


def test_a_missing_or_short_file_makes_a_checkpoint_no_checkpoint(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    next((run / "checkpoints" / "step_000008" / "training_state" / "optimizer").iterdir()).unlink()
    assert find_model.latest(run).name == "step_000004"


def test_old_checkpoints_are_dropped_in_one_go(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / ".step_000008.partial" / "training_state").mkdir(parents=True)  # of a kill
    with checkpoints.writing(run, 12, keep=2) as folder:
        (folder / "config.json").write_text("{}")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_000008", "step_000012"]


def test_pixels_are_shared_out_from_the_earliest_place():
    def state(item):
        position = {"count": 3, "left": False, "position": [0, item, 1]}
        return {"drawn": 8, "sources": {"pixels": position, "shards": position | {"position": None}}}

    loop = {"streams": [state(7), state(4)]}
    assert redistributed(loop, 2) == loop["streams"]
    assert [s["sources"]["pixels"]["position"] for s in redistributed(loop, 3)] == [[0, 4, 1]] * 3


def test_an_unwritable_folder_is_reported_before_a_model(whole, tmp_path):
    from training.flags import read_recipe

    blocked = tmp_path / "file"
    blocked.write_text("")
    flags = [*FLAGS, *STEPS, "--shards", read_recipe(whole)["shards"], "--output_dir", str(blocked / "run")]
    with pytest.raises(OSError, match=r"The run folder .*run cannot be written \(.*\); name another --output_dir"):
        main(flags)
