"""Two processes, with DDP and with FSDP2, against one; sharded checkpoints under another world size."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import held_up
import pytest
import torch
from tiny_run import FLAGS

from tokenization.precision import bf16_is_fast
from training.args import PREEMPTED
from training.pretrain import main

STEPS = 40
# Relative, of losses whose products were shared out otherwise: twice what bf16 was seen to leave, where it is used.
SAME_LOSS = 1e-3 if bf16_is_fast(torch.device("cpu")) else 2e-4
# Four rows a step: with two ranks two each, one at a time.
LONG = ["--max_steps", str(STEPS), "--save_steps", "20", "--logging_steps", "1", "--val_rows", "4"]
LONG += ["--learning_rate", "3e-3", "--per_device_batch_size", "1"]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row["loss"] for row in rows if "loss" in row]


def first_ratios(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["update_ratio"]


def two_ranks(mode, *flags, processes=2, **variables):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(Path(__file__).with_name("two_ranks.py")), mode, *flags]
    done = subprocess.run(command, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def one_rank(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    main([*FLAGS, *LONG, "--shards", str(shards), "--output_dir", str(run)])
    return run


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def of_two(request, shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / request.param
    return (
        request.param,
        run,
        two_ranks(request.param, *FLAGS, *LONG, "--shards", str(shards), "--output_dir", str(run)),
    )


def test_two_ranks_give_the_losses_of_one(of_two, one_rank):
    mode, run, told = of_two
    assert "on 2 x cpu" in told and told.count("2 processes") == 2
    assert not list(run.glob("stacks_rank_*"))  # none has hung
    assert ("DistributedDataParallel" if mode == "ddp" else "FSDPTotoForCausalLM") in told
    ours, theirs = losses(run), losses(one_rank)
    assert len(ours) == STEPS and ours[-1] < ours[0] - 1  # it has learnt, so that a wrong gradient would show
    assert ours == pytest.approx(theirs, rel=SAME_LOSS)
    ours, theirs = (json.loads((r / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"] for r in (run, one_rank))
    assert ours == pytest.approx(theirs, rel=SAME_LOSS)
    assert first_ratios(run) == pytest.approx(first_ratios(one_rank), rel=0.02)


def test_a_run_ends_without_waiting_for_itself(of_two):
    """A process group that went with its model, under Python's lock, waited for ever in one run of ten."""
    mode, _, told = of_two
    if mode == "ddp":
        assert told.count("models that outlive their process group: 0") == 2


def test_gradients_meet_once_a_step(of_two):
    """Two micro-batches a step on each rank; the model is one bucket."""
    mode, _, told = of_two
    if mode == "ddp":
        assert re.findall(r"(\d+) exchanges", told) == [str(STEPS)] * 2
    else:
        sharded, weights, share = re.search(r"(\d+) of (\d+) weights sharded, ([\d.]+)", told).groups()
        assert sharded == weights and float(share) == pytest.approx(0.5, abs=0.02)


def test_hsdp_gives_the_losses_of_one(shards, one_rank, tmp_path):
    """Four processes: two copies of the weights, each sharded over two."""
    run, flags = tmp_path / "run", [*FLAGS, *LONG, "--shards", str(shards), "--output_dir", str(tmp_path / "run")]
    mesh = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}
    mesh["PARALLELISM_CONFIG_DP_SHARD_SIZE"] = "2"
    told = two_ranks("fsdp2", *flags, "--max_steps", "4", processes=4, **mesh)
    assert re.findall(r"weights sharded, ([\d.]+)", told) == ["0.50"] * 4
    moments = run / "checkpoints" / "step_000004" / "training_state" / "optimizer"
    sizes = [file.stat().st_size for file in sorted(moments.iterdir())]
    assert min(sizes[:2]) > 20 * max(sizes[2:])  # the second copy writes its share of the step counters
    # The schedule is shorter, but its warm-up is the same.
    assert losses(run)[:3] == pytest.approx(losses(one_rank)[:3], rel=SAME_LOSS)
    assert first_ratios(run) == pytest.approx(first_ratios(one_rank), rel=0.02)


