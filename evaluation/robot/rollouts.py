"""Episodes of a policy in several simulators at once: one batched call of the policy per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from evaluation.robot.observations import Episode, Observation
from tokenization.terminal.progress import tqdm
from training.flags import require

UNSEEN = 16  # side in pixels of frames that a policy does not look at


@dataclass
class Rollout:
    """One episode of a policy.

    steps: actions taken. episode: what was seen and done, or None if it was not kept; its actions are the policy's.
    labels: the expert's action for each of its observations, float32 (T, A), or None.
    """

    seed: int
    success: bool
    steps: int
    episode: Episode | None = None
    labels: np.ndarray | None = None


@dataclass
class Clock:
    """Seconds spent, and how many observations they were spent on.

    rendering: the simulator's step, its physics included. seeing: features of the frames. head: the rest of the policy.
    """

    rendering: float = 0.0
    seeing: float = 0.0
    head: float = 0.0
    observations: int = 0


@dataclass
class _Running:
    """An episode under way."""

    simulator: object
    now: Observation
    seen: list[Observation] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    steps: int = 0


def roll_out(
    policy,
    simulators: list,
    seeds: Sequence[int],
    max_steps: int,
    keep_frames: bool = False,
    label: bool = False,
    *,
    clock: Clock | None = None,
    progress: str | None = None,
) -> list[Rollout]:
    """Let a policy act from the starts of `seeds`, in as many simulators at a time as there are.

    An episode ends with the first action after which the simulator reports success, or after max_steps. Episodes that
    have ended are left out of the batch.

    Args:
        policy: has `reset(batch_size)`, `keep(rows)` and `act(images, states, environment_states)`.
        keep_frames: keep what was seen and done.
        label: keep it with the expert's actions, which are not carried out.
        clock: counts seconds. progress: label of a progress bar; None: no bar.
    Returns:
        In the order of the seeds.
    Raises:
        ValueError: no seeds, no simulators, or no steps.
    """
    require(len(seeds) > 0, "There are no episodes to roll out; name at least one seed.")
    require(len(simulators) > 0, "There is no simulator to roll out in; open at least one.")
    require(max_steps > 0, f"max_steps is {max_steps}; it must be above 0.")
    found: list[Rollout] = []
    clock = clock or Clock()
    with tqdm(total=len(seeds), desc=progress, unit="episode", disable=progress is None) as bar, _timed(policy, clock):
        for first in range(0, len(seeds), len(simulators)):
            found += _lockstep(
                policy, simulators, seeds[first : first + len(simulators)], max_steps, keep_frames, label, clock, bar
            )
    return found


def _lockstep(policy, simulators, seeds, max_steps, keep_frames, label, clock, bar) -> list[Rollout]:
    running = [_Running(s, s.reset(seed)) for s, seed in zip(simulators, seeds, strict=False)]
    finished: dict[int, Rollout] = {}
    going = list(range(len(seeds)))
    policy.reset(len(going))
    while going:
        batch = [running[k] for k in going]
        actions = _act(policy, [each.now for each in batch], clock)
        for k, each, action in zip(going, batch, actions, strict=True):
            if label:
                each.labels.append(np.asarray(each.simulator.expert(), np.float32))
            if keep_frames or label:
                each.seen.append(each.now)
                each.actions.append(action)
            began = time.perf_counter()
            each.now = each.simulator.step(action)
            clock.rendering += time.perf_counter() - began
            each.steps += 1
            if each.now.success or each.steps == max_steps:
                finished[k] = _finish(each, int(seeds[k]))
                bar.update()
        left = [k for k in going if k not in finished]
        if 0 < len(left) < len(going):
            policy.keep([going.index(k) for k in left])
        going = left
    return [finished[k] for k in range(len(seeds))]


def _act(policy, seen: list[Observation], clock: Clock) -> np.ndarray:
    """The policy's actions, float32 (B, A)."""
    own = [each.environment_state for each in seen]
    began, looking = time.perf_counter(), clock.seeing
    actions = policy.act(
        np.stack([each.image for each in seen]),
        np.stack([each.state for each in seen]),
        None if own[0] is None else np.stack(own),
    )
    clock.head += time.perf_counter() - began - (clock.seeing - looking)
    clock.observations += len(seen)
    return np.asarray(actions, np.float32)


def _finish(each: _Running, seed: int) -> Rollout:
    episode = labels = None
    if each.seen:
        own = [seen.environment_state for seen in each.seen]
        episode = Episode(
            images=np.stack([seen.image for seen in each.seen]),
            states=np.stack([seen.state for seen in each.seen]),
            actions=np.stack(each.actions),
            environment_states=None if own[0] is None else np.stack(own),
            task=getattr(each.simulator, "task", ""),
            success=bool(each.now.success),
        )
        labels = np.stack(each.labels) if each.labels else None
    return Rollout(seed, bool(each.now.success), each.steps, episode, labels)


@contextmanager
def _timed(policy, clock: Clock) -> Iterator[None]:
    """Count the seconds of the policy's sight, if it has one."""
    sight = getattr(policy, "sight", None)
    if sight is None:
        yield
        return
    see = sight.see

    def timed(images):
        began = time.perf_counter()
        try:
            return see(images)
        finally:
            clock.seeing += time.perf_counter() - began

    sight.see = timed
    try:
        yield
    finally:
        del sight.see


@contextmanager
def simulators_for(
    facts: dict, camera: str | None, resolution: int | None, count: int, open_simulator: Callable
) -> Iterator[list]:
    """`count` simulators as a policy's demonstrations were recorded; closed at the end.

    Args:
        facts: {"task", "action_repeat"}. camera, resolution: of the frames; None of a policy that sees none, for which
            they are small.
    """
    view = {"resolution": resolution or UNSEEN} | ({} if camera is None else {"camera": camera})
    view["action_repeat"] = facts["action_repeat"]
    opened: list = []
    try:
        for _ in range(count):
            opened.append(open_simulator(facts["task"], **view))
        yield opened
    finally:
        for each in opened:
            each.close()
