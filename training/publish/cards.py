"""The cards of models and tokenizers: facts from the files of a run, filled into the texts of `templates/`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.markdown import markdown_template
from training.find_model import resolve_model
from training.publish.media_seen import media_seen, public
from training.publish.overlap import SEEN, require_unseen
from training.publish.validation import SourceLoss, ValidationResult, clean_loss, mean_loss, of_run

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Settings of the machine or the account; they do not describe the model.
PRIVATE_SETTINGS = {
    *("output_dir", "shards", "val_shards", "resume", "recipe", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"),
}

MEDIA = {"TotoForImageClassification": "image", "TotoForVideoClassification": "video"}
TEMPLATES = Path(__file__).with_name("templates")


def model_card(
    checkpoint_or_folder: str | Path,
    *,
    metrics: dict | None = None,
    recipe: dict | None = None,
    results: list[dict] | None = None,
    validation: dict | None = None,
    license: str = "apache-2.0",
    repo_id: str | None = None,
) -> str:
    """The README.md of a model: metadata for the Hub, then a description for users.

    Args:
        checkpoint_or_folder: a Hugging Face folder with the processor in it, or a run folder (see `resolve_model`).
        metrics: a validation row of metrics.jsonl: `val_loss` (nats per code token), `step` and other numbers.
        recipe: the resolved recipe; the card omits settings of the machine.
        results: contents of result files of `toto probe` and `toto generate --score`.
        validation: contents of a file of `training.validation_losses`, for a model whose run no longer exists; by
            default the losses by source are those of `metrics`, if the shards of the recipe exist.
        repo_id: repository in the example; by default the folder's name.
    Raises:
        FileNotFoundError: if the folder holds no model, or no processor.
        ValueError: if a result was written by neither, or is of continuations of other data than toyworld:motion.
    """
    from huggingface_hub import ModelCardData

    folder = complete_folder(checkpoint_or_folder)
    facts = _facts(folder)
    continued = [result for result in results or [] if "scores" in result]
    probes = _probes([result for result in results or [] if "scores" not in result])
    metrics, recipe = metrics or {}, recipe or {}
    sources = _validated(checkpoint_or_folder, metrics, recipe, validation)
    if sources:
        metrics = metrics | {"val_loss": clean_loss(sources)}
    data, name = _data(recipe), (repo_id or folder.name).split("/")[-1]
    found = _loss_result(metrics, data) + [_probe_result(*probe) for probe in probes]
    header = ModelCardData(
        library_name="transformers",
        license=license,
        # Without it the Hub reads AutoModelForCausalLM in the config and lists the model under text generation.
        pipeline_tag=f"{facts['medium']}-classification" if facts["medium"] else "image-feature-extraction",
        tags=["toto", "video", "vision", "visual-tokens", "autoregressive", "arxiv:2501.05453"],
        metrics=sorted({result.metric_type for result in found}) or None,
        model_name=name if found else None,
        eval_results=found or None,
    )
    layer, best_for = facts["num_hidden_layers"] // 2, None
    if probes:
        label, task, result = max(probes, key=_worth)
        layer, best_for = task["best"]["layer"], f'"{label}" on {public(result["data"]["dataset"])}'
    return markdown_template(TEMPLATES / "model.md.jinja").render(
        facts,
        header=header.to_yaml(),
        name=name,
        repo=repo_id or folder.name,
        layer=layer,
        best_for=best_for,
        prompt=max(1, facts["num_frames"] // 4),
        data=[_source_facts(manifest, share) for manifest, share in data],
        init_from=public(recipe["init_from"]) if recipe.get("init_from") else None,
        step=metrics.get("step"),
        **_recipe_facts(recipe),
        **{key: metrics.get(key) for key in ("val_loss", "val_accuracy", "val_rows", "test")},
        sources=sources,
        all_loss=mean_loss(sources),
        uniform_loss=math.log(facts["num_codes"]) if facts["num_codes"] else None,
        probes=[row for probe in probes for row in _probe_rows(*probe)],
        **_probe_facts(probes),
        continued=[_continued_facts(result) for result in continued],
        license=license,
    )


def complete_folder(folder: str | Path) -> Path:
    """A folder with a model and its processor: `folder` itself, or the checkpoint that `resolve_model` finds in a run.

    Raises:
        FileNotFoundError: if the model or the processor is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder '{folder}' does not exist; give a Hugging Face folder or a run folder.")
    folder = Path(resolve_model(str(folder))).resolve()  # "." has no name
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds a model without its processor; call processor.save_pretrained on this folder first."
        )
    return folder


