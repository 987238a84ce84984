"""The command that trains visual tokenizers, at full length but tiny: what it writes is true and loads back."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tokenization.configuration_vqgan import TotoVQGANConfig
from tokenization.evaluate_tokenizer import measure
from tokenization.modeling_dvae import TotoDVAEModel
from tokenization.modeling_vqgan import TotoVQGANModel
from training.train_tokenizer import TokenizerArgs, frame_batches, held_out_frames, main, prefetch, revive

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
DVAE = {"n_hid": 16, "n_init": 8, "n_blk_per_group": 1, "num_codes": 32, "resolution": 32}


def train(kind, settings, output, *flags):
    # Plain backgrounds and short runs: photographs and film take seconds to read.
    short = "--dataset toyworld --max_steps 24 --batch_size 8 --logging_steps 4 --revive_every 4"
    rate = "--learning_rate 3e-3 --warmup_steps 2"
    named = ["--kind", kind, "--model", json.dumps(settings), "--output_dir", str(output)]
    main([*named, *short.split(), *rate.split(), *flags])
    return output


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory):
    return train("vqgan", VQGAN, tmp_path_factory.mktemp("tokenizers") / "vqgan")


@pytest.fixture(scope="module")
def dvae(tmp_path_factory):
    return train("dvae", DVAE, tmp_path_factory.mktemp("tokenizers") / "dvae")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["vqgan", "dvae"])
def test_the_loss_falls_and_is_logged(kind, request):
    log = rows(request.getfixturevalue(kind))
    assert [row["step"] for row in log] == [4, 8, 12, 16, 20, 24]
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["psnr"]) for row in log)
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["psnr"] > log[0]["psnr"]
    assert all(0 < row["codes_used"] <= 32 and row["frames_per_second"] > 0 for row in log)


@pytest.mark.parametrize(("kind", "model_class"), [("vqgan", TotoVQGANModel), ("dvae", TotoDVAEModel)])
def test_the_folder_loads_and_measures_as_written(kind, model_class, request):
    folder = request.getfixturevalue(kind)
    model = AutoModel.from_pretrained(folder)
    assert type(model) is model_class and model.config.num_codes == 32
    written = json.loads((folder / "evaluation.json").read_text())
    again = measure(model, held_out_frames("toyworld", 32))
    assert written == {"toyworld": again}
    assert again["num_frames"] == 256 and 1 <= again["codes_used"] <= 32 and again["perplexity"] <= again["codes_used"]


@pytest.mark.parametrize("kind", ["vqgan", "dvae"])
def test_the_card_holds_the_numbers_of_the_evaluation(kind, request):
    folder = request.getfixturevalue(kind)
    card = (folder / "README.md").read_text()
    figures = json.loads((folder / "evaluation.json").read_text())["toyworld"]
    line = next(line for line in card.splitlines() if line.startswith("| toyworld |"))
    cells = [float(cell) for cell in line.strip("|").split("|")[1:]]
    assert cells == [figures[key] for key in ("psnr", "ssim", "codes_used", "perplexity", "num_frames")]
    assert f"A small {kind} tokenizer" in card and "stride 8: 16 codes a frame" in card
    assert "max_steps: 24" in card and str(folder) not in card


def test_training_repeats_itself(vqgan, tmp_path):
    again = train("vqgan", VQGAN, tmp_path / "again")
    assert [row["loss"] for row in rows(again)] == [row["loss"] for row in rows(vqgan)]
    assert (again / "model.safetensors").read_bytes() == (vqgan / "model.safetensors").read_bytes()


def test_revive_moves_dead_codes_only():
    torch.manual_seed(0)
    model = TotoVQGANModel(TotoVQGANConfig(**VQGAN))
    before = model.quantize.embedding.weight.detach().clone()
    usage = torch.ones(32)
    usage[[3, 7]] = 0
    latents = torch.randn(2, 8, 4, 4) + 5
    assert revive(model, usage, latents) == 2
    after = model.quantize.embedding.weight.detach()
    alive = usage > 0
    assert torch.equal(after[alive], before[alive])
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(after[~alive], vectors).amin(1).max() < 0.2  # beside an output of the encoder
    assert revive(model, torch.ones(32), latents) == 0 and torch.equal(model.quantize.embedding.weight, after)


def test_batches_repeat_themselves():
    args = TokenizerArgs(dataset=["toyworld"], batch_size=4)
    first, again = (next(frame_batches(args, 32)) for _ in range(2))
    assert first.shape == (4, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    other = next(frame_batches(TokenizerArgs(dataset=["toyworld"], batch_size=4, seed=1), 32))
    assert not np.array_equal(first, other)


def test_prefetch_keeps_order_and_hands_errors_over():
    def broken():
        yield from range(9)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(prefetch(broken(), depth=2))  # a list keeps what it got before the error
    assert seen == list(range(9))


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another --output_dir"):
        train("vqgan", VQGAN, tmp_path)
    with pytest.raises(ValueError, match="is a file; choose another --output_dir"):
        train("vqgan", VQGAN, tmp_path / "precious.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"The loss is not finite at step \d+; lower --learning_rate"):
        train("vqgan", VQGAN, tmp_path / "out", "--learning_rate", "1e30", "--max_grad_norm", "1e30")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kind", "jpeg"], "--kind must be vqgan or dvae, not 'jpeg'"),
        (["--max_steps", "0"], "--max_steps and --batch_size must be above 0"),
        (["--logging_steps", "0"], "--logging_steps and --revive_every must be above 0"),
        (["--model", '{"num_code": 3}'], "unknown key 'num_code'; did you mean 'num_codes'"),
        (["--model", "{num_codes: 3}"], "--model must be a JSON mapping such as"),
        (["--model", "[3]"], "--model must be a JSON mapping, not"),
        (["--dataset", "toyworld:hard"], "toyworld has the variants simple, cluttered, film; got 'hard'"),
        (["--split", "dev"], "toyworld has the splits train, validation, test; got 'dev'"),
    ],
)
def test_wrong_flags_are_told(flags, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train("vqgan", VQGAN, tmp_path / "out", *flags)
