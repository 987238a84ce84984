"""`toto plan` against what models, shards and runs really are; and the launch files, as accelerate reads them."""

import json
from pathlib import Path

import pytest
import yaml

from modeling_toto import PRESETS, TotoConfig
from training.architectures import flops_per_token, parameters
from training.plan import main

LAUNCH = Path(__file__).parents[2] / "training" / "launch"


def planned(capsys, *argv):
    main([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_papers_base_by_hand(capsys):
    found = planned(capsys, "--recipe", "base", "--gpus", "64")
    # 12 layers of 4 d^2 attention and 3 d h MLP, and 8,256 ids; 6 a weight, and 6 d for each of 4,098 positions a layer
    weights = 12 * (4 * 768**2 + 3 * 768 * 3072) + 8256 * 768
    flops = 6 * weights + 6 * 12 * 768 * 4098
    assert found["flops_per_token"] == flops and found["tokens"] == 2**20 * 10**6
    assert found["hours"] == pytest.approx(flops * 2**20 * 10**6 / (64 * 989e12 * 0.4) / 3600)
    assert (found["rows_per_device"], found["accumulation"]) == (4, 1)  # 256 rows over 64 devices
    assert found["memory_gb"]["moments"] == pytest.approx(8e-9 * found["parameters"])
    shares = {source["name"]: source for source in found["sources"]}
    assert shares["howto100m"]["epochs"] == pytest.approx(0.6 * 2**20 * 10**6 / 640e9)
    assert shares["ego4d"]["shards_gb"] == pytest.approx(51.5)


def test_attention_and_vocabulary_count():
    config = TotoConfig.from_preset("base")
    longer = TotoConfig.from_preset("base", max_position_embeddings=2 * 4098)
    wider = TotoConfig.from_preset("base", vocab_size=2 * 8256)
    assert flops_per_token(longer) - flops_per_token(config) == 6 * 12 * 768 * 4098
    assert flops_per_token(wider) - flops_per_token(config) == 6 * 8256 * 768


def test_sharding_shares_memory_out(capsys):
    alone, shared = (planned(capsys, "--recipe", "1b", "--gpus", "32", "--sharding", s) for s in ("ddp", "fsdp2"))
    assert shared["memory_gb"]["moments"] == pytest.approx(alone["memory_gb"]["moments"] / 32)
    assert shared["memory_gb"]["activations"] == alone["memory_gb"]["activations"]
    main(["--recipe", "1b", "--gpus", "1", "--memory_gb", "16", "--peak_tflops", "100"])
    assert "DOES NOT FIT: lower --per_device_batch_size" in capsys.readouterr().out


def test_every_preset_has_a_line(capsys):
    main(["--all", "--gpus", "8"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(f"{parameters(TotoConfig.from_preset(line.split()[0])) / 1e6:,.1f} M" in line for line in lines)


def test_epochs_of_shards_are_read_from_them(shards, capsys):
    fields = '{"vocab_size": 96, "tokens_per_frame": 16, "num_frames": 4, "max_position_embeddings": 66}'
    flags = ["--preset", "tiny", "--config", fields, "--shards", str(shards), "--tokens_per_step", "512"]
    (source,) = planned(capsys, *flags, "--max_steps", "60", "--gpus", "1")["sources"]
    assert source["tokens"] == 48 * 64 and source["epochs"] == pytest.approx(10)


def test_a_run_is_set_against_the_model_of_throughput(tmp_path, capsys):
    flops = 6e9
    rows = [
        {"step": s, "tokens": 100 * s, "flops": 100 * s * flops, "tokens_per_second": 50.0, "mfu": 0.3}
        for s in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["--measured", str(tmp_path), "--mfu", "0.4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["peak_gflops"] == pytest.approx(50 * 6 / 0.3)
    assert found["measured_over_predicted"] == pytest.approx(0.75)


def test_bad_plans_get_a_sentence(capsys):
    with pytest.raises(ValueError, match="256 rows, which 60 processes cannot share equally"):
        main(["--recipe", "base", "--gpus", "60"])
    with pytest.raises(ValueError, match="--gpu rtx is not known; choose a100"):
        main(["--recipe", "base", "--gpu", "rtx"])


@pytest.mark.parametrize("name", ["one_gpu", "eight_gpus", "four_nodes_fsdp2"])
def test_accelerate_takes_the_launch_files(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin

    from modeling_toto.block_toto import TotoDecoderLayer

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # refuses keys that it does not know
    known = {action.dest for action in launch_command_parser()._actions}
    for key, value in (config.fsdp_config or {}).items():
        assert key in known, f"accelerate launch knows no {key}"
        if key == "fsdp_transformer_layer_cls_to_wrap":
            assert value == TotoDecoderLayer.__name__
    processes = {"one_gpu": (1, 1), "eight_gpus": (8, 1), "four_nodes_fsdp2": (32, 4)}[name]
    assert (config.num_processes, config.num_machines) == processes and config.mixed_precision == "bf16"
    if name == "four_nodes_fsdp2":
        settings = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())["fsdp_config"]
        assert FullyShardedDataParallelPlugin(fsdp_version=settings["fsdp_version"]).fsdp_version == 2


def test_the_slurm_script_is_bash():
    import subprocess

    assert subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sbatch")]).returncode == 0
