"""What torchrun starts in the test of heads on two processes: banks on `small_sets`, their results saved by each rank.

torchrun --standalone --nproc-per-node 2 tests/evaluation/two_ranks_heads.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def banks(folder: Path) -> dict:
    """Results of a bank with batch normalisation and one on tokens: name -> tensor."""
    import torch
    from test_heads import small_sets

    from evaluation.heads.bank import HeadBank

    found = {}
    for kind in ("linear", "cross_attention_mlp"):
        # Large rates make much of rounding; so does batch normalisation where a class is missing from the first batch:
        # its gradient is zero up to rounding, which Adam's first step enlarges. Seed 3 has all classes.
        bank = HeadBank(kind, [4, 3], (1e-3, 3e-3), epochs=4, batch_size=6, batch_norm=kind == "linear", seed=3)
        file = folder / f"{kind}.safetensors"
        chosen = bank.run(*small_sets(), items=torch.arange(25), checkpoint=file, probabilities=True)
        for name in ("choice", "val_accuracy", "val_loss", "test_predictions", "test_probabilities"):
            found[f"{kind}.{name}"] = getattr(chosen, name).contiguous()
    return found


def main() -> None:
    import torch
    from safetensors.torch import save_file

    folder = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    save_file(banks(folder), folder / f"{torch.distributed.get_rank()}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
