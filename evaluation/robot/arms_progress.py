"""What of a table of arms is finished: a file next to the result, with which a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.robot.layer_curve import LayerFit
from evaluation.robot.results import Score, SeedScore
from tokenization.files import write_json
from training.flags import require


class Progress:
    """OUTPUT.progress.json: scores of the expert and of random actions, layer curves, and every finished policy.

    Args:
        output: the result file. settings: what a policy's result depends on, as JSON has it.
    Raises:
        ValueError: the file was begun with other settings.
    """

    def __init__(self, output: str | Path, settings: dict):
        output = Path(output)
        self.file = output.with_name(f"{output.stem}.progress.json")
        self.content = {"settings": settings, "bounds": {}, "curves": {}, "policies": {}}
        if self.file.is_file():
            found = json.loads(self.file.read_text())
            begun = found["settings"]
            differing = [name for name, value in settings.items() if begun.get(name, value) != value]
            require(
                not differing,
                f"{self.file} was begun with other settings ({', '.join(differing)}); use those, or another --output, "
                "or delete the file to start again.",
            )
            self.content = found | {"settings": begun | settings}

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