def test_a_slow_rank_is_named_and_gradients_are_summed_in_bf16(shards, one_rank, tmp_path):
    run, steps = tmp_path / "run", ["--max_steps", "6", "--save_steps", "6", "--gradient_reduction", "bf16"]
    told = two_ranks("slow", *FLAGS, *LONG, *steps, "--shards", str(shards), "--output_dir", str(run))
    assert len(re.findall(r"step [3-6]/6 \| rank 1 is slow: [\d.]+ s", told)) == 4, told
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    slowest = [row["slowest_rank"] for row in rows if "loss" in row]
    assert all(each["rank"] == 1 and each["seconds"] > each["median"] + 0.25 for each in slowest[2:])
    # In the second step DDP orders its buckets by the first, in which the processes wait for each other once more.
    assert re.findall(r"(\d+) exchanges", told) == ["6"] * 2
    assert losses(run)[:3] == pytest.approx(losses(one_rank)[:3], rel=1e-2)  # of another schedule, after its warm-up


def test_a_rank_that_hangs_ends_the_others(shards, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("two_ranks.py")), "hang", *FLAGS, *LONG, "--shards", str(shards)]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0 and "Timed out waiting 5000ms" in done.stderr
    assert len(losses(tmp_path / "run")) == 2
    waits, hangs = ((tmp_path / "run" / f"stacks_rank_0000{rank}.txt").read_text() for rank in range(2))
    assert all(found.startswith("Timeout (0:00:05)!") for found in (waits, hangs))
    assert " in late\n" in hangs and " in take_step\n" in hangs  # where the rows do not come
    assert " in _gradients\n" in waits and " in late\n" not in waits


def test_a_checkpoint_of_two_ranks_resumes_with_one(of_two, tmp_path, capsys):
    _, whole, _ = of_two
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / f"step_{STEPS:06d}")
    moments = run / "checkpoints" / "step_000020" / "training_state" / "optimizer"
    assert len(list(moments.glob("*.safetensors"))) == 2  # each rank has written a part
    main(["--resume", str(run)])
    told = capsys.readouterr().out
    assert "The run had 2 processes and has 1: the rows and their order stay the same" in told
    assert losses(run)[20:] == pytest.approx(losses(whole)[20:], rel=SAME_LOSS)
    assert losses(run)[:20] == losses(whole)[:20]


def test_a_sharded_run_is_a_plain_checkpoint(of_two, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    from training.export import main as export

    _, run, _ = of_two
    export(["--to", "llama", "--model", str(run), "--output", str(tmp_path / "llama")])
    ids = torch.tensor([[1, 64, 70, 80]])
    toto = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / f"step_{STEPS:06d}")
    assert toto.config.architectures == ["TotoForCausalLM"]
    with torch.no_grad():
        assert torch.allclose(
            LlamaForCausalLM.from_pretrained(tmp_path / "llama")(ids).logits, toto(ids).logits, atol=1e-5
        )


def test_sigterm_checkpoints_and_says_so_by_its_exit_code(shards, one_rank, tmp_path):
    run = tmp_path / "run"
    flags = [*FLAGS, *LONG, "--save_steps", "1000", "--shards", str(shards), "--output_dir", str(run)]
    go = tmp_path / "go"
    process = held_up.start("training.pretrain", 3, go, flags, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    held_up.wait_for_rows(run, 3, process)
    process.send_signal(signal.SIGTERM)
    go.touch()
    told, _ = process.communicate(timeout=200)
    assert process.returncode == PREEMPTED == 75
    assert f"stopped by SIGTERM; resume with: toto pretrain --resume {run}" in told
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{len(losses(run)):06d}" == "step_000004"
    main(["--resume", str(run)])
    assert losses(run) == losses(one_rank)


def test_a_port_in_use_is_reported_before_a_process_group(shards, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        flags = [*FLAGS, *LONG, "--shards", str(shards), "--output_dir", str(tmp_path / "run")]
        command = [sys.executable, "-m", "training.pretrain", *flags]
        done = subprocess.run(command, env=ENVIRONMENT | where, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    told = f"error: Port {port} (MASTER_PORT) is in use; choose another one for all processes."
    assert done.stderr.strip().splitlines()[-1] == told
