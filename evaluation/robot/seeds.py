"""Whose starts are which: three ranges of seeds, so that no policy is tested on a start that was recorded or driven."""

from __future__ import annotations

from training.flags import require

DAGGER_SEED = 500_000  # of DAgger's first start; every seed below, negative ones too, is one of demonstrations
TEST_SEED = 1_000_000  # of the first test start


def require_demonstration_seeds(first: int, count: int) -> None:
    """Raises ValueError if starts of demonstrations could be those of DAgger or of tests."""
    require(
        first + count <= DAGGER_SEED,
        f"Starts of demonstrations would reach seed {first + count - 1}; set a lower --first_seed, as seeds from "
        f"{DAGGER_SEED} on are those of DAgger and of tests.",
    )


def require_dagger_seeds(first: int, count: int) -> None:
    """Raises ValueError if starts of DAgger could be those of demonstrations or of tests."""
    require(
        first >= DAGGER_SEED and first + count <= TEST_SEED,
        f"DAgger would take {count} starts from seed {first} on; it may take {DAGGER_SEED} to {TEST_SEED - 1}, as the "
        "others are those of demonstrations and tests.",
    )


def require_test_seed(first: int) -> None:
    """Raises ValueError if test starts could be those of demonstrations or of DAgger."""
    require(
        first >= TEST_SEED,
        f"--first_seed is {first}; set {TEST_SEED} or more, as lower seeds are those of demonstrations and DAgger.",
    )
