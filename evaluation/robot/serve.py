"""`toto robot policy`: a policy answers observations, from standard input or from a stored episode."""

from __future__ import annotations

import base64
import binascii
import io
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from evaluation.robot.observations import Episode
from evaluation.robot.serve_args import DESCRIPTION, ServeArgs
from training.flags import parse, refuse_idle, require

if TYPE_CHECKING:
    from evaluation.robot.policy import Policy


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ServeArgs,), argv, "toto robot policy", DESCRIPTION)

    from evaluation.robot.policy import Policy
    from training.engine.device import flush_denormals

    flush_denormals()
    policy = Policy.load(args.policy, model=args.model)
    if args.episodes is None:
        refuse_idle(argv, ("episode",), "without --episodes")
        print(f"Policy {args.policy}: {wanted(policy)}, a JSON object per line.", file=sys.stderr)
        answer(policy, sys.stdin, sys.stdout)
        return
    episode, notes = stored_episode(policy, args.episodes, args.episode)
    print(replay_table(policy, episode, replay(policy, episode), notes))


def wanted(policy: Policy) -> str:
    """What a policy reads, in words."""
    config = policy.config
    parts = [f"state of {config.state_size} numbers"]
    if config.camera is not None:
        parts.append(f"image of the camera {config.camera}")
    if config.environment_size is not None:
        parts.append(f"environment_state of {config.environment_size} numbers")
    return ", ".join(parts)


def answer(policy: Policy, lines: Iterable[str], output: TextIO) -> None:
    """Write a line of JSON for each line that is not blank; after a bad one the episode goes on."""
    policy.reset()
    for line in lines:
        if not line.strip():
            continue
        try:
            reply = reply_to(policy, line)
        except (ValueError, OSError) as error:
            reply = {"error": " ".join(str(error).split())}
        output.write(json.dumps(reply) + "\n")
        output.flush()


def reply_to(policy: Policy, line: str) -> dict:
    """The answer to one line: {"action", "ms"}, or {"reset": true} where nothing was observed.

    Raises:
        ValueError: not a JSON object, parts that are missing or unknown, or as in `Policy.act`.
    """
    began = time.perf_counter()
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"The line is not JSON: {error}.") from error
    require(isinstance(content, dict), 'The line is not a JSON object; send {"image": FILE, "state": [numbers]}.')
    known = ("image", "state", "environment_state", "reset")
    for key in content:
        require(key in known, f"The observation has the unknown part '{key}'; its parts are {', '.join(known)}.")
    if content.get("reset"):
        policy.reset()
        if len(content) == 1:
            return {"reset": True}
    config = policy.config
    images, environment = np.zeros((1, 0, 0, 3), np.uint8), None
    if config.resolution is not None:
        images = image_of(_part(content, "image", policy))[None]
    if config.environment_size is not None:
        environment = _row(content, "environment_state", policy)
    action = policy.act(images, _row(content, "state", policy), environment)[0]
    return {"action": action.tolist(), "ms": round(1000 * (time.perf_counter() - began), 3)}


def _part(content: dict, name: str, policy: Policy):
    require(name in content, f"The observation has no {name}; this policy reads: {wanted(policy)}.")
    return content[name]


def _row(content: dict, name: str, policy: Policy) -> np.ndarray:
    """A list of numbers as float32 (1, N)."""
    given = _part(content, name, policy)
    is_list = isinstance(given, list) and all(type(each) in (int, float) for each in given)
    require(is_list, f"{name} is not a list of numbers.")
    return np.array([given], np.float32)


def image_of(given: str) -> np.ndarray:
    """A picture, by its file or its base64 text, as uint8 (H, W, 3).

    Raises:
        ValueError: neither of them.
    """
    from PIL import Image

    require(isinstance(given, str), "image is not text; send the path of a file, or base64 of a PNG or JPEG.")
    try:
        # a path is shorter than any picture, and too long a name is an error of its own
        if len(given) < 1024 and Path(given).is_file():
            picture = Image.open(given)
        else:
            picture = Image.open(io.BytesIO(base64.b64decode(given.split("base64,")[-1], validate=True)))
        return np.array(picture.convert("RGB"))
    except (binascii.Error, OSError, ValueError) as error:
        short = given if len(given) < 80 else f"{given[:40]}..."
        raise ValueError(f"image '{short}' is neither a file with a picture nor base64 of a PNG or JPEG.") from error


@dataclass
class Replay:
    """actions: of the policy, float32 (T, A). milliseconds: (T,), of each call of `Policy.act`."""

    actions: np.ndarray
    milliseconds: np.ndarray


def stored_episode(policy: Policy, folder: str, number: int) -> tuple[Episode, list[str]]:
    """An episode as a policy reads it, and sentences that a reader of its replay should know.

    Raises:
        ValueError: the policy is of another robot, or as in `Episodes.episode`.
    """
    from evaluation.robot.episodes.reading import open_episodes

    config, episodes = policy.config, open_episodes(folder)
    for kind in ("action", "state", "environment"):
        mine, its = getattr(config, f"{kind}_size"), getattr(episodes, f"{kind}_size")
        require(
            mine == its or (kind == "environment" and mine is None),
            f"The policy has {mine} {kind} numbers and {folder} has {its}; choose episodes of its own robot.",
        )
    episode = episodes.episode(number, config.camera or "", config.resolution or 1)
    notes, training = [], config.training
    if Path(training["trained_on"]).resolve() == Path(folder).resolve():
        learnt = number < training["demonstrations"] - training["held_out"]
        notes.append("The policy was trained on this episode." if learnt else "Training held this episode out.")
    if config.fps != episodes.fps:
        notes.append(f"The policy was trained at {config.fps:g} observations per second; these have {episodes.fps:g}.")
    return episode, notes


def replay(policy: Policy, episode: Episode) -> Replay:
    """The policy's action for each observation of an episode, one at a time as on a robot."""
    policy.reset()
    actions, milliseconds = [], []
    for t in range(len(episode.actions)):
        own = None if episode.environment_states is None else episode.environment_states[t : t + 1]
        began = time.perf_counter()
        actions.append(policy.act(episode.images[t : t + 1], episode.states[t : t + 1], own)[0])
        milliseconds.append(1000 * (time.perf_counter() - began))
    return Replay(np.stack(actions), np.array(milliseconds))


def replay_table(policy: Policy, episode: Episode, made: Replay, notes: list[str]) -> str:
    """A row per step, then the error and the speed."""

    def numbers(action: np.ndarray) -> str:
        return " ".join(f"{number:+.3f}" for number in action)

    width = max(len("policy"), *(len(numbers(action)) for action in made.actions))
    names = policy.config.action_names
    lines = [f"actions: {', '.join(names)}"] if names else []
    lines.append(f"{'step':>4}  {'policy':<{width}}  recorded")
    for t, (action, recorded) in enumerate(zip(made.actions, episode.actions, strict=True)):
        lines.append(f"{t:>4}  {numbers(action):<{width}}  {numbers(recorded)}")
    error = np.square(made.actions - episode.actions).mean()
    spread = episode.actions.var(0).mean()
    median, high = np.percentile(made.milliseconds, [50, 95])
    fps = policy.config.fps
    lines += [
        "",
        f"mean squared error {error:.4f}; the recorded actions vary by {spread:.4f} around their mean",
        f"latency: median {median:.1f} ms, 95 % of steps below {high:.1f} ms"
        + (f"; an observation comes every {1000 / fps:.1f} ms" if fps else ""),
        *notes,
    ]
    return "\n".join(lines)
