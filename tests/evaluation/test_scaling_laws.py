"""Laws of loss against compute: known ones come back, from budgets and sizes as `toto scaling` tries them."""

import numpy as np
import pytest

from evaluation.scaling import fit, frontier, offset_power_law, power_law, predicted

SIZES = {"32x2": 51_360, "48x3": 138_576, "64x4": 299_584, "96x5": 793_632, "128x6": 1_648_256}
COMPUTE = [1e11, 3e11, 1e12, 3e12, 1e13]


def synthetic(law, noise=0.0, seeds=2, compute=COMPUTE, seed=0):
    """Runs whose best size lies on `law`, the others above it by a parabola in log N, each with a seed's noise."""
    generator, counts, runs = np.random.default_rng(seed), np.array(list(SIZES.values())), []
    for k, flops in enumerate(compute):
        best = counts[min(k, len(counts) - 1)]
        for size, count in SIZES.items():
            above = 0.02 * np.log(count / best) ** 2
            for number in range(seeds):
                loss = float(predicted(law, flops) + above + noise * generator.standard_normal())
                place = {"size": size, "parameters": count, "budget": flops, "flops": flops, "seed": number}
                runs.append(place | {"val_loss": loss})
    return runs


def test_exact_points_give_their_law():
    compute = np.geomspace(1e11, 1e14, 7)
    law = {"a": 12.3, "b": -0.0378}
    assert power_law(compute, predicted(law, compute)) == pytest.approx(law, rel=1e-6)
    law = {"E": 2.7, "a": 45.0, "b": -0.2063}
    found = offset_power_law(compute, predicted(law, compute))
    assert found["b"] == pytest.approx(law["b"], rel=0.01)  # half a step of the exponents that are tried
    assert found["E"] == pytest.approx(law["E"], rel=0.01)
    np.testing.assert_allclose(predicted(found, compute), predicted(law, compute), rtol=1e-4)


def test_units_of_compute_change_a_alone():
    compute = np.array(COMPUTE)
    losses = predicted({"E": 2.0, "a": 90.0, "b": -0.15}, compute)
    ours, other = offset_power_law(compute, losses), offset_power_law(compute / 6e6, losses)
    assert other["b"] == ours["b"] and other["E"] == pytest.approx(ours["E"])
    assert other["a"] == pytest.approx(ours["a"] * 6e6 ** ours["b"])


@pytest.mark.parametrize("seed", range(3))
def test_known_laws_lie_in_their_intervals(seed):
    law = {"a": 12.0, "b": -0.05}
    found = fit(synthetic(law, noise=0.01, seed=seed), draws=200)["power_law"]
    for key, value in law.items():
        low, high = found["interval"][key]
        assert low <= value <= high and low <= found["median"][key] <= high
    assert found["b"] == pytest.approx(law["b"], abs=0.005)

    law = {"E": 2.5, "a": 400.0, "b": -0.2}
    found = fit(synthetic(law, noise=0.005, seed=seed), draws=200)
    for key, value in law.items():
        low, high = found["offset_power_law"]["interval"][key]
        assert low <= value <= high
    assert found["offset_power_law"]["rmse"] < found["power_law"]["rmse"] / 2  # which of them has the right shape


def test_intervals_follow_from_seeds_and_from_the_choice_of_sizes():
    def width(runs):
        low, high = fit(runs, draws=100)["power_law"]["interval"]["b"]
        return high - low

    def best_sizes(noise):
        best = dict(zip(COMPUTE, SIZES, strict=True))
        return [run for run in synthetic({"a": 12.0, "b": -0.05}, noise) if run["size"] == best[run["budget"]]]

    assert width(best_sizes(0.0)) == 0 < width(best_sizes(0.002))
    assert width(best_sizes(0.02)) == pytest.approx(10 * width(best_sizes(0.002)), rel=0.1)
    assert width(synthetic({"a": 12.0, "b": -0.05})) > width(best_sizes(0.002))  # without noise, but of other sizes


def test_constants_stay_in_their_bounds():
    rising = offset_power_law(COMPUTE, [3.0, 3.1, 3.2, 3.3, 3.4])
    assert rising["a"] == 0 and rising["E"] == pytest.approx(3.2)
    compute = np.array(COMPUTE)
    losses = 5.0 * (compute / 1e12) ** -1.2  # steeper than what is tried: E would be below 0
    steep = offset_power_law(compute, losses)
    assert steep["E"] == 0 and steep["b"] == -1
    x = compute ** steep["b"]
    assert steep["a"] == pytest.approx(x @ losses / (x @ x))  # the best of those with E = 0


def test_frontier_takes_the_lowest_mean_and_says_whether_it_is_bracketed():
    runs = synthetic({"a": 12.0, "b": -0.05})
    # one lucky seed does not make a size the best
    next(run for run in runs if run["budget"] == 1e12 and run["size"] == "96x5")["val_loss"] -= 0.03
    points = frontier(runs)
    assert [point["size"] for point in points] == list(SIZES)
    assert [point["bracketed"] for point in points] == [False, True, True, True, False]
    assert points[0]["optimum"] is None
    law = fit(synthetic({"a": 12.0, "b": -0.05}), draws=5)["optimum_size"]
    assert law["p"] == pytest.approx(np.polyfit(np.log(COMPUTE[1:4]), np.log(list(SIZES.values())[1:4]), 1)[0])


def test_a_diverged_run_takes_no_part():
    runs = synthetic({"a": 12.0, "b": -0.05})
    lost = [run for run in runs if (run["budget"], run["size"]) == (1e12, "64x4")]
    for run in lost:
        run["val_loss"] = None
    points = frontier(runs)
    assert points[2]["size"] in ("48x3", "96x5")
    assert points == frontier([run for run in runs if run not in lost])
    assert fit(runs, draws=20) == fit([run for run in runs if run not in lost], draws=20)


def test_two_budgets_make_no_law():
    runs = synthetic({"a": 12.0, "b": -0.05})
    for run in runs:
        run["val_loss"] = run["val_loss"] if run["budget"] < 1e12 else None
    with pytest.raises(ValueError, match="needs at least three budgets, but only 2 have"):
        fit(runs)
