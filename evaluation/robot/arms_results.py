"""The result of `toto robot arms` from the scores of its policies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.metrics import verdict
from evaluation.results import Versus
from evaluation.robot.arms_args import VISION
from evaluation.robot.arms_training import Row, is_frozen
from evaluation.robot.results import ArmScore, SeedScore
from evaluation.robot.scoring import paired_interval, pooled_interval
from evaluation.robot.sight import ARMS, model_of


def arm_scores(finished: dict[Row, list[SeedScore]], model: str | None) -> dict[str, ArmScore]:
    """{row's name: its pooled score}, each but toto's with toto's difference to it, if toto is among them."""
    by_name = {row.name: seeds for row, seeds in finished.items()}
    return {row.name: arm_score(row, seeds, model, by_name.get("toto")) for row, seeds in finished.items()}


def arm_score(row: Row, seeds: list[SeedScore], model: str | None, toto: list[SeedScore] | None) -> ArmScore:
    success = successes(seeds)
    versus = None
    if toto is not None and row.name != "toto":
        versus = difference(toto, seeds)
    return ArmScore(
        what=ARMS["toto" if row.arm.startswith(VISION) else row.arm],
        model=model_of(row.arm, model) if is_frozen(row.arm) else None,
        layer=row.layer,
        success=float(success.mean()),
        ci95=pooled_interval(success),
        failed=[each.seed for each in seeds if each.success == 0],
        seeds=seeds,
        versus=versus,
    )


def successes(seeds: Sequence[SeedScore]) -> np.ndarray:
    """Booleans (policy seeds, starts)."""
    return np.array([[episode.success for episode in each.episodes] for each in seeds])


def difference(a: Sequence[SeedScore], b: Sequence[SeedScore]) -> Versus:
    """The success of arm a minus that of arm b, paired by policy seed and start.

    Raises:
        ValueError: other seeds or starts.
    """
    pairs = [[(each.seed, episode.seed) for each in arm for episode in each.episodes] for arm in (a, b)]
    if pairs[0] != pairs[1]:
        raise ValueError("Two arms were tested with other seeds or from other starts; test all of them with the same.")
    found = successes(a).astype(int) - successes(b).astype(int)
    ci95 = paired_interval(found)
    return Versus(difference=float(found.mean()), ci95=ci95, verdict=verdict(ci95))
