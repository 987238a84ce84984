"""Two processes share the batches of a bank and end with the numbers of one."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from two_ranks_heads import banks


def test_two_ranks_give_the_numbers_of_one(tmp_path):
    """61 clips in batches of 6: the last one has a single clip, and none for the second process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("two_ranks_heads.py")), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    alone = banks(tmp_path / "alone")
    assert len(alone) == len(first) == 10
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4)
    files = sorted(path.name for path in tmp_path.glob("*.*"))
    assert files == ["0.safetensors", "1.safetensors", "cross_attention_mlp.safetensors", "linear.safetensors"]
