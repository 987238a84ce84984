"""Train a small visual tokenizer (VQGAN without its GAN, or dVAE) on any source of pictures, in minutes on a CPU.

No supervised network has a part in the loss, so a tokenizer trained here leaks no labels into a result.
"""

from __future__ import annotations

import difflib
import json
import queue
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .args import OptimArgs, option, parse, require

DESCRIPTION = "Train a visual tokenizer on frames of some datasets; writes a folder for `toto tokenize --tokenizer`."


@dataclass(frozen=True)
class TokenizerArgs:
    """What to train and on what."""

    recipe: str | None = option(None, "YAML file (or name in training/recipes/tokenizer) with defaults for these flags")
    kind: str = option("vqgan", "vqgan or dvae")
    model: str = option("{}", "JSON mapping of the tokenizer's configuration, such as '{\"num_codes\": 512}'")
    dataset: list[str] = option(["toyworld", "toyworld:cluttered", "toyworld:film"], "sources, drawn in turn")
    split: str = option("train", "split of every source")
    output_dir: str = option("runs/tokenizer", "folder for the weights, the card and metrics.jsonl")
    max_steps: int = option(2000, "optimiser steps")
    batch_size: int = option(32, "frames a step")
    logging_steps: int = option(50, "steps between log lines")
    commitment_weight: float = option(0.25, "beta of the VQ commitment term (as published)")
    revive_every: int = option(50, "steps between revivals of unused codes (ours)")
    kl_weight: float = option(1e-4, "weight of the dVAE's KL term at the end of its ramp")
    min_temperature: float = option(0.0625, "final Gumbel temperature of the dVAE (DALL-E: 1/16)")
    seed: int = option(0, "of weights and data")

    def __post_init__(self):
        require(self.kind in ("vqgan", "dvae"), f"--kind must be vqgan or dvae, not '{self.kind}'.")
        require(self.max_steps > 0 and self.batch_size > 0, "--max_steps and --batch_size must be above 0.")
        require(self.logging_steps > 0 and self.revive_every > 0, "--logging_steps and --revive_every must be above 0.")
        require(bool(self.dataset), "--dataset needs at least one source.")


def frame_batches(args: TokenizerArgs, resolution: int):
    """Endless uint8 batches (B, R, R, 3), the sources drawn in turn, mixed in a buffer of 16 batches."""
    import numpy as np

    from tokenization.sources import open_source

    def clips(dataset: str):
        seed = args.seed
        while True:
            found = False
            # Four frames a clip: neighbours are nearly equal, and a batch should show many scenes.
            for clip in open_source(
                dataset, args.split, num_frames=4, resolution=resolution, seed=seed, limit=10**9, crops=1
            ):
                found = True
                yield clip
            require(found, f"No clip of '{dataset}' could be read.")
            seed += 1

    rng = np.random.default_rng(args.seed)
    streams = [clips(dataset) for dataset in args.dataset]
    buffer: list = []
    while True:
        for stream in streams:
            buffer.extend(next(stream).frames)
        while len(buffer) >= 16 * args.batch_size:
            chosen = rng.choice(len(buffer), args.batch_size, replace=False)
            yield np.stack([buffer[i] for i in chosen])
            for i in sorted(chosen, reverse=True):
                buffer[i] = buffer[-1]
                buffer.pop()


def prefetch(batches, depth: int = 4):
    """Run a generator in a thread, `depth` items ahead; its exception is raised here."""
    ready: queue.Queue = queue.Queue(depth)

    def work():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        yield item


def vqgan_loss(model, pixels, args: TokenizerArgs, progress: float):
    """L1 + L2 on pixels, codebook and commitment terms (Esser et al. 2021 without the perceptual and GAN terms)."""
    out = model(pixels)
    error = out.reconstruction.float() - pixels
    loss = error.abs().mean() + error.square().mean() + out.codebook_loss + args.commitment_weight * out.commitment_loss
    return loss, error.detach().square().mean(), out.codes, out.latents


def dvae_loss(model, pixels, args: TokenizerArgs, progress: float):
    """Logit-Laplace likelihood under a Gumbel-softmax relaxation, with an annealed temperature and a KL ramp."""
    import math

    import torch
    import torch.nn.functional as F

    eps = 0.1
    logits = model.encode_logits(pixels)
    temperature = max(args.min_temperature, math.exp(progress * math.log(args.min_temperature)))
    soft = F.gumbel_softmax(logits, tau=temperature, dim=1)
    mean, log_scale = model.decode_stats(soft)
    target = torch.logit((1 - 2 * eps) * pixels + eps)
    likelihood = ((target - mean).abs() * torch.exp(-log_scale) + log_scale).mean()
    log_q = F.log_softmax(logits, dim=1)
    kl = (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(1).mean()
    copy = (torch.sigmoid(mean.detach()) - eps) / (1 - 2 * eps)
    return likelihood + args.kl_weight * progress * kl, (copy - pixels).square().mean(), logits.argmax(1), None


def revive(model, usage, latents) -> int:
    """Move codes that nothing uses onto random encoder outputs of this batch; returns how many.

    A plain VQ at this size keeps a tenth of its codes alive (paper silent; ours).
    """
    import torch

    dead = (usage == 0).nonzero().flatten()
    if len(dead):
        vectors = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        chosen = vectors[torch.randint(len(vectors), (len(dead),))]
        table = model.quantize.embedding.weight.data
        table[dead] = (chosen + 0.01 * vectors.std() * torch.randn_like(chosen)).to(table.dtype)
    return len(dead)


def held_out_frames(dataset: str, resolution: int, count: int = 256):
    """Frames of a source's test split, one a clip, uint8 (N, R, R, 3)."""
    import numpy as np

    from tokenization.sources import open_source

    clips = open_source(dataset, "test", num_frames=1, resolution=resolution, limit=count)
    frames = [clip.frames[0] for clip in clips]
    require(bool(frames), f"No clip of the test split of '{dataset}' could be read.")
    return np.stack(frames)


def model_settings(text: str, config_class: type) -> dict:
    """The mapping of --model, every key of which `config_class` must know (transformers would take any)."""
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--model must be a JSON mapping such as '{{\"num_codes\": 512}}': {error}.") from error
    require(isinstance(settings, dict), f"--model must be a JSON mapping, not {text}.")
    known = list(config_class.__annotations__)
    for key in settings:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}."
        require(key in known, f"--model has the unknown key '{key}'; {hint}")
    return settings


