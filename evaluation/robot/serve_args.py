"""Flags of `toto robot policy`."""

from __future__ import annotations

from dataclasses import dataclass

from training.flags import option, require, require_not_negative

DESCRIPTION = (
    "Load a policy and answer observations. It reads a JSON object per line from standard input, "
    '{"image": FILE or base64 of a PNG or JPEG, "state": [numbers]}, and writes {"action": [numbers], "ms": ...} for '
    'each; {"reset": true} starts a new episode. A bad line is answered with {"error": sentence}. With --episodes, a '
    "stored episode is replayed and the policy's actions are printed next to the recorded ones: a check before it "
    "moves an arm."
)


@dataclass(frozen=True)
class ServeArgs:
    policy: str | None = option(None, "folder that toto robot train wrote")
    model: str | None = option(None, "where its frozen model is, if not where it was in training")
    episodes: str | None = option(None, "folder of episodes, one of which is replayed")
    episode: int = option(0, "number of that episode; the last ones are those that training holds out")

    def __post_init__(self):
        require(self.policy is not None, "--policy FOLDER is missing; name the --output of toto robot train.")
        require_not_negative(self, "episode")