def _facts(folder: Path) -> dict:
    """The numbers of the model itself, and those of its head if it is a classifier (else `medium` is None)."""
    from huggingface_hub import get_local_safetensors_metadata

    from modeling_toto.configuration_toto import TotoConfig

    config = TotoConfig.from_pretrained(folder)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "tokens_per_frame", "num_codes", "num_frames")
    facts = {name: getattr(config, name) for name in names}
    facts["parameters"] = sum(get_local_safetensors_metadata(folder).parameter_count.values())
    saved = json.loads((folder / "processor_config.json").read_text())
    facts["resolution"] = saved["image_processor"]["resolution"]
    kind = (config.architectures or [""])[0]
    if kind not in MEDIA:
        return facts | {"medium": None}
    middle = max(1, config.num_hidden_layers // 2)
    return facts | {
        "medium": MEDIA[kind],
        "auto_class": f"AutoModelFor{kind.removeprefix('TotoFor')}",
        "attention_mode": config.attention_mode,
        "pooler": config.pooler.replace("_", " "),
        "feature_layer": middle if config.feature_layer is None else config.feature_layer,
        "num_labels": config.num_labels,
        "classes": list(config.id2label.values()),
    }


def _data(recipe: dict) -> list[tuple[dict, float]]:
    """(manifest, share of the tokens) of each folder of shards in the recipe that still exists."""
    sources = [{"data": recipe["shards"]}] if recipe.get("shards") else recipe.get("sources") or []
    found = [(Path(source["data"]) / "manifest.json", source.get("weight", 1.0)) for source in sources]
    return [(json.loads(path.read_text()), share) for path, share in found if path.is_file()]


def _validated(folder: str | Path, metrics: dict, recipe: dict, validation: dict | None) -> list[SourceLoss]:
    """Validation losses by source; empty where there is a single source whose media were not trained on."""
    if validation is not None:
        return ValidationResult.from_json(validation).sources
    if "val_losses" not in metrics or "val_accuracy" in metrics:
        return []
    try:
        found = of_run(metrics, recipe, media_seen(folder))
    except FileNotFoundError:  # the shards are gone
        return []
    return found if len(found) > 1 or any(source.seen for source in found) else []


def _without_folders(value):
    """A setting with `public` applied to every string in it."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return public(value) if isinstance(value, str) else value


def _probes(results: list[dict]) -> list[tuple[str, dict, dict]]:
    """(label, its task, the whole result) for every label in the results."""
    for result in results:
        if "best" not in result:
            raise ValueError("A result without 'best' or 'scores' is none of toto probe or toto generate --score.")
        is_control = SEEN in (result.get("control") or "")
        if not is_control and (test := ((result.get("data") or {}).get("splits") or {}).get("test")):
            require_unseen(str(result.get("model")), result.get("media"), result["data"]["dataset"], test["split"])
    return [
        (label, task, result)
        for result in results
        for label, task in (result.get("tasks") or {result.get("label", "label"): result}).items()
    ]


def _loss_result(metrics: dict, data: list[tuple[dict, float]]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    if metrics.get("val_loss") is None or "val_accuracy" in metrics:
        return []
    dataset = next((public(manifest["dataset"]) for manifest, share in data if share == 1), "validation shards")
    return [
        EvalResult(
            task_type="next-token-prediction",
            task_name="Prediction of the next visual token",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="validation",
            metric_type="loss",
            metric_name="Validation loss (nats per code token)",
            metric_value=metrics["val_loss"],
        )
    ]


def _probe_result(label: str, task: dict, result: dict) -> EvalResult:
    from huggingface_hub import EvalResult

    best = task["best"]
    low, high = best["ci95"]
    return EvalResult(
        task_type="video-classification" if result["data"].get("num_frames", 1) > 1 else "image-classification",
        task_name=f"Probing of frozen features: {label}",
        dataset_type=public(result["data"]["dataset"]),
        dataset_name=_data_name(result),
        dataset_config=label,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"Test accuracy, {best['head']} head on layer {best['layer']}, 95 % [{low:.4f}, {high:.4f}]",
        metric_value=best["accuracy"],
    )


WAYS = {
    "greedy": "this model, the most likely token",
    "sampled": "this model, sampled: mean of {num_samples}",
    "best": "this model, sampled: best of {num_samples}",
    "copy": "the last prompt frame, repeated",
    "constant_velocity": "constant velocity, without a bounce",
    "previous_frame": "most likely code after that of the frame before",
    "untrained": "the same model, untrained",
    "ceiling": "the truth, through the tokenizer",
}


def _continued_facts(result: dict) -> dict:
    """A result of `toto generate --score` as a table: a row for each way of continuing, percentages with intervals."""
    if "returned" not in result["scores"]["greedy"]:
        raise ValueError(
            f"The continuations of {result['dataset']} have no masks and events; a card shows those of "
            "toyworld:motion, so leave this result out."
        )
    last = result["num_frames"] - 1

    def percent(mean, interval) -> str:
        if mean is None:
            return "-"
        spread = f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else ""
        return f"{100 * mean:.0f}{spread}"

    def cells(scores: dict) -> list[str]:
        at = [("iou", 0), ("iou", last), ("identity", last), ("object_codes", last)]
        curves = [percent(scores[name]["mean"][h], scores[name]["ci95"][h]) for name, h in at]
        shares = [percent(scores[name]["mean"], scores[name]["ci95"]) for name in ("bounce", "returned", "period")]
        return [*curves, *shares]

    rows = {WAYS[way].format(**result["sampling"]): cells(scores) for way, scores in result["scores"].items()}
    named = ("dataset", "split", "clips", "num_prompt_frames", "num_frames")
    events = {name: result["scores"]["greedy"][name]["cases"] for name in ("bounce", "returned", "period")}
    return {name: result[name] for name in named} | {"rows": rows, "cases": events}


def _source_facts(manifest: dict, share: float) -> dict:
    """The facts on one source of training data."""
    return {
        "share": share,
        "rows": manifest["num_sequences"],
        "tokens": manifest["num_tokens"],
        "kind": manifest["kind"],
        "dataset": public(manifest["dataset"]),
        "split": manifest["split"],
        "tokenizer": public(manifest["tokenizer"]["name"]),
        "fingerprint": manifest["tokenizer"]["fingerprint"],
    }


def _recipe_facts(recipe: dict) -> dict:
    """The recipe as YAML without settings of the machine (None if nothing remains), and the command it belongs to."""
    import yaml

    settings = {key: _without_folders(value) for key, value in recipe.items() if value is not None}
    settings = {key: value for key, value in settings.items() if key not in PRIVATE_SETTINGS}
    text = yaml.safe_dump(settings, sort_keys=False).strip() if settings else None
    verb = "finetune" if "label_smoothing" in settings else "prompt train" if "from_scratch" in settings else "pretrain"
    return {"recipe": text, "verb": verb}


def _data_name(result: dict) -> str:
    left_out = " (each recording left out)" if result["data"].get("leave_one_group_out") else ""
    return public(result["data"]["dataset"]) + left_out


def _probe_facts(probes: list[tuple[str, dict, dict]]) -> dict:
    """Which probes have intervals over recordings, and what no significant difference was found to.

    recordings: {number of test recordings: data}. equals: {data, label: the baselines}.
    """
    recordings, equals = {}, {}
    for _, _, result in probes:
        if count := result["data"].get("groups"):
            recordings.setdefault(count, {})[_data_name(result)] = None
    for label, task, result in probes:
        leads = task["best"].get("versus") or {}
        names = [name for name, lead in leads.items() if not excludes_zero(lead["ci95"])]
        if names:
            equals[f"{_data_name(result)}, {label}"] = names
    return {"recordings": recordings, "equals": equals}


def _worth(probe: tuple[str, dict, dict]) -> tuple[bool, float]:
    """The key by which the layer of a probe is suggested: above all its baselines, then accuracy on validation."""
    best = probe[1]["best"]
    leads = (best.get("versus") or {}).values()
    return all(lead["ci95"][0] > 0 for lead in leads), best.get("val_accuracy", 0)


def excludes_zero(interval: list[float]) -> bool:
    """Whether a difference with this interval is significant."""
    return interval[0] > 0 or interval[1] < 0


def _probe_rows(label: str, task: dict, result: dict) -> Iterator[dict]:
    """Rows of the probe table: the model's best probe, then its layer 0 where that is another one, and baselines."""
    leads = task["best"].get("versus", {})
    rows = [("**this model**", task["best"])]
    first = [row for row in task.get("layers", []) if row["layer"] == 0]  # none with `--layers best`
    if "layer 0" in leads and first:
        accuracy = task["best"]["accuracy"] - leads["layer 0"]["difference"]
        rows.append(("layer 0", min(first, key=lambda row: abs(row["accuracy"] - accuracy))))
    for features, row in rows + list(task.get("baselines", {}).items()):
        versus = leads.get(features)
        points = [100 * part for part in (versus["difference"], *versus["ci95"])] if versus else []
        yield {
            "data": _data_name(result),
            "label": label,
            "features": features,
            "where": ", ".join(str(row[key]) for key in ("layer", "head") if key in row),
            "accuracy": f"{100 * row['accuracy']:.1f}",
            "interval": "[{:.1f}, {:.1f}]".format(*(100 * end for end in row["ci95"])) if "ci95" in row else "",
            "lead": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points) if points else "",
            "is_open": bool(points) and not excludes_zero(versus["ci95"]),
            "test_items": result["n_test"],
        }


