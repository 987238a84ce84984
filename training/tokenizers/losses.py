"""The losses of visual tokenizers: the dVAE's evidence bound, the VQGAN's distances and its discriminator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tokenization.modeling_dvae import TotoDVAEModel, map_pixels, unmap_pixels
from tokenization.modeling_vqgan import TotoVQGANModel

# From taming: it limits the adaptive weight where the discriminator's gradient vanishes.
MAX_ADAPTIVE_WEIGHT = 1e4


class RelaxedDVAE(nn.Module):
    """A dVAE in training: codes are drawn from the Gumbel-softmax relaxation (DALL-E Sec. 2.1) and decoded.

    It is a single module, so that a step is one forward pass of DistributedDataParallel.
    """

    def __init__(self, model: TotoDVAEModel):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) in [0, 1] -> mean and log scale (B, 3, H, W) of logit-Laplace, logits (B, K, h, w)."""
        logits = self.model.encode_logits(pixels)
        return (*self.model.decode_stats(F.gumbel_softmax(logits, tau=temperature, dim=1)), logits)


def logit_laplace_nll(pixels: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of pixel values under the logit-Laplace distribution (DALL-E App. A.3), in nats.

    f(x) = exp(-|logit(x) - mean| / scale) / (2 scale x (1 - x)), for values x mapped to [0.1, 0.9].

    Args:
        pixels: (B, 3, H, W) in [0, 1]. mean, log_scale: from `TotoDVAEModel.decode_stats`.
    """
    mapped = map_pixels(pixels)
    distance = (torch.logit(mapped) - mean).abs() * torch.exp(-log_scale)
    return (distance + log_scale + math.log(2) + torch.log(mapped * (1 - mapped))).mean()


def kl_to_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of the code distributions (B, K, h, w) from the uniform prior, in nats per code."""
    log_q = F.log_softmax(logits.float(), dim=1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(1).mean()


def cosine_ramp(step: int, steps: int, start: float, end: float) -> float:
    """The value at `step` of a half cosine from `start` to `end` in `steps` steps, as in DALL-E (App. A.2)."""
    progress = min(1.0, step / max(1, steps))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def dvae_loss(relaxed: nn.Module, pixels: torch.Tensor, temperature: float, kl_weight: float, stride: int):
    """The negative evidence bound per pixel value (DALL-E Sec. 2.1), with a weighted KL term.

    DALL-E divides the bound by the number of pixel values. A code covers 3 * stride^2 of them, so the weight of its KL
    is kl_weight / (3 * stride^2), which is 6.6 / 192 as published.

    Returns:
        loss, the terms to log, the reconstruction (B, 3, H, W) in [0, 1], the most likely codes (B, h, w).
    """
    mean, log_scale, logits = relaxed(pixels, temperature)
    nll, kl = logit_laplace_nll(pixels, mean, log_scale), kl_to_uniform(logits)
    terms = {"nll": nll, "kl": kl}
    return nll + kl_weight / (3 * stride**2) * kl, terms, unmap_pixels(mean.detach().sigmoid()), logits.argmax(1)


class PatchDiscriminator(nn.Module):
    """The PatchGAN discriminator of VQGAN (Isola et al. 2017, App. 6.1.2; names as in taming's `NLayerDiscriminator`).

    Pictures (B, 3, H, W) in [-1, 1] -> scores (B, 1, h, w) of overlapping patches. Weights are initialised from
    N(0, 0.02).
    """

    def __init__(self, channels: int = 64, num_layers: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for n in range(1, num_layers + 1):
            before, width = width, channels * min(2**n, 8)
            stride = 2 if n < num_layers else 1
            layers += [nn.Conv2d(before, width, 4, stride, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.main(pictures)


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss, from its outputs for true pictures and for reconstructions."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(distance: torch.Tensor, adversarial: torch.Tensor, last_weight: nn.Parameter) -> torch.Tensor:
    """The weight that equalises the losses' gradients at the decoder's last layer (Esser et al. 2021, Eq. 7)."""
    of_distance = torch.autograd.grad(distance, last_weight, retain_graph=True)[0]
    of_critic = torch.autograd.grad(adversarial, last_weight, retain_graph=True)[0]
    return (of_distance.norm() / (of_critic.norm() + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()


def vqgan_loss(
    model: nn.Module,
    pixels: torch.Tensor,
    *,
    commitment_weight: float = 0.25,
    l2_weight: float = 0.0,
    perceptual: nn.Module | None = None,
    perceptual_weight: float = 1.0,
    discriminator: nn.Module | None = None,
    disc_weight: float = 0.8,
    last_weight: nn.Parameter | None = None,
):
    """L1 (+ L2), perceptual distance, codebook and commitment terms, and adversarial loss (Esser et al. 2021).

    Distances are between pictures in [-1, 1], as published. The commitment term is weighted as in the paper; the
    published code weights the codebook term instead (a known mistake, kept there for old checkpoints).

    Args:
        model: `TotoVQGANModel`, possibly wrapped. pixels: (B, 3, H, W) in [0, 1].
        perceptual: (pictures, pictures) in [0, 1] -> (B,), or None.
        discriminator: None before its start. last_weight: of the decoder's last layer.
    Returns:
        loss, the terms to log, the reconstruction (B, 3, H, W), the codes (B, h, w), the latents (B, E, h, w).
    """
    out = model(pixels)
    copy = out.reconstruction.float()
    error = 2 * (copy - pixels)
    distance = error.abs().mean()
    if l2_weight:
        distance = distance + l2_weight * error.square().mean()
    terms = {"l1": error.detach().abs().mean(), "codebook": out.codebook_loss, "commitment": out.commitment_loss}
    if perceptual is not None:
        terms["perceptual"] = perceptual(copy, pixels).mean()
        distance = distance + perceptual_weight * terms["perceptual"]
    loss = distance + out.codebook_loss + commitment_weight * out.commitment_loss
    if discriminator is not None:
        adversarial = -discriminator(2 * copy - 1).float().mean()
        weight = adaptive_weight(distance, adversarial, last_weight)
        terms |= {"adversarial": adversarial, "adaptive_weight": weight}
        loss = loss + disc_weight * weight * adversarial
    return loss, terms, copy.detach(), out.codes, out.latents.detach()


@torch.no_grad()
def revive(model: TotoVQGANModel, usage: torch.Tensor, latents: torch.Tensor, far: bool = False) -> int:
    """Replace unused codes by random encoder outputs of this batch; returns the number of replaced codes.

    Without this, a plain VQ of this size uses a tenth of its codes (paper silent; ours).

    Args:
        usage: (K,) number of recent uses of each code. latents: (B, E, h, w).
        far: draw outputs in proportion to their squared distance from the codes in use, as k-means++ does, not all
            alike: where most patches are the same one, all codes would be set to it.
    """
    dead = (usage == 0).nonzero().flatten()
    if len(dead):
        vectors = latents.float().permute(0, 2, 3, 1).flatten(0, 2)
        table = model.quantize.embedding.weight
        kept = table[usage > 0].float()
        if far and len(kept):
            weight = torch.cdist(vectors, kept).amin(1).square() + 1e-12
            chosen = vectors[torch.multinomial(weight, len(dead), replacement=True)]
        else:
            chosen = vectors[torch.randint(len(vectors), (len(dead),), device=vectors.device)]
        table[dead] = (chosen + 0.01 * vectors.std() * torch.randn_like(chosen)).to(table.dtype)
    return len(dead)


@torch.no_grad()
def retire(model: TotoVQGANModel, usage: torch.Tensor) -> int:
    """Move unused codes so far away that no patch has one of them any more; returns their number.

    Without this, a patch slightly unlike all those trained on may have a code of its own, which decodes well but says
    nothing to a model of codes, which never saw it (ours).

    Args:
        usage: (K,) number of uses of each code.
    """
    unused = usage == 0
    table = model.quantize.embedding.weight
    if unused.any() and not unused.all():
        table[unused] = 100 * table[~unused].abs().max()
    return int(unused.sum())
