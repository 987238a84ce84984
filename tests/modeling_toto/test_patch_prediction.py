"""Patches in, the next normalised patch or code out: targets are shifted, causal, and only real ones count."""

import os
import subprocess
import sys

import pytest
import torch
from test_saved_models import BLOCK
from torch.nn import functional as F
from transformers import AutoModelForPreTraining

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForPatchPrediction
from modeling_toto.modeling_toto import normalise_patches
from tokenization.patches import Patches

PIXELS = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # 3 frames of 4 x 4 patches
PATCHES = Patches(2).encode(PIXELS).values.flatten(1, 3)  # (2, 48, 12)
CODES = torch.randint(32, (2, 48), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make(small_config):
    def make(target="patch", cls=TotoForPatchPrediction, **fields):
        sizes = small_config.to_dict() | {"max_position_embeddings": 49, "patch_size": 2, "initializer_range": 0.2}
        torch.manual_seed(0)
        return cls(TotoConfig(**sizes | {"prediction_target": target} | fields)).eval()

    return make


def labels_of(target):
    return PATCHES if target == "patch" else CODES


def test_targets_are_the_tokenizers_normalised_patches():
    raw = PIXELS.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(1, 3)
    torch.testing.assert_close(normalise_patches(raw), PATCHES)
    torch.testing.assert_close(normalise_patches(PATCHES), PATCHES, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["patch", "code"])
def test_loss_is_the_written_out_one(make, target):
    model = make(target)
    labels = labels_of(target)
    output = model(PATCHES, labels=labels)
    assert output.logits.shape == (2, 49, 12 if target == "patch" else 32)
    expected = torch.empty(2, 48)
    for row in range(2):
        for t in range(48):  # the state at t, start being 0, predicts patch t
            if target == "patch":
                expected[row, t] = (output.logits[row, t] - normalise_patches(labels[row, t])).square().mean()
            else:
                expected[row, t] = -output.logits[row, t].log_softmax(-1)[labels[row, t]]
    torch.testing.assert_close(output.token_losses, expected)
    torch.testing.assert_close(output.loss, expected.mean())
    skipped = model(PATCHES, labels=labels, skip_logits=True)
    assert skipped.logits is None
    torch.testing.assert_close(skipped.token_losses, output.token_losses)
    torch.testing.assert_close(skipped.loss, output.loss)


@pytest.mark.parametrize("target", ["patch", "code"])
def test_predictions_see_only_what_came_before(make, target):
    model = make(target)
    logits = model(PATCHES).logits
    changed = PATCHES.clone()
    changed[:, 20] += 1
    other = model(changed).logits
    assert torch.equal(other[:, :21], logits[:, :21]) and not torch.equal(other[:, 21], logits[:, 21])


@pytest.mark.parametrize("target", ["patch", "code"])
def test_it_learns(make, target):
    model = make(target).train()
    labels = labels_of(target)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(PATCHES, labels=labels).loss.item()
    for _ in range(120):
        optimiser.zero_grad()
        model(PATCHES, labels=labels, skip_logits=True).loss.backward()
        optimiser.step()
    assert model(PATCHES, labels=labels).loss.item() < 0.3 * first
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("target", ["patch", "code"])
def test_padding_on_the_right_does_not_count(make, target):
    model = make(target)
    labels = labels_of(target)
    alone = model(PATCHES[:1, :30], labels=labels[:1, :30])
    mask = (torch.arange(48) < torch.tensor([[30], [48]])).long()
    output = model(PATCHES, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.token_losses[0, :30], alone.token_losses[0], rtol=1e-4, atol=1e-4)
    assert (output.token_losses[0, 30:] == 0).all()
    torch.testing.assert_close(output.loss, output.token_losses.sum() / 78)


@pytest.mark.parametrize("target", ["patch", "code"])
def test_prefix_and_full_attention(make, target):
    """The start and 15 patches see each other; their labels are not counted, and full attention has no loss."""
    model = make(target)
    labels = labels_of(target)
    prefix = {"attention_mode": "prefix", "prefix_length": 16}
    output = model(PATCHES, labels=labels, **prefix)
    assert (output.token_losses[:, :15] == 0).all() and (output.token_losses[:, 15:] > 0).all()
    torch.testing.assert_close(output.loss, output.token_losses[:, 15:].mean())
    changed = labels.clone()
    changed[:, :15] = labels[:, 15:30]
    assert torch.equal(model(PATCHES, labels=changed, **prefix).loss, output.loss)
    with pytest.raises(ValueError, match="no next-token loss under full attention"):
        model(PATCHES, labels=labels, attention_mode="full")
    assert model(PATCHES, attention_mode="full").logits.shape[1] == 49


def test_ignored_codes(make):
    labels = CODES.clone()
    labels[:, ::2] = -100
    output = make("code")(PATCHES, labels=labels)
    assert (output.token_losses[:, ::2] == 0).all()
    torch.testing.assert_close(output.loss, output.token_losses[:, 1::2].mean())


def test_start_token(make):
    model = make()
    video = model(PATCHES).logits
    assert torch.equal(model(PATCHES, start_token_id=1).logits, video)
    image = model(PATCHES, start_token_id=3).logits
    assert not torch.equal(image, video)
    torch.testing.assert_close(
        model(PATCHES, start_token_id=torch.tensor([3, 1])).logits, torch.stack([image[0], video[1]])
    )


def test_bad_input(make):
    model = make()

    def fail(*_):
        raise AssertionError("a block ran")

    for module in (model.patch_embedding, model.model.layers[0]):
        module.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=r"\(2, 48, 11\); pass \(batch, number, 12\), RGB patches of 2 x 2 pixels"):
        model(PATCHES[..., :11])
    with pytest.raises(ValueError, match=r"shape \(2, 48\); pass \(2, 48, 12\) for prediction_target='patch'"):
        model(PATCHES, labels=CODES)
    with pytest.raises(ValueError, match="sequence of 50 tokens is longer than the model's 49"):
        model(F.pad(PATCHES, (0, 0, 0, 1)))
    for mask in (torch.ones(2, 49), torch.ones(1, 48), torch.ones(2, 1, 48, 48)):
        with pytest.raises(ValueError, match=r"attention_mask has shape .*; pass \(2, 48\), a number for each patch"):
            model(PATCHES, attention_mask=mask)
    with pytest.raises(ValueError, match="needs labels"):
        model(PATCHES, skip_logits=True)
    with pytest.raises(ValueError, match="needs codes, but vocab_size is 64"):
        make("code", vocab_size=64)


