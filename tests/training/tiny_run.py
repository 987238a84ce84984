"""Token shards of the embedded world, and models, small enough to train in seconds."""

import json

import torch

FRAMES, SIDE = 4, 32
# 32-pixel frames at stride 8: 16 tokens each, 4 frames a row.
CONFIG = {
    "vocab_size": 64 + 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tokens_per_frame": 16,
    "num_frames": FRAMES,
    "max_position_embeddings": 66,
}
# A visual tokenizer that trains in seconds.
VQGAN = {
    "num_codes": 32,
    "embed_dim": 8,
    "base_channels": 16,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "mid_attention": False,
    "z_channels": 8,
    "norm_groups": 4,
    "patch_size": 8,
    "resolution": 32,
}
FLAGS = ["--preset", "tiny", "--config", json.dumps(CONFIG), "--tokens_per_step", "256", "--warmup_steps", "2"]


def save_tokenizer(folder, num_codes=32, seed=0):
    from tokenization.configuration_vqgan import TotoVQGANConfig
    from tokenization.modeling_vqgan import TotoVQGANModel

    torch.manual_seed(seed)
    config = TotoVQGANConfig(
        num_codes=num_codes,
        embed_dim=4,
        base_channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        mid_attention=False,
        z_channels=8,
        norm_groups=4,
        patch_size=4,
        resolution=SIDE,
    )
    TotoVQGANModel(config).save_pretrained(folder)
    return folder


def tokenize(folder, tokenizer, split="train", clips=48):
    from tokenization.tokenize_dataset import main

    flags = ["--dataset", "toyworld", "--split", split, "--max_clips", str(clips), "--num_frames", str(FRAMES)]
    main([*flags, "--rows_per_shard", "16", "--tokenizer", str(tokenizer), "--output", str(folder)])
    return folder
