"""`--scale tiny`: any recipe at a size that runs on a laptop in seconds, with the same code as at full size.

Width, depth, tokens and steps are reduced. Every source is replaced by the embedded world (clips, or single frames for
images), the visual tokenizer by a tiny one of the same kind with random weights, and a start checkpoint by a new model.
Shares, heads, objectives, muP, accumulation and schedules are unchanged. Use it to check a recipe and a machine; its
results have no meaning.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

from training.args import DataArgs, ModelArgs, PretrainOptimArgs, PretrainRunArgs
from training.flags import config_fields

STEPS, CODES = 20, 64
# muP's base width is below the width, so that muP's multipliers are not 1.
WIDTH, BASE_WIDTH = 32, 16


def shrink(
    model: ModelArgs, data: DataArgs, run: PretrainRunArgs, optim: PretrainOptimArgs
) -> tuple[ModelArgs, DataArgs, PretrainRunArgs, PretrainOptimArgs]:
    """The same settings at the tiny scale."""
    from modeling_toto import TotoConfig

    full = TotoConfig.from_preset(model.preset, **config_fields(model.config))
    side = 2 if full.tokens_per_frame < 256 else 4 if full.tokens_per_frame == 256 else 8
    frames = min(full.num_frames, 4)
    fields = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // 2,
        "vocab_size": full.code_offset + (CODES if full.num_codes else 0),
        "tokens_per_frame": side**2,
        "num_frames": frames,
        "max_position_embeddings": TotoConfig(tokens_per_frame=side**2).row_length(frames),
        "tie_word_embeddings": full.tie_word_embeddings,
        "prediction_target": full.prediction_target,
        "patch_size": full.patch_size,
        "rope_theta": full.rope_parameters["rope_theta"],
    }
    if full.mup_base_width is not None:
        fields |= {"mup_base_width": BASE_WIDTH, "mup_base_head_dim": BASE_WIDTH // 2}
    sources = [
        json.dumps(asdict(replace(source, data="toyworld", val_data=None, split="train", val_split=None, crops=1)))
        for source in data.mixture()
    ]
    return (
        replace(model, preset="tiny", config=json.dumps(fields), init_from=None),
        replace(
            data,
            shards=None,
            val_shards=None,
            sources=sources or ['{"data": "toyworld"}'],
            tokenizer=f"tiny-{tokenizer_kind(full)}",
            tokens_per_step=4 * int(os.environ.get("WORLD_SIZE", 1)) * frames * side**2,  # 2 micro-batches per process
            per_device_batch_size=2,
            val_rows=4,
        ),
        replace(
            run,
            max_steps=min(run.max_steps, STEPS),
            save_steps=min(run.save_steps, STEPS // 2),
            logging_steps=1,
            compile=False,
            liger=False,
        ),
        replace(optim, warmup_steps=min(optim.warmup_steps, 2)),
    )


def tokenizer_kind(config) -> str:
    """The kind of a tokenizer: "dvae" for the 8,192 codes of the published dVAE, else "vqgan" (paper Sec. 3.4)."""
    return "dvae" if config.num_codes in (0, 8192) else "vqgan"


def tiny_processor(kind: str, tokens_per_frame: int, num_frames: int):
    """A processor whose visual tokenizer has random weights: "tiny-dvae" (stride 8) or "tiny-vqgan" (stride 16)."""
    import torch

    from tokenization import TotoDVAEConfig, TotoDVAEModel, TotoProcessor, TotoVQGANConfig, TotoVQGANModel
    from tokenization.image_processing_toto import TotoImageProcessor

    side = int(tokens_per_frame**0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "tiny-dvae":
            config = TotoDVAEConfig(n_hid=8, n_init=8, n_blk_per_group=1, num_codes=CODES, resolution=8 * side)
            tokenizer = TotoDVAEModel(config)
        else:
            channels = {"base_channels": 8, "channel_multipliers": (1, 1, 1), "z_channels": 8, "norm_groups": 4}
            blocks = {"num_res_blocks": 1, "attention_resolutions": (), "mid_attention": False, "patch_size": 4}
            config = TotoVQGANConfig(num_codes=CODES, embed_dim=4, resolution=16 * side, **channels, **blocks)
            tokenizer = TotoVQGANModel(config)
    return TotoProcessor(TotoImageProcessor(resolution=config.resolution), tokenizer, num_frames)
