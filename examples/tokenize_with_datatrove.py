# %% [markdown]
# # Tokenize with datatrove
#
# Tasks of `toto tokenize` need no launcher that knows of it: a rank and their number suffice. Here datatrove's
# executors give them, which start the tasks, log them, and start again only those that did not end. `DATA` is a folder
# of videos; without it, clips of the embedded world are drawn. Locally, the tasks run one after the other; under Slurm,
# replace `LocalPipelineExecutor(...)` by `SlurmPipelineExecutor(job_name="tokens", partition="gpu", time="24:00:00",
# sbatch_args={"gpus-per-task": 1}, ...)`. It needs `pip install datatrove`.

# %%
import os
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from tokenization.tokenize_dataset import TokenizeArgs, tokenize

# %%
OUT = Path(os.environ.get("OUT", "out/tokenize_with_datatrove"))
FLAGS = {"dataset": os.environ.get("DATA", "toyworld"), "max_clips": int(os.environ.get("MAX_CLIPS", 64))}


# %%
class Tokenize(PipelineStep):
    """A task's share of `toto tokenize`; the last task also makes the shards. flags: fields of TokenizeArgs."""

    name = "toto tokenize"

    def __init__(self, **flags):
        super().__init__()
        self.flags = flags

    def run(self, data, rank: int = 0, world_size: int = 1):
        tokenize(TokenizeArgs(**self.flags, rank=rank, world=world_size))
        return data


# %%
shards = OUT / "shards"
step = Tokenize(output=str(shards), **FLAGS)
LocalPipelineExecutor(pipeline=[step], tasks=4, workers=1, logging_dir=str(OUT / "log")).run()
print((shards / "README.md").read_text()[:400])
