"""`toto robot train`: behaviour cloning, and DAgger, from a folder of episodes to a folder of a policy."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.robot.dagger import EPISODES
from evaluation.robot.observations import Episode
from evaluation.robot.recording import frames_of, recorded_settings, simulator_facts
from evaluation.robot.train_args import DESCRIPTION, TrainArgs
from tokenization.terminal.next_command import say_next
from training.flags import parse, refuse_idle, require

if TYPE_CHECKING:
    import torch

    from evaluation.robot.dagger import Round
    from evaluation.robot.fit import Samples
    from evaluation.robot.layer_curve import LayerFit
    from evaluation.robot.policy import Policy
    from evaluation.robot.sight import Frozen, Sight

PATIENCE = 1.5  # an episode may take this many times the steps of the longest demonstration
CURVE_OBSERVATIONS = 5000  # that all layers are compared on; of a larger folder every n-th demonstration
WITHOUT_MODEL = ("pixels", "proprio", "oracle")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((TrainArgs,), argv, "toto robot train", DESCRIPTION)
    if args.arm in WITHOUT_MODEL:
        refuse_idle(argv, ("model", "layer", "context_frames", "max_tokens"), f"on --arm {args.arm}")

    from evaluation.results import command_line

    began = time.perf_counter()
    policy = train(args, command_line("robot", ["train", *argv]))
    print(summary(policy))
    print(f"\nwrote {args.output} in {time.perf_counter() - began:.0f} s")
    if policy.config.simulator is None:
        say_next("robot", "policy", "--policy", args.output, "--episodes", args.episodes)
    else:
        result = Path(args.output).with_name(f"{Path(args.output).name}.json")
        say_next("robot", "evaluate", "--policy", args.output, "--output", result)


def train(
    args: TrainArgs,
    command: str,
    open_simulator: Callable | None = None,
    *,
    per_round: int = EPISODES,
    progress: bool = True,
) -> Policy:
    """Train on the folder `args.episodes` and write the policy's folder.

    Args:
        open_simulator: None: `simulator.open_simulator`. It is called for DAgger alone.
        per_round: DAgger's episodes.
    Raises:
        ValueError: bad episodes (`open_episodes`, `train_policy`), an unknown arm, a layer that the model lacks, an
            output that exists, or DAgger without a simulator.
    """
    from evaluation.robot.episodes.reading import open_episodes
    from evaluation.robot.policy import refuse_existing
    from training.engine.device import flush_denormals

    refuse_existing(args.output)
    flush_denormals()
    folder = open_episodes(args.episodes)
    recorded = recorded_settings(folder)
    simulator = simulator_facts(args, folder, recorded)
    require(not args.dagger or simulator is not None, "--dagger needs the simulator's task; name it with --task TASK.")
    sight = sight_of(args)
    camera, resolution = frames_of(args, folder, sight, recorded)
    episodes = [folder.episode(index, camera or "", resolution or 1) for index in range(len(folder))]
    facts = {
        "camera": camera,
        "resolution": resolution,
        "fps": folder.fps,
        "state_names": folder.state_names,
        "action_names": folder.action_names,
        "simulator": simulator,
        "command": command,
        "progress": progress,
    }
    check_episodes(episodes, args.arm)
    sight, features, curve = look(args.arm, sight, episodes, progress)
    facts |= {"sight": sight, "curve": curve}
    if not args.dagger:
        policy = train_policy(args, episodes, features=features, **facts)
        policy.save(args.output)
        return policy

    from evaluation.robot.rollouts import simulators_for

    if open_simulator is None:
        from evaluation.robot.simulator import open_simulator
    with simulators_for(simulator, camera, resolution, per_round, open_simulator) as simulators:
        policy = train_policy(args, episodes, features=features, **facts)
        most = max_steps_of(policy.config)
        policy, rounds = train_rounds(policy, args, episodes, features, facts, simulators, most, per_round=per_round)
    policy.config.training["dagger"] = [asdict(each) for each in rounds]
    policy.save(args.output)
    return policy


def train_policy(
    args,
    episodes: Sequence[Episode],
    *,
    more: Sequence[Episode] = (),
    sight: Sight | None = None,
    features: Sequence[torch.Tensor] | None = None,
    curve: list[LayerFit] | None = None,
    camera: str | None,
    resolution: int | None = None,
    fps: float | None,
    state_names: Sequence[str] | None,
    action_names: Sequence[str] | None,
    command: str,
    simulator: dict | None = None,
    progress: bool = True,
) -> Policy:
    """Behaviour cloning; the last fifth of the demonstrations is held out for the reported loss and the layer curve.

    Args:
        args: as `TrainArgs`; its folders are only recorded.
        episodes: demonstrations. more: of DAgger; none of them is held out.
        sight: open; None: that of the flags. Without a layer, the layer curve chooses one.
        features: (T, size) of each demonstration, then of each episode of `more`, as `seen_of` gives them; None: they
            are made here. They must be of `sight`, which then has a layer.
        curve: of an earlier choice of the layer, to be saved with the policy.
        camera, resolution: of the frames; not recorded for an arm that sees none. fps, state_names, action_names: of
            the episodes.
        simulator: {"task", "action_repeat"} for `toto robot evaluate`; None: a real robot.
    Raises:
        ValueError: episodes that do not go together or hold numbers that are not finite, or as in `fit_policy`.
    """
    from evaluation.robot.fit import FitSettings, fit_policy, is_clipped
    from evaluation.robot.layer_curve import tail
    from evaluation.robot.policy import Policy, PolicyConfig, fingerprint_of
    from evaluation.robot.sight import Frozen, model_of
    from training.engine.device import versions

    episodes, more = list(episodes), list(more)
    check_episodes([*episodes, *more], args.arm)
    sight = sight or sight_of(args)
    if features is None:
        sight, features, found = look(args.arm, sight, episodes, progress)
        curve = found or curve
        features = [*features, *seen_of(args.arm, sight, more, progress)]
    require(
        [len(each) for each in features] == [len(each.actions) for each in [*episodes, *more]],
        "The features are not those of these episodes; pass one tensor (T, size) for each of them, in their order.",
    )
    held_out = tail(len(episodes)) if len(episodes) > 1 else 0
    kept = len(episodes) - held_out
    learnt = samples_of([*episodes[:kept], *more], [*features[:kept], *features[len(episodes) :]])
    others = samples_of(episodes[kept:], features[kept : len(episodes)]) if held_out else None
    settings = FitSettings(args.epochs, args.batch_size, args.learning_rate, args.weight_decay)
    frozen = isinstance(sight, Frozen)
    device = sight.backbone.device if frozen else None
    network, losses = fit_policy(learnt, others, settings, args.seed, device=device, progress=progress)
    config = PolicyConfig(
        arm=args.arm,
        model=model_of(args.arm, args.model) if frozen else None,
        layer=sight.layer,
        context_frames=args.context_frames,
        max_tokens=args.max_tokens,
        fingerprint=fingerprint_of(sight),
        sight_seed=args.sight_seed if args.arm == "untrained" else None,
        camera=None if sight.resolution is None else camera,
        resolution=None if sight.resolution is None else resolution or episodes[0].images.shape[1],
        fps=fps,
        task="; ".join(dict.fromkeys(each.task for each in episodes)),
        sight_size=learnt.seen.shape[1],
        state_size=learnt.states.shape[1],
        action_size=learnt.actions.shape[1],
        environment_size=learnt.seen.shape[1] if args.arm == "oracle" else None,
        state_names=None if state_names is None else list(state_names),
        action_names=None if action_names is None else list(action_names),
        clipped=is_clipped(learnt.actions),
        simulator=simulator,
        training={
            "command": command,
            "trained_on": str(args.episodes),
            "demonstrations": len(episodes),
            "held_out": held_out,
            "dagger_episodes": len(more),
            "observations": len(learnt),
            "longest": max(len(each.actions) for each in episodes),
            "settings": asdict(settings) | {"seed": args.seed},
            "losses": [each.to_json() for each in losses],
            "versions": versions(device),
        },
    )
    return Policy(config, network, sight, curve, device)


def train_rounds(
    policy: Policy,
    args,
    episodes: Sequence[Episode],
    features: Sequence[torch.Tensor],
    facts: dict,
    simulators: list,
    max_steps: int,
    *,
    per_round: int = EPISODES,
) -> tuple[Policy, list[Round]]:
    """(policy after `args.dagger` rounds of DAgger, the rounds).

    Args:
        policy: trained on `episodes`. features: of these. facts: the other arguments of `train_policy`.
    """
    from evaluation.robot.dagger import run_dagger

    seen, progress = list(features), facts["progress"]

    def again(every: list[Episode]) -> Policy:
        seen.extend(seen_of(args.arm, facts["sight"], every[len(seen) :], progress))  # of the newest round alone
        return train_policy(args, episodes, more=every[len(episodes) :], features=seen, **facts)

    policy, _, rounds = run_dagger(
        policy, episodes, again, simulators, args.dagger, max_steps, per_round=per_round, progress=progress
    )
    return policy, rounds


def max_steps_of(config) -> int:
    """Most actions of a test episode: 1.5 times the longest demonstration of the policy (MVP's rule; paper silent)."""
    return math.ceil(PATIENCE * config.training["longest"])


def sight_of(args) -> Sight:
    """The sight that the flags ask for; without a layer if that is auto."""
    from evaluation.robot.sight import open_sight

    layer = None if args.layer == "auto" else int(args.layer)
    facts = {"context_frames": args.context_frames, "max_tokens": args.max_tokens, "seed": args.sight_seed}
    return open_sight(args.arm, args.model, layer, **facts)


def look(
    arm: str, sight: Sight, episodes: Sequence[Episode], progress: bool = True
) -> tuple[Sight, list[torch.Tensor], list[LayerFit] | None]:
    """(sight, what it sees of each episode, layer curve); a sight without a layer gets the best one of the curve."""
    from evaluation.robot.layer_curve import best_layer
    from evaluation.robot.sight import Frozen

    if not (isinstance(sight, Frozen) and sight.layer is None):
        return sight, seen_of(arm, sight, episodes, progress), None
    curve, watched = curve_of(sight, episodes, progress)
    layer = best_layer(curve)
    sight = sight.at(layer)
    if len(watched[layer]) == len(episodes):
        return sight, watched[layer], curve
    return sight, seen_of(arm, sight, episodes, progress), curve


def curve_of(
    sight: Frozen, episodes: Sequence[Episode], progress: bool = True
) -> tuple[list[LayerFit], dict[int, list[torch.Tensor]]]:
    """(layer curve, {layer: features of each demonstration that it was made from}).

    It is made from all demonstrations, or, above 5,000 observations, from every n-th; its last fifth is scored.

    Raises:
        ValueError: fewer than three demonstrations.
    """
    import torch

    from evaluation.robot.layer_curve import layer_curve, tail
    from evaluation.robot.sight import watch_layers

    step = math.ceil(sum(len(each.actions) for each in episodes) / CURVE_OBSERVATIONS)
    chosen = list(episodes[::step])
    require(
        len(chosen) >= 3, f"--layer auto needs at least 3 demonstrations, and there are {len(chosen)}; name a layer."
    )
    layers = list(range(sight.backbone.depth + 1))
    watched = watch_layers(sight, chosen, layers, bar=_bar(chosen, progress))
    states, actions = ([torch.from_numpy(getattr(each, name)) for each in chosen] for name in ("states", "actions"))
    return layer_curve(watched, states, actions, tail(len(chosen)), progress), watched


def seen_of(arm: str, sight: Sight, episodes: Sequence[Episode], progress: bool = True) -> list[torch.Tensor]:
    """What an arm reads of each episode besides the state, (T, size): its sight, or the simulator's numbers."""
    import torch

    from evaluation.robot.sight import watch

    if arm == "oracle":
        return [torch.from_numpy(each.environment_states) for each in episodes]
    if sight.resolution is None:
        return [torch.zeros(len(each.actions), 0) for each in episodes]
    return watch(sight, episodes, bar=_bar(episodes, progress))


def _bar(episodes: Sequence[Episode], progress: bool):
    from tokenization.terminal.progress import tqdm

    total = sum(len(each.actions) for each in episodes)
    return tqdm(total=total, desc="looking", unit="frame", disable=not progress)


def samples_of(episodes: Sequence[Episode], features: Sequence[torch.Tensor]) -> Samples:
    import torch

    from evaluation.robot.fit import Samples

    states, actions = (
        torch.from_numpy(np.concatenate([getattr(each, name) for each in episodes])) for name in ("states", "actions")
    )
    return Samples(torch.cat(list(features)), states, actions)


def check_episodes(episodes: Sequence[Episode], arm: str) -> None:
    """Raises ValueError unless the episodes are of one robot, have numbers throughout and what the arm needs."""
    require(len(episodes) > 0, "There are no episodes to learn from; record at least one.")
    for index, each in enumerate(episodes):
        for name in ("states", "actions", *(["environment_states"] if arm == "oracle" else [])):
            values, first = getattr(each, name), getattr(episodes[0], name)
            require(
                values is not None,
                "--arm oracle reads the simulator's own numbers, and these episodes have none; choose another arm.",
            )
            require(
                values.ndim == 2 and values.shape[1:] == first.shape[1:] and len(values) == len(each.actions) > 0,
                f"{name} of episode {index} has the shape {values.shape}; episode 0 has {first.shape[1:]} numbers a "
                f"row, and episode {index} has {len(each.actions)} actions.",
            )
            require(
                bool(np.isfinite(values).all()),
                f"{name} of episode {index} has a number that is not finite; repair or leave out the episode.",
            )
        require(len(each.images) == len(each.actions), f"Episode {index} has another number of frames than of actions.")


def summary(policy: Policy) -> str:
    """What was trained, for the terminal."""
    from evaluation.robot.tables import CURVE_TITLE, curve_line

    config, training = policy.config, policy.config.training
    last = training["losses"][-1]
    lines = []
    if policy.curve:
        lines += [CURVE_TITLE, "  " + curve_line(policy.curve), ""]
    sees = config.arm if config.layer is None else f"{config.arm} ({config.model}, layer {config.layer})"
    held_out = "" if last["held_out"] is None else f", {last['held_out']:.2g} on {training['held_out']} held out"
    lines += [
        f"{sees}: {training['demonstrations']} demonstrations, {training['observations']} observations learnt, "
        f"{last['epoch']} epochs",
        f"squared error per action number: {last['loss']:.2g}{held_out}",
    ]
    for number, each in enumerate(training.get("dagger", []), start=1):
        lines.append(f"DAgger round {number}: the policy before it succeeded in {100 * each['success']:.0f} %")
    return "\n".join(lines)
