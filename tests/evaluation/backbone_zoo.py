"""Tiny models of transformers' own classes with random weights, saved as their Hub repositories are."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers as tf

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = SMALL | {"image_size": 32, "patch_size": 8}
TEXT = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
WORDS = SMALL | {"vocab_size": 50, "max_position_embeddings": 16}
VQ = {"base_channels": 32, "latent_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1, 1]}
CODES = 16


def chameleon():
    letters = {str(d): chr(ord("A") + d) for d in range(10)}
    names = {f"IMGIMG{''.join(letters[c] for c in str(k))}Z": 8 + k for k in range(CODES)}
    vq = VQ | {"num_embeddings": CODES, "embed_dim": 8, "resolution": 16}
    config = tf.ChameleonConfig(**TEXT, vocab_size=64, vq_config=vq, vocabulary_map=names | {"<image>": 5})
    return tf.ChameleonModel(config)


def emu3():
    names = {f"<|visual token {k:06d}|>": 8 + k for k in range(CODES)} | {"<|extra_200|>": 6, "<image>": 5}
    vq = VQ | {"latent_channels": 4, "embed_dim": 4, "codebook_size": CODES, "hidden_size": 32, "attn_resolutions": []}
    vq |= {"temporal_downsample_factor": 2}
    config = tf.Emu3Config(text_config=TEXT | {"vocab_size": 64, "pad_token_id": 0}, vq_config=vq, vocabulary_map=names)
    return tf.Emu3Model(config)


def janus():
    vq = VQ | {"num_embeddings": CODES, "embed_dim": 8, "num_patches": 8, "projection_dim": 24}
    vq |= {"image_token_embed_dim": 24}
    vision = SMALL | {"image_size": 16, "patch_size": 8, "projection_dim": 24}
    config = tf.JanusConfig(
        text_config=TEXT | {"model_type": "llama", "vocab_size": 64}, vision_config=vision, vq_config=vq
    )
    return tf.JanusModel(config)


def clusters() -> dict:
    rng = np.random.default_rng(0)
    return {"clusters": rng.uniform(-1, 1, (CODES, 3)).tolist(), "size": {"height": 8, "width": 8}}


HIERA = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "image_size": [32, 32], "patch_size": [7, 7]}
HIERA |= {"patch_stride": [4, 4], "patch_padding": [3, 3], "masked_unit_size": [4, 4], "num_query_pool": 1}
HIERA |= {"masked_unit_attention": [True, False]}
VJEPA = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"patch_size": 8, "crop_size": 32}
VJEPA |= {"frames_per_clip": 4, "tubelet_size": 2, "pred_hidden_size": 12, "pred_num_attention_heads": 2}
VJEPA |= {"pred_num_hidden_layers": 3, "pred_num_mask_tokens": 2}

GPT = {"vocab_size": CODES + 1, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 2}

# name -> (makes the model, preprocessor file, grid (T', h, w) of a clip of 4 frames, widths of the layers)
PLAIN = ((4, 4, 4), [24] * 3)
ZOO = {
    "vit (DINO)": (lambda: tf.ViTModel(tf.ViTConfig(**VIT), add_pooling_layer=False), {"size": 32}, *PLAIN),
    "vit (MoCo v3)": (lambda: tf.ViTModel(tf.ViTConfig(**VIT, qkv_bias=True)), {}, *PLAIN),
    "vit_mae": (lambda: tf.ViTMAEModel(tf.ViTMAEConfig(**VIT)), {"size": {"height": 32, "width": 32}}, *PLAIN),
    "dinov2": (lambda: tf.Dinov2Model(tf.Dinov2Config(**VIT)), {"crop_size": {"height": 32, "width": 32}}, *PLAIN),
    "dinov2 with registers": (lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**VIT)), {}, *PLAIN),
    "dinov3": (lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VIT, num_register_tokens=4)), {}, *PLAIN),
    "beit": (lambda: tf.BeitModel(tf.BeitConfig(**VIT, use_relative_position_bias=True)), {}, *PLAIN),
    "aimv2": (lambda: tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**VIT)), {}, *PLAIN),
    "clip": (lambda: tf.CLIPModel(tf.CLIPConfig(text_config=WORDS, vision_config=VIT)), {}, *PLAIN),
    "i-jepa": (lambda: tf.IJepaModel(tf.IJepaConfig(**VIT)), {}, *PLAIN),
    "aimv2 native": (lambda: tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**VIT, is_native=True)), {}, *PLAIN),
    "hiera": (lambda: tf.HieraModel(tf.HieraConfig(**HIERA)), {"size": 32}, None, [8, 8, 16, 16]),
    "videomae": (lambda: tf.VideoMAEModel(tf.VideoMAEConfig(**VIT, num_frames=4)), {}, (2, 4, 4), [24] * 3),
    "vjepa2": (lambda: tf.VJEPA2Model(tf.VJEPA2Config(**VJEPA)), {"crop_size": 32}, (2, 4, 4), [24] * 3),
    "imagegpt": (
        lambda: tf.ImageGPTModel(
            tf.ImageGPTConfig(vocab_size=CODES + 1, n_positions=64, n_embd=24, n_layer=2, n_head=2)
        ),
        clusters(),
        (4, 8, 8),
        [24] * 3,
    ),
    "chameleon": (chameleon, {"crop_size": 16}, (4, 8, 8), [24] * 3),
    "emu3": (emu3, {"size": {"height": 16, "width": 16}}, (4, 8, 8), [24] * 3),
    "janus": (janus, {"size": {"height": 16, "width": 16}}, (4, 8, 8), [24] * 3),
}


def save(name: str, folder: Path, preprocessor: dict | None = None) -> str:
    """Write a model of the zoo with its preprocessor file; returns the folder."""
    make, its_own = ZOO[name][:2]
    torch.manual_seed(0)
    make().eval().save_pretrained(folder)
    content = its_own if preprocessor is None else preprocessor
    if content:
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return str(folder)
