"""The command that trains visual tokenizers, at full length but tiny: what it writes is true and loads back."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import held_up
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import VQGAN
from transformers import AutoModel

from tokenization.evaluate_tokenizer.scores import measure
from tokenization.modeling_dvae import TotoDVAEModel
from tokenization.modeling_vqgan import TotoVQGANModel
from tokenization.shards.files import is_held_out
from training import find_model
from training.args import PREEMPTED
from training.engine import checkpoints
from training.flags import parse
from training.rows.frames import FrameStream, held_out_frames
from training.tokenizers.loop import TokenizerLoop
from training.train_tokenizer import TYPES, main, measured_on, with_held_out

CRITIC = ["--disc_start", "6", "--disc_layers", "1", "--disc_channels", "8"]
DVAE = {"n_hid": 16, "n_init": 8, "n_blk_per_group": 1, "num_codes": 32, "resolution": 32}


def command(kind, settings, output):
    short = "--dataset toyworld --max_steps 24 --batch_size 8 --logging_steps 4"
    short += " --eval_steps 12 --save_steps 8 --eval_frames 24"
    rate = "--learning_rate 3e-3 --warmup_steps 2" + (" --revive_every 4" if kind == "vqgan" else "")
    named = ["--kind", kind, "--model", json.dumps(settings), "--output_dir", str(output)]
    return [*named, *short.split(), *rate.split()]


def train(kind, settings, output, *flags):
    # Plain backgrounds and short runs: photographs and film take seconds to read.
    main([*command(kind, settings, output), *flags])
    return output


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory):
    return train("vqgan", VQGAN, tmp_path_factory.mktemp("tokenizers") / "vqgan")


@pytest.fixture(scope="module")
def dvae(tmp_path_factory):
    return train("dvae", DVAE, tmp_path_factory.mktemp("tokenizers") / "dvae", "--ema_decay", "0.9")


@pytest.fixture(scope="module")
def with_critic(tmp_path_factory):
    return train("vqgan", VQGAN, tmp_path_factory.mktemp("tokenizers") / "critic", *CRITIC)


def everything(folder):
    """What must be equal in two runs that are the same: the weights, and every row of the metrics without its rate."""
    logged = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    logged = [{key: value for key, value in row.items() if key != "frames_per_second"} for row in logged]
    return logged, (folder / "model.safetensors").read_bytes()


def rows(folder):
    """The rows of training steps; those of held-out frames have no loss."""
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.parametrize("kind", ["vqgan", "dvae"])
def test_the_terms_are_logged(kind, request):
    log = rows(request.getfixturevalue(kind))
    assert [row["step"] for row in log] == [4, 8, 12, 16, 20, 24]
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["psnr"]) for row in log)
    assert all(0 < row["codes_used"] <= 32 and row["frames_per_second"] > 0 for row in log)


@pytest.mark.parametrize(("kind", "model_class"), [("vqgan", TotoVQGANModel), ("dvae", TotoDVAEModel)])
def test_the_folder_loads_and_measures_as_written(kind, model_class, request):
    folder = request.getfixturevalue(kind)
    model = AutoModel.from_pretrained(folder)
    assert type(model) is model_class and model.config.num_codes == 32
    written = json.loads((folder / "evaluation.json").read_text())
    again = measure(model, held_out_frames("toyworld", "train", 32, 24, only_held_out=True))
    assert written == {"toyworld": again}
    assert again["num_frames"] == 24 and 1 <= again["codes_used"] <= 32 and again["perplexity"] <= again["codes_used"]


def test_held_out_frames_are_measured_and_shown_while_training(vqgan):
    rows = [json.loads(line) for line in (vqgan / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "val_psnr" in row]
    assert [row["step"] for row in measured] == [12, 24] and {row["dataset"] for row in measured} == {"toyworld"}
    assert measured[-1]["val_psnr"] == json.loads((vqgan / "evaluation.json").read_text())["toyworld"]["psnr"]
    assert 0 < measured[-1]["val_ssim"] < 1
    sheets = sorted(path.name for path in (vqgan / "samples").iterdir())
    assert sheets == ["toyworld-step_000012.png", "toyworld-step_000024.png"]


def test_codes_that_no_training_frame_has_are_retired(tmp_path):
    folder = train("vqgan", VQGAN | {"num_codes": 256}, tmp_path / "out", "--retire_unused", "true")
    model = AutoModel.from_pretrained(folder).eval()
    retired = (model.quantize.embedding.weight == model.quantize.embedding.weight.max()).all(1)
    stream = FrameStream(["toyworld"], "train", 32, 8, hold_out=True, seed=0)
    batches = [batch for _, batch in zip(range(27), stream, strict=False)][24:]  # a tenth of the steps, after them
    pixels = torch.from_numpy(np.concatenate(batches)).permute(0, 3, 1, 2).float() / 255
    used = torch.bincount(model.encode(pixels).flatten(), minlength=256) > 0
    assert torch.equal(used, ~retired) and 0 < used.sum() < 256
    assert folder.joinpath("README.md").read_text().count("retire_unused: true") == 1


def test_a_stream_holds_out_what_it_is_measured_on():
    held_out = {frame.tobytes() for frame in held_out_frames("toyworld", "train", 32, 24, only_held_out=True)}
    every = {frame.tobytes() for frame in held_out_frames("toyworld", "train", 32, 600)}
    assert len(held_out & every) >= 15  # of 600 clips, one in 20
    stream = FrameStream(["toyworld"], "train", 32, 128, hold_out=True)
    seen = {frame.tobytes() for _, batch in zip(range(16), stream, strict=False) for frame in batch}
    assert len(seen & every) > 200 and not seen & held_out


@pytest.mark.parametrize("count", [3, 12])
def test_of_few_photos_one_is_held_out_although_the_recipe_names_a_split(count, tmp_path):
    names = [name for name in map(str, range(100)) if not is_held_out(f"{name}.png")][:count]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / f"{name}.png")
    argv = ["--recipe", "toto_tokenizer_64", "--dataset", str(tmp_path), "--output_dir", "none"]
    args, *_ = parse(TYPES, argv, "toto train-tokenizer", "")
    assert args.eval_split == "validation"
    assert with_held_out(args, argv) == replace(args, eval_split="held_out")
    assert with_held_out(args, [*argv, "--eval_split", "validation"]) == args
    assert with_held_out(replace(args, dataset=["toyworld"]), argv).eval_split == "validation"  # which it has

    held_out = held_out_frames(str(tmp_path), "train", 8, 24, only_held_out=True)
    assert len(held_out) == 1
    stream = FrameStream([str(tmp_path)], "train", 8, 4, hold_out=True)
    seen = {frame.tobytes() for _, batch in zip(range(20), stream, strict=False) for frame in batch}
    assert len(seen) == count - 1 and held_out[0].tobytes() not in seen
    assert measured_on({"a": held_out}) == "1 frame held out of training (one file or row in 20, at least one)"


def test_one_of_several_configurations(tmp_path, monkeypatch):
    """Every frame that is trained or measured on is of the configuration that is named; toyworld has none."""
    data, frames = tmp_path / "data", []
    for name, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        (data / name).mkdir(parents=True)
        for i in range(40):  # of which one in 20 is held out
            Image.new("RGB", (40, 40), colour).save(data / name / f"{i}.png")
    configs = "".join(f"- {{config_name: {name}, data_dir: {name}}}\n" for name in ("red", "blue"))
    (data / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    take_step = TokenizerLoop.take_step
    monkeypatch.setattr(TokenizerLoop, "take_step", lambda *args: frames.append(args[1]) or take_step(*args))
    flags = ["--dataset", str(data), "--max_steps", "2"]
    folder = train("vqgan", VQGAN, tmp_path / "out", *flags, "--config_name", "blue")
    assert len(frames) == 2 and all((batch[..., 2] > 200).all() for batch in frames)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    held_out = held_out_frames(str(data), "train", 32, 24, only_held_out=True, config_name="blue")
    assert (held_out[..., 2] > 200).all() and len(held_out) == evaluation[str(data)]["num_frames"]
    stream = FrameStream([str(data), "toyworld"], "train", 32, 8, config_name="red")
    assert len(next(iter(stream))) == 8
    with pytest.raises(ValueError, match="several configurations; name one with --config_name: red, blue"):
        train("vqgan", VQGAN, tmp_path / "none", *flags)


@pytest.mark.parametrize("kind", ["vqgan", "dvae"])
def test_the_card_holds_the_numbers_of_the_evaluation(kind, request):
    folder = request.getfixturevalue(kind)
    card = (folder / "README.md").read_text()
    figures = json.loads((folder / "evaluation.json").read_text())["toyworld"]
    line = next(line for line in card.splitlines() if line.startswith("| toyworld |"))
    cells = [float(cell) for cell in line.strip("|").split("|")[1:]]
    shown = ("psnr", "ssim", "codes_used", "perplexity", "shift_equality", "num_frames")
    assert cells == pytest.approx([figures[key] for key in shown], rel=0, abs=5e-5)
    assert f"# A {kind} visual tokenizer" in card and "stride 8: 16 codes per frame" in card
    assert "max_steps: 24" in card and str(folder) not in card and "label-contaminated" not in card


def test_a_recipe_in_the_run_folder_repeats_it(vqgan, tmp_path):
    main(["--recipe", str(vqgan / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (vqgan / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "settings", "flags", "whole"),
    [
        ("vqgan", VQGAN, CRITIC, "with_critic"),  # the critic's weights, batch statistics and optimiser resume too
        ("dvae", DVAE, ["--ema_decay", "0.9"], "dvae"),
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(kind, settings, flags, whole, tmp_path, request, monkeypatch):
    whole = request.getfixturevalue(whole)
    broken = tmp_path / "broken"

    class Killed(Exception):
        pass

    save = checkpoints.save

    def killed_later(run, step, *rest):
        if step == 24:  # steps 17 to 24 are done, logged, and lost
            raise Killed
        return save(run, step, *rest)

    monkeypatch.setattr(checkpoints, "save", killed_later)
    with pytest.raises(Killed):
        train(kind, settings, broken, *flags)
    monkeypatch.undo()
    assert not (broken / "model.safetensors").exists()
    main(["--resume", str(broken)])
    unlike = ("frames_per_second",)
    assert [{k: v for k, v in row.items() if k not in unlike} for row in rows(broken)] == [
        {k: v for k, v in row.items() if k not in unlike} for row in rows(whole)
    ]
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_killed_command_leaves_whole_files_and_resumes(vqgan, tmp_path):
    run = tmp_path / "run"
    flags = command("vqgan", VQGAN, run)
    process = held_up.start("training.train_tokenizer", 3, tmp_path / "go", flags)
    held_up.wait_for_rows(run, 3, process)  # of steps 4, 8 and 12
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in find_model.steps(run)] == ["step_000008"]
    main(["--resume", str(run)])
    assert (run / "model.safetensors").read_bytes() == (vqgan / "model.safetensors").read_bytes()
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in rows(vqgan)]


@pytest.mark.parametrize(
    ("kind", "settings", "flags", "whole"),
    [("vqgan", VQGAN, CRITIC, "with_critic"), ("dvae", DVAE, ["--ema_decay", "0.9"], "dvae")],
)
def test_sigterm_writes_a_checkpoint_from_which_the_run_resumes_exactly(
    kind, settings, flags, whole, tmp_path, request
):
    whole, run = request.getfixturevalue(whole), tmp_path / "run"
    arguments = [*command(kind, settings, run), *flags, "--save_steps", "1000"]
    go = tmp_path / "go"
    process = held_up.start("training.train_tokenizer", 1, go, arguments, stdout=subprocess.PIPE, text=True)
    held_up.wait_for_rows(run, 1, process)
    process.send_signal(signal.SIGTERM)
    go.touch()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED == 75
    assert f"stopped by SIGTERM; resume with: toto train-tokenizer --resume {run}" in printed
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert 4 <= int(checkpoint.name.removeprefix("step_")) < 24 and not (run / "model.safetensors").exists()
    main(["--resume", str(run)])
    assert everything(run) == everything(whole)


def test_sigterm_to_one_of_two_processes_ends_both(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    run = tmp_path / "run"
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    here |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    arguments = [*command("vqgan", VQGAN, run), "--max_steps", "1000", "--logging_steps", "1", "--save_steps", "2000"]
    processes = [
        held_up.start(
            "training.train_tokenizer",
            1,
            tmp_path / "go",
            arguments,
            env=os.environ | here | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    held_up.wait_for_rows(run, 1, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert [process.wait(timeout=200) for process in processes] == [PREEMPTED, PREEMPTED]
    (checkpoint,) = find_model.steps(run)
    state = checkpoints.load_loop(checkpoint)
    assert state["world"] == len(state["streams"]) == 2 and state["step"] == rows(run)[-1]["step"] < 1000


def test_a_checkpoint_between_two_log_lines_keeps_what_the_next_line_counts(dvae, tmp_path):
    run = train("dvae", DVAE, tmp_path / "run", "--ema_decay", "0.9", "--save_steps", "5", "--keep_checkpoints", "9")
    assert everything(run) == everything(dvae)
    for path in find_model.steps(run)[1:]:
        shutil.rmtree(path)
    main(["--resume", str(run)])
    assert [path.name for path in find_model.steps(run)][:2] == ["step_000005", "step_000010"]
    assert everything(run) == everything(dvae)


def test_a_run_stopped_before_its_first_checkpoint_starts_again(vqgan, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(vqgan, run)
    shutil.rmtree(run / "checkpoints")
    main(["--resume", str(run)])
    assert "has no checkpoint yet, so the run starts again" in capsys.readouterr().out
    assert everything(run) == everything(vqgan)


def test_a_changed_setting_is_reported_and_another_model_is_refused(vqgan, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(vqgan, run)
    main(["--resume", str(run), "--max_steps", "26", "--learning_rate", "1e-4"])
    printed = capsys.readouterr().out
    assert "max_steps is 26 and was 24: the losses differ" in printed and "learning_rate is 0.0001" in printed
    assert (run / "changes.txt").read_text() in printed + "\n" and "max_steps: 26" in (run / "recipe.yaml").read_text()
    for flags in (["--model", '{"num_codes": 64}'], ["--kind", "dvae", "--revive_every", "50"], CRITIC):
        with pytest.raises(ValueError, match=f"{flags[0]} is .*, but the run was started with .* start a new run"):
            main(["--resume", str(run), *flags])


def test_the_critic_joins_late_and_its_weight_adapts(with_critic, vqgan):
    log = rows(with_critic)
    assert "disc_loss" not in log[0] and all("disc_loss" in row and row["adaptive_weight"] > 0 for row in log[1:])
    assert log[0]["loss"] == rows(vqgan)[0]["loss"]  # until then the same run
    assert np.isfinite(log[-1]["disc_loss"])


def test_two_processes_share_the_frames(tmp_path):
    run = tmp_path / "run"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = [*command("vqgan", VQGAN, run), *CRITIC, "--max_steps", "8"]
    done = subprocess.run(
        [*launch, "-m", "training.train_tokenizer", *flags], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stdout and len(rows(run)) == 2
    state = json.loads((run / "checkpoints" / "step_000008" / "training_state" / "loop.json").read_text())
    assert len(state["streams"]) == 2
    streams = [FrameStream(["toyworld"], "train", 32, 8, rank=rank, world=2) for rank in range(2)]
    first, second = ({frame.tobytes() for frame in next(iter(stream))} for stream in streams)
    assert first and second and not first & second


@pytest.mark.parametrize("batches", [3, 16, 21])  # within a chunk, at its end, in the next one
def test_a_stream_resumes_where_it_stood(batches):
    stream = FrameStream(["toyworld", "toyworld:cluttered"], "train", 32, 4)
    whole = [batch for _, batch in zip(range(40), stream, strict=False)]
    assert whole[0].shape == (4, 32, 32, 3) and whole[0].dtype == np.uint8
    first = FrameStream(["toyworld", "toyworld:cluttered"], "train", 32, 4)
    for _ in zip(range(batches), first, strict=False):
        pass
    resumed = FrameStream(["toyworld", "toyworld:cluttered"], "train", 32, 4)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [batch for _, batch in zip(range(batches, 40), resumed, strict=False)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[batches:], rest, strict=True))
    other = next(iter(FrameStream(["toyworld", "toyworld:cluttered"], "train", 32, 4, seed=1)))
    assert not np.array_equal(whole[0], other)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another --output_dir"):
        train("vqgan", VQGAN, tmp_path)
    with pytest.raises(ValueError, match="is not empty; choose another --output_dir"):
        train("vqgan", VQGAN, tmp_path / "precious.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"The loss is not finite at step \d+; lower --learning_rate"):
        train("vqgan", VQGAN, tmp_path / "out", "--learning_rate", "1e30", "--max_grad_norm", "1e30")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kind", "jpeg"], "--kind is 'jpeg'; it must be one of vqgan, dvae"),
        (["--max_steps", "0"], "--max_steps is 0; it must be above 0"),
        (["--revive_every", "-1"], "--revive_every is -1; it must be at least 0"),
        (["--kl_weight", "1"], "--kl_weight has no effect on a vqgan; leave it out"),
        (["--ema_decay", "0.9"], "--ema_decay works only with --kind dvae"),
        (["--perceptual", "vgg"], "--perceptual is 'vgg'; it must be one of lpips, efficientnet-lite0"),
        (["--model", '{"num_code": 3}'], "unknown key 'num_code'; did you mean 'num_codes'"),
        (["--model", "{num_codes: 3}"], "--model must be a JSON mapping such as"),
        (["--model", "[3]"], "it must be a JSON mapping"),
        (["--config_name", "x"], "--config_name would have no effect on toyworld"),
        (["--dataset", "toyworld:hard"], "toyworld has no variant 'hard'; it has simple, cluttered, film"),
        (["--split", "dev"], "toyworld has no split 'dev'; it has train, validation, test"),
    ],
)
def test_wrong_flags_are_reported(flags, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train("vqgan", VQGAN, tmp_path / "out", *flags)
