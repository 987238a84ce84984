"""What the policies of a table of arms are trained on, once per arm, and their training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evaluation.robot.arms_args import READ_MODEL, VISION, ArmsArgs
from evaluation.robot.train_args import TrainArgs
from training.flags import require

if TYPE_CHECKING:
    import torch

    from evaluation.robot.layer_curve import LayerFit
    from evaluation.robot.observations import Episode
    from evaluation.robot.policy import Policy
    from evaluation.robot.sight import Sight


@dataclass(frozen=True)
class Row:
    """A row of the table: an arm at one layer, or at none."""

    name: str
    arm: str
    layer: int | None


@dataclass
class Prepared:
    """An arm that is ready for training.

    sight: open, without a layer if it is frozen. camera, resolution: of the frames that it reads; None if it reads
    none. features: {layer, or None: (T, size) of each demonstration}. seconds_per_frame: of looking.
    """

    args: TrainArgs
    sight: Sight
    camera: str | None
    resolution: int | None
    episodes: list[Episode]
    curve: list[LayerFit] | None = None
    features: dict[int | None, list[torch.Tensor]] = field(default_factory=dict)
    seconds_per_frame: float = 0.0

    @property
    def view(self) -> tuple[str, int]:
        return self.camera or "", self.resolution or 0


class Demonstrations:
    """The demonstrations of a table, and how policies learn from them.

    Args:
        command: recorded with the policies.
    Raises:
        ValueError: not a folder of episodes, or episodes that are of no simulator.
    """

    def __init__(self, args: ArmsArgs, command: str, progress: bool):
        from evaluation.robot.episodes.reading import open_episodes
        from evaluation.robot.recording import recorded_settings, simulator_facts
        from evaluation.robot.train import PATIENCE

        self.args, self.command, self.progress = args, command, progress
        self.folder = open_episodes(args.episodes)
        self.recorded = recorded_settings(self.folder)
        self.train_args = TrainArgs(
            episodes=args.episodes,
            output=args.output,
            camera=args.camera,
            resolution=args.resolution,
            context_frames=args.context_frames,
            max_tokens=args.max_tokens,
            epochs=args.epochs,
            dagger=args.dagger,
            task=args.task,
        )
        self.simulator = simulator_facts(self.train_args, self.folder, self.recorded)
        require(self.simulator is not None, "The arms need the simulator's task; name it with --task TASK.")
        self._read: dict[tuple[str, int], list[Episode]] = {}
        self.lengths = [len(each.actions) for each in self.read(None, None)]
        self.max_steps = args.max_steps or math.ceil(PATIENCE * max(self.lengths))

    def read(self, camera: str | None, resolution: int | None) -> list[Episode]:
        """All demonstrations; frames are decoded once for all arms that read the same ones."""
        view = camera or "", resolution or 1
        if view not in self._read:
            self._read[view] = [self.folder.episode(index, *view) for index in range(len(self.folder))]
        return self._read[view]

    def simulators(self, view: tuple[str, int], count: int, open_simulator: Callable) -> AbstractContextManager[list]:
        """As `rollouts.simulators_for`, of the frames of `Prepared.view`."""
        from evaluation.robot.rollouts import simulators_for

        camera, resolution = view
        return simulators_for(self.simulator, camera or None, resolution or None, count, open_simulator)

    def reads_curve(self, arm: str) -> bool:
        """Whether an arm's layers are compared offline: to choose one, or to know which others to roll out."""
        return is_frozen(arm) and (self.args.layers == "auto" or (arm == "toto" and self.args.rollout_layers > 1))

    def rows_of(self, arm: str, curve: list[LayerFit] | None, more: Sequence[int] = ()) -> list[Row]:
        """The rows of an arm; the first one has its own name. more: layers of a row each, besides --rollout_layers."""
        if not is_frozen(arm):
            return [Row(arm, arm, None)]
        from evaluation.robot.layer_curve import best_layer

        chosen = best_layer(curve) if self.args.layers == "auto" else int(self.args.layers)
        others, parts = set(more), self.args.rollout_layers - 1
        if arm == "toto" and parts:
            others |= {round(part * curve[-1].layer / parts) for part in range(parts)}
        return [
            Row(arm, arm, chosen),
            *(Row(f"{arm}, layer {layer}", arm, layer) for layer in sorted(others - {chosen})),
        ]

    def prepare(self, arm: str, layers: Sequence[int] = ()) -> Prepared:
        """Open what an arm sees with, choose its layer, and look at all demonstrations. layers: `more` of `rows_of`."""
        from evaluation.robot.recording import frames_of
        from evaluation.robot.train import check_episodes, curve_of, seen_of, sight_of

        args = replace(self.train_args, arm=arm, model=self.args.model if arm in READ_MODEL else None)
        sight = sight_of(args)
        camera, resolution = frames_of(args, self.folder, sight, self.recorded)
        episodes = self.read(camera, resolution)
        check_episodes(episodes, arm)
        found, watched, frames = Prepared(args, sight, camera, resolution, episodes), {}, sum(self.lengths)
        began = time.perf_counter()
        if self.reads_curve(arm):
            found.curve, watched = curve_of(sight, episodes, self.progress)
            found.seconds_per_frame = (time.perf_counter() - began) / sum(map(len, watched[0]))
        for row in self.rows_of(arm, found.curve, layers):
            seen = watched.get(row.layer, [])
            if len(seen) != len(episodes):
                began = time.perf_counter()
                seen = seen_of(arm, sight_at(sight, row.layer), episodes, self.progress)
                found.seconds_per_frame = (time.perf_counter() - began) / frames
            found.features[row.layer] = seen
        return found

    def train(self, prepared: Prepared, layer: int | None, seed: int, simulators: list) -> tuple[Policy, list | None]:
        """(policy, success of the policy that drove in each round of DAgger; None without rounds)."""
        from evaluation.robot.train import train_policy, train_rounds

        args, episodes = replace(prepared.args, seed=seed), prepared.episodes
        facts = self._facts(prepared, layer) | {"progress": self.progress}
        features = prepared.features[layer]
        policy = train_policy(args, episodes, features=features, **facts)
        if not args.dagger:
            return policy, None
        policy, rounds = train_rounds(policy, args, episodes, features, facts, simulators, self.max_steps)
        return policy, [each.success for each in rounds]

    def seconds_of_training(self, prepared: Prepared, layer: int | None) -> float:
        """What the training of one policy will take, from a few of its epochs."""
        from evaluation.robot.train import train_policy

        times = []
        for epochs in (1, 3):  # the difference leaves out what is done once
            began = time.perf_counter()
            facts = self._facts(prepared, layer) | {"progress": False, "features": prepared.features[layer]}
            train_policy(replace(prepared.args, epochs=epochs), prepared.episodes, **facts)
            times.append(time.perf_counter() - began)
        return max(0.0, times[1] - times[0]) / 2 * prepared.args.epochs

    def _facts(self, prepared: Prepared, layer: int | None) -> dict:
        return {
            "sight": sight_at(prepared.sight, layer),
            "camera": prepared.camera,
            "resolution": prepared.resolution,
            "fps": self.folder.fps,
            "state_names": self.folder.state_names,
            "action_names": self.folder.action_names,
            "simulator": self.simulator,
            "command": self.command,
        }


def is_frozen(arm: str) -> bool:
    """Whether an arm reads a layer of a frozen model."""
    return arm in READ_MODEL or arm.startswith(VISION)


def sight_at(sight: Sight, layer: int | None) -> Sight:
    return sight if layer is None else sight.at(layer)
