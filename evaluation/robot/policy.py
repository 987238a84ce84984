"""A policy: what it sees of a frame and the robot's state in, an action out; its network, its folder, its two faces."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluation.backbones.contract import default_device
from evaluation.robot.layer_curve import LayerFit
from evaluation.robot.sight import PIXEL_SIDE, VISION, Frozen, Sight, fitted, open_sight
from tokenization.files import write_json, write_whole
from training.flags import require
from training.results import Record

CONFIG, WEIGHTS, LAYERS = "config.json", "model.safetensors", "layers.json"
EMBEDDING = 128
HIDDEN = (256, 128, 64)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Record):
    """config.json of a policy folder.

    Fields:
        arm: of `sight.ARMS`. model, layer, context_frames, max_tokens: of its frozen features.
        fingerprint: of the backbone's weights and its visual tokenizer. sight_seed: of an untrained backbone.
        camera: whose frames it sees; None if it sees none. resolution: side of the frames in pixels.
        fps: observations per second in its demonstrations. task: in words; of several, all of them, as one policy.
        sight_size, state_size, action_size, environment_size: how many numbers of each.
        state_names, action_names: of the episodes, if they name them.
        clipped: actions are clipped to [-1, 1], as all of its demonstrations were.
        simulator: {"task", "action_repeat"} of `open_simulator` that its demonstrations are of; None: a real robot.
        training: how it was trained (`train.train_policy`); losses are in squared units of `Network.standardised`.
    """

    format: int = 1
    arm: str
    model: str | None
    layer: int | None
    context_frames: int
    max_tokens: int
    fingerprint: str | None
    sight_seed: int | None
    camera: str | None
    resolution: int | None
    fps: float | None
    task: str
    sight_size: int
    state_size: int
    action_size: int
    environment_size: int | None
    state_names: list[str] | None
    action_names: list[str] | None
    clipped: bool
    simulator: dict | None
    training: dict = field(default_factory=dict)


class Network(nn.Module):
    """MVP's head (Xiao et al. 2022): two linear maps to 128 numbers, then an MLP of 256, 128, 64 with SELU.

    As in MVP's code, the MLP's matrices are orthogonal with gain sqrt(2), the last one 0.01, and all else is torch's
    default. Ours: inputs are standardised by the moments of the training set; so are actions unless all of them are in
    [-1, 1]; raw pixels pass through three convolutions (those of Mnih et al. 2015), trained with the rest.

    Args:
        sight_size, state_size: numbers of each; none of a kind, no map of it. action_size: numbers out.
        is_pixels: the sight is a flattened frame of 64 x 64 pixels.
    """

    def __init__(self, sight_size: int, state_size: int, action_size: int, is_pixels: bool = False):
        super().__init__()
        self.eye: nn.Module | None = None
        if is_pixels:
            self.eye = small_cnn()
        elif sight_size:
            self.eye = nn.Linear(sight_size, EMBEDDING)
        self.body = nn.Linear(state_size, EMBEDDING) if state_size else None
        self.is_pixels = is_pixels
        widths = [EMBEDDING * ((self.eye is not None) + (self.body is not None)), *HIDDEN]
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(widths):
            layers += [orthogonal(nn.Linear(width, following), math.sqrt(2)), nn.SELU()]
        self.actor = nn.Sequential(*layers, orthogonal(nn.Linear(HIDDEN[-1], action_size), 0.01))
        for name, shape in (
            ("sight", (3, 1, 1) if is_pixels else (sight_size,)),
            ("state", (state_size,)),
            ("action", (action_size,)),
        ):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))

    def standardised(self, seen: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Actions in the units of training: (B, sight_size), (B, state_size) -> (B, action_size)."""
        parts = []
        if self.eye is not None:
            if self.is_pixels:
                seen = seen.unflatten(1, (PIXEL_SIDE, PIXEL_SIDE, 3)).permute(0, 3, 1, 2).float() / 255
            parts.append(self.eye((seen - self.sight_mean) / self.sight_std))
        if self.body is not None:
            parts.append(self.body((states - self.state_mean) / self.state_std))
        return self.actor(torch.cat(parts, dim=1))

    def forward(self, seen: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Actions in the robot's units, (B, action_size)."""
        return self.standardised(seen, states) * self.action_std + self.action_mean


def orthogonal(linear: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(linear.weight, gain)
    return linear


def small_cnn() -> nn.Sequential:
    """(B, 3, 64, 64) -> (B, 128)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, EMBEDDING),
    )


class Policy:
    """A trained policy that acts in B environments or robots at once.

        policy = Policy.load("policies/drawer")
        policy.reset()
        while True:
            action = policy.act(camera.read()[None], arm.state()[None])[0]  # uint8 (1, H, W, 3), float32 (1, P)
            arm.move(action)

    Args:
        config, network, sight: as `train.train_policy` makes them. curve: of `layer_curve`, saved with it.
        device: of the network.
    """

    def __init__(
        self,
        config: PolicyConfig,
        network: Network,
        sight: Sight,
        curve: list[LayerFit] | None = None,
        device: str | torch.device | None = None,
    ):
        self.config, self.sight, self.curve = config, sight, curve
        self.device = torch.device(device) if device else default_device()
        self.network = network.eval().to(self.device)
        self.reset()

    def reset(self, batch_size: int | None = 1) -> None:
        """Start `batch_size` new episodes; None: as many as the next observation has."""
        self.batch_size = batch_size
        self.sight.reset()

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these episodes only, by their places in the batch; the others have ended."""
        self.sight.keep(rows)
        self.batch_size = len(rows)

    @torch.inference_mode()
    def act(self, images: np.ndarray, states: np.ndarray, environment_states: np.ndarray | None = None) -> np.ndarray:
        """The next action of every episode.

        Args:
            images: uint8 (B, H, W, 3); frames of another size than `config.resolution` are resized and cropped as clips
                are. Policies that see no frames ignore them.
            states: (B, P). environment_states: (B, E), for a policy that reads the simulator's numbers.
        Returns:
            float32 (B, A), in the units of the demonstrations, clipped to [-1, 1] if all of theirs were.
        Raises:
            ValueError: other shapes, another number of episodes than before, or numbers that are not finite.
        """
        config = self.config
        states = numbers("states", states, config.state_size)
        if self.batch_size is None:
            self.batch_size = len(states)
        for name, given in (("states", states), ("images", images)):
            if len(given) != self.batch_size and (name == "states" or self.sight.resolution is not None):
                raise ValueError(
                    f"{name} has {len(given)} rows and the policy acts in {self.batch_size} episodes; pass one row of "
                    f"each, or reset({len(given)}) first."
                )
        if config.arm == "oracle":
            if environment_states is None:
                raise ValueError("This policy reads the simulator's own numbers; pass environment_states.")
            seen = numbers("environment_states", environment_states, config.environment_size)
        elif self.sight.resolution is None:
            seen = torch.zeros(len(states), 0)
        else:
            seen = self.sight.see(fitted(images, config.resolution))
        actions = self.network(seen.to(self.device), states.to(self.device))
        return (actions.clamp(-1, 1) if config.clipped else actions).cpu().numpy()

    def save(self, folder: str | Path) -> None:
        """Write the policy's folder, whole or not at all.

        Raises:
            ValueError: the folder exists.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        refuse_existing(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            write_json(partial / CONFIG, self.config.to_json())
            if self.curve:
                write_json(partial / LAYERS, {"layers": [fit.to_json() for fit in self.curve]})
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
            write_whole(partial / WEIGHTS, lambda path: save_file(weights, path))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None, model: str | None = None) -> Policy:
        """A policy from its folder, with its backbone.

        Args:
            model: where the backbone is, if not where it was in training.
        Raises:
            FileNotFoundError: no policy in the folder, or no backbone where it was.
            ValueError: the backbone's weights are not those of the training.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is not a policy folder: it has no {name}; name the --output of toto robot train."
                )
        content = json.loads((folder / CONFIG).read_text())
        require("arm" in content, f"{folder} is not a policy folder: its {CONFIG} is of something else.")
        config = PolicyConfig.from_json(content)
        sight = open_sight(
            "toto" if config.arm.startswith(VISION) else config.arm,  # `model` may be elsewhere now
            model or config.model,
            config.layer,
            context_frames=config.context_frames,
            max_tokens=config.max_tokens,
            seed=config.sight_seed or 0,
            device=device,
        )
        if fingerprint_of(sight) != config.fingerprint:
            raise ValueError(
                f"The weights of {model or config.model} are not those that the policy {folder} was trained with; name "
                "the right ones with model=, or train it again."
            )
        network = Network(config.sight_size, config.state_size, config.action_size, config.arm == "pixels")
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} is damaged: its {WEIGHTS} does not fit its {CONFIG}.") from error
        curve = None
        if (folder / LAYERS).is_file():
            curve = [LayerFit.from_json(each) for each in json.loads((folder / LAYERS).read_text())["layers"]]
        return cls(config, network, sight, curve, device)


