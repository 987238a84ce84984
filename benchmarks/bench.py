"""Speed side by side with the peer, in one process and in alternation: `python benchmarks/bench.py NAME --json`.

train: one optimiser step, against transformers' LlamaForCausalLM. tokenizer: pictures to codes with a dVAE of the
published shape and random weights, against the `dall-e` package's encoder (make .venv installs it).

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


def spread(rates: list[float]) -> dict:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


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
        values[f"{name}_tokens_per_second"] = spread([rows * length / s for s in measured])
    ratio = values["toto_tokens_per_second"]["median"] / values["llama_tokens_per_second"]["median"]
    return {"ratios": {"tokens_vs_llama_eager": ratio}, "values": values, "preset": preset, "rows": rows}


def tokenizer(frames: int, rounds: int) -> dict:
    """Frames to codes at 128 pixels: `TotoProcessor.encode_frames`, exact and in bf16, against dall_e's encoder.

    The peer gets pixels that are prepared already; ours starts from the 8-bit frames. Without fast bfloat16 on this
    machine bf16 is not timed (its ratio is null) and its agreement is that of rounding every convolution to bf16.
    """
    import torch

    try:
        import dall_e
    except ImportError as error:
        raise SystemExit("the peer is missing: make .venv installs it") from error

    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.image_processing_toto import TotoImageProcessor
    from tokenization.modeling_dvae import TotoDVAEModel
    from tokenization.precision import bf16_is_fast
    from tokenization.processing_toto import TotoProcessor

    torch.manual_seed(0)
    model = TotoDVAEModel(TotoDVAEConfig()).eval()
    # Blocks at random bilinear noise, so that not every patch gets the same code.
    noise = torch.rand(frames, 3, 16, 16)
    pixels = torch.nn.functional.interpolate(noise, size=128, mode="bilinear")
    pictures = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    pixels = pictures.permute(0, 3, 1, 2).float().contiguous() / 255
    with torch.no_grad():  # random networks favour a few codes everywhere; centred logits let many win
        model.encoder.blocks.output.conv.bias.sub_(model.encode_logits(pixels[:1]).mean(dim=(0, 2, 3)))
    theirs = dall_e.Encoder().eval()
    theirs.load_state_dict(
        {
            name.removeprefix("encoder.").replace(".weight", ".w").replace(".bias", ".b"): value
            for name, value in model.state_dict().items()
            if name.startswith("encoder.")
        }
    )
    processor = TotoProcessor(TotoImageProcessor(resolution=128), model)
    fast = bf16_is_fast(torch.device("cpu"))

    @torch.inference_mode()
    def peer():
        return theirs(dall_e.map_pixels(pixels)).argmax(dim=1)

    sides = {"dall_e": peer, "exact": lambda: processor.encode_frames(pictures, batch_size=frames)}
    if fast:
        sides["bf16"] = lambda: processor.encode_frames(pictures, batch_size=frames, exact=False)
    seconds = alternate(sides, rounds)
    rates = {name: spread([frames / s for s in measured]) for name, measured in seconds.items()}

    with torch.inference_mode():
        logits = theirs(dall_e.map_pixels(pixels))
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-4
    exact = sides["exact"]()
    if fast:
        rounded = sides["bf16"]()
    else:
        handles = [handle for part in model.modules() for handle in rounded_to_bf16(part)]
        rounded = sides["exact"]()
        for handle in handles:
            handle.remove()
    codes = logits.argmax(1)
    values = {f"{name}_frames_per_second": rate for name, rate in rates.items()}
    values["distinct_codes"] = len(codes.unique())
    values["near_ties"] = int((~clear).sum())
    values["exact_codes_equal_beyond_near_ties"] = bool(torch.equal(exact[clear], codes[clear]))
    values["exact_code_agreement"] = (exact == codes).float().mean().item()
    values["bf16_code_agreement"] = (rounded == exact).float().mean().item()
    values["bf16_agreement_is_emulated"] = not fast
    ratios = {f"dvae_{name}_vs_dall_e": None for name in ("bf16", "exact")}
    for name in sides.keys() - {"dall_e"}:
        ratios[f"dvae_{name}_vs_dall_e"] = rates[name]["median"] / rates["dall_e"]["median"]
    return {"ratios": ratios, "values": values, "frames": frames}


def rounded_to_bf16(module) -> list:
    """Hooks that round what a convolution takes and gives to bfloat16, as bf16 inference does; sums stay in fp32."""
    import torch

    from tokenization.modeling_dvae import TotoDVAECodeLogits

    if not isinstance(module, torch.nn.Conv2d) or isinstance(module, TotoDVAECodeLogits):
        return []
    weight = module.weight.data

    def before(_, inputs):
        module.weight.data = weight.bfloat16().float()
        return tuple(x.bfloat16().float() for x in inputs)

    def after(_, inputs, output):
        module.weight.data = weight
        return output.bfloat16().float()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("train", "tokenizer"), help="what to measure")
    parser.add_argument("--preset", default="tiny", help="train: size of the model (TotoConfig.from_preset)")
    parser.add_argument("--rows", type=int, default=4, help="train: rows a step")
    parser.add_argument("--frames", type=int, default=8, help="tokenizer: frames a batch")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--json", action="store_true", help="print JSON only (it always is; for scripts)")
    args = parser.parse_args()

    import torch

    from training.device import bf16_is_fast, versions

    device = torch.device("cpu")
    if args.name == "train":
        result = train(args.preset, args.rows, args.rounds)
    else:
        result = tokenizer(args.frames, args.rounds)
    settings = {"rounds": args.rounds, "bf16_is_fast": bf16_is_fast(device)}
    print(json.dumps({"bench": args.name, "device": "cpu", "versions": versions(device), **settings, **result}))


if __name__ == "__main__":
    main()
