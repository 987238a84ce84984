"""`toto robot evaluate`: success of policies over test episodes, with intervals, latency and videos."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.robot.evaluate_args import DESCRIPTION, EvaluateArgs
from evaluation.robot.train import max_steps_of
from tokenization.terminal.next_command import say_next
from training.flags import parse, require

if TYPE_CHECKING:
    from evaluation.robot.results import EvaluateResult, PolicyScore
    from evaluation.robot.rollouts import Rollout

SHOWN = 128  # side in pixels of the frames of videos, of policies that see none


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((EvaluateArgs,), argv, "toto robot evaluate", DESCRIPTION)

    from evaluation.results import command_line
    from evaluation.robot.policy import Policy
    from evaluation.robot.simulator import open_simulator
    from evaluation.robot.tables import evaluate_table
    from tokenization.files import write_json

    result = run_evaluate(args, command_line("robot", ["evaluate", *argv]), Policy.load, open_simulator)
    print(evaluate_table(result))
    write_json(args.output, result.to_json())
    print(f"\nwrote {args.output}")
    say_next("robot", "policy", "--policy", args.policy[0])


def run_evaluate(args: EvaluateArgs, command: str, load: Callable, open_simulator: Callable) -> EvaluateResult:
    """Roll out each policy from the same starts.

    load: folder -> policy. open_simulator: as `simulator.open_simulator`.
    """
    from evaluation.robot.results import EvaluateResult
    from training.engine.device import flush_denormals, versions

    flush_denormals()
    policies = {folder: load(folder) for folder in args.policy}
    for folder, policy in policies.items():
        require_simulator(policy.config, folder)
    task = next(iter(policies.values())).config.simulator["task"]
    max_steps = args.max_steps or max(max_steps_of(policy.config) for policy in policies.values())
    scores = [
        evaluate_policy(args, folder, policy, task, max_steps, open_simulator) for folder, policy in policies.items()
    ]
    return EvaluateResult(
        command=command,
        task=task,
        max_steps=max_steps,
        policies=scores,
        seeds={"first": args.first_seed, "episodes": args.episodes},
        versions=versions(next(iter(policies.values())).device),
    )


def require_simulator(config, folder: str) -> None:
    """Raises ValueError unless the policy's demonstrations are of a simulator."""
    require(
        config.simulator is not None,
        f"The policy {folder} was trained on a real robot, so that no simulator can test it; if its episodes are of "
        "one, train it with --task TASK.",
    )


def evaluate_policy(
    args: EvaluateArgs, folder: str, policy, task: str, max_steps: int, open_simulator: Callable
) -> PolicyScore:
    """The score of one policy; writes its videos."""
    from evaluation.robot.results import PolicyScore
    from evaluation.robot.rollouts import Clock, roll_out, simulators_for
    from evaluation.robot.scoring import latency_of, require_fit, score_of
    from training.publish.media_seen import media_on_record

    clock, config = Clock(), policy.config
    count = min(args.parallel, args.episodes)
    shown = config.resolution or (SHOWN if args.videos else None)
    with simulators_for(config.simulator, config.camera, shown, count, open_simulator) as simulators:
        require_fit(policy, simulators[0], folder, task)
        seeds = range(args.first_seed, args.first_seed + args.episodes)
        rollouts = roll_out(
            policy, simulators, seeds, max_steps, bool(args.videos), clock=clock, progress=Path(folder).name
        )
        fps = simulators[0].fps
    videos = write_videos(rollouts, Path(args.output), Path(folder).name, args.videos, fps) if args.videos else None
    score = score_of(rollouts)
    return PolicyScore(
        success=score.success,
        ci95=score.ci95,
        steps=score.steps,
        episodes=score.episodes,
        policy=folder,
        arm=config.arm,
        model=config.model,
        layer=config.layer,
        media=media_on_record(config.model) if config.model else None,
        latency=latency_of(clock),
        videos=videos,
    )


def write_videos(rollouts: Sequence[Rollout], output: Path, name: str, count: int, fps: float) -> list[str]:
    """Write up to `count` successes and as many failures as OUTPUT_NAME_success_SEED.mp4, and a sheet of them.

    Returns:
        The names of the files.
    """
    from evaluation.pictures import write_movie
    from evaluation.robot.figures import episode_sheet, even_sides
    from tokenization.files import write_whole

    output.parent.mkdir(parents=True, exist_ok=True)
    shown, files = {}, []
    for kind, wanted in (("success", True), ("failure", False)):
        for each in [each for each in rollouts if each.success == wanted][:count]:
            file = output.with_name(f"{output.stem}_{name}_{kind}_{each.seed}.mp4")
            whole = file.with_name(f".{file.name}.partial.mp4")  # PyAV takes the container from the ending
            write_movie(whole, even_sides(each.episode.images), fps)
            whole.replace(file)
            files.append(file.name)
            shown[f"{kind}, start {each.seed}"] = each.episode.images
    sheet = output.with_name(f"{output.stem}_{name}.png")
    write_whole(sheet, lambda path: episode_sheet(shown).save(path, format="png", optimize=True))
    return [*files, sheet.name]