def main(argv: list[str] | None = None) -> None:
    args, optim_args = parse((TokenizerArgs, OptimArgs), argv, "toto train-tokenizer", DESCRIPTION)
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from tqdm.auto import tqdm

    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.configuration_vqgan import TotoVQGANConfig
    from tokenization.evaluate_tokenizer import measure
    from tokenization.modeling_dvae import TotoDVAEModel
    from tokenization.modeling_vqgan import TotoVQGANModel

    from .optim import learning_rate, make_optimizer, set_learning_rate

    output = Path(args.output_dir)
    require(not output.is_file(), f"{output} is a file; choose another --output_dir.")
    require(not output.exists() or not any(output.iterdir()), f"{output} is not empty; choose another --output_dir.")
    set_seed(args.seed)
    accelerator = Accelerator()
    if args.kind == "vqgan":
        model, loss_of = TotoVQGANModel(TotoVQGANConfig(**model_settings(args.model, TotoVQGANConfig))), vqgan_loss
    else:
        model, loss_of = TotoDVAEModel(TotoDVAEConfig(**model_settings(args.model, TotoDVAEConfig))), dvae_loss
    # Before the training: a source without a test split should not be found out after it.
    held_out = {name: held_out_frames(name, model.config.resolution) for name in args.dataset}
    model = model.to(accelerator.device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, optim_args)
    output.mkdir(parents=True, exist_ok=True)
    metrics = (output / "metrics.jsonl").open("a")
    batches = prefetch(frame_batches(args, model.config.resolution))
    usage = torch.zeros(model.config.num_codes, device=accelerator.device)
    began, revived = time.time(), 0
    bar = tqdm(range(args.max_steps), desc="train-tokenizer", unit="step")
    for step in bar:
        set_learning_rate(optimizer, learning_rate(step, args.max_steps, optim_args))
        pixels = torch.from_numpy(next(batches)).to(accelerator.device).permute(0, 3, 1, 2).float() / 255
        with accelerator.autocast():
            loss, error, codes, latents = loss_of(model, pixels, args, step / args.max_steps)
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is not finite at step {step + 1}; lower --learning_rate.")
        loss.backward()
        if optim_args.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim_args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        usage += torch.bincount(codes.flatten(), minlength=len(usage))
        # The codebook starts on real encoder outputs (step 0), and stays there until the last tenth settles it.
        if latents is not None and (step == 0 or (step + 1) % args.revive_every == 0):
            if step == 0:
                usage.zero_()
            if step < 0.9 * args.max_steps:
                revived += revive(model, usage, latents)
        if (step + 1) % args.logging_steps == 0 or step + 1 == args.max_steps:
            row = {
                "step": step + 1,
                "loss": loss.item(),
                "psnr": -10 * torch.log10(error).item(),
                "codes_used": int((usage > 0).sum()),
                "revived": revived,
                "frames_per_second": args.batch_size * (step + 1) / (time.time() - began),
            }
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            bar.set_postfix(psnr=f"{row['psnr']:.2f}", codes=row["codes_used"])
            revived = 0
        if (step + 1) % args.revive_every == 0:
            usage.zero_()
    model.eval().save_pretrained(output)
    results = {name: measure(model, frames) for name, frames in held_out.items()}
    (output / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "README.md").write_text(card(args, optim_args, model, results, time.time() - began))
    print(json.dumps(results, indent=2))
    print(f"wrote {output}")


def card(args: TokenizerArgs, optim_args: OptimArgs, model, results: dict, seconds: float) -> str:
    """The tokenizer's model card: what it is, what it saw, what it keeps of held-out pictures."""
    rows = "\n".join(
        "| {} | {psnr:.2f} | {ssim:.4f} | {codes_used} | {perplexity:.1f} | {num_frames} |".format(name, **r)
        for name, r in results.items()
    )
    c = model.config
    size = sum(p.numel() for p in model.parameters()) / 1e6
    settings = {**asdict(args), **asdict(optim_args)}
    settings = "\n".join(f"{k}: {json.dumps(v)}" for k, v in settings.items() if k not in ("recipe", "output_dir"))
    return f"""---
library_name: transformers
license: apache-2.0
tags: [toto, visual-tokenizer]
---
# A small {args.kind} tokenizer for Toto

{c.resolution} x {c.resolution} pixels, stride {c.stride}: {(c.resolution // c.stride) ** 2} codes a frame, of
{c.num_codes}; {size:.2f} M parameters. Pixels are RGB floats in [0, 1].

Trained {args.max_steps} steps of {args.batch_size} frames ({seconds / 60:.0f} minutes) on the {args.split} split of
{", ".join(args.dataset)}. Self-supervised: no supervised network has a part in its loss.

Held-out pictures (the test splits):

| pictures | PSNR (dB) | SSIM | codes used | perplexity | frames |
|---|---|---|---|---|---|
{rows}

Recipe:

```yaml
{settings}
```
"""


if __name__ == "__main__":
    from toto_cli import run

    run(main)
