"""`toto robot arms`: the whole table of what policies see, in one command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.robot.arms_args import DESCRIPTION, READ_MODEL, VISION, ArmsArgs
from tokenization.terminal.next_command import beside, say_next
from training.flags import parse, refuse_idle

if TYPE_CHECKING:
    from evaluation.robot.arms_training import Prepared, Row
    from evaluation.robot.results import ArmsResult, SeedScore

FAILURES = (ValueError, OSError, RuntimeError, ImportError)  # of one arm, while the others go on
TIMED_STEPS = 10


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ArmsArgs,), argv, "toto robot arms", DESCRIPTION)
    if not any(arm in READ_MODEL for arm in args.arms):
        refuse_idle(argv, ("model",), "without the arms toto and untrained")
    if "toto" not in args.arms:
        refuse_idle(argv, ("rollout_layers",), "without the arm toto")

    from evaluation.results import command_line
    from evaluation.robot.tables import arms_table

    began = time.perf_counter()
    print(arms_table(compare(args, command_line("robot", ["arms", *argv]))))
    print(f"\nwrote {args.output} in {(time.perf_counter() - began) / 60:.1f} minutes")
    sees = ["--arm", "toto", "--model", args.model] if "toto" in args.arms else ["--arm", args.arms[0]]
    policy = ["--output", beside(args.output, "policy")]
    say_next("robot", "train", "--episodes", args.episodes, *sees, *policy)


def compare(
    args: ArmsArgs, command: str, open_simulator: Callable | None = None, *, progress: bool = True
) -> ArmsResult:
    """Train and test all policies; writes the result file, its picture and videos.

    Every finished policy is kept next to the result file, so that a stopped run goes on; that file is deleted once
    every arm has its score. A finished result of the same settings is gone on from: only policies that it lacks are
    trained, and those that it has stay in it.

    Args:
        open_simulator: None: `simulator.open_simulator`.
    Raises:
        ValueError: as `Demonstrations` and `Progress`, or no arm has a score.
    """
    from evaluation.robot.figures import draw_arms
    from tokenization.files import write_json, write_whole
    from training.engine.device import flush_denormals

    if open_simulator is None:
        from evaluation.robot.simulator import open_simulator
    flush_denormals()
    table = Table(args, command, open_simulator, progress)
    table.run()
    result = table.result()
    write_json(args.output, result.to_json())
    write_whole(Path(args.output).with_suffix(".png"), lambda path: draw_arms(result, path))
    if not result.errors:
        table.done.finish()
    return result


class Table:
    """The table under way. What is finished is in `done`, and a sentence for each arm that failed in `errors`."""

    def __init__(self, args: ArmsArgs, command: str, open_simulator: Callable, progress: bool):
        from evaluation.robot.arms_progress import Progress
        from evaluation.robot.arms_training import Demonstrations
        from evaluation.robot.seeds import TEST_SEED

        self.command, self.open_simulator, self.progress = command, open_simulator, progress
        self.starts = range(TEST_SEED, TEST_SEED + args.test_episodes)
        self.data = Demonstrations(args, command, progress)
        self.max_steps = self.data.max_steps
        settings = args.of_a_seed() | {"max_steps": self.max_steps, "lengths": self.data.lengths}
        self.done = Progress(args.output, settings)
        # What a finished table has stays in it, and may need its model.
        self.args = self.data.args = replace(args, model=self.done.settings.get("model", args.model))
        self.arms = list(dict.fromkeys([*self.done.arms, *args.arms]))
        self.seeds = max(args.seeds, self.done.seeds)
        self.errors: dict[str, str] = {}

    def run(self) -> None:
        """Everything that is not finished yet."""
        from tokenization.terminal.progress import tqdm

        self.roll_out_bounds()
        jobs = []
        for arm in self.arms:
            if not self.is_finished(arm) and (prepared := self.prepare(arm)) is not None:
                jobs += [(prepared, row, seed) for row, seed in self.left(arm)]
        jobs.sort(key=lambda job: job[0].view)  # simulators of one view at a time
        if self.done.policies and self.progress:
            print(f"{self.done.policies} policies are finished and not run again.")
        if jobs and self.progress:
            print(self.estimate(jobs), flush=True)
        with tqdm(total=len(jobs), desc="policies", unit="policy", disable=not self.progress) as bar:
            for view, group in groupby(jobs, key=lambda job: job[0].view):
                with self.data.simulators(view, self.side_by_side, self.open_simulator) as simulators:
                    for prepared, row, seed in group:
                        if row.arm not in self.errors:
                            self.try_seed(prepared, row, seed, simulators)
                        bar.update()

    @property
    def side_by_side(self) -> int:
        return min(self.args.parallel, len(self.starts))

    def rows_of(self, arm: str) -> list[Row]:
        return self.data.rows_of(arm, self.done.curve(arm), self.done.layers(arm))

    def left(self, arm: str) -> list[tuple[Row, int]]:
        """Policies of an arm that have not been tested."""
        every = [(row, seed) for row in self.rows_of(arm) for seed in range(self.seeds)]
        return [(row, seed) for row, seed in every if self.done.seed(row.name, seed) is None]

    def is_finished(self, arm: str) -> bool:
        return (self.done.curve(arm) is not None or not self.data.reads_curve(arm)) and not self.left(arm)

    def roll_out_bounds(self) -> None:
        """The scripted expert and random actions, from the starts of all policies."""
        from evaluation.robot.bounds import ExpertActions, RandomActions
        from evaluation.robot.rollouts import roll_out
        from evaluation.robot.scoring import score_of

        if all(self.done.bound(name) for name in ("expert", "random")):
            return
        with self.data.simulators(("", 0), self.side_by_side, self.open_simulator) as simulators:
            drivers = {"expert": ExpertActions(simulators), "random": RandomActions(simulators[0].action_size)}
            for name, driver in drivers.items():
                label = name if self.progress else None
                rollouts = roll_out(driver, simulators, self.starts, self.max_steps, progress=label)
                self.done.add_bound(name, score_of(rollouts))

    def prepare(self, arm: str) -> Prepared | None:
        """None if the arm failed."""
        try:
            prepared = self.data.prepare(arm, self.done.layers(arm))
        except FAILURES as error:
            return self.fail(arm, error)
        if prepared.curve is not None:
            self.done.add_curve(arm, prepared.curve)
        return prepared

    def try_seed(self, prepared: Prepared, row: Row, seed: int, simulators: list) -> None:
        try:
            self.done.add_seed(row.name, self.run_seed(prepared, row, seed, simulators))
        except FAILURES as error:
            self.fail(row.arm, error)

    def fail(self, arm: str, error: Exception) -> None:
        self.errors[arm] = " ".join(str(error).split())
        print(f"The arm {arm} failed: {self.errors[arm]}", file=sys.stderr)

    def run_seed(self, prepared: Prepared, row: Row, seed: int, simulators: list) -> SeedScore:
        """Train a policy and test it."""
        from evaluation.robot.evaluate import write_videos
        from evaluation.robot.results import SeedScore
        from evaluation.robot.rollouts import Clock, roll_out
        from evaluation.robot.scoring import latency_of, require_fit, score_of

        began, clock, label = time.perf_counter(), Clock(), f"{row.name}, seed {seed}"
        policy, rounds = self.data.train(prepared, row.layer, seed, simulators)
        require_fit(policy, simulators[0], label)
        filmed = bool(self.args.videos) and seed == 0 and prepared.resolution is not None
        bar = label if self.progress else None
        rollouts = roll_out(policy, simulators, self.starts, self.max_steps, filmed, clock=clock, progress=bar)
        seconds, videos = time.perf_counter() - began, None
        if filmed:
            name = Path(row.name.removeprefix(VISION)).name.replace(", ", "_").replace(" ", "_")
            videos = write_videos(rollouts, Path(self.args.output), name, self.args.videos, simulators[0].fps)
        score = score_of(rollouts)
        return SeedScore(
            success=score.success,
            ci95=score.ci95,
            steps=score.steps,
            episodes=score.episodes,
            seed=seed,
            seconds=seconds,
            latency=latency_of(clock),
            dagger=rounds,
            videos=videos,
        )

    def estimate(self, jobs: list[tuple[Prepared, Row, int]]) -> str:
        """What the policies will take if no episode ends before its last step, in words."""
        from evaluation.robot.dagger import EPISODES

        per_step = {view: self.seconds_per_step(view) for view in {prepared.view for prepared, _, _ in jobs}}
        fits = {row: self.data.seconds_of_training(prepared, row.layer) for prepared, row, _ in jobs}
        training = simulating = seeing = 0.0
        for prepared, row, _ in jobs:
            observations = self.max_steps * (len(self.starts) + EPISODES * self.args.dagger)
            training += fits[row] * (1 + self.args.dagger)
            simulating += observations * per_step[prepared.view]
            seeing += observations * prepared.seconds_per_frame
        parts = ", ".join(
            f"{name} {seconds / 60:.0f}"
            for name, seconds in (("training", training), ("simulators", simulating), ("seeing", seeing))
        )
        return (
            f"Policies to train and test: {len(jobs)}, each from {len(self.starts)} starts, {self.max_steps} steps or "
            f"fewer: at most about {(training + simulating + seeing) / 60:.0f} minutes ({parts})."
        )

    def seconds_per_step(self, view: tuple[str, int]) -> float:
        with self.data.simulators(view, 1, self.open_simulator) as (simulator,):
            simulator.reset(self.starts[0])
            began = time.perf_counter()
            for _ in range(TIMED_STEPS):
                simulator.step(simulator.expert())
            return (time.perf_counter() - began) / TIMED_STEPS

    def result(self) -> ArmsResult:
        from evaluation.backbones.contract import default_device
        from evaluation.robot.arms_results import arm_scores
        from evaluation.robot.results import ArmsResult
        from training.engine.device import versions
        from training.publish.media_seen import media_on_record

        args, arms = self.args, [arm for arm in self.arms if arm not in self.errors]
        if not arms:
            raise ValueError(f"No arm has a score. {next(iter(self.errors.values()))}")
        reads_model = args.model is not None and any(arm in READ_MODEL for arm in arms)
        finished = {
            row: [self.done.seed(row.name, seed) for seed in range(self.seeds)]
            for arm in arms
            for row in self.rows_of(arm)
        }
        return ArmsResult(
            command=self.command,
            model=args.model if reads_model else None,
            media=media_on_record(args.model) if reads_model else None,
            task=self.data.simulator["task"],
            demonstrations=len(self.data.lengths),
            max_steps=self.max_steps,
            expert=self.done.bound("expert"),
            random=self.done.bound("random"),
            arms=arm_scores(finished, args.model),
            curves={arm: curve for arm in arms if (curve := self.done.curve(arm)) is not None},
            seeds={"policies": self.seeds, "first": self.starts.start, "episodes": len(self.starts)},
            versions=versions(default_device()),
            settings=self.done.settings,
            errors=self.errors or None,
        )
