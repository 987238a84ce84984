"""Every pre-training recipe: says what the paper had, and runs to its end at the tiny scale."""

import json
import math
from pathlib import Path

import pytest
import yaml

from modeling_toto import TotoConfig
from training import find_model
from training.architectures import parameters, peer_config, training_flops
from training.flags import json_fields, parse
from training.pretrain import TYPES, main
from training.tiny_scale import STEPS, shrink

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))
OURS = (
    "base_4090",
    "base_kinetics400",
    "tiny_cpu",
    "toto_nano",
    "toto_nano_more",
    "toto_nano_third",
    "toto_nano_fourth",
    "motion_tiny",
    "toto_motion_short",
    "toto_motion",
    "toto_motion_more",
    "toto_motion_last",
    "toto_turntable",
    "toto_robot",
)
# What each recipe's header must say: table or figure, and the paper's number.
PAPER = {
    **{"base": "3.579", "large": "3.468", "1b": "3.306", "a1": "3.45", "a2": "3.25", "a3": "3.12", "a4": "3.04"},
    **{"a5": "not in the", "a6": "2.83", "ablation_vqgan_16k": "61.3", "ablation_vqgan_1k": "61.1"},
    **{"ablation_dvae_32": "61.2", "ablation_dvae_16": "53.2", "ablation_patch_patch": "60.6"},
    **{"ablation_patch_dvae": "58.5", "ablation_16_to_32": "63.2", "ablation_16_to_32_rope_50k": "64.4"},
    **{"ablation_gpt2": "48.5", "ablation_mamba": "40.7"},
    **dict.fromkeys(("mixture_images", "mixture_videos", "mixture_both"), "nothing published"),
}


def settings(name):
    return parse(TYPES, ["--recipe", name], "toto pretrain", "")


def config_of(model):
    known = ["hidden_size", *TotoConfig.__dataclass_fields__, "rope_theta"]
    return TotoConfig.from_preset(model.preset, **json_fields(model.config, "--config", known))


def test_every_row_of_the_paper_has_a_recipe():
    assert {path.stem for path in RECIPES} == {*PAPER, *OURS}


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in OURS], ids=lambda path: path.stem)
def test_a_recipe_says_row_number_hardware_command_and_ours(path):
    header = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    for word in (
        "Expected: ",
        "Ours: ",
        "Hardware: ",
        f"Command: accelerate launch -m training.pretrain --recipe {path.stem}",
    ):
        assert word in header.replace("  ", " "), f"{path.name} does not say {word}"
    assert PAPER[path.stem] in header
    _, data, run, optim = settings(str(path))
    assert (data.tokens_per_step, optim.adam_beta1, optim.adam_beta2) == (2**20, 0.9, 0.95)
    assert math.isclose(sum(source.weight for source in data.mixture()), 1)
    stage_two = path.stem.startswith("ablation_16_to_32")
    assert optim.warmup_steps == (100 if stage_two else 2000)
    muP = path.stem in ("a1", "a2", "a3", "a4", "a5", "a6")
    assert optim.learning_rate == (2**-7 if muP else 3e-5 if stage_two else 3e-4)
    if path.stem in ("base", "large", "1b") or muP:
        assert run.max_steps == 10**6
        assert [source.weight for source in data.mixture()] == [0.2, 0.1, 0.1, 0.6]
    for line in path.read_text().splitlines():  # what the paper does not say is marked as ours
        if line.split(":")[0] in ("weight_decay", "max_grad_norm", "min_lr_ratio"):
            assert line.endswith("# ours")


@pytest.mark.parametrize(("name", "millions"), [("gpt2", 280), ("mamba", 290)])
def test_other_architectures_are_as_large_as_the_llama(name, millions):
    large = TotoConfig.from_preset("large")
    count = parameters(peer_config(name, large))
    assert abs(count / parameters(large) - 1) < 0.02
    assert abs(count / 1e6 / millions - 1) < 0.06  # what the paper calls it


def test_flops_of_other_architectures_by_hand():
    from transformers import AutoModelForCausalLM

    config = TotoConfig.from_preset("tiny", hidden_size=32, num_attention_heads=2, head_dim=16)
    made = peer_config("gpt2", config)
    flops = training_flops(AutoModelForCausalLM.from_config(made), config)
    d, layers, length = 32, made.n_layer, config.max_position_embeddings
    weights = layers * (12 * d * d + 13 * d) + 2 * d + config.vocab_size * d  # norms and biases are counted as weights
    assert flops == 6 * weights + 6 * layers * d * length


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_to_its_end_at_the_tiny_scale(path, tmp_path):
    run = tmp_path / "run"
    main(["--recipe", str(path), "--scale", "tiny", "--output_dir", str(run)])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    trained = [row for row in rows if "loss" in row]
    full = settings(str(path))
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    assert all(math.isfinite(row["loss"]) for row in trained) and trained[-1]["skipped_steps"] == 0
    validated = [row["val_loss"] for row in rows if "val_loss" in row]
    assert len(validated) == 2 and validated[1] < validated[0]
    names = [source.name for source in full[1].mixture()] or ["toyworld"]
    assert list(trained[-1]["sources"]) == names and set(rows[-1]["val_losses"]) == set(names)
    last = json.loads((find_model.latest(run) / "config.json").read_text())
    kinds = {"llama": "TotoForCausalLM", "patches": "TotoForPatchPrediction"}
    kinds |= {"gpt2": "GPT2LMHeadModel", "mamba": "MambaForCausalLM"}
    assert last["architectures"] == [kinds[full[0].architecture]]
    if full[0].architecture == "llama":  # what makes the recipe this recipe is still there
        small, large = TotoConfig.from_pretrained(find_model.latest(run)), config_of(full[0])
        assert (small.mup_base_width is None) == (large.mup_base_width is None)
        assert small.rope_parameters["rope_theta"] == large.rope_parameters["rope_theta"]
        assert small.tie_word_embeddings == large.tie_word_embeddings
        assert (small.tokens_per_frame > 16) == (large.tokens_per_frame > 256)


def test_flags_win_over_the_tiny_scale_where_they_ask_for_less():
    model, data, run, optim = settings("base")
    from dataclasses import replace

    small = shrink(model, data, replace(run, max_steps=3), optim)
    assert small[2].max_steps == 3 and small[1].tokenizer == "tiny-dvae"
    assert yaml.safe_load(small[0].config)["hidden_size"] == 32
