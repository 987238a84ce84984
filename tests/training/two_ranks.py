"""What torchrun starts in the tests of several processes: pre-training with DDP, or with FSDP2 sharding on a CPU.

  torchrun --standalone --nproc-per-node 2 tests/training/two_ranks.py ddp|fsdp2|slow|hang [flags of toto pretrain]

slow: DDP, and the second rank waits for its rows in every step. hang: it never gets those of the third step.

Accelerate shards on accelerators only: with the processes of a CPU it would train with DDP and not say so. What it asks
is answered here, for the tests alone; the sharding is torch's own.
"""

import os
import sys
import time
import weakref
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def tell(text: str) -> None:
    """A line in one write, so that the other rank's words cannot come into it."""
    os.write(1, f"\n{text}\n".encode())


def shard_on_cpu() -> None:
    import accelerate.state
    from accelerate.utils import DistributedType

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    made, plugins = accelerate.state.AcceleratorState.__init__, []

    def make(self, *args, fsdp_plugin=None, **kwargs):
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugins.extend([fsdp_plugin] if fsdp_plugin is not None else [])
        if plugins and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[-1]

    accelerate.state.AcceleratorState.__init__ = make


def count_gradient_syncs() -> list[int]:
    """Appended to at every exchange of a bucket of gradients by DDP."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    made, syncs = DistributedDataParallel.__init__, []

    def counted(group, bucket):
        syncs.append(bucket.index())
        return allreduce_hook(group, bucket)

    def make(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.register_comm_hook(None, counted)

    DistributedDataParallel.__init__ = make
    return syncs


def count_bf16_sums() -> list[int]:
    """Appended to at every exchange of a bucket of gradients in bfloat16 by DDP."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    hook, syncs = default_hooks.bf16_compress_hook, []

    def counted(group, bucket):
        syncs.append(bucket.index())
        return hook(group, bucket)

    default_hooks.bf16_compress_hook = counted
    return syncs


def hold_up_rank_1(mode: str) -> None:
    import training.engine.loop as loop

    take, taken = loop.RowStream.take, []

    def late(self, count):
        taken.append(count)
        if os.environ["RANK"] == "1" and len(taken) > 1:
            time.sleep(600 if mode == "hang" and len(taken) == 3 else 0.3)
        return take(self, count)

    loop.RowStream.take = late
    if mode == "hang":
        loop.STEP_LIMIT = timedelta(seconds=5)


def main() -> None:
    mode, argv = sys.argv[1], sys.argv[2:]
    if mode == "fsdp2":
        shard_on_cpu()
    if mode in ("slow", "hang"):
        hold_up_rank_1(mode)
    syncs = count_bf16_sums() if mode == "slow" else count_gradient_syncs()

    import torch.distributed

    import training.engine.loop
    from training.pretrain import main as pretrain

    train, models = training.engine.loop.train, []

    def watched(run, learner, *args):
        from torch.distributed.tensor import DTensor

        accelerator, model = run.accelerator, learner.model
        tell(f"{accelerator.num_processes} processes, {type(model).__name__}")
        models.append(weakref.ref(model))
        sharded = [p for p in model.parameters() if isinstance(p, DTensor)]
        if mode == "fsdp2":
            here, whole = (
                sum(count(p) for p in sharded) for count in (lambda p: p.to_local().numel(), lambda p: p.numel())
            )
            tell(f"{len(sharded)} of {len(list(model.parameters()))} weights sharded, {here / whole:.2f} of them here")
        return train(run, learner, *args)

    destroy = torch.distributed.destroy_process_group

    def destroyed(*args, **kwargs):
        tell(f"models that outlive their process group: {sum(model() is not None for model in models)}")
        destroy(*args, **kwargs)

    training.engine.loop.train, torch.distributed.destroy_process_group = watched, destroyed
    pretrain(argv)
    tell(f"{len(syncs)} exchanges of gradients")


if __name__ == "__main__":
    from toto_cli import run

    run(lambda _: main())
