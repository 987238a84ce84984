"""`toto plan`: its arithmetic by hand, its memory against what a model keeps, its throughput against a run."""

import json

import pytest
import torch
from tiny_run import FLAGS

from training.plan import ALL, block_bytes, main, memory_of


def planned(capsys, *flags):
    main([*flags, "--json"])
    return json.loads(capsys.readouterr().out)


def test_base_by_hand(capsys):
    found = planned(capsys, "--recipe", "base", "--gpus", "64", "--gpu", "h100", "--mfu", "0.4")
    assert found["parameters"] == 12 * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768) + 8256 * 768 + 768
    assert found["tokens"] == 1_000_000 * 2**20
    weights = 12 * (4 * 768**2 + 3 * 768 * 3072) + 8256 * 768
    assert found["flops_per_token"] == 6 * weights + 6 * 12 * 768 * 4098
    assert found["hours"] == pytest.approx(found["flops"] / (64 * 989e12 * 0.4) / 3600)
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


def test_sharding_divides_what_it_shares(capsys):
    from modeling_toto import TotoConfig

    config, common = TotoConfig.from_preset("1b"), {"checkpointing": False, "precision": "bf16", "gpus": 32}
    whole = memory_of(config, 10**9, 4, 1, is_sharded=False, **common)
    shared = memory_of(config, 10**9, 4, 1, is_sharded=True, **common)
    assert shared["weights"] == whole["weights"] / 32 and shared["moments"] == whole["moments"] / 32
    assert shared["activations"] == whole["activations"]
    accumulating = memory_of(config, 10**9, 4, 8, is_sharded=True, **common)
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
    """With the run's own MFU the prediction is the run's own speed; with half of it, half."""
    from training.pretrain import main as pretrain

    run = tmp_path / "run"
    flags = ["--max_steps", "6", "--logging_steps", "1", "--val_rows", "4", "--output_dir", str(run)]
    pretrain([*FLAGS, *flags, "--shards", str(shards)])
    capsys.readouterr()
    first = planned(capsys, "--measured", str(run))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if "loss" in row]
    assert min(speeds) <= first["measured"] <= max(speeds)
    again = planned(capsys, "--measured", str(run), "--mfu", str(first["measured_mfu"] / 2))
    assert again["measured_over_predicted"] == pytest.approx(2, rel=0.3)  # medians of two quotients
