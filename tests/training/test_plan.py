"""`toto plan`: its arithmetic by hand, its memory against what a model keeps, its throughput against a run."""

import json
from types import SimpleNamespace

import pytest
import torch
from counted_step import counted_memory, moved_a_token
from tiny_run import FLAGS

from modeling_toto import TotoConfig
from training.costs import ATTENTION, MOVED, PRODUCTS, TRAFFIC, Step, block_bytes, memory_of, seconds_per_token
from training.engine.data_sheets import GPUS, known_gpu
from training.plan import ALL, CHECKPOINT_SPEED, main


def planned(capsys, *flags):
    main([*flags, "--json"])
    return json.loads(capsys.readouterr().out)


def test_base_by_hand(capsys):
    found = planned(capsys, "--recipe", "base", "--gpus", "64", "--gpu", "h100", "--mfu", "0.4")
    assert found["parameters"] == 12 * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768) + 8256 * 768 + 768
    assert found["tokens"] == 1_000_000 * 2**20
    weights = 12 * (4 * 768**2 + 3 * 768 * 3072) + 8256 * 768
    assert found["flops_per_token"] == 6 * weights + 6 * 12 * 768 * 4098
    parts = found["hours_by_part"]
    assert parts["steps"] == pytest.approx(found["flops"] / (64 * 989e12 * 0.4) / 3600)
    assert parts["checkpoints"] == pytest.approx(500 * 12 * found["parameters"] / CHECKPOINT_SPEED / 3600)
    # 500 times 256 rows of each of four sources, four rows on a device, at a third of the time of training on them
    of_row = 4096 * found["flops_per_token"] / (989e12 * 0.4) / 3600
    assert parts["validation"] == pytest.approx(500 * 4 * 4 * of_row / 3)
    assert found["hours"] == pytest.approx(sum(parts.values()))
    assert found["gpu_hours"] == pytest.approx(64 * found["hours"])
    assert (found["rows_per_device"], found["accumulation"]) == (4, 1) and found["fits"]
    sources = {source["name"]: source for source in found["sources"]}
    assert sum(source["tokens_seen"] for source in sources.values()) == pytest.approx(found["tokens"])
    # 60 % of 1.05 T tokens, of a quarter of 2560 B tokens less a twentieth that is held out
    assert sources["howto100m"]["epochs"] == pytest.approx(0.6 * 1.048576e12 / (640e9 * 0.95))
    assert sources["howto100m"]["shards_gb"] == pytest.approx(1280)


def test_shards_give_their_own_tokens(shards, capsys):
    found = planned(capsys, *FLAGS, "--shards", str(shards), "--gpus", "1", "--max_steps", "10")
    held = json.loads((shards / "manifest.json").read_text())["num_tokens"]
    (source,) = found["sources"]
    assert source["tokens"] == held and source["epochs"] == pytest.approx(2560 / (held * 0.95))
    found = planned(capsys, "--recipe", "base", "--source_tokens", "ego4d=5e9")
    assert {s["name"]: s["tokens"] for s in found["sources"]}["ego4d"] == 5e9


def test_larger_frames_are_more_tokens(capsys):
    small, large = (planned(capsys, "--recipe", f"ablation_dvae_{side}") for side in (16, 32))
    assert large["sources"][0]["tokens"] == 4 * small["sources"][0]["tokens"]


def kept_bytes(layers, precision):
    """Bytes that autograd holds after the forward pass of 2 rows, weights left out; and the config."""
    from modeling_toto import TotoConfig, TotoForCausalLM

    config = TotoConfig.from_preset(
        "tiny", hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=2, head_dim=32
    )
    model = TotoForCausalLM(config).train()
    weights, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(64, 576, (2, 1026))
    ids[:, 0], ids[:, -1] = 1, 2
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = model(input_ids=ids, labels=ids, skip_logits=True)
    total = sum(found.values())
    assert output.loss.isfinite()  # alive until here, so that no storage was counted under a reused address
    return total, config


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_what_autograd_keeps(precision):
    (two, config), (three, _) = kept_bytes(2, precision), kept_bytes(3, precision)
    a_token = (three - two) / (2 * 1026)
    # Beside them the tables of RoPE and the attention's normaliser, which matter in narrow models only.
    tables, normaliser = 2 * 4 * config.head_dim // 2, 4 * config.num_attention_heads
    assert a_token == pytest.approx(block_bytes(config, precision) + tables + normaliser, rel=0.01)


@pytest.mark.parametrize(
    "preset, layers, rows, frames, accumulation, checkpointing",
    [  # mostly weights and moments, but for the second, of which three fifths are activations
        ("base", 2, 2, 2, 1, False),
        ("tiny", 4, 4, 8, 2, False),
        ("base", 2, 2, 2, 2, True),
        ("1b", 1, 1, 2, 1, False),
    ],
)
def test_memory_is_that_of_a_counted_step(preset, layers, rows, frames, accumulation, checkpointing):
    counted, model = counted_memory(preset, layers, rows, frames, accumulation, checkpointing)
    step = Step(model.config, model.num_parameters(), rows, accumulation, checkpointing, gpus=1, is_sharded=False)
    assert sum(memory_of(step).values()) == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize("width, of_mlp", [(768, 3072), (384, 3072)])
