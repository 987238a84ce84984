"""Laws of loss against training compute through the best runs of each budget, and how sure their constants are.

A run is {"size": str, "parameters", "budget", "flops", "seed", "val_loss" (None where it diverged)}: `flops` is the
training FLOPs that it took, `budget` what they were meant to be.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np

DRAWS = 1000
# Exponents that `offset_power_law` tries; beyond them E + a C^b is a straight line, or the constant E.
EXPONENTS = -np.geomspace(0.005, 1.0, 800)


def by_budget(runs: list[dict]) -> dict[float, dict[str, list[dict]]]:
    """budget -> size -> runs, the budgets in rising order. Runs that diverged are left out."""
    groups: dict[float, dict[str, list[dict]]] = {}
    for run in sorted(runs, key=lambda run: run["budget"]):
        if run["val_loss"] is not None:
            groups.setdefault(run["budget"], {}).setdefault(run["size"], []).append(run)
    return groups


def frontier(runs: list[dict]) -> list[dict]:
    """Of every budget the size with the lowest mean loss over its seeds.

    Returns:
        [{"budget", "size", "parameters", "flops", "loss" (mean), "bracketed": whether both a smaller and a larger size
        did worse, so that the optimum lies among those tried; "optimum": parameters at the bottom of the parabola in
        log N through the best size and its two neighbours, None where it is not bracketed}].
    """
    points = []
    for budget, sizes in by_budget(runs).items():
        means = sorted(
            (runs[0]["parameters"], fmean(run["val_loss"] for run in runs), size) for size, runs in sizes.items()
        )
        best = min(range(len(means)), key=lambda k: means[k][1])
        parameters, loss, size = means[best]
        bracketed = 0 < best < len(means) - 1
        point = {"budget": budget, "size": size, "parameters": parameters, "flops": sizes[size][0]["flops"]}
        optimum = _bottom([mean[:2] for mean in means[best - 1 : best + 2]]) if bracketed else None
        points.append(point | {"loss": loss, "bracketed": bracketed, "optimum": optimum})
    return points


def _bottom(three: list[tuple[int, float]]) -> float:
    """Parameters at the bottom of the parabola through three (parameters, loss), the middle one the lowest."""
    a, b, _ = np.polyfit(np.log([count for count, _ in three]), [loss for _, loss in three], 2)
    return float(np.exp(-b / (2 * a))) if a > 0 else float(three[1][0])  # three equal losses have no bottom


def power_law(compute, losses) -> dict[str, float]:
    """{"a", "b"} of L = a C^b, by least squares of the logarithms."""
    b, log_a = np.polyfit(np.log(compute), np.log(losses), 1)
    return {"a": float(np.exp(log_a)), "b": float(b)}


def offset_power_law(compute, losses) -> dict[str, float]:
    """{"E", "a", "b"} of L = E + a C^b with neither E nor a below 0 and b in [-1, -0.005], by least squares.

    E and a are linear, so that they are solved for at every b of `EXPONENTS`; the best b is then one of those.
    """
    compute, losses = np.asarray(compute, float), np.asarray(losses, float)
    scale = np.exp(np.log(compute).mean())  # so that C^b is about 1
    x = (compute / scale) ** EXPONENTS[:, None]  # (exponents, points)
    centred = x - x.mean(1, keepdims=True)
    a = (centred * losses).sum(1) / (centred**2).sum(1)
    E = losses.mean() - a * x.mean(1)
    a, E = np.where(E < 0, (x * losses).sum(1) / (x**2).sum(1), a), np.maximum(E, 0)
    a, E = np.maximum(a, 0), np.where(a < 0, losses.mean(), E)
    best = int(((E[:, None] + a[:, None] * x - losses) ** 2).sum(1).argmin())
    b = EXPONENTS[best]
    return {"E": float(E[best]), "a": float(a[best] * scale**-b), "b": float(b)}


LAWS = {"power_law": power_law, "offset_power_law": offset_power_law}


def predicted(law: dict, compute):
    """Loss by a law at training FLOPs `compute`."""
    return law.get("E", 0.0) + law["a"] * np.asarray(compute, float) ** law["b"]


def fit(runs: list[dict], draws: int = DRAWS) -> dict:
    """Both laws through the frontier, with 95 % intervals by bootstrap.

    In a draw, the sizes that a budget was tried with are drawn anew, and the seeds of each; frontier and laws follow
    from what was drawn. The interval thus covers seeds and the choice of sizes. It does not cover the choice of
    validation rows, which all runs share, nor that a law may be the wrong shape.

    Returns:
        {"frontier", and of each law its constants, their "median" over the draws and "interval" (2.5 and 97.5 %),
        "rmse" in nats at the frontier and its "band" {"flops", "low", "high"}; "optimum_size": {"k", "p"} of N = k C^p
        through the bracketed points, None where there are fewer than three}
    Raises:
        ValueError: fewer than three budgets with a run that did not diverge.
    """
    points = frontier(runs)
    if len(points) < 3:
        raise ValueError(
            f"A law needs three budgets or more, and {len(points)} have a run that did not diverge; "
            "add --budgets, or lower --learning_rate where runs diverged."
        )
    compute, losses = [p["flops"] for p in points], [p["loss"] for p in points]
    generator, groups = np.random.default_rng(0), by_budget(runs)
    drawn: dict[str, list[dict]] = {name: [] for name in LAWS}
    for _ in range(draws):
        again = frontier(_redrawn(groups, generator))
        for name, law in LAWS.items():
            drawn[name].append(law([p["flops"] for p in again], [p["loss"] for p in again]))
    xs = np.geomspace(min(compute), max(compute), 40)
    found: dict = {"frontier": points}
    for name, law in LAWS.items():
        best = law(compute, losses)
        quantiles = {key: np.quantile([each[key] for each in drawn[name]], [0.025, 0.5, 0.975]) for key in best}
        low, high = np.quantile([predicted(each, xs) for each in drawn[name]], [0.025, 0.975], axis=0)
        found[name] = best | {
            "median": {key: float(q[1]) for key, q in quantiles.items()},
            "interval": {key: [float(q[0]), float(q[2])] for key, q in quantiles.items()},
            "rmse": float(np.sqrt(np.mean((predicted(best, compute) - losses) ** 2))),
            "band": {"flops": xs.tolist(), "low": low.tolist(), "high": high.tolist()},
        }
    inside = [(p["flops"], p["optimum"]) for p in points if p["bracketed"]]
    law = power_law(*zip(*inside, strict=True)) if len(inside) >= 3 else None
    return found | {"optimum_size": law and {"k": law["a"], "p": law["b"]}}


def _redrawn(groups: dict[float, dict[str, list[dict]]], generator: np.random.Generator) -> list[dict]:
    chosen = []
    for sizes in groups.values():
        names = list(sizes)
        for name in sorted({names[k] for k in generator.integers(len(names), size=len(names))}):
            own = sizes[name]
            chosen += [own[k] for k in generator.integers(len(own), size=len(own))]
    return chosen
