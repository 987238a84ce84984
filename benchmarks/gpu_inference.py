"""Checks of `gpu_checks.py` about frozen models: the dVAE, generation, probes."""

import contextlib
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from bench_train import LLAMA_FIELDS
from gpu_setup import Setup


def dvae(setup: Setup) -> dict:
    """Frames/s of the published dVAE's shape at 128 pixels in bf16, TF32 and fp32, and how many codes agree."""
    from tokenization import processing_toto
    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.image_processing_toto import TotoImageProcessor
    from tokenization.modeling_dvae import TotoDVAEModel
    from training.tiny_scale import tiny_processor

    count = 4 if setup.tiny else 1024
    if setup.tiny:
        processor = tiny_processor("tiny-dvae", 16, 4)
    else:
        torch.manual_seed(0)
        model = TotoDVAEModel(TotoDVAEConfig()).eval()
        processor = processing_toto.TotoProcessor(TotoImageProcessor(resolution=128), model)
    side, model = processor.resolution, processor.visual_tokenizer
    # Smooth noise, and centred logits: a random network favours few codes otherwise.
    small = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(small, size=side, mode="bilinear")
    with torch.no_grad():
        model.encoder.blocks.output.conv.bias.sub_(model.encode_logits(pixels[:2]).mean(dim=(0, 2, 3)))
    processor.to(setup.device)
    frames = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def tf32():
        with patch.object(processing_toto, "without_tf32", contextlib.nullcontext):  # torch's default for convolutions
            return processor.encode_frames(np.ascontiguousarray(frames))

    sides = {
        "bf16": lambda: processor.encode_frames(frames, exact=False),
        "tf32": tf32,
        "fp32": lambda: processor.encode_frames(frames),
    }
    exact = sides["fp32"]()
    values = {"frames": count, "distinct_codes": len(exact.unique())}
    values |= {f"{name}_code_agreement": (sides[name]() == exact).float().mean().item() for name in ("bf16", "tf32")}
    values["codes_as_on_a_cpu"] = None
    if setup.is_cuda:
        processor.to("cpu")
        values["codes_as_on_a_cpu"] = (processor.encode_frames(frames[:8]) == exact[:8]).float().mean().item()
        processor.to(setup.device)
    return values | setup.rates(sides, count, "frames_per_second")


