"""The tokenizers' objectives: equal to their formulas, and to the published discriminator's code."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_run import VQGAN

from tokenization.configuration_dvae import TotoDVAEConfig
from tokenization.configuration_vqgan import TotoVQGANConfig
from tokenization.modeling_dvae import TotoDVAEModel, map_pixels
from tokenization.modeling_vqgan import TotoVQGANModel
from training.tokenizers.losses import (
    PatchDiscriminator,
    RelaxedDVAE,
    adaptive_weight,
    cosine_ramp,
    dvae_loss,
    hinge_loss,
    kl_to_uniform,
    logit_laplace_nll,
    retire,
    revive,
    vqgan_loss,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TotoVQGANModel(TotoVQGANConfig(**VQGAN))


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.3, -1.0), (-2.0, 0.7)])
def test_the_logit_laplace_density_integrates_to_one(mean, log_scale):
    # Over the whole open interval (0, 1) of mapped pixels, in steps of their logit; `pixels` may leave [0, 1] here.
    logits = torch.linspace(-30, 30, 3001, dtype=torch.float64)
    mapped = logits.sigmoid()
    mean, log_scale = torch.tensor(mean).double(), torch.tensor(log_scale).double()
    nll = torch.stack([logit_laplace_nll(pixel, mean, log_scale) for pixel in (mapped - 0.1) / 0.8])
    integral = (torch.exp(-nll) * mapped * (1 - mapped) * 0.02).sum()
    assert integral.item() == pytest.approx(1, abs=1e-3)


def test_the_likelihood_is_best_at_the_true_pixels():
    pixels = torch.rand(2, 3, 8, 8)
    truth = torch.logit(map_pixels(pixels)).requires_grad_()
    log_scale = torch.full_like(pixels, -2.0)
    best = logit_laplace_nll(pixels, truth, log_scale)
    assert best < logit_laplace_nll(pixels, truth + 0.1, log_scale)
    assert best < logit_laplace_nll(pixels, truth - 0.1, log_scale)


def test_kl_is_zero_for_uniform_and_log_k_for_certain_codes():
    assert kl_to_uniform(torch.zeros(1, 16, 2, 2)).item() == pytest.approx(0, abs=1e-6)
    certain = 100 * F.one_hot(torch.tensor([[[3, 5]]]), 16).permute(0, 3, 1, 2).float()
    assert kl_to_uniform(certain).item() == pytest.approx(math.log(16), abs=1e-5)


def test_the_ramp_goes_from_end_to_end_and_stays():
    values = [cosine_ramp(step, 10, 1.0, 0.0625) for step in range(15)]
    assert values[0] == 1 and values[5] == pytest.approx((1 + 0.0625) / 2) and values[10:] == [0.0625] * 5
    assert values == sorted(values, reverse=True)


def test_the_critic_is_the_published_one():
    published = pytest.importorskip("taming.modules.discriminator.model", reason="taming is not installed")
    theirs = published.NLayerDiscriminator(input_nc=3, ndf=8, n_layers=3).apply(published.weights_init)
    ours = PatchDiscriminator(8, 3)
    ours.load_state_dict(theirs.state_dict())  # strict: every name and shape
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(ours(pictures), theirs(pictures))
    fresh = PatchDiscriminator(64, 3)
    assert fresh.main[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert fresh.main[3].weight.mean().item() == pytest.approx(1, abs=0.02)


def test_hinge_loss():
    confident = torch.tensor([2.0, 3.0])
    assert hinge_loss(confident, -confident) == 0
    assert hinge_loss(torch.zeros(2), torch.zeros(2)) == 1
    assert hinge_loss(-confident, confident) == 3.5


def test_the_adaptive_weight_evens_the_gradients_out(model):
    pixels = torch.rand(2, 3, 32, 32)
    critic = PatchDiscriminator(8, 1).eval()
    last = model.decoder.conv_out.weight
    copy = model(pixels).reconstruction
    distance, adversarial = (copy - pixels).abs().mean(), -critic(2 * copy - 1).mean()
    weight = adaptive_weight(distance, adversarial, last)
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (distance, weight * adversarial)]
    assert not weight.requires_grad
    torch.testing.assert_close(norms[0], norms[1], rtol=0.05, atol=0)


def test_the_vqgan_loss_is_the_sum_of_its_terms(model):
    pixels = torch.rand(2, 3, 32, 32)

    class Half(torch.nn.Module):
        def forward(self, a, b):
            return torch.full((len(a),), 0.5) + 0 * (a - b).sum()

    critic = PatchDiscriminator(8, 1).eval()
    settings = {"l2_weight": 2.0, "commitment_weight": 0.3, "perceptual": Half(), "perceptual_weight": 4.0}
    settings |= {"discriminator": critic, "disc_weight": 0.7, "last_weight": model.decoder.conv_out.weight}
    loss, terms, copy, _, _ = vqgan_loss(model, pixels, **settings)
    error = 2 * (copy - pixels)
    expected = error.abs().mean() + 2 * error.square().mean() + 4 * 0.5
    expected = expected + terms["codebook"] + 0.3 * terms["commitment"]
    expected = expected + 0.7 * terms["adaptive_weight"] * terms["adversarial"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["l1"], error.abs().mean())


def test_a_dvae_learns_a_batch():
    torch.manual_seed(0)
    config = TotoDVAEConfig(n_hid=16, n_init=8, n_blk_per_group=1, num_codes=32, resolution=32)
    relaxed = RelaxedDVAE(TotoDVAEModel(config))
    optimizer = torch.optim.Adam(relaxed.parameters(), lr=3e-3)
    pixels = torch.rand(8, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)  # a plain colour for every code
    errors = []
    for step in range(100):
        temperature = cosine_ramp(step, 100, 1.0, 0.5)
        loss, terms, copy, codes = dvae_loss(relaxed, pixels, temperature, 0.01, config.stride)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append((copy - pixels).square().mean().item())
    assert min(errors[-5:]) < 0.5 * errors[0] and len(codes.unique()) > 4
    torch.testing.assert_close(loss, terms["nll"] + 0.01 / 192 * terms["kl"])


def test_revive_moves_dead_codes_only(model):
    before = model.quantize.embedding.weight.detach().clone()
    usage = torch.ones(32)
    usage[[3, 7]] = 0
    latents = torch.randn(2, 8, 4, 4) + 5
    assert revive(model, usage, latents) == 2
    after = model.quantize.embedding.weight.detach()
    alive = usage > 0
    assert torch.equal(after[alive], before[alive])
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(after[~alive], vectors).amin(1).max() < 0.2  # next to an output of the encoder
    assert revive(model, torch.ones(32), latents) == 0 and torch.equal(model.quantize.embedding.weight, after)


def far_latents(model) -> torch.Tensor:
    """Latents of a room that is mostly floor: 97 % are a code in use, the others are 6 away from it. (2, 8, 10, 10)"""
    latents = model.quantize.embedding.weight.detach()[0].expand(200, 8).clone()
    latents[range(6), range(6)] += 6
    return latents.view(2, 10, 10, 8).permute(0, 3, 1, 2)


@pytest.mark.parametrize("far", [True, False])
def test_far_revival_takes_the_rare_latents(model, far):
    latents, usage = far_latents(model), torch.zeros(32)
    usage[:2] = 1
    with torch.no_grad():  # an unused code that is there by chance does not count
        model.quantize.embedding.weight[31] = latents[0, :, 0, 0]
    before = model.quantize.embedding.weight.detach().clone()
    torch.manual_seed(0)
    assert revive(model, usage, latents, far=far) == 30
    after = model.quantize.embedding.weight.detach()
    assert torch.equal(after[:2], before[:2])
    rare = (after[2:] - before[0]).norm(dim=1) > 5
    assert rare.all() if far else rare.sum() < 8
    if far:  # all of them, not the first or the farthest only
        assert {int(row.argmax()) for row in after[2:] - before[0]} == set(range(6))
    model.quantize.embedding.weight.data.copy_(before)
    torch.manual_seed(0)
    revive(model, usage, latents, far=far)
    assert torch.equal(model.quantize.embedding.weight, after)  # a function of the generator alone


@pytest.mark.parametrize("usage", [torch.zeros(32), torch.tensor([1.0] + 31 * [0.0])])
def test_far_revival_at_its_ends(model, usage):
    """If no code is in use, or all latents are equal, no distance can guide the draw."""
    latents = model.quantize.embedding.weight.detach()[0].view(1, 8, 1, 1).expand(2, 8, 4, 4)
    assert revive(model, usage, latents, far=True) == int((usage == 0).sum())
    assert torch.isfinite(model.quantize.embedding.weight).all()


def test_no_patch_has_a_retired_code(model):
    pixels = torch.rand(16, 3, 32, 32)
    usage = torch.bincount(model.encode(pixels).flatten(), minlength=32)
    usage[usage.argmax()] = 0  # the commonest code as well
    before = model.quantize.embedding.weight.detach().clone()
    assert retire(model, usage) == int((usage == 0).sum())
    used = usage > 0
    assert used[model.encode(pixels).flatten()].all() and 0 < used.sum() < 32
    assert torch.equal(model.quantize.embedding.weight[used], before[used])
    after = model.quantize.embedding.weight.detach().clone()
    assert retire(model, torch.ones(32)) == 0 and retire(model, torch.zeros(32)) == 32
    assert torch.equal(model.quantize.embedding.weight, after)  # with no code left, all stay
