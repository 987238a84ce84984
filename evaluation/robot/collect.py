"""`toto robot collect`: demonstrations of a scripted expert as a folder of episodes, or clips for `toto tokenize`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evaluation.robot.collect_args import DESCRIPTION, CollectArgs
from evaluation.robot.observations import Episode
from evaluation.robot.seeds import require_demonstration_seeds
from tokenization.terminal.next_command import say_next

RECORD = "meta/collect.json"  # settings, and seeds that were kept and that failed
CLIP_RECORD = "collect.json"


def main(argv: list[str] | None = None) -> None:
    from training.flags import parse

    (args,) = parse((CollectArgs,), argv, "toto robot collect", DESCRIPTION)
    collect(args)


def collect(args: CollectArgs) -> dict:
    """Record episodes until `args.episodes` are kept; returns {"settings", "kept", "failed"} (seeds).

    Raises:
        ValueError: as `open_simulator`; the folder holds something else or other settings; most of the expert's
            episodes fail.
    """
    from evaluation.robot.simulator import HORIZON, open_simulator
    from tokenization.terminal.progress import tqdm

    folder = Path(args.output)
    file = folder / (CLIP_RECORD if args.videos else RECORD)
    settings = {key: value for key, value in asdict(args).items() if key not in ("episodes", "output")}
    record = _record(folder, file, settings)
    simulator = open_simulator(args.task, args.resolution, args.camera, args.action_repeat)
    try:
        save, count = _saver(folder, args, simulator)
        record["kept"] = record["kept"][:count]  # the last one may have been killed while it was written
        bar = tqdm(total=args.episodes, initial=count, desc=args.task, unit="episode")
        with bar:
            while count < args.episodes:
                tried = record["kept"] + record["failed"]
                seed = max(tried, default=args.first_seed - 1) + 1
                require_demonstration_seeds(seed, args.episodes - count)  # failures take seeds too
                episode = record_episode(simulator, seed, HORIZON // args.action_repeat, args.noise)
                if not (episode.success or args.videos):
                    record["failed"].append(seed)
                    _write(file, record)
                    _check_failures(args.task, record)
                    bar.set_postfix(failed=len(record["failed"]))
                    continue
                record["kept"].append(seed)
                _write(file, record)  # before the episode, so that no seed is recorded twice
                save(count, episode)
                count += 1
                bar.update()
    finally:
        simulator.close()
    kind = "clips" if args.videos else "demonstrations"
    failed = "" if args.videos else f"; {len(record['failed'])} episodes of the expert failed and were left out"
    print(f"{count} {kind} of {args.task} in {folder}{failed}.")
    if args.videos:
        say_next("tokenize", "--dataset", folder, "--output", folder.with_name(f"{folder.name}-shards"))
    else:
        say_next("robot", "train", "--episodes", folder, "--arm", "pixels", "--output", f"{folder}-policy")
    return record


def record_episode(simulator, seed: int, max_steps: int, noise: float = 0.0) -> Episode:
    """The scripted expert from the start `seed` until it succeeds, at most `max_steps` actions.

    noise: standard deviation of what is added to each action, before it is clipped; the executed action is stored.
    """
    generator = np.random.default_rng([abs(seed), 1])
    observation = simulator.reset(seed)
    seen, actions = [], []
    while len(seen) < max_steps and not observation.success:
        action = simulator.expert()
        if noise:
            action = np.clip(action + noise * generator.standard_normal(len(action)), -1, 1).astype(np.float32)
        seen.append(observation)
        actions.append(action)
        observation = simulator.step(action)
    from evaluation.robot.simulator import TASKS

    words = TASKS[simulator.task].words if simulator.task in TASKS else simulator.task
    return Episode(
        np.stack([one.image for one in seen]),
        np.stack([one.state for one in seen]),
        np.stack(actions),
        np.stack([one.environment_state for one in seen]),
        words,
        observation.success,
    )


def _record(folder: Path, file: Path, settings: dict) -> dict:
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"--output {folder} is not empty and holds no recording to go on with; choose another.")
        return {"settings": settings, "kept": [], "failed": []}
    record = json.loads(file.read_text())
    differing = [f"--{key}" for key, value in settings.items() if record["settings"].get(key) != value]
    if differing:
        raise ValueError(
            f"{folder} was recorded with other settings ({', '.join(differing)}); choose another --output."
        )
    return record


def _saver(folder: Path, args: CollectArgs, simulator):
    """(function of a number and an episode, number of episodes that are there)."""
    from evaluation.robot.episodes.writing import EpisodeWriter, write_clip
    from evaluation.robot.simulator import ACTION_NAMES, ENVIRONMENT_NAMES, STATE_NAMES

    if args.videos:
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob("*.partial*"):
            rest.unlink()

        def clip(number: int, episode: Episode) -> None:
            write_clip(folder / f"episode_{number:06d}.mp4", episode.images, simulator.fps)

        return clip, len(list(folder.glob("episode_*.mp4")))
    writer = EpisodeWriter(
        folder,
        fps=simulator.fps,
        camera=args.camera,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        environment_names=ENVIRONMENT_NAMES,
        robot_type="sawyer",
    )

    def save(number: int, episode: Episode) -> None:
        writer.write(number, episode)
        if number + 1 >= args.episodes:
            writer.finish()

    return save, len(writer)


def _write(file: Path, record: dict) -> None:
    from tokenization.files import write_json

    write_json(file, record)


def _check_failures(task: str, record: dict) -> None:
    failed, kept = len(record["failed"]), len(record["kept"])
    if failed >= 20 and failed > 4 * kept:
        raise ValueError(f"The scripted expert of {task} failed in {failed} of {failed + kept} episodes; give up.")
