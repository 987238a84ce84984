"""One more epoch at a finer grid and another RoPE base (paper Table 4, 16 -> 32), through the real commands."""

import json
import math

import pytest
import torch
from tiny_run import CONFIG, FLAGS, SIDE, save_tokenizer

from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization import TotoProcessor
from training import find_model
from training.engine.device import fast_autocast
from training.flags import read_recipe
from training.pretrain import main
from training.rows.shard_rows import ShardRows

# A quarter of the frames, four times the codes each: rows keep their length, as the paper's 4 x 1,024 and 16 x 256 do.
FINER = {"tokens_per_frame": 64, "num_frames": 1, "rope_theta": 50_000}
STEPS = ["--max_steps", "2", "--logging_steps", "1", "--tokens_per_step", "256", "--warmup_steps", "1"]


@pytest.fixture(scope="module")
def coarse(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("coarse") / "run"
    attentive = json.dumps(CONFIG | {"initializer_range": 0.3})  # so that positions matter after two steps already
    main([*FLAGS, *STEPS, "--config", attentive, "--shards", str(shards), "--output_dir", str(run)])
    return run


@pytest.fixture(scope="module")
def fine_shards(shards, tmp_path_factory):
    from tokenization.tokenize_dataset import main as tokenize

    folder = tmp_path_factory.mktemp("fine") / "shards"
    flags = ["--dataset", "toyworld", "--max_clips", "40", "--num_frames", "1", "--rows_per_shard", "16"]
    tokenize([*flags, "--resolution", str(2 * SIDE), "--tokenizer", str(shards / "processor"), "--output", str(folder)])
    return folder


def test_training_continues_at_the_finer_grid(coarse, fine_shards, tmp_path, monkeypatch, recwarn):
    run = tmp_path / "run"
    monkeypatch.chdir(coarse.parent)  # the run remembers the whole path of what it began from
    flags = ["--init_from", coarse.name, "--config", json.dumps(FINER), "--shards", str(fine_shards)]
    main([*flags, *STEPS, "--save_steps", "1", "--output_dir", str(run)])
    assert read_recipe(run)["init_from"] == str(coarse.resolve())
    assert not [told for told in recwarn if "another visual tokenizer" in str(told.message)]
    last = find_model.latest(run)
    config = TotoConfig.from_pretrained(last)
    assert config.grid_size == (8, 8) and (config.tokens_per_frame, config.num_frames) == (64, 1)
    assert config.rope_parameters["rope_theta"] == 50_000 and config.max_position_embeddings == 66
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
    assert all(getattr(config, key) == CONFIG[key] for key in kept)
    processor = TotoProcessor.from_pretrained(last)
    assert processor.resolution == 2 * SIDE and processor.grid == (8, 8) and processor.num_frames == 1
    model = TotoForCausalLM.from_pretrained(last)
    dim = config.head_dim
    assert torch.equal(
        model.model.rotary_emb.inv_freq, 1 / 50_000 ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
    )

    # The first step's loss is that of the coarse weights with the new base, on the first rows.
    numbered = ShardRows(fine_shards, config, seed=0)
    rows = torch.stack([numbered.row(k) for k in range(4)])
    source = find_model.latest(coarse)
    changed, unchanged = (TotoForCausalLM.from_pretrained(source, **kw) for kw in (FINER, {}))
    with fast_autocast(rows.device):  # with gradients, as in training: blocks then round in other places
        nats = [
            model.train()(rows, labels=rows, skip_logits=True).token_losses[:, 1:-1].mean().item()
            for model in (changed, unchanged)
        ]
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["step"] == 1 and logged["loss"] == pytest.approx(nats[0], abs=1e-3)
    assert not math.isclose(nats[0], nats[1], abs_tol=1e-2)  # the old base would have shown

    main(["--resume", str(run), "--max_steps", "2"])  # done already, and its --config does not matter


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"do not fit the model: tokens_per_frame 16 \(shards: 64\), num_frames 4 \(shards: 1\).*--config"),
        (
            FINER | {"hidden_size": 64},
            "--config sets hidden_size to 64, but the weights of --init_from .* have 32; leave",
        ),
        (FINER | {"num_hidden_layers": 3}, "num_hidden_layers to 3, but the weights"),
        (FINER | {"num_attention_heads": 4}, "num_attention_heads to 4, but"),  # would load, and mean something else
        (FINER | {"mup_base_width": 16}, "mup_base_width to 16, but .* have None"),
        (FINER | {"tokens_per_frame": 64, "grid_size": [4, 4]}, r"grid_size \(4, 4\) holds 16 codes"),
        (FINER | {"tokens_per_frme": 64}, "--config has the unknown key 'tokens_per_frme'; did you mean 'tokens_per_f"),
        (FINER | {"attention_mode": "sideways"}, "attention_mode is 'sideways'; choose one of"),
        (FINER | {"max_position_embeddings": 64}, "has 66 ids, but the model takes only 64"),
    ],
)
def test_what_does_not_fit_is_reported_before_training(coarse, fine_shards, tmp_path, fields, words):
    flags = ["--init_from", str(coarse), "--config", json.dumps(fields), "--shards", str(fine_shards)]
    with pytest.raises(ValueError, match=words):
        main([*flags, *STEPS, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_fields_that_repeat_the_checkpoints_are_welcome(coarse, fine_shards, tmp_path):
    fields = FINER | {"hidden_size": 32, "num_hidden_layers": 2}
    flags = ["--init_from", str(coarse), "--config", json.dumps(fields), "--shards", str(fine_shards)]
    main([*flags, *STEPS, "--output_dir", str(tmp_path / "run")])
    assert find_model.latest(tmp_path / "run").name == "step_000002"


def test_weights_for_other_codes_give_a_warning(coarse, tmp_path):
    from tokenization.tokenize_dataset import main as tokenize

    other = save_tokenizer(tmp_path / "tokenizer", seed=1)
    flags = ["--dataset", "toyworld", "--max_clips", "8", "--num_frames", "4", "--resolution", str(SIDE)]
    tokenize([*flags, "--tokenizer", str(other), "--output", str(tmp_path / "shards")])
    flags = ["--init_from", str(coarse), "--shards", str(tmp_path / "shards"), "--output_dir", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match="was trained on the codes of another visual tokenizer"):
        main([*flags, *STEPS])