def test_bytes_moved_are_those_of_the_operations(width, of_mlp):
    fields = {"hidden_size": width, "intermediate_size": of_mlp, "num_attention_heads": width // 64}
    moved = moved_a_token("base", num_key_value_heads=width // 64, **fields)
    assert moved == pytest.approx(MOVED["eager"][0] * width + MOVED["eager"][1] * of_mlp, rel=0.05)


def base_step(**fields):
    config = TotoConfig.from_preset("base")
    flops = 6 * (12 * (4 * 768**2 + 3 * 768 * 3072) + 8256 * 768) + 6 * 12 * 768 * 4098
    common = {"gpus": 64, "is_sharded": False, "flops_per_token": flops, "checkpointing": False}
    return Step(config, 119_600_000, 4, 1, **(common | fields))


def test_time_of_a_token_by_hand():
    h100, step = GPUS["h100"], base_step()
    products = 6 * (12 * (4 * 768**2 + 3 * 768 * 3072) + 8256 * 768) / (PRODUCTS * 989e12)
    attention = 6 * 12 * 768 * 4098 / (ATTENTION * 989e12)
    moved = (12 * (565 * 768 + 45 * 3072) + 20 * 8256 + 64 * 119.6e6 / 16392) / (TRAFFIC * 3350e9)
    assert seconds_per_token(step, h100) == pytest.approx(products + attention + moved)
    assert seconds_per_token(base_step(precision="fp32"), h100) == pytest.approx(products + attention + 2 * moved)
    once = 40 * 119.6e6 / 16392 / (TRAFFIC * 3350e9)  # of the step, which four micro-batches share
    shared = Step(**vars(step) | {"accumulation": 4})
    assert seconds_per_token(shared, h100) == pytest.approx(products + attention + moved - 3 / 4 * once)
    again = products - 6 * 8256 * 768 / (PRODUCTS * 989e12) + attention + 12 * 572_160 / (TRAFFIC * 3350e9)
    recomputed = seconds_per_token(base_step(checkpointing=True), h100)
    assert recomputed == pytest.approx(products + attention + moved + again / 3)


def test_mfu_by_size_and_mode(capsys):
    """nanochat's d12 (12 layers, width 768) has 41 %, or 33 % if attention counts half; ours is slower uncompiled."""
    found = planned(capsys, "--recipe", "base", "--gpus", "64", "--compile", "true")
    assert found["mode"] == "compiled" and found["mfu"] == found["mfu_by_mode"]["compiled"]
    assert found["mfu"] == pytest.approx(0.33, rel=0.1)
    modes = found["mfu_by_mode"]
    assert modes["compiled"] > 1.5 * modes["eager"] > 1.8 * modes["eager recomputed"]
    larger = planned(capsys, "--recipe", "1b", "--gpus", "64")["mfu_by_mode"]
    assert all(larger[mode] > modes[mode] for mode in modes)


@pytest.mark.parametrize(
    "width, layers, length, rows, vocabulary, attention, mlp, mode, reported",
    [  # attention, mlp: weights of a block in squares of the width. Reported: tokens/s on an H100, one of eight.
        (768, 12, 2048, 32, 32768, 4, 8, "compiled", 0.41 * 989e12 / 0.887e9),  # nanochat d12, by its MFU
        (1152, 18, 2048, 32, 32768, 4, 8, "compiled", 0.46 * 989e12 / 2.456e9),  # nanochat d18, by its MFU
        (4096, 32, 8192, 1, 128256, 2.5, 10.5, "eager", 5762),  # torchtitan, Llama 3 8B
        (4096, 32, 8192, 1, 128256, 2.5, 10.5, "compiled", 6667),
    ],
)
def test_published_runs_are_within_a_fifth(width, layers, length, rows, vocabulary, attention, mlp, mode, reported):
    fields = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": mlp * width // 3}
    config = SimpleNamespace(max_position_embeddings=length, vocab_size=vocabulary, **fields)
    weights = layers * (attention + mlp) * width**2 + 2 * vocabulary * width
    flops = 6 * (weights - vocabulary * width) + 6 * layers * width * length
    step = Step(config, weights, rows, 1, False, gpus=8, is_sharded=False, mode=mode, flops_per_token=flops)
    assert 1 / seconds_per_token(step, GPUS["h100"]) == pytest.approx(reported, rel=0.2)


def test_a_given_mfu_is_not_charged_for_recomputation_again(capsys):
    plain, recomputed = (
        planned(capsys, "--recipe", "base", "--mfu", "0.3", "--gradient_checkpointing", on) for on in ("false", "true")
    )
    assert plain["hours"] == recomputed["hours"] and plain["mfu_by_mode"] is None


@pytest.mark.parametrize("recipe, gpus", [("tiny_cpu", 1), ("toto_nano", 2), ("base", 8), ("base_4090", 8)])
def test_a_number_of_devices_that_fits(recipe, gpus, capsys):
    found = planned(capsys, "--recipe", recipe)
    assert found["assumed"]["gpus"] == gpus
    given = planned(capsys, "--recipe", recipe, "--gpus", str(gpus))
    assert found["rows_per_device"] == given["rows_per_device"] and given["assumed"]["gpus_given"]


def test_a_short_run_is_told_in_seconds(capsys):
    main(["--recipe", "tiny_cpu"])
    said = capsys.readouterr().out
    assert "1 x 4 rows on 1 device (a number that fits the recipe" in said and " seconds, " in said


@pytest.mark.parametrize("recipe", ["base_4090", "base_kinetics400"])
def test_small_recipes_fit_on_24_gb(recipe, capsys):
    found = planned(capsys, "--recipe", recipe, "--gpu", "rtx4090", "--gpus", "1")
    assert found["fits"] and found["assumed"]["memory_gb"] == 24 and not found["gradient_checkpointing"]
    assert recipe != "base_4090" or (2e9 < found["tokens"] < 5e9 and found["hours"] < 24)


def test_devices_by_their_names():
    assert known_gpu("NVIDIA H100 80GB HBM3") is GPUS["h100"] and known_gpu("NVIDIA GeForce RTX 4090").tflops == 165.2
    for other in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 PCIe"):
        assert known_gpu(other) is None


def test_sharding_divides_what_it_shares(capsys):
    config = TotoConfig.from_preset("1b")

    def step(is_sharded, accumulation=1):
        return Step(config, 10**9, 4, accumulation, False, gpus=32, is_sharded=is_sharded)

    whole, shared = memory_of(step(False)), memory_of(step(True))
    assert shared["weights"] == whole["weights"] / 32 and shared["moments"] == whole["moments"] / 32
    assert shared["activations"] == whole["activations"]
    accumulating = memory_of(step(True, 8))
    assert accumulating["gradients"] - shared["gradients"] == 4 * 10**9


def test_what_does_not_fit_is_reported(capsys):
    main(["--recipe", "1b", "--gpus", "8", "--peak_tflops", "100", "--memory_gb", "16"])
    assert "DOES NOT FIT: lower --per_device_batch_size" in capsys.readouterr().out
    main(["--recipe", "base", "--all", "--gpus", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(ALL)


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--recipe", "base", "--gpus", "7"], "256 rows, which 7 devices cannot share equally; use 4 or 8 devices"),
        (["--gpu", "h1000"], "--gpu h1000 is unknown; choose a100, h100"),
        (["--gpu", "mine", "--peak_tflops", "9", "--memory_gb", "9"], "and --bandwidth_gbs or --mfu"),
        (["--gpus", "0"], "--gpus is 0; it must be above 0"),
        (["--precision", "fp32"], "give --peak_tflops for --precision fp32"),
        (["--mfu", "40"], "--mfu must lie between 0 and 1"),
        (["--source_tokens", "ego4d"], "--source_tokens 'ego4d' must be NAME=NUMBER"),
        (["--config", '{"hiden_size": 3}'], "did you mean 'hidden_size'"),
        (["--measured", "no_such_run"], "no_such_run is not a run folder"),
        (["--all", "--preset", "base"], "--preset would have no effect with --all"),
        (["--measured", "run", "--gpus", "4", "--json"], "--gpus would have no effect with --measured"),
    ],
)
def test_nonsense_is_one_sentence(flags, told):
    with pytest.raises((ValueError, OSError), match=told):
        main(flags)


def test_the_model_of_throughput_against_a_run(shards, tmp_path, capsys):
    """With the run's own MFU the prediction is the run's own speed; with half of it, half. A CPU has no data sheet."""
    from training.pretrain import main as pretrain

    run = tmp_path / "run"
    flags = ["--max_steps", "6", "--logging_steps", "1", "--val_rows", "4", "--output_dir", str(run)]
    pretrain([*FLAGS, *flags, "--shards", str(shards)])
    capsys.readouterr()
    first = planned(capsys, "--measured", str(run))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if "loss" in row]
    assert min(speeds) <= first["measured"] <= max(speeds) and first["predicted"] is None
    assert first["peak_is"] == "measured" and all(row["mfu"] is None for row in rows if "loss" in row)
    again = planned(capsys, "--measured", str(run), "--mfu", str(first["measured_mfu"] / 2))
    assert again["measured_over_predicted"] == pytest.approx(2, rel=0.3)  # medians of two quotients


def test_an_mfu_of_the_data_sheet_is_one_for_plans(tmp_path, capsys):
    rows = [
        {"step": k, "tokens": k * 100, "flops": k * 1e5, "tokens_per_second": 50.0, "mfu": 0.2, "measured_mfu": 0.3}
        for k in range(1, 4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = planned(capsys, "--measured", str(tmp_path), "--mfu", "0.1")
    assert found["measured_mfu"] == 0.2 and found["peak_gflops"] == pytest.approx(50 * 1e3 / 0.2 / 1e9)
    assert found["measured_over_predicted"] == pytest.approx(2)
    main(["--measured", str(tmp_path)])
    assert "Plan runs of this size, mode and device with --mfu 0.200" in capsys.readouterr().out