def tokenizer_card(model, settings: tuple, results: dict, seconds: float) -> str:
    """The README.md of a visual tokenizer trained by `toto train-tokenizer`.

    Args:
        settings: the dataclasses of the command; the first is `TokenizerArgs`.
        results: dataset -> figures of `evaluate_tokenizer.scores.measure`.
        seconds: duration of the training.
    """
    import yaml

    from tokenization.evaluate_tokenizer.scores import markdown_table

    args, config = settings[0], model.config
    recipe = {key: _without_folders(value) for concern in settings for key, value in asdict(concern).items()}
    recipe = {key: value for key, value in recipe.items() if key not in PRIVATE_SETTINGS}
    return markdown_template(TEMPLATES / "tokenizer.md.jinja").render(
        recipe,
        names=recipe["dataset"],
        # Labels that such a network was trained on leak into every later result.
        supervised=args.kind == "vqgan" and recipe["perceptual"] is not None,
        side=config.resolution,
        stride=config.stride,
        codes_per_frame=(config.resolution // config.stride) ** 2,
        num_codes=config.num_codes,
        parameters=sum(p.numel() for p in model.parameters()),
        minutes=seconds / 60,
        figures=markdown_table(results),
        recipe=yaml.safe_dump(recipe, sort_keys=False).strip(),
    )