def generate(setup: Setup) -> dict:
    """Codes/s of `generate_frames` with and without CUDA graphs, against transformers' `generate`, and the agreement.

    A frame after a prompt of four, in bf16. The first call of a side includes recording, and the plans of attention.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from modeling_toto import TotoForCausalLM

    config = setup.config()
    torch.manual_seed(0)
    toto = TotoForCausalLM(config).to(setup.device, torch.bfloat16).eval()
    fields = {name: getattr(config, name) for name in LLAMA_FIELDS}
    llama = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="sdpa")).to(setup.device, torch.bfloat16).eval()
    llama.load_state_dict(toto.state_dict())
    llama.generation_config.eos_token_id = None
    values, steps = agreement(setup), config.tokens_per_frame
    for rows in (1, 2) if setup.tiny else (1, 32, 256):
        prompt = torch.randint(config.code_offset, config.vocab_size, (rows, 1 + (2 if setup.tiny else 4) * steps))
        prompt[:, 0] = config.bos_token_id
        prompt = prompt.to(setup.device)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        mask = torch.ones_like(prompt)
        sides = {
            "graph": partial(toto.generate_frames, prompt, 1, graph=True),
            "no_graph": partial(toto.generate_frames, prompt, 1, graph=False),
            "llama": partial(llama.generate, prompt, attention_mask=mask, max_new_tokens=steps, **sampling),
        }
        found = setup.rates(sides, rows * steps, "codes_per_second", rounds=1 if setup.tiny else 2)
        found |= {f"{name}_peak_gb": setup.peak_gb(sides[name]) for name in ("graph", "no_graph")}
        values |= {f"batch{rows}_{name}": value for name, value in found.items()}
    return values


@torch.no_grad()
def agreement(setup: Setup) -> dict:
    """Whether steps by CUDA graph are the steps without: ids of a small float32 model, and logits of base in bf16.

    The small model's rows outgrow its context, so that frames are dropped and keys move between replays.
    """
    from modeling_toto import TotoForCausalLM
    from modeling_toto.decoding_toto import FrameWindow
    from modeling_toto.graph_toto import StaticWindow

    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"initializer_range": 0.3, "tie_word_embeddings": False, "head_dim": 32, "num_key_value_heads": 2}
    model = TotoForCausalLM(setup.config("tiny", **small)).to(setup.device).eval()
    prompt = torch.randint(64, model.config.vocab_size, (2, 1 + model.config.tokens_per_frame), device=setup.device)
    prompt[:, 0], frames = 1, model.config.num_frames + 2
    values = {}
    for recompute in (False, True):
        drawn = [
            model.generate_frames(prompt, frames, temperature=0, recompute=recompute, graph=graph)
            for graph in (True, False)
        ]
        values[f"small_model_equal_ids{'_recomputed' * recompute}"] = (drawn[0] == drawn[1]).float().mean().item()

    config = setup.config()
    model = TotoForCausalLM(config).to(setup.device, torch.bfloat16).eval()
    length = min(640, config.row_length() - 1)
    ids = torch.randint(config.code_offset, config.vocab_size, (2, length), device=setup.device)
    ids[:, 0] = config.bos_token_id
    exact = model(ids, logits_to_keep=33).logits[:, :-1, config.code_offset :].float()
    apart = {}
    for name, kind in (("graph", StaticWindow), ("no_graph", FrameWindow)):
        window = kind(model, ids)
        window.plain_logits(length - 33, 1)
        logits = torch.stack([window.code_logits(end).float() for end in range(length - 32, length)], dim=1)
        apart[name] = (logits - exact).abs().max().item()
        values[f"{name}_equal_argmax"] = (logits.argmax(-1) == exact.argmax(-1)).float().mean().item()
    values |= {f"{name}_largest_difference_to_one_forward": value for name, value in apart.items()}
    return values | {"largest_logit": exact.abs().max().item()}


def probes(setup: Setup) -> dict:
    """Clips/s of features of every layer, by batch size, and clips/s of training heads on features in memory."""
    from evaluation.backbones.contract import Features
    from evaluation.backbones.toto import TotoBackbone
    from evaluation.heads.bank import HeadBank
    from modeling_toto import TotoModel

    config, values = setup.config(), {}
    processor = SimpleNamespace(grid=config.grid_size, num_codes=config.num_codes)
    backbone = TotoBackbone(TotoModel(config), processor, device=setup.device)
    layers = list(range(config.num_hidden_layers + 1))
    for clips in (1, 2) if setup.tiny else (8, 64, 256):
        ids = torch.randint(64, config.vocab_size, (clips, 1 + config.tokens_per_frame))  # an image
        ids[:, 0] = config.bos_token_id

        def features(ids=ids):
            return backbone.grids(ids, layers, lambda grid: backbone.summarise(grid, 64))

        values |= setup.rates({f"features_batch{clips}": features}, clips, "clips_per_second")
    count, width = (32, 8) if setup.tiny else (4096, config.hidden_size)
    layers, classes, epochs = layers[:2], 10, 2
    made = torch.Generator().manual_seed(0)
    pooled = torch.randn(len(layers), count, width, generator=made)
    tokens = torch.randn(len(layers), count, 4 if setup.tiny else 64, width, generator=made).half()
    labels = torch.randint(classes, (count, 1), generator=made)
    part, rest = torch.arange(count - count // 8), torch.arange(count - count // 8, count)
    whole = Features(layers, pooled, tokens)
    train, validation = whole.take(part), whole.take(rest)
    for kind in ("linear", "attention"):
        bank = HeadBank(kind, [classes], epochs=epochs).to(setup.device)
        bank_run = partial(bank.run, train, labels[part], validation, labels[rest], validation)
        seen = epochs * len(part) * (1 if kind == "linear" else len(layers))
        values |= setup.rates({f"{kind}_heads": bank_run}, seen, "clips_per_second", rounds=1)
        values[f"{kind}_heads_settings"] = len(bank.settings)
    print(f"probes: {len(values)} values", file=sys.stderr)
    return values