def fingerprint_of(sight: Sight) -> str | None:
    """Of a frozen backbone's weights and visual tokenizer; None for a sight without one."""
    return sight.backbone.weights_fingerprint() if isinstance(sight, Frozen) else None


def refuse_existing(folder: str | Path) -> None:
    """Raises ValueError if the folder of a new policy exists."""
    require(not Path(folder).exists(), f"{folder} exists; name another --output, or delete it.")


def numbers(name: str, values: np.ndarray, size: int) -> torch.Tensor:
    """Finite numbers (B, size) as float32, on the CPU.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    found = torch.as_tensor(np.asarray(values, np.float32))
    if found.ndim != 2 or found.shape[1] != size:
        raise ValueError(
            f"{name} has the shape {tuple(found.shape)} and the policy reads (B, {size}); it was trained on another "
            "robot or other observations."
        )
    wrong = (~found.isfinite()).nonzero()
    if len(wrong):
        row, number = wrong[0].tolist()
        raise ValueError(f"{name}[{row}, {number}] is {found[row, number].item()}; pass finite numbers.")
    return found


class TotoPolicy:
    """A policy as lerobot calls its own: batches of tensors by name, `reset` and `select_action`.

    lerobot is not needed. Frames are "observation.images.<camera>", float (B, 3, H, W) in [0, 1] or uint8; the state is
    "observation.state" (B, P); the simulator's numbers are "observation.environment_state" (B, E).
    """

    name = "toto"

    def __init__(self, policy: Policy):
        self.policy, self.config = policy, policy.config
        self.reset()

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> TotoPolicy:
        return cls(Policy.load(folder, device))

    def reset(self) -> None:
        """Start new episodes, as many as the next batch has rows."""
        self.policy.reset(None)

    def eval(self) -> TotoPolicy:
        """Itself; a trained policy is always in evaluation mode."""
        return self

    def select_action(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The next action of every episode, float32 (B, A), on the device of the state.

        Raises:
            ValueError: a part of the observation is missing, or as in `Policy.act`.
        """
        state = _part(batch, "observation.state")
        images = np.zeros((len(state), 0, 0, 3), np.uint8)
        if self.config.resolution is not None:
            images = _frames(_part(batch, *_image_names(self.config.camera)))
        environment = None
        if self.config.arm == "oracle":
            environment = _part(batch, "observation.environment_state").cpu().numpy()
        return torch.from_numpy(self.policy.act(images, state.cpu().numpy(), environment)).to(state.device)


def _image_names(camera: str | None) -> list[str]:
    """Keys under which a batch may hold the camera's frames."""
    if camera is None:
        return ["observation.image"]
    short = camera.removeprefix("observation.images.").removeprefix("observation.")
    return list(dict.fromkeys([f"observation.images.{short}", f"observation.{short}"]))


def _part(batch: Mapping[str, torch.Tensor], *names: str) -> torch.Tensor:
    for name in names:
        if name in batch:
            return batch[name]
    raise ValueError(f"The batch has no {names[0]}, which this policy reads; it has {', '.join(sorted(batch))}.")


def _frames(images: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W), float in [0, 1] or uint8 -> uint8 (B, H, W, 3)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"The frames have the shape {tuple(images.shape)}; pass (B, 3, H, W).")
    if images.dtype != torch.uint8:
        low, high = images.min().item(), images.max().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(f"The frames have values from {low:.3g} to {high:.3g}; pass floats in [0, 1], or uint8.")
        images = (images.float() * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