def test_only_the_special_ids_when_no_codes_are_predicted(make):
    model = make(vocab_size=64)
    assert model.model.embed_tokens.num_embeddings == 64
    assert torch.isfinite(model(PATCHES, labels=PATCHES).loss)


@pytest.mark.parametrize("size", [104, 80])
def test_resized_codes_save_and_load(make, tmp_path, size):
    model = make("code")
    before = model(PATCHES).logits
    model.resize_token_embeddings(size)
    kept = min(size, 96) - 64
    after = model(PATCHES).logits
    assert after.shape == (2, 49, size - 64) and model.config.num_codes == size - 64
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    assert model(PATCHES, labels=CODES.clamp(max=kept - 1)).loss.isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(TotoForPatchPrediction.from_pretrained(tmp_path)(PATCHES).logits, after)
    with pytest.raises(ValueError, match="A vocabulary of 64 ids has no codes to predict"):
        model.resize_token_embeddings(64)
    regression = make()
    regression.resize_token_embeddings(64)  # no codes are predicted
    assert regression(PATCHES).logits.shape == (2, 49, 12)


REMOTE = """
import sys, torch
from transformers import AutoModelForPreTraining
folder = sys.argv[1]
model = AutoModelForPreTraining.from_pretrained(folder + "/model", trust_remote_code=True)
assert type(model).__name__ == "TotoForPatchPrediction" and type(model).__module__.startswith("transformers_modules.")
patches = torch.load(folder + "/patches.pt", weights_only=True)
torch.save(model(patches).logits.detach(), folder + "/out.pt")
"""


def test_saved_models(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "model")
    assert type(loaded) is TotoForPatchPrediction and torch.equal(loaded(PATCHES).logits, model(PATCHES).logits)
    make(cls=TotoForCausalLM).save_pretrained(tmp_path / "causal")
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path / "causal")) is TotoForCausalLM
    torch.save(PATCHES, tmp_path / "patches.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + REMOTE, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), model(PATCHES).logits)
