"""The ledger: which media each model was trained on; scores on any of these are refused."""

from __future__ import annotations

from evaluation.report.reading import short_names
from evaluation.results import ProbeResult, Split
from training.publish.media_seen import Media, from_json, identify, media_seen, of_split
from training.publish.overlap import SEEN, ProbePart, check_overlap, require_no_overlap, split_in
from training.results import FinetuneResult


def media_of_result(result: ProbeResult | FinetuneResult) -> list[Media] | None:
    """What the model of a result was trained on: from the result, or the model's folder if it lacks "media"."""
    return media_seen(result.model) if "media" in result.lacks else from_json(result.media)


def is_control(result: ProbeResult | FinetuneResult) -> bool:
    """Whether the result was made with --allow_seen, and says so."""
    if isinstance(result, FinetuneResult):
        return bool((result.settings or {}).get("allow_seen"))
    return SEEN in (result.control or "")


def media_tested(result: ProbeResult | FinetuneResult) -> list[ProbePart]:
    """The data on which a result of `toto probe` or `toto finetune` was trained, selected and tested.

    Test items are known if the probe kept its predictions (--predictions).
    Raises:
        ValueError: not such a result.
    """
    if result.data is None or result.data.splits is None:
        raise ValueError("The result has no data.splits, so its test data are unknown; write it again with toto probe.")
    tasks = result.tasks.values() if isinstance(result, ProbeResult) else ()
    items = next((task.predictions.items for task in tasks if task.predictions is not None), None)
    found = []
    for part, about in result.data.splits.items():
        words = about.split if isinstance(about, Split) else about.name
        typed = split_in(words)
        dataset, split = identify(result.data.dataset, typed)
        kept = None if items is None or part != "test" else of_split(items, typed, split)
        found.append(ProbePart(part, dataset, split, kept))
    return found


def ledger_rows(
    models: dict[str, list[Media] | None], tested: dict[str, list[ProbePart]] | None = None
) -> list[dict[str, object]]:
    """The rows of the ledger: model, medium, split, kind, items, tokens, epochs, read_by_probes.

    Args:
        models: name -> `media_seen`. tested: name -> what all probes of that model read.
    Returns:
        A row per medium; items is None if they are not listed. read_by_probes: parts such as ["train"]. A model
        without a record has one row, whose medium is "not recorded".
    """
    rows = []
    for name, seen in models.items():
        parts = (tested or {}).get(name, [])
        for media in seen if seen is not None else [Media("not recorded", "")]:
            read = sorted({overlap.tested.part for overlap in check_overlap([media], parts)})
            items = None if media.items is None else len(media.items)
            row = {"model": name, "medium": media.dataset, "split": media.split, "kind": media.kind, "items": items}
            rows.append(row | {"tokens": media.tokens, "epochs": media.epochs, "read_by_probes": read})
    return rows


def check_media(results: dict[str, ProbeResult | FinetuneResult]) -> list[dict]:
    """The ledger (`ledger_rows`) of the models of results. results: by name.

    Raises:
        ValueError: a result was tested on media that its model was trained on.
    """
    models = list(dict.fromkeys(result.model or name for name, result in results.items()))
    seen, tested = {}, {}
    for name, result in results.items():
        model = result.model or name
        seen[model] = media_of_result(result) if result.model else None
        if seen[model] is not None:
            parts = media_tested(result)
            if not is_control(result):
                require_no_overlap(f"The model of {name} ({model})", seen[model], parts)
            tested[model] = tested.get(model, []) + parts
    names = dict(zip(models, short_names(models, models), strict=True))
    return ledger_rows({names[m]: seen[m] for m in models}, {names[m]: parts for m, parts in tested.items()})
