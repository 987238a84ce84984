"""DAgger (Ross et al. 2011): the policy drives, the scripted expert says what it should have done, and both are learnt.

The paper names DAgger for its simulated robots and gives no details; the published code of its protocol has none. Ours:
rounds of 10 episodes in which the policy alone drives, and training from scratch on all episodes after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evaluation.robot.observations import Episode
from evaluation.robot.rollouts import Rollout, roll_out
from evaluation.robot.seeds import DAGGER_SEED, require_dagger_seeds
from training.flags import require

EPISODES = 10  # per round


@dataclass
class Round:
    """One round: the success of the policy that drove, and the observations that were added."""

    success: float
    observations: int


def run_dagger(
    policy,
    episodes: Sequence[Episode],
    train: Callable[[list[Episode]], object],
    simulators: list,
    rounds: int,
    max_steps: int,
    *,
    first_seed: int = DAGGER_SEED,
    per_round: int = EPISODES,
    progress: bool = True,
) -> tuple[object, list[Episode], list[Round]]:
    """Improve a policy on the states that it reaches itself.

    Args:
        policy: trained on `episodes`. train: trains a new one from scratch on all episodes that it is given.
        first_seed: of the first round's starts; each round takes the next `per_round`.
    Returns:
        The last policy, all episodes that it was trained on, and the rounds.
    Raises:
        ValueError: no rounds, or more starts than are DAgger's.
    """
    require(rounds > 0, f"DAgger has {rounds} rounds; it needs at least one.")
    require_dagger_seeds(first_seed, rounds * per_round)
    episodes, found = list(episodes), []
    for number in range(rounds):
        seeds = range(first_seed + number * per_round, first_seed + (number + 1) * per_round)
        name = f"DAgger, round {number + 1} of {rounds}" if progress else None
        driven = roll_out(policy, simulators, seeds, max_steps, keep_frames=True, label=True, progress=name)
        episodes += [labelled(each) for each in driven]
        found.append(Round(sum(each.success for each in driven) / len(driven), sum(each.steps for each in driven)))
        policy = train(episodes)
    return policy, episodes, found


def labelled(driven: Rollout) -> Episode:
    """What the policy saw, with the expert's actions in place of its own."""
    return replace(driven.episode, actions=driven.labels)
