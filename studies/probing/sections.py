"""The questions of the probing study as data: the files that answer each, what is compared, what was expected."""

from __future__ import annotations

from dataclasses import dataclass

from studies.probing.rows import Entry

# An entry's name, or a pair of them: how much better the first is than the second.
Side = str | tuple[str, str]


@dataclass(frozen=True)
class Section:
    """A question.

    claims: (better, worse), as expected beforehand; the page reports the outcome, whatever it is. curves: entries whose
    accuracy per layer is drawn. metric: a name of `metrics.METRICS`.
    """

    title: str
    about: str
    entries: tuple[Entry, ...]
    claims: tuple[tuple[Side, Side], ...]
    metric: str = "accuracy"
    curves: tuple[str, ...] = ()
    figure: str = ""


TOTO, IMAGES, VIDEOS = "Toto (images and videos)", "Toto (images)", "Toto (videos)"
MAE, IGPT = "ViT-MAE", "iGPT"
UNTRAINED, LAYER_0, LAST = "untrained Toto", "layer 0 of Toto", "last layer of Toto"


def against(better: Side, *others: Side) -> tuple[tuple[Side, Side], ...]:
    return tuple((better, other) for other in others)


CHOSEN_ON_TEST = (
    "The rule by which heads choose among their settings and the linear heads' weight decays were once compared on "
    "test images of CIFAR-10 (log, 2026-11-24), so these results are not wholly independent of their test images."
)
CIFAR10 = Section(
    title="CIFAR-10: the frozen model against floors and peers",
    about="Every layer is probed with linear heads; layer and learning rate are chosen on validation images, for each "
    "seed. The histogram of codes shows what the tokenizer contributes, layer 0 what the embeddings add, the untrained "
    "model what the architecture adds. ViT-MAE and iGPT are transformers' own classes, pre-trained on the same images. "
    "Peers were given CPU minutes, and the Totos of one medium the number of steps that a Toto takes in these minutes "
    "on an idle core, which is not an equal budget: what each took is below the table of costs. "
    f"{CHOSEN_ON_TEST} The figure corresponds to the paper's figures 9 and 18.",
    entries=(
        Entry(TOTO, "cifar10_mixed"),
        Entry(IMAGES, "cifar10_images"),
        Entry(VIDEOS, "cifar10_videos"),
        Entry(MAE, "cifar10_mae"),
        Entry(IGPT, "cifar10_igpt"),
        Entry(LAST, "cifar10_mixed", "layer=last"),
        Entry(LAYER_0, "cifar10_mixed", "layer=0"),
        Entry(UNTRAINED, "cifar10_mixed", "baseline=untrained"),
        Entry(f"untrained {MAE}", "cifar10_mae", "baseline=untrained"),
        Entry(f"untrained {IGPT}", "cifar10_igpt", "baseline=untrained"),
        Entry("histogram of codes", "cifar10_mixed", "baseline=histogram"),
        Entry("raw pixels", "cifar10_mixed", "baseline=pixels"),
        Entry("random filters", "cifar10_mixed", "baseline=random_filters"),
        Entry("HOG", "cifar10_mixed", "baseline=hog"),
    ),
    claims=(
        *against(TOTO, UNTRAINED, LAYER_0, "histogram of codes", "raw pixels", "random filters", "HOG"),
        (TOTO, LAST),
        *against(IMAGES, MAE, IGPT, VIDEOS, "raw pixels", UNTRAINED, f"untrained {MAE}", f"untrained {IGPT}"),
        (MAE, f"untrained {MAE}"),
        (IGPT, f"untrained {IGPT}"),
    ),
    curves=(TOTO, IMAGES, VIDEOS, MAE, IGPT),
    figure="cifar10_layers",
)
HEADS = Section(
    title="Heads: linear, attention, cross-attention with an MLP",
    about="The same frozen features on CIFAR-10, of three layers each; the layer is chosen for each head. The Toto is "
    "toto-nano, which ships, and the peers are trained anew for this section, with the same commands. The paper probes "
    "with attention, and finds the head with an MLP better for all models (A.9). "
    f"{CHOSEN_ON_TEST}",
    entries=(
        Entry("linear", "heads_nano", "head=linear"),
        Entry("attention", "heads_nano", "head=attention"),
        Entry("cross-attention + MLP", "heads_nano", "head=cross_attention_mlp"),
        Entry("ViT-MAE: linear", "heads_mae", "head=linear"),
        Entry("ViT-MAE: attention", "heads_mae", "head=attention"),
        Entry("ViT-MAE: cross-attention + MLP", "heads_mae", "head=cross_attention_mlp"),
        Entry("iGPT: linear", "heads_igpt", "head=linear"),
        Entry("iGPT: attention", "heads_igpt", "head=attention"),
        Entry("iGPT: cross-attention + MLP", "heads_igpt", "head=cross_attention_mlp"),
    ),
    claims=tuple(
        claim
        for who in ("", "ViT-MAE: ", "iGPT: ")
        for claim in (
            (f"{who}attention", f"{who}linear"),
            (f"{who}cross-attention + MLP", f"{who}linear"),
            (f"{who}cross-attention + MLP", f"{who}attention"),
        )
    ),
)
ORDERED = "frames in order"
ROOM = Section(
    title="room_actions: does the model use time?",
    about="Eight actions under a ceiling camera. The test recordings were left out of pre-training, and each of them "
    "is scored by heads trained on the training clips and the other test recordings. The metric is balanced accuracy, "
    "so that always predicting the most common action scores one in eight. The middle frame alone, frames shuffled "
    "(in training and test) and time reversed are controls: they lower the score of a model that uses motion. The "
    "intervals are over clips of these few recordings; other days or rooms may differ by more. The first two seeds of "
    "all media were trained again for this section, with the same commands, because their first weights were lost; "
    "the CIFAR-10 rows and the costs are of the first weights. The figure shows plain accuracy.",
    entries=(
        Entry(ORDERED, "room_ordered"),
        Entry("middle frame only", "room_middle"),
        Entry("frames shuffled", "room_shuffled"),
        Entry("time reversed", "room_reversed"),
        Entry(f"{IMAGES}, in order", "room_images"),
        Entry(f"{VIDEOS}, in order", "room_videos"),
        Entry(f"{MAE}, in order", "room_mae"),
        Entry(UNTRAINED, "room_ordered", "baseline=untrained"),
        Entry("raw pixels", "room_ordered", "baseline=pixels"),
        Entry("guessing the most common action", "room_ordered", "majority"),
    ),
    claims=(
        *against(ORDERED, "guessing the most common action", "raw pixels", UNTRAINED),
        *against(ORDERED, "middle frame only", "frames shuffled", "time reversed"),
        *against(ORDERED, f"{IMAGES}, in order", f"{MAE}, in order"),
        (f"{VIDEOS}, in order", f"{IMAGES}, in order"),
    ),
    metric="balanced_accuracy",
    curves=(ORDERED, "middle frame only", "frames shuffled", "time reversed"),
    figure="room_layers",
)
AFTER = ("images", "videos", "mixed")
FULL, CAUSAL = (
    {media: f"{mode} attention after {media.replace('mixed', 'both')}" for media in AFTER}
    for mode in ("full", "causal")
)
FINETUNE = Section(
    title="Fine-tuning: causal against full attention",
    about="CIFAR-10, training the whole model. The paper (A.3) gains a little on ImageNet with full attention, "
    "although pre-training was causal, and explains it with videos: a token attends to the whole previous frame, "
    "which is similar to attending to its own frame. If so, full attention should gain more after videos than after "
    "images, which is the last row of the second table.",
    entries=tuple(
        Entry(names[media], f"finetune_{media}_{mode}")
        for media in AFTER
        for mode, names in (("full", FULL), ("causal", CAUSAL))
    ),
    claims=(
        *((FULL[media], CAUSAL[media]) for media in AFTER),
        ((FULL["videos"], CAUSAL["videos"]), (FULL["images"], CAUSAL["images"])),
    ),
)
GRID = Section(
    title="Tokens: 8 x 8 against 16 x 16 per frame",
    about="room_actions at twice the resolution, which gives four times as many tokens. The control has 16 x 16 "
    "tokens of the smaller pictures, enlarged: what it gains is due to the number of tokens, not to finer pictures.",
    entries=(
        Entry("8 x 8 tokens", "grid_8"),
        Entry("16 x 16 tokens", "grid_16"),
        Entry("16 x 16 tokens, enlarged", "grid_16_upsampled"),
    ),
    claims=(
        ("16 x 16 tokens", "8 x 8 tokens"),
        ("16 x 16 tokens", "16 x 16 tokens, enlarged"),
        ("16 x 16 tokens, enlarged", "8 x 8 tokens"),
    ),
    metric="balanced_accuracy",
    curves=("8 x 8 tokens", "16 x 16 tokens", "16 x 16 tokens, enlarged"),
    figure="grid_layers",
)
SECTIONS = (CIFAR10, HEADS, ROOM, FINETUNE, GRID)

# Columns of the table of costs: key in costs.json, heading.
COSTS = (
    ("parameters", "parameters"),
    ("probed_parameters", "probed parameters"),
    ("images_seen", "images seen"),
    ("clips_seen", "clips seen"),
    ("tokens_seen", "tokens seen"),
    ("unique_tokens", "unique tokens"),
    ("epochs", "epochs"),
    ("learning_rate", "learning rate"),
    ("val_loss", "validation loss"),
    ("flops", "FLOPs"),
    ("cpu_seconds", "CPU minutes"),
    ("charged_cpu_seconds", "CPU minutes, everything included"),
)
