"""What of a table of arms is finished: a file next to the result, with which a stopped run goes on, or the result."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.robot.layer_curve import LayerFit
from evaluation.robot.results import ArmsResult, Score, SeedScore
from tokenization.files import write_json
from training.flags import require


class Progress:
    """OUTPUT.progress.json: scores of the expert and of random actions, layer curves, and every finished policy.

    Without that file, a finished result of the same settings is gone on from, so that arms, seeds or layers can be
    added to it.

    Args:
        output: the result file. settings: what a policy's result depends on, as JSON has it.
    Raises:
        ValueError: the file was begun with other settings, or OUTPUT is not a table of arms.
    """

    def __init__(self, output: str | Path, settings: dict):
        output = Path(output)
        self.file = output.with_name(f"{output.stem}.progress.json")
        self.content = {"settings": settings, "bounds": {}, "curves": {}, "policies": {}}
        found = None
        if self.file.is_file():
            found = json.loads(self.file.read_text())
        elif output.is_file():
            found = finished_parts(output)
        if found is not None:
            begun = found["settings"]
            differing = [name for name, value in settings.items() if begun.get(name, value) != value]
            require(
                not differing,
                f"{self.file if self.file.is_file() else output} was begun with other settings "
                f"({', '.join(differing)}); use those, or another --output, or delete the file to start again.",
            )
            self.content = found | {"settings": begun | settings}

    @property
    def settings(self) -> dict:
        """Those of all arms: `model` is among them if any of them reads it."""
        return self.content["settings"]

    @property
    def policies(self) -> int:
        """Number of finished policies."""
        return sum(map(len, self.content["policies"].values()))

    @property
    def arms(self) -> list[str]:
        """Arms that have a finished policy; "toto, layer N" is a row of toto."""
        return list(dict.fromkeys(name.rsplit(", layer ", 1)[0] for name in self.content["policies"]))

    @property
    def seeds(self) -> int:
        """Number of seeds of the arm that has most."""
        return max((1 + int(seed) for found in self.content["policies"].values() for seed in found), default=0)

    def layers(self, arm: str) -> list[int]:
        """Layers of an arm that have a row of their own, next to the one that was chosen."""
        rows = [name.rsplit(", layer ", 1) for name in self.content["policies"] if ", layer " in name]
        return [int(layer) for name, layer in rows if name == arm]

    def bound(self, name: str) -> Score | None:
        """The score of "expert" or "random"."""
        found = self.content["bounds"].get(name)
        return found and Score.from_json(found)

    def curve(self, arm: str) -> list[LayerFit] | None:
        found = self.content["curves"].get(arm)
        return found and [LayerFit.from_json(fit) for fit in found]

    def seed(self, name: str, seed: int) -> SeedScore | None:
        """The score of a policy of the row `name` of the table."""
        found = self.content["policies"].get(name, {}).get(str(seed))
        return found and SeedScore.from_json(found)

    def add_bound(self, name: str, score: Score) -> None:
        self.content["bounds"][name] = score.to_json()
        self._write()

    def add_curve(self, arm: str, curve: list[LayerFit]) -> None:
        self.content["curves"][arm] = [fit.to_json() for fit in curve]
        self._write()

    def add_seed(self, name: str, score: SeedScore) -> None:
        self.content["policies"].setdefault(name, {})[str(score.seed)] = score.to_json()
        self._write()

    def _write(self) -> None:
        write_json(self.file, self.content)

    def finish(self) -> None:
        """Delete the file, as the result holds all of it."""
        self.file.unlink(missing_ok=True)


def finished_parts(output: Path) -> dict:
    """A finished result as `Progress` has it.

    Raises:
        ValueError: it is not a table of arms, or one of a version that did not record its settings.
    """
    try:
        result = ArmsResult.from_json(json.loads(output.read_text()))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{output} is not a table of arms; use another --output, or delete the file.") from error
    require(
        result.settings is not None,
        f"{output} was written before tables could be added to; use another --output, or delete the file.",
    )
    return {
        "settings": result.settings,
        "bounds": {"expert": result.expert.to_json(), "random": result.random.to_json()},
        "curves": {arm: [fit.to_json() for fit in curve] for arm, curve in result.curves.items()},
        "policies": {
            name: {str(score.seed): score.to_json() for score in arm.seeds} for name, arm in result.arms.items()
        },
    }
