"""The files in training/launch: what Accelerate reads in them, and the Slurm script against a stand-in for Slurm."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "training" / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))


def launched(config):
    """The arguments that `accelerate launch` makes of a config file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = ["--config_file", str(config), "-m", "training.pretrain", "--recipe", "base"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_knows_every_key(config):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    loaded = load_config_from_file(str(config))  # which refuses unknown keys, but not inside fsdp_config
    assert isinstance(loaded, ClusterConfig) and loaded.mixed_precision == "bf16"
    flags = {action.dest for action in launch_command_parser()._actions}
    told = yaml.safe_load(config.read_text())
    assert set(told.get("fsdp_config", {})) | set(told.get("parallelism_config", {})) <= flags


def test_shapes():
    from accelerate.commands.config.config_args import load_config_from_file

    shapes = {}
    for config in CONFIGS:
        loaded = load_config_from_file(str(config))
        shapes[config.stem] = (loaded.distributed_type.value, loaded.num_machines, loaded.num_processes)
    assert shapes == {
        "one_gpu": ("NO", 1, 1),
        "eight_gpus": ("MULTI_GPU", 1, 8),
        "four_nodes": ("MULTI_GPU", 4, 32),
        "four_nodes_fsdp2": ("FSDP", 4, 32),
        "four_nodes_hsdp": ("FSDP", 4, 32),
    }


def fsdp_environment(config):
    from accelerate.utils.launch import prepare_multi_gpu_env

    return {key: value for key, value in prepare_multi_gpu_env(launched(config)).items() if key.startswith("FSDP_")}


def test_fsdp2_wraps_the_blocks_and_drops_their_weights(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    from modeling_toto import TotoConfig, TotoForCausalLM

    for key, value in fsdp_environment(LAUNCH / "four_nodes_fsdp2.yaml").items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.cpu_ram_efficient_loading is False
    plugin.set_auto_wrap_policy(TotoForCausalLM(TotoConfig.from_preset("tiny", num_hidden_layers=2)))
    classes = {kind.__name__ for kind in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]}
    assert classes == {"TotoDecoderLayer"}


def test_hsdp_shards_like_fsdp2_within_a_machine(monkeypatch):
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils.launch import prepare_multi_gpu_env

    hsdp, fsdp2 = (LAUNCH / f"four_nodes_{name}.yaml" for name in ("hsdp", "fsdp2"))
    assert fsdp_environment(hsdp) == fsdp_environment(fsdp2)
    for key, value in prepare_multi_gpu_env(launched(hsdp)).items():
        if key.startswith("PARALLELISM_CONFIG_"):
            monkeypatch.setenv(key, value)
    found = ParallelismConfig()
    assert (found.dp_replicate_size, found.dp_shard_size, found.total_size) == (4, 8, 32)
    assert found.fsdp_dim_names == ["dp_replicate", "dp_shard_cp"]


@pytest.fixture
def slurm(tmp_path):
    """Runs the script where srun starts two tasks that note what they were given and exit with a code of ours."""
    bin = tmp_path / "bin"
    bin.mkdir()
    commands = {
        "scontrol": 'if [[ $1 == show ]]; then printf "node7\\nnode8\\n"; else echo "$@" >> "$NOTES"; fi',
        "python": 'env | grep -E "^(ACCELERATE|FSDP|PARALLELISM)_" > "$NOTES.env"; '
        'echo "$RANK/$LOCAL_RANK/$WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >> "$NOTES"; exit "$CODE"',
        "srun": """while [[ $1 == --* ]]; do shift; done
worst=0
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@"
  code=$?; (( code > worst )) && worst=$code
done
exit $worst""",
    }
    for name, text in commands.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)

    def run(code, *argv, **variables):
        notes = tmp_path / "notes"
        notes.write_text("")
        environment = {"PATH": f"{bin}:{os.environ['PATH']}", "NOTES": str(notes), "CODE": str(code), **variables}
        environment |= {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "4"}
        environment |= {"SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2"}
        done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch"), *argv], env=environment, capture_output=True)
        return done.returncode, notes.read_text().splitlines()

    return run


def test_slurm_starts_resumes_and_requeues(slurm, tmp_path):
    run = tmp_path / "a run"
    code, notes = slurm(0, str(run), "--recipe", "1b")
    told = f"-m training.pretrain --output_dir {run} --recipe 1b"
    assert (code, notes) == (0, [f"0/0/2 node7:20041 {told}", f"1/1/2 node7:20041 {told}"])
    run.mkdir()
    (run / "recipe.yaml").write_text("preset: 1b\n")
    code, notes = slurm(75, str(run), "--recipe", "1b")
    assert code == 75 and notes[0].endswith(f"--resume {run}") and notes[2:] == ["requeue 41"]


def test_slurm_requeues_failures_up_to_a_cap(slurm, tmp_path):
    run, requeued = tmp_path / "a run", ["requeue 41"]
    for step in ("step_000100", "step_000200"):  # a new checkpoint starts the count again
        (run / "checkpoints" / step).mkdir(parents=True)
        for _ in range(3):
            code, notes = slurm(134, str(run))
            assert code == 134 and notes[2:] == requeued
        code, notes = slurm(134, str(run))
        assert code == 134 and not notes[2:]
    assert slurm(134, str(run), MAX_FAILURES="5")[1][2:] == requeued
    assert slurm(75, str(run))[1][2:] == requeued  # stopped, not failed
    assert slurm(0, str(run))[0] == 0 and not (tmp_path / "a run.failures").exists()
    new = tmp_path / "new"  # it fails before it has a folder
    assert [slurm(1, str(new))[1][2:] for _ in range(4)] == [requeued] * 3 + [[]]


@pytest.mark.parametrize(
    "sharding, config", [(None, "four_nodes"), ("fsdp2", "four_nodes_fsdp2"), ("hsdp", "four_nodes_hsdp")]
)
def test_the_slurm_script_says_the_same_as_the_config(slurm, tmp_path, sharding, config):
    from accelerate.utils.launch import prepare_multi_gpu_env

    slurm(0, str(tmp_path / "run"), **({"SHARDING": sharding} if sharding else {}))
    exported = dict(line.split("=", 1) for line in (tmp_path / "notes.env").read_text().splitlines())
    told = yaml.safe_load((LAUNCH / f"{config}.yaml").read_text())
    keys = {key.upper() for key in (*told.get("fsdp_config", {}), *told.get("parallelism_config", {}))}
    assert keys <= set(exported) and {key for key in exported if key.startswith("FSDP_")} <= keys
    environment = prepare_multi_gpu_env(launched(LAUNCH / f"{config}.yaml"))
    environment |= {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}  # two machines in this test
    assert exported.items() <= environment.items()


def test_slurm_refuses_another_sharding(slurm, tmp_path):
    assert slurm(0, str(tmp_path / "run"), SHARDING="zero") == (2, [])
