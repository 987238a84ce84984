"""The files in training/launch: what Accelerate reads in them, and the Slurm script against a stand-in for Slurm."""

import os
import re
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
    assert set(yaml.safe_load(config.read_text()).get("fsdp_config", {})) <= flags


def test_shapes():
    from accelerate.commands.config.config_args import load_config_from_file

    shapes = {}
    for config in CONFIGS:
        loaded = load_config_from_file(str(config))
        shapes[config.stem] = (loaded.distributed_type.value, loaded.num_machines, loaded.num_processes)
    assert shapes == {
        "one_gpu": ("NO", 1, 1),
        "eight_gpus": ("MULTI_GPU", 1, 8),
        "four_nodes_fsdp2": ("FSDP", 4, 32),
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


def test_the_slurm_script_says_the_same_as_the_config():
    script = (LAUNCH / "slurm.sbatch").read_text()
    exported = dict(re.findall(r"^export (FSDP_\w+)=(\S+)$", script, re.M))
    environment = fsdp_environment(LAUNCH / "four_nodes_fsdp2.yaml")
    assert exported.items() <= environment.items() and exported["FSDP_VERSION"] == "2"
    told = yaml.safe_load((LAUNCH / "four_nodes_fsdp2.yaml").read_text())["fsdp_config"]
    assert {key.upper() for key in told} <= set(exported)


@pytest.fixture
def slurm(tmp_path):
    """Runs the script where srun starts two tasks that note what they were given and exit with a code of ours."""
    bin = tmp_path / "bin"
    bin.mkdir()
    commands = {
        "scontrol": 'if [[ $1 == show ]]; then printf "node7\\nnode8\\n"; else echo "$@" >> "$NOTES"; fi',
        "python": 'echo "$RANK/$LOCAL_RANK/$WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >> "$NOTES"; exit "$CODE"',
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

    def run(code, *argv):
        notes = tmp_path / "notes"
        notes.write_text("")
        environment = {"PATH": f"{bin}:{os.environ['PATH']}", "NOTES": str(notes), "CODE": str(code)}
        environment |= {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "4"}
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
    code, notes = slurm(1, str(run))
    assert code == 1 and len(notes) == 2  # an error is not tried again
