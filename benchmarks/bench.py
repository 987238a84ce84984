"""Speed side by side with the peer, in one process and in alternation: `python benchmarks/bench.py train --json`.

Prints one JSON object: ratios (above 1: this project is ahead), and the absolute values of both sides, medians with
their spread. Logs go to stderr.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def alternate(sides: dict, rounds: int) -> dict:
    """Seconds of each side's call, in turns after one unmeasured round: {name: [seconds, ...]}."""
    seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
        print(f"round {turn}/{rounds}", file=sys.stderr)
    return seconds


def train(preset: str, rows: int, rounds: int) -> dict:
    """One optimiser step on full rows: TotoForCausalLM (skip_logits) against transformers' LlamaForCausalLM."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from modeling_toto import TotoConfig, TotoForCausalLM
    from training.args import OptimArgs
    from training.device import fast_autocast
    from training.optim import make_optimizer

    config = TotoConfig.from_preset(preset)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    llama = LlamaConfig(**{name: getattr(config, name) for name in names}, attn_implementation="sdpa")
    length = 2 + config.num_frames * config.tokens_per_frame
    ids = torch.randint(64, config.vocab_size, (rows, length))

    def step_of(model, **forward):
        optimizer = make_optimizer(model, OptimArgs())

        def step():
            with fast_autocast(ids.device):
                loss = model(input_ids=ids, labels=ids, use_cache=False, **forward).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    torch.manual_seed(0)
    sides = {"toto": step_of(TotoForCausalLM(config), skip_logits=True), "llama": step_of(LlamaForCausalLM(llama))}
    seconds = alternate(sides, rounds)
    values = {}
    for name, measured in seconds.items():
        speeds = [rows * length / s for s in measured]
        values[f"{name}_tokens_per_second"] = {
            "median": statistics.median(speeds),
            "min": min(speeds),
            "max": max(speeds),
        }
    ratio = values["toto_tokens_per_second"]["median"] / values["llama_tokens_per_second"]["median"]
    return {"ratios": {"tokens_vs_llama_eager": ratio}, "values": values}


BENCHES = {"train": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=BENCHES, help="what to measure")
    parser.add_argument("--preset", default="tiny", help="size of the model (TotoConfig.from_preset)")
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--json", action="store_true", help="print JSON only (it always is; for scripts)")
    args = parser.parse_args()

    import torch

    from training.device import bf16_is_fast
    from training.pretrain import versions

    device = torch.device("cpu")
    result = BENCHES[args.name](args.preset, args.rows, args.rounds)
    settings = {"preset": args.preset, "rows": args.rows, "rounds": args.rounds, "bf16": bf16_is_fast(device)}
    print(json.dumps({"bench": args.name, "device": "cpu", "versions": versions(device), **settings, **result}))


if __name__ == "__main__":
    main()
