"""Behaviour cloning: the network that gives the demonstrated actions, by least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from evaluation.backbones.contract import default_device
from evaluation.heads.selection import train_moments
from evaluation.robot.policy import PIXEL_SIDE, Network
from tokenization.terminal.progress import tqdm
from training.args import OptimArgs
from training.engine.optim import learning_rate, make_optimizer, set_learning_rate
from training.results import Record


@dataclass(frozen=True)
class FitSettings:
    """The published numbers of MVP's behaviour cloning: 40 epochs of warm-up of 400, and a cosine to 0."""

    epochs: int = 400
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01  # of matrices; biases have none
    report_every: int = 20  # epochs

    @property
    def warmup_epochs(self) -> int:
        return self.epochs // 10

    def optim(self, steps_per_epoch: int) -> OptimArgs:
        return OptimArgs(
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_epochs * steps_per_epoch,
            min_lr_ratio=0.0,
            adam_beta2=0.999,
            weight_decay=self.weight_decay,
            max_grad_norm=None,
        )


@dataclass(frozen=True)
class Samples:
    """N observations, each with its action: seen (N, S), float32 or uint8 of pixels; states (N, P); actions (N, A)."""

    seen: torch.Tensor
    states: torch.Tensor
    actions: torch.Tensor

    def __len__(self) -> int:
        return len(self.actions)

    def to(self, device: torch.device) -> Samples:
        return Samples(self.seen.to(device), self.states.to(device), self.actions.to(device))

    def take(self, rows: torch.Tensor) -> Samples:
        return Samples(self.seen[rows], self.states[rows], self.actions[rows])


@dataclass(frozen=True, kw_only=True)
class EpochLoss(Record):
    """Mean squared error after an epoch (from 1): of its batches, and of the held-out episodes, if there are any."""

    epoch: int
    loss: float
    held_out: float | None


def fit_policy(
    train: Samples,
    held_out: Samples | None,
    settings: FitSettings,
    seed: int,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> tuple[Network, list[EpochLoss]]:
    """Train a network; it is that of the last epoch, whatever its loss on the held-out samples.

    Args:
        seed: of the first weights and of the order of samples; global generators are not changed.
    Returns:
        The network in evaluation mode, and the losses of each `report_every` epochs and of the last one.
    Raises:
        ValueError: no samples, or a loss that is not finite.
    """
    if not len(train):
        raise ValueError("There is nothing to train on; record at least one observation.")
    device = torch.device(device) if device else default_device()
    network = new_network(train, seed).to(device).train()
    train, held_out = train.to(device), held_out and held_out.to(device)
    goals = (train.actions - network.action_mean) / network.action_std
    per_epoch = math.ceil(len(train) / settings.batch_size)
    optim = settings.optim(per_epoch)
    optimiser = make_optimizer(network, optim)
    order, step, losses = torch.Generator().manual_seed(seed), 0, []
    bar = tqdm(range(1, settings.epochs + 1), desc="policy", unit="epoch", disable=not progress)
    for epoch in bar:
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(train), generator=order).to(device).split(settings.batch_size):
            set_learning_rate(optimiser, learning_rate(step, settings.epochs * per_epoch, optim))
            batch = train.take(rows)
            loss = nn.functional.mse_loss(network.standardised(batch.seen, batch.states), goals[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(rows)
            step += 1
        if epoch % settings.report_every == 0 or epoch == settings.epochs:
            mean = total.item() / len(train)
            if not math.isfinite(mean):
                raise ValueError(f"The loss of epoch {epoch} is {mean}; use a smaller learning rate.")
            other = None if held_out is None else squared_error(network, held_out)
            losses.append(EpochLoss(epoch=epoch, loss=mean, held_out=other))
            bar.set_postfix(loss=f"{mean:.4f}", held_out="-" if other is None else f"{other:.4f}")
    return network.eval(), losses


def new_network(train: Samples, seed: int) -> Network:
    """A network with weights drawn from `seed` and the moments of the training set."""
    is_pixels = train.seen.dtype == torch.uint8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(train.seen.shape[1], train.states.shape[1], train.actions.shape[1], is_pixels)
    if is_pixels:
        pixels = train.seen.unflatten(1, (PIXEL_SIDE**2, 3)).float() / 255
        set_moments(network, "sight", pixels[None], (1, 2), (3, 1, 1))
    elif train.seen.shape[1]:
        set_moments(network, "sight", train.seen[None], (1,), (-1,))
    if train.states.shape[1]:
        set_moments(network, "state", train.states[None], (1,), (-1,))
    if not is_clipped(train.actions):
        set_moments(network, "action", train.actions[None], (1,), (-1,))
    return network


def set_moments(network: Network, name: str, values: torch.Tensor, axes: tuple[int, ...], shape: tuple) -> None:
    mean, std = train_moments(values, axes)
    getattr(network, f"{name}_mean").copy_(mean.view(shape))
    getattr(network, f"{name}_std").copy_(std.view(shape))


def is_clipped(actions: torch.Tensor) -> bool:
    """Whether all actions are in [-1, 1], so that those of the policy are clipped to it and not standardised."""
    return bool((actions.abs() <= 1).all())


@torch.inference_mode()
def squared_error(network: Network, samples: Samples) -> float:
    """The mean squared error of the training's units, in evaluation mode."""
    network.eval()
    total = 0.0
    for rows in torch.arange(len(samples), device=samples.actions.device).split(1024):
        batch = samples.take(rows)
        goals = (batch.actions - network.action_mean) / network.action_std
        total += (network.standardised(batch.seen, batch.states) - goals).square().mean().item() * len(rows)
    network.train()
    return total / len(samples)
