"""`toto scaling`: which runs it plans, that they end at their budgets on fresh tokens, and what it writes of them."""

import json
import shutil

import pytest

from evaluation.scaling import ScalingArgs, main, plan
from modeling_toto import TotoConfig
from tokenization.tokenize_dataset import main as tokenize
from training.architectures import flops_per_token
from training.flags import parse
from training.rows.shard_rows import ShardRows

# 32-pixel frames at stride 8, 4 frames a row of 64 tokens.
GEOMETRY = {"vocab_size": 64 + 32, "tokens_per_frame": 16, "num_frames": 4, "max_position_embeddings": 66}
SIZES = ["8x1", "16x1"]
FLAGS = ["--config", json.dumps(GEOMETRY), "--tokens_per_step", "256", "--min_steps", "2", "--sizes", *SIZES]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    import torch

    from tokenization.configuration_vqgan import TotoVQGANConfig
    from tokenization.modeling_vqgan import TotoVQGANModel

    root = tmp_path_factory.mktemp("scaling")
    torch.manual_seed(0)
    small = {"embed_dim": 4, "base_channels": 8, "num_res_blocks": 1, "z_channels": 8, "norm_groups": 4}
    small |= {"channel_multipliers": (1, 1), "attention_resolutions": (), "mid_attention": False}
    config = TotoVQGANConfig(num_codes=32, patch_size=4, resolution=32, **small)
    TotoVQGANModel(config).save_pretrained(root / "tokenizer")
    flags = ["--dataset", "toyworld", "--split", "train", "--max_clips", "48", "--num_frames", "4"]
    tokenize([*flags, "--tokenizer", str(root / "tokenizer"), "--output", str(root / "train")])
    return root / "train"


def flops(size):
    width, layers = map(int, size.split("x"))
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 4, "head_dim": width // 4}
    return flops_per_token(TotoConfig.from_preset("tiny", **GEOMETRY, **shape))


def budgets(size, steps):
    return [256 * flops(size) * count for count in steps]


def planned(shards, **fields):
    defaults = {"config": json.dumps(GEOMETRY), "tokens_per_step": 256, "min_steps": 2, "sizes": SIZES}
    return plan(ScalingArgs(shards=str(shards), **(defaults | fields)))


def value(point, flag):
    return point.flags[point.flags.index(flag) + 1]


def test_a_run_and_its_schedule_end_at_the_budget(shards):
    points, _ = planned(shards, budgets=budgets("16x1", [4, 6, 8]), sizes=["16x1"], warmup_share=0.5)
    assert [value(point, "--max_steps") for point, _ in points] == ["4", "4", "6", "6", "8", "8"]
    assert [value(point, "--warmup_steps") for point, _ in points] == ["2", "2", "3", "3", "4", "4"]
    assert len({point.name for point, _ in points}) == 6
    for point, place in points:
        assert place["flops"] == place["budget"] == 6 * place["forward_macs"]
        assert place["tokens"] == 256 * int(value(point, "--max_steps"))
        assert value(point, "--seed") == str(place["seed"])
        config = json.loads(value(point, "--config"))
        assert (config["hidden_size"], config["intermediate_size"], config["mup_base_width"]) == (16, 64, 64)


def test_budgets_close_to_each_other_are_other_runs(shards):
    points, _ = planned(shards, budgets=[b * 1.01**k for k, b in enumerate(budgets("8x1", [8, 8, 8]))], sizes=["8x1"])
    assert len({point.name for point, _ in points}) == 6


def test_no_token_twice(shards):
    """Held-out rows are not training tokens; a run of one step too many is left out, and named."""
    rows = ShardRows(shards, TotoConfig.from_preset("tiny", **GEOMETRY), seed=0).rows_per_epoch
    steps = rows // 4  # of 4 rows
    assert steps < 48 // 4
    points, left_out = planned(shards, budgets=budgets("8x1", [2, 4, steps, steps + 1]), sizes=["8x1"])
    assert {value(point, "--max_steps") for point, _ in points} == {"2", "4", str(steps)}
    (told,) = left_out
    assert f"{256 * (steps + 1)} tokens" in told.replace(",", "") and f"hold {rows * 64}" in told.replace(",", "")
    points, left_out = planned(
        shards, budgets=budgets("8x1", [2, 4, 12]), sizes=["8x1"], val_shards=str(shards), seeds=1
    )
    assert len(points) == 3 and not left_out  # nothing is held out where there is validation data


def test_few_steps_are_left_out_and_named(shards):
    _, left_out = planned(shards, budgets=budgets("8x1", [4, 6, 8]), min_steps=4)
    assert left_out and all("16x1 at" in told and "fewer than 4" in told for told in left_out)


