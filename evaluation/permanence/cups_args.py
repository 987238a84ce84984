"""Flags of `toto permanence cups`."""

from __future__ import annotations

from dataclasses import dataclass

from training.flags import option, require, require_choice, require_positive

DESCRIPTION = (
    "Probe where a small object is in the last frame of clips of toyworld:cups: it stays in sight, goes behind a post, "
    "or is covered by a cup that stays or carries it away. Heads are trained on the frozen features of every "
    "layer; the accuracy of each kind of clip stands next to controls that lack the history, the order of frames, or "
    "the training (docs/permanence.md)."
)


@dataclass(frozen=True)
class CupsArgs:
    model: str | None = option(None, "Hub id, folder or run of toto pretrain of the model")
    output: str | None = option(None, "result file to write (.json); a figure (.png) is written next to it")
    dataset: str = option("toyworld:cups", "toyworld:cups, or toyworld:cups:NAME=NUMBER,... for other rules")
    max_train: int = option(1000, "clips to train the heads on")
    max_validation: int = option(250, "clips to choose layer and setting on")
    max_test: int = option(500, "clips to score")
    num_frames: int | None = option(None, "frames per clip (default: the model's)")
    layers: list[str] = option(["all"], "all, or layer numbers; 0 = embeddings")
    head: str = option(
        "pointing",
        "pointing (one direction of feature space, the same for all cells), attention, cross_attention_mlp or linear "
        "(of the mean token)",
    )
    tokens: str = option(
        "last",
        "which tokens the head reads: last, those of the last frame, which in a causal model follow all others; or "
        "all, averaged to --max_tokens, for models that read frames one by one",
    )
    max_tokens: int = option(64, "most tokens per clip for the head, after averaging")
    epochs: int | None = option(None, "epochs of the heads (default: that of toto probe)")
    batch_size: int = option(8, "clips in one forward pass")
    feature_cache: str | None = option(
        None, "folder that keeps features between runs (default: toto_features in HF_HOME), or none"
    )
    seed: int = option(0, "seed of the heads, of the untrained model and of the shuffled frames")

    def __post_init__(self):
        require(self.model is not None, "--model MODEL is missing; name what to probe.")
        require(
            self.output is not None and self.output.endswith(".json"),
            f"--output is '{self.output}'; name a result file that ends in .json.",
        )
        require(
            self.dataset.split(":")[:2] == ["toyworld", "cups"],
            f"--dataset is '{self.dataset}'; only toyworld:cups has the strata that are compared.",
        )
        require_choice(self, "head", ("pointing", "attention", "cross_attention_mlp", "linear"))
        require_choice(self, "tokens", ("last", "all"))
        require(
            self.head != "pointing" or (self.tokens == "last" and self.max_tokens >= 64),
            "--head pointing reads the 64 tokens of the last frame; leave --tokens last and --max_tokens 64, or choose "
            "--head attention.",
        )
        counts = ("max_train", "max_validation", "max_test", "num_frames", "max_tokens", "epochs", "batch_size")
        require_positive(self, *counts)
        require(
            self.layers == ["all"] or all(layer.isdigit() for layer in self.layers),
            f"--layers takes all or layer numbers, not {' '.join(self.layers)!r}.",
        )
