"""The optimiser step of each kind of visual tokenizer, and the state that is needed to resume exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.args import OptimArgs
from training.engine.optim import learning_rate, make_optimizer, set_learning_rate
from training.tokenizers.losses import (
    PatchDiscriminator,
    RelaxedDVAE,
    cosine_ramp,
    dvae_loss,
    hinge_loss,
    revive,
    vqgan_loss,
)


@dataclass
class StepResult:
    """The outcome of a step: terms for the log, the reconstruction (B, 3, H, W), the codes (B, h, w)."""

    terms: dict[str, torch.Tensor | float]
    reconstruction: torch.Tensor
    codes: torch.Tensor


class _Steps:
    """Base class of both kinds: the model's optimiser and its schedule."""

    def __init__(self, accelerator, model: nn.Module, args, optim: OptimArgs):
        self.accelerator, self.model, self.args, self.optim = accelerator, model, args, optim
        self.optimizers = [make_optimizer(model, optim)]

    def _update(self, optimizer: torch.optim.Optimizer, parameters, loss: torch.Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is not finite at step {step + 1}; lower --learning_rate.")
        set_learning_rate(optimizer, learning_rate(step, self.args.max_steps, self.optim))
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(parameters, self.optim.max_grad_norm or math.inf)
        optimizer.step()

    def final_model(self) -> nn.Module:
        """The model whose weights are measured and written at the end."""
        return self.model

    def state_dict(self) -> dict:
        """The tensors that resuming needs in addition to the model's weights; every process must call it."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


class DVAESteps(_Steps):
    """Gumbel-softmax training of a dVAE: temperature and KL weight follow DALL-E's schedules (App. A.2)."""

    def __init__(self, accelerator, model, args, relaxation, optim: OptimArgs):
        super().__init__(accelerator, model, args, optim)
        self.relaxed = accelerator.prepare(RelaxedDVAE(model))
        self.relaxation = relaxation
        self.temperature_steps = relaxation.temperature_steps or max(1, args.max_steps // 2)
        self.kl_steps = relaxation.kl_steps or max(1, self.temperature_steps // 30)
        self.average = None
        if args.ema_decay is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))

    def step(self, step: int, pixels: torch.Tensor) -> StepResult:
        """Take a step. pixels: (B, 3, H, W) in [0, 1]."""
        temperature = cosine_ramp(step, self.temperature_steps, 1.0, self.relaxation.min_temperature)
        kl_weight = cosine_ramp(step, self.kl_steps, 0.0, self.relaxation.kl_weight)
        with self.accelerator.autocast():
            loss, terms, copy, codes = dvae_loss(self.relaxed, pixels, temperature, kl_weight, self.model.config.stride)
        self._update(self.optimizers[0], self.model.parameters(), loss, step)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return StepResult({"loss": loss, **terms, "temperature": temperature, "kl_weight": kl_weight}, copy, codes)

    def final_model(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def state_dict(self) -> dict:
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return super().state_dict() | average

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])


class VQGANSteps(_Steps):
    """Training of a VQGAN and, from `disc_start` on, of its discriminator, which has its own optimiser."""

    def __init__(self, accelerator, model, args, adversarial, optim: OptimArgs):
        super().__init__(accelerator, model, args, optim)
        self.wrapped, self.adversarial = accelerator.prepare(model), adversarial
        self.usage = torch.zeros(model.config.num_codes, device=accelerator.device)
        self.perceptual = self.critic = None
        if adversarial.perceptual is not None:
            from training.tokenizers.perceptual import perceptual_distance

            network = perceptual_distance(adversarial.perceptual, adversarial.perceptual_files)
            self.perceptual = network.to(accelerator.device)
        if adversarial.disc_start is not None:
            self.critic = PatchDiscriminator(adversarial.disc_channels, adversarial.disc_layers)
            self.critic.to(accelerator.device, memory_format=torch.channels_last)
            self.optimizers.append(make_optimizer(self.critic, optim))
            self.wrapped_critic = accelerator.prepare(self.critic)

    def step(self, step: int, pixels: torch.Tensor) -> StepResult:
        """Take a step. pixels: (B, 3, H, W) in [0, 1]."""
        flags, model = self.adversarial, self.model
        joined = self.critic is not None and step >= flags.disc_start
        if joined:  # the critic is frozen here, so that its processes exchange no gradients
            self.critic.requires_grad_(False)
        with self.accelerator.autocast():
            loss, terms, copy, codes, latents = vqgan_loss(
                self.wrapped,
                pixels,
                commitment_weight=flags.commitment_weight,
                l2_weight=flags.l2_weight,
                perceptual=self.perceptual,
                perceptual_weight=flags.perceptual_weight,
                discriminator=self.critic if joined else None,
                disc_weight=flags.disc_weight,
                last_weight=model.decoder.conv_out.weight,
            )
        self._update(self.optimizers[0], model.parameters(), loss, step)
        terms = {"loss": loss, **terms}
        if joined:
            self.critic.requires_grad_(True)
            with self.accelerator.autocast():
                judged = [self.wrapped_critic(2 * pictures - 1).float() for pictures in (pixels, copy)]
            terms["disc_loss"] = hinge_loss(*judged)
            self._update(self.optimizers[1], self.critic.parameters(), terms["disc_loss"], step)
        if flags.revive_every:
            terms["revived"] = self._revive(step, codes, latents)
        return StepResult(terms, copy, codes)

    def _revive(self, step: int, codes: torch.Tensor, latents: torch.Tensor) -> int:
        # The codebook is set to encoder outputs at step 0; revivals stop in the last tenth, so that it converges.
        every, revived = self.adversarial.revive_every, 0
        self.usage += torch.bincount(codes.flatten(), minlength=len(self.usage))
        if step == 0:
            self.usage.zero_()
        if step == 0 or (step + 1) % every == 0:
            if step < 0.9 * self.args.max_steps:
                usage = self.accelerator.reduce(self.usage)
                revived = revive(self.model, usage, latents, self.adversarial.revive_far)
                if self.accelerator.num_processes > 1:  # the processes draw different vectors; take the first's
                    table = self.model.quantize.embedding.weight.data
                    table.copy_(broadcast(table.clone()))
            self.usage.zero_()
        return revived

    def state_dict(self) -> dict:
        critic = {} if self.critic is None else {"critic": self.critic.state_dict()}
        # Every process counts the codes of its own frames; the sum is kept, and only whether it is 0 matters.
        return super().state_dict() | {"usage": self.accelerator.reduce(self.usage.clone())} | critic

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.usage.copy_(state["usage"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
