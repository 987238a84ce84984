"""What torchrun starts in the test of streamed heads on two processes; each saves its results.

torchrun --standalone --nproc-per-node 2 tests/evaluation/two_ranks_streamed.py CHECKPOINT FOLDER [UPDATES UNTIL DEATH]
"""

import contextlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NAMES = ("choice", "val_accuracy", "val_loss", "test_predictions", "test_probabilities")


def streamed_data(backbone):
    """Rows of 16 codes whose classes show in them: 61 to train, 40, and 25 of 13 items. Two tasks: 4 and 3 classes."""
    import torch

    from evaluation.backbones.extraction import Job
    from evaluation.backbones.inputs import KeptInputs
    from evaluation.heads.streamed import StreamedData

    draw = torch.Generator().manual_seed(0)
    inputs, labels = [], []
    for count in (61, 40, 25):
        wanted = torch.stack(
            [torch.randint(4, (count,), generator=draw), torch.randint(3, (count,), generator=draw)], 1
        )
        codes = 64 + 16 * wanted[:, :1] + torch.randint(24, (count, 16), generator=draw)
        codes[:, :4] = 64 + 20 * wanted[:, 1:] + torch.randint(20, (count, 4), generator=draw)
        ids = torch.cat([torch.full((count, 1), 3), codes.clamp(max=127)], 1)
        inputs.append(KeptInputs(ids.short()))
        labels.append(wanted)
    job, items = Job(backbone, [0, 1, 3], 4), torch.arange(25) // 2
    return StreamedData(job, inputs, labels[:2], [4, 3], items, batch_size=5, probabilities=True)


def banks() -> dict:
    """Linear heads with batch normalisation for five epochs and attention heads for three, four settings each."""
    from evaluation.heads.bank import HeadBank

    kinds, epochs = {"linear": (1e-3, 1e-2), "attention": (1e-3, 3e-3)}, {"linear": 5, "attention": 3}
    return {
        kind: HeadBank(kind, [4, 3], rates, epochs=epochs[kind], batch_size=16, batch_norm=kind == "linear", seed=3)
        for kind, rates in kinds.items()
    }


def main() -> None:
    import torch
    from accelerate import PartialState
    from safetensors.torch import save_file

    from evaluation.backbones import contract
    from evaluation.backbones.load import load_backbone
    from evaluation.heads import shares, streamed
    from evaluation.heads.stacked import StackedAdamW

    checkpoint, folder = sys.argv[1], Path(sys.argv[2])
    contract.fast_autocast = lambda device: contextlib.nullcontext()
    state = PartialState(cpu=True)
    if len(sys.argv) > 3:
        streamed.CHECK_STEPS, shares.SAVE_SECONDS, shares.SAVING_SHARE = 1, 0, 0
        left, step = [int(sys.argv[3])], StackedAdamW.step

        def dying(self, scale):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            step(self, scale)

        StackedAdamW.step = dying
    data = streamed_data(load_backbone(checkpoint, torch.device("cpu")))
    found = streamed.train_streamed(data, banks(), folder / "state")
    tensors = {f"{kind}.{name}": getattr(chosen, name) for kind, chosen in found.items() for name in NAMES}
    save_file(tensors, folder / f"{state.process_index}.safetensors")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
