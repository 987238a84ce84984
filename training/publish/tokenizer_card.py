"""The card of a visual tokenizer: what it is, its training data, its reconstructions of held-out pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

# DESIGN: a tokenizer whose training used a supervised network carries its labels into every later result.
CLEAN = "Self-supervised: no supervised network has a part in its loss."
CONTAMINATED = (
    "**Label-contaminated**: its perceptual loss uses a network trained on ImageNet's labels, which leak into the "
    "codes. Do not use it for a claim of self-supervised learning."
)


def tokenizer_card(model, settings: tuple, results: dict, seconds: float) -> str:
    """README.md of a tokenizer trained by `toto train-tokenizer`.

    Args:
        settings: the command's dataclasses; the first is `TokenizerArgs`.
        results: data set -> figures of `evaluate_tokenizer.measure`.
        seconds: of training.
    """
    import yaml

    from tokenization.evaluate_tokenizer import markdown_table

    args, config = settings[0], model.config
    recipe = {key: value for concern in settings for key, value in asdict(concern).items()}
    for key in ("recipe", "resume", "output_dir"):
        recipe.pop(key)
    supervised = args.kind == "vqgan" and recipe["perceptual"] is not None
    side, stride = config.resolution, config.stride
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    held_out = "one item in 20, left out of training" if args.eval_split == "held_out" else f"{args.eval_split} split"
    # Paths of this machine mean nothing elsewhere.
    names = [Path(name).name if Path(name).exists() else name for name in args.dataset]
    recipe["dataset"] = names
    if recipe.get("perceptual_files"):
        recipe["perceptual_files"] = [Path(name).name for name in recipe["perceptual_files"]]
    return f"""---
library_name: transformers
license: apache-2.0
tags: [toto, visual-tokenizer{", label-contaminated" if supervised else ""}]
---
# A {args.kind} visual tokenizer for Toto

{side} x {side} pixels, stride {stride}: {(side // stride) ** 2} codes a frame, of {config.num_codes};
{millions:.2f} M parameters. Pixels are RGB floats in [0, 1].

Trained {args.max_steps} steps of {args.batch_size} frames ({seconds / 60:.0f} minutes) on the {args.split} split of
{", ".join(names)}. {CONTAMINATED if supervised else CLEAN}

Held-out pictures ({held_out}):

{markdown_table(results)}

Recipe:

```yaml
{yaml.safe_dump(recipe, sort_keys=False).strip()}
```
"""
