"""The results of `toto robot evaluate` and `toto robot arms` as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.robot.layer_curve import LayerFit
from evaluation.robot.results import ArmsResult, EvaluateResult, Latency, Score

CURVE_TITLE = "R^2 of the expert's action, linear, held-out demonstrations, by layer (state: without features):"


def curve_line(curve: Sequence[LayerFit]) -> str:
    scored = [("state" if fit.layer is None else fit.layer, fit.r2) for fit in curve]
    return "  ".join(f"{name}: {'-' if r2 is None else format(r2, '.3f')}" for name, r2 in scored)


def percent(score) -> str:
    low, high = score.ci95
    return f"{100 * score.success:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def _speed(latency: Latency) -> str:
    return f"{latency.rendering:>11.1f}{latency.seeing:>8.1f}{latency.head:>7.1f}"


def _steps(score: Score) -> str:
    return "-" if score.steps is None else f"{score.steps:.0f}"


def evaluate_table(result: EvaluateResult) -> str:
    """A row per policy."""
    count = result.seeds["episodes"]
    lines = [
        f"{result.task}, {count} test episodes of at most {result.max_steps} steps from seed {result.seeds['first']}; "
        "steps are of successes, milliseconds per observation",
        "",
        f"{'policy':<32}{'sees':>10}{'layer':>7}{'success, %':>18}{'steps':>7}"
        f"{'simulator':>11}{'seeing':>8}{'head':>7}",
    ]
    for each in result.policies:
        layer = "" if each.layer is None else each.layer
        lines.append(
            f"{each.policy[-31:]:<32}{each.arm:>10}{layer:>7}{percent(each):>18}{_steps(each):>7}"
            + _speed(each.latency)
        )
    return "\n".join(lines)


def arms_table(result: ArmsResult) -> str:
    """A row per arm with the success of each policy seed, between the expert and random actions."""
    starts = result.seeds["episodes"]
    lines = [
        f"{result.task} (an analogue of the paper's robot experiments): {result.demonstrations} demonstrations, "
        f"{starts} test starts per seed, at most {result.max_steps} steps, last epoch",
        "",
        f"{'arm':<24}{'layer':>6}{'success, %':>18}  each seed, %",
        f"{'scripted expert':<24}{'':>6}{percent(result.expert):>18}",
    ]
    for name, each in result.arms.items():
        own = " ".join(f"{100 * seed.success:.0f}" for seed in each.seeds)
        failed = f"  (never succeeded: seed {', '.join(map(str, each.failed))})" if each.failed else ""
        layer = "" if each.layer is None else each.layer
        lines.append(f"{name[-23:]:<24}{layer:>6}{percent(each):>18}  {own}{failed}")
    lines.append(f"{'random actions':<24}{'':>6}{percent(result.random):>18}")
    compared = {name: each.versus for name, each in result.arms.items() if each.versus is not None}
    if compared:
        lines += ["", "toto minus arm, points, paired by seed and start, 95 %:"]
        for name, versus in compared.items():
            low, high = (100 * bound for bound in versus.ci95)
            lines.append(
                f"  {name[-23:]:<24}{100 * versus.difference:+6.0f} [{low:+.0f}, {high:+.0f}]: {versus.verdict}"
            )
    if result.curves:
        lines += ["", CURVE_TITLE]
        lines += [f"  {name[-23:]:<24}{curve_line(curve)}" for name, curve in result.curves.items()]
    if result.errors:
        lines += ["", *(f"{name} has no score: {sentence}" for name, sentence in result.errors.items())]
    return "\n".join(lines)
