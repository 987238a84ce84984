"""The study of robots: a folder and a table for every task, and what is committed of them."""

import json
import subprocess

import pytest

import studies.robots as study


def test_steps_are_listed_with_their_commands(capsys, tmp_path):
    (tmp_path / "pick-place-v3" / "meta").mkdir(parents=True)
    (tmp_path / "pick-place-v3" / "meta" / "info.json").write_text("{}")
    study.main(["--work", str(tmp_path), "--tasks", "pick-place-v3", "--vision", "runs/mae", "--list"])
    collect, arms = capsys.readouterr().out.splitlines()
    assert collect.startswith("[done] collect/pick-place-v3") and arms.startswith("[    ] arms/pick-place-v3")
    assert f"robot arms --episodes {tmp_path}/pick-place-v3 --model checkpoints/toto-nano --arms proprio" in arms
    assert arms.endswith(f"toto vision:runs/mae --output {tmp_path}/pick-place-v3.json")


def test_results_are_copied_without_the_work_folder(monkeypatch, tmp_path):
    work, output, run = tmp_path / "work", tmp_path / "committed", []

    def carry_out(step, *_):
        run.append(step.name)
        step.made.parent.mkdir(parents=True, exist_ok=True)
        if step.name.startswith("arms/"):
            (work / "t_toto_success_1.mp4").write_bytes(b"film")
            seeds = [{"videos": ["t_toto_success_1.mp4", "t_toto.png"]}, {"videos": None}]
            arms = {
                arm: {"seeds": seeds} for arm in [*study.ARMS, *(["vision:a"] if "vision:a" in step.command else [])]
            }
            step.made.write_text(json.dumps({"command": f"--output {work}/t.json", "arms": arms}))
        else:
            step.made.write_text("{}")

    monkeypatch.setattr(study, "carry_out", carry_out)
    flags = ["--work", str(work), "--tasks", "t", "--output", str(output)]
    study.main(flags)
    assert run == ["collect/t", "arms/t"]
    assert json.loads((output / "t.json").read_text())["command"] == "--output out/robots/t.json"
    assert sorted(file.name for file in output.iterdir()) == ["t.json", "t_toto_success_1.mp4"]
    study.main(flags)
    assert run == ["collect/t", "arms/t"]  # finished steps are not run again
    study.main([*flags, "--vision", "a"])
    assert run == ["collect/t", "arms/t", "arms/t"]  # but an arm is added
    assert "vision:a" in json.loads((output / "t.json").read_text())["arms"]


def test_a_failed_step_is_named(monkeypatch, tmp_path):
    def fails(*_):
        raise subprocess.CalledProcessError(1, "toto")

    monkeypatch.setattr(study, "carry_out", fails)
    with pytest.raises(ValueError, match="The step collect/t failed; its message is above"):
        study.main(["--work", str(tmp_path), "--tasks", "t"])
