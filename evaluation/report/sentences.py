"""One plain sentence for each plot of a page, from the numbers that the plot shows."""

from __future__ import annotations

from evaluation.report.comparisons import words
from evaluation.report.reading import NATS, Run
from evaluation.report.run_figures import PREDICTORS, short
from evaluation.results import TaskResult


def loss_sentence(run: Run) -> str:
    """Where the loss of a run began and ended, and which simple predictors it is below."""
    kind, key = ("Validation", "val_loss") if run.val_loss is not None else ("Training", "loss")
    losses = [(row["step"], row[key]) for row in run.rows if row.get(key) is not None]
    (first, began), (last, ended) = losses[0], losses[-1]
    if len(losses) == 1:
        said = f"{kind} loss is {ended:.3f} {run.unit} after {last:,} steps"
    else:
        moved = "fell" if ended < began else "rose" if ended > began else "stayed"
        said = f"{kind} loss {moved} from {began:.3f} after {first:,} steps to {ended:.3f} {run.unit} after {last:,}"
    if run.predictors is None or run.val_loss is None or run.unit != NATS:
        return f"{said}."
    below = [label for name, (label, *_) in PREDICTORS.items() if run.val_loss < run.predictors[name]]
    others = [label for label, *_ in PREDICTORS.values() if label not in below]
    compared = [f"below {words(below)}"] if below else []
    compared += [f"not below {words(others, 'or')}"] if others else []
    return f"{said}: {' but '.join(compared)}."


def overlay_sentence(runs: list[Run]) -> str:
    """Which run ends lowest, and by how much."""
    ended = sorted((run.val_loss, run.name) for run in runs if run.val_loss is not None)
    if len(ended) < 2:
        return "Lower is better; the runs cannot be ranked, since fewer than two have validated."
    (best, name), (second, other) = ended[:2]
    if best == second:
        return f"{name} and {other} end at the same validation loss, {best:.3f}."
    return f"{name} ends with the lowest validation loss, {best:.3f}, {second - best:.3f} less than {other}."


def frames_sentence(source: str, maps: dict, unit: str) -> str:
    """What the first and the last frame of a row cost."""
    losses, frames = maps["sources"][source], maps["num_frames"]
    size = len(losses) // frames
    first, last = (sum(part) / size for part in (losses[:size], losses[-size:]))
    if frames == 1:
        return f"A frame of {source} costs {first:.2f} {unit}."
    get = "get" if last < first else "do not get"
    return f"Frames of {source} {get} easier along a row: the first costs {first:.2f} {unit}, the last {last:.2f}."


def map_sentence(source: str, maps: dict, unit: str) -> str:
    """Where in the frame the loss is highest and lowest, on the mean over frames."""
    losses, frames, (h, w) = maps["sources"][source], maps["num_frames"], maps["grid"]
    places = [sum(losses[place :: h * w]) / frames for place in range(h * w)]
    hardest, easiest = (pick(range(h * w), key=places.__getitem__) for pick in (max, min))

    def named(place: int) -> str:
        return f"row {place // w + 1}, column {place % w + 1} ({places[place]:.2f} {short(unit)})"

    return (
        f"Brighter places of {source} are harder to predict: of the {h} x {w} places, the hardest on average over all "
        f"frames is {named(hardest)}, the easiest {named(easiest)}."
    )


def layers_sentence(label: str, task: TaskResult) -> str:
    """What the chosen layer reads, next to layer 0 with the same head and to guessing."""
    best = task.best
    said = f"From layer {best.layer}, {label} is right in {100 * best.accuracy:.1f} % of the test items"
    embeddings = next((row for row in task.layers if row.layer == 0 and row.head == best.head), None)
    others = [] if embeddings is None or best.layer == 0 else [f"from layer 0 in {100 * embeddings.accuracy:.1f} %"]
    others += [] if task.chance is None else [f"by chance in {100 * task.chance:.1f} %"]
    return f"{said}{'; ' if others else ''}{words(others)}."


def comparison_sentence(rows: list[dict]) -> str:
    """What each model reads by its chosen layer and head, best first. rows: of `compare.compare`, of one label."""
    ranked = sorted(rows, key=lambda row: -row["value"])
    said = [f"{row['model']} {100 * row['value']:.1f} % (layer {row['layer']})" for row in ranked]
    apart = [
        row for row in rows if "versus" in row and (row["difference_ci95"][0] > 0 or row["difference_ci95"][1] < 0)
    ]
    against = [row for row in rows if "versus" in row]
    reference = against[0]["versus"]
    if not apart:
        end = f"no significant difference from {reference}"
    else:
        end = f"significantly different from {reference}: {words([row['model'] for row in apart])}"
    return f"On test, {words(said)}; {end}."