def test_the_paper_sized_recipe_plans_three_sizes_and_more_at_every_budget(monkeypatch):
    (args,) = parse((ScalingArgs,), ["--recipe", "scaling_paper"], "toto scaling", "")
    assert args.learning_rate == 2**-7 and args.tokens_per_step == 2**20

    class HowTo100M:  # at 7.5 frames a second, less what is held out
        rows_per_epoch = int(640e9 * 0.95 / 4096)

    monkeypatch.setattr("training.rows.shard_rows.ShardRows", lambda *_, **__: HowTo100M)
    points, left_out = plan(args)
    tried = {budget: {place["size"] for _, place in points if place["budget"] == budget} for budget in args.budgets}
    assert all(len(sizes) >= 3 for sizes in tried.values())
    assert all(place["tokens"] <= 608e9 for _, place in points) and any("a1 at 1e+20" in told for told in left_out)
    assert sum(place["flops"] for _, place in points) == pytest.approx(3.6e21, rel=0.02)  # as its header says


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"budgets": [1e3, 1e4, 1e5]}, "Fewer than three budgets have a run to train .*fewer than 2"),
        ({"budgets": [1e9, 1e9, 2e9]}, "at least three --budgets"),
        ({"budgets": [1e15, 1e16, 1e17]}, "tokens, but the shards hold"),
        ({"sizes": ["12x1"]}, "'12x1' is not valid; give WIDTHxLAYERS"),
        ({"sizes": ["16x0"]}, "'16x0' is not valid; give WIDTHxLAYERS"),
        ({"sizes": ["big"]}, "'big' is not valid; give WIDTHxLAYERS.*a1"),
        ({"config": '{"num_frame": 4}'}, "did you mean 'num_frames'"),
        ({"config": "{}"}, "do not fit the model"),
        ({"seeds": 0}, "--seeds is 0; it must be above 0"),
        ({"warmup_share": 1.0}, "--warmup_share"),
        ({"output": "scaling.txt"}, "--output is scaling.txt; it must end in .json"),
    ],
)
def test_nonsense_is_refused_before_a_run(shards, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        planned(shards, **({"budgets": budgets("8x1", [2, 4, 8])} | fields))


def test_runs_law_and_figure(shards, tmp_path, capsys):
    """A grid that is trained, called again, and fitted again without training."""
    output = tmp_path / "results" / "scaling.json"
    flags = [*FLAGS, "--shards", str(shards), "--seeds", "1", "--output", str(output), "--min_steps", "3"]
    flags += ["--budgets", *map(repr, budgets("8x1", [3, 5, 8]))]
    main(flags)
    told = capsys.readouterr().out
    assert (
        "left out: 16x1" in told and "its a is for another unit" in told and "the intervals do not cover seeds" in told
    )
    result = json.loads(output.read_text())
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert [run["steps"] for run in result["runs"] if run["size"] == "8x1"] == [3, 5, 8]
    folder = output.with_name("scaling_runs")
    for run in result["runs"]:
        name = f"{run['budget']:g}-{run['size']}-seed0"
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["val_loss"] == run["val_loss"] and rows[-1]["step"] == run["steps"]
        trained = [row for row in rows if "loss" in row][-1]
        assert trained["flops"] == pytest.approx(run["flops"]) and trained["tokens"] == run["tokens"]

    for file in folder.rglob("metrics.jsonl"):
        file.unlink()  # what has its outcome is not run again
    main(flags)
    again = json.loads(output.read_text())
    assert again["runs"] == result["runs"] and again["law"] == result["law"]
    assert not list(folder.rglob("metrics.jsonl"))

    shutil.rmtree(folder)
    main(["--runs", str(output), "--output", str(tmp_path / "refit.json")])
    with pytest.raises(ValueError, match="--learning_rate would have no effect with --runs"):
        main(["--runs", str(output), "--learning_rate", "1"])
    refit = json.loads((tmp_path / "refit.json").read_text())
    assert not folder.exists() and refit["law"] == result["law"] and refit["training"] == result["training"]
    assert refit["trained_by"]["command"] == result["command"]


def test_a_diverged_run_is_named(tmp_path, capsys):
    runs = [
        {"size": size, "parameters": count, "budget": c, "flops": c, "seed": seed, "val_loss": 5 * c**-0.02}
        for c in (1e10, 3e10, 1e11)
        for size, count in (("8x1", 1000), ("16x1", 3000))
        for seed in (0, 1)
    ]
    runs[0]["val_loss"] = None
    file = tmp_path / "before.json"
    file.write_text(json.dumps({"training": {}, "left_out": [], "runs": runs}))
    main(["--runs", str(file), "--output", str(tmp_path / "after.json")])
    assert "8x1 at 1e+10 FLOPs, seed 0 diverged and is left out of the frontier" in capsys.readouterr().err
    file.write_text("[1]")
    with pytest.raises(ValueError, match="which is not a result of `toto scaling`"):
        main(["--runs", str(file)])
