"""The model card: metadata that the Hub reads, and what a user needs to know, from files of the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from training.engine.checkpoints import resolve_model
from training.publish.classifier_card import classifier_facts, classifier_numbers, classifier_sections

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Settings of the machine or the account, which do not describe the model.
PRIVATE_SETTINGS = {
    *("output_dir", "shards", "val_shards", "resume", "recipe", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"),
}

WHAT = """\
# {name}

A Toto: a LLaMA-style transformer trained to predict the next *visual token* of images and videos, to be used frozen
for recognition, or to continue clips. Pre-trained with an open implementation of
[An Empirical Study of Autoregressive Pre-training from Videos](https://arxiv.org/abs/2501.05453) (Rajasegaran et al.,
2025), whose authors released no weights: this model is not theirs.

{parameters:,} parameters: {num_hidden_layers} layers, width {hidden_size}, {num_attention_heads} heads. A frame is
{tokens_per_frame} tokens of a codebook of {num_codes:,}; a row holds up to {num_frames} frames. The visual tokenizer
comes with the model, in `visual_tokenizer/`.
"""

HOW = """\
## How to load it

```python
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

repo = "{repo}"
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
rows = processor(videos="clip.mp4")  # {num_frames} frames, every 4th; images=... takes pictures
backbone = AutoModel.from_pretrained(repo, trust_remote_code=True)
features = backbone(**rows, output_hidden_states=True).hidden_states[{layer}]  # (1, ids, {hidden_size}){why_layer}

model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True)
prompt = processor(videos="clip.mp4", add_end_token=False).input_ids[:, : 1 + {prompt} * {tokens_per_frame}]
frames = processor.decode(model.generate_frames(prompt, num_frames={new}))  # uint8, (1, {num_frames}, R, R, 3)
```

`trust_remote_code=True` runs the Python files of this repository: read them, or install the `modeling-toto` package and
`import modeling_toto, tokenization` first, and its own code is used instead. Video files need PyAV (`pip install av`).
"""

LIMITS = """\
## Limitations

- It sees square crops of {resolution} x {resolution} pixels through {num_codes:,} codes: what the visual tokenizer does
  not keep, the model never saw, and generated frames are at most as sharp as its reconstructions.
- It knows nothing but its training data; how it does on other pictures has to be measured. Nobody has checked it for
  social bias. It takes no text.
- A continued clip is a guess, not a forecast. The loss depends on the tokenizer: losses over other tokenizers do not
  compare.
"""


def model_card(
    checkpoint_or_folder: str | Path,
    *,
    metrics: dict | None = None,
    recipe: dict | None = None,
    results: list[dict] | None = None,
    license: str = "apache-2.0",
    repo_id: str | None = None,
) -> str:
    """The README.md of a model: metadata that the Hub reads, then what a user needs to know.

    Args:
        checkpoint_or_folder: a Hugging Face folder with the processor in it, or a run folder (see `resolve_model`).
        metrics: a validation row of metrics.jsonl: `val_loss` (nats per code token), `step`, other numbers.
        recipe: the resolved recipe; settings of the machine are left out of the card.
        results: contents of result files of `toto probe`.
        repo_id: what the loading example names; by default the folder's name.
    Raises:
        FileNotFoundError: no model, or no processor in the same folder.
        ValueError: a result that is not of `toto probe`.
    """
    from huggingface_hub import ModelCardData

    folder = complete_folder(checkpoint_or_folder)
    facts = _facts(folder)
    metrics, recipe, probes = metrics or {}, recipe or {}, _probes(results or [])
    data, name = _data(recipe), (repo_id or folder.name).split("/")[-1]
    found = _loss_result(metrics, data) + [_probe_result(*probe) for probe in probes]
    header = ModelCardData(
        library_name="transformers",
        license=license,
        # Left to itself the Hub reads AutoModelForCausalLM in the config and files the model under text generation.
        pipeline_tag=f"{facts['medium']}-classification" if facts["medium"] else "image-feature-extraction",
        tags=["toto", "video", "vision", "visual-tokens", "autoregressive", "arxiv:2501.05453"],
        metrics=sorted({result.metric_type for result in found}) or None,
        model_name=name if found else None,
        eval_results=found or None,
    )
    layer, why = facts["num_hidden_layers"] // 2, ""
    if probes:
        label, task, result = max(probes, key=lambda probe: probe[1]["best"].get("val_accuracy", 0))
        layer, why = task["best"]["layer"], f"; best for {label} of {_public(result['data']['dataset'])}"
    prompt = max(1, facts["num_frames"] // 4)
    split = {"prompt": prompt, "new": facts["num_frames"] - prompt}
    if facts["medium"]:
        opening = classifier_sections(name, repo_id or folder.name, facts)
    else:
        how = HOW.format(repo=repo_id or folder.name, layer=layer, why_layer=why, **split, **facts)
        opening = [WHAT.format(name=name, **facts), how]
    sections = [
        *opening,
        _training(data, recipe, metrics),
        _numbers(metrics, probes, facts["num_codes"]),
        LIMITS.format(**facts),
        f"## Licence\n\n{license}, for the weights and the code in this repository.\n",
    ]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n".join(sections)


def complete_folder(folder: str | Path) -> Path:
    """A folder with a model and its processor: this one, or the checkpoint that stands for a run.

    Raises:
        FileNotFoundError: one of the two is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}' to push.")
    folder = Path(resolve_model(str(folder))).resolve()  # "." has no name
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds a model without its processor: call processor.save_pretrained on the same folder first."
        )
    return folder


def _facts(folder: Path) -> dict:
    """The numbers of the model that the card states."""
    from huggingface_hub import get_local_safetensors_metadata

    from modeling_toto.configuration_toto import TotoConfig

    config = TotoConfig.from_pretrained(folder)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "tokens_per_frame", "num_codes", "num_frames")
    facts = {name: getattr(config, name) for name in names}
    facts["parameters"] = sum(get_local_safetensors_metadata(folder).parameter_count.values())
    saved = json.loads((folder / "processor_config.json").read_text())
    return facts | classifier_facts(config) | {"resolution": saved["image_processor"]["resolution"]}


def _data(recipe: dict) -> list[tuple[dict, float]]:
    """(manifest, share of the tokens) of each of the recipe's shards, while they are still there."""
    sources = [{"data": recipe["shards"]}] if recipe.get("shards") else recipe.get("sources") or []
    found = [(Path(source["data"]) / "manifest.json", source.get("weight", 1.0)) for source in sources]
    return [(json.loads(path.read_text()), share) for path, share in found if path.is_file()]


def _public(name: str) -> str:
    """A name without the folders of one's machine: a local path keeps only its last part, a Hub id stays."""
    is_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).exists())
    return Path(name).name if is_local else name


def _without_folders(value):
    """A setting, whose names and those inside it keep no folder of one's machine."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return _public(value) if isinstance(value, str) else value


def _probes(results: list[dict]) -> list[tuple[str, dict, dict]]:
    """(label, its part, the whole result) for every label that the results score."""
    for result in results:
        if "best" not in result:
            raise ValueError("A result without 'best' is not of a probe; give the card files written by toto probe.")
    return [
        (label, task, result)
        for result in results
        for label, task in (result.get("tasks") or {result.get("label", "label"): result}).items()
    ]


def _loss_result(metrics: dict, data: list[tuple[dict, float]]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    if "val_loss" not in metrics or "val_accuracy" in metrics:
        return []
    dataset = next((_public(manifest["dataset"]) for manifest, share in data if share == 1), "validation shards")
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

    best, dataset = task["best"], _public(result["data"]["dataset"])
    low, high = best["ci95"]
    return EvalResult(
        task_type="video-classification" if result["data"].get("num_frames", 1) > 1 else "image-classification",
        task_name=f"Probing of frozen features: {label}",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_config=label,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"Test accuracy, {best['head']} head on layer {best['layer']}, 95 % [{low:.4f}, {high:.4f}]",
        metric_value=best["accuracy"],
    )


def _training(data: list[tuple[dict, float]], recipe: dict, metrics: dict) -> str:
    import yaml

    lines = ["## Training\n"]
    for manifest, share in data:
        lines.append(
            f"Data{f' ({share:.0%} of the tokens)' if share < 1 else ''}: {manifest['num_sequences']:,} "
            f"{manifest['kind']} rows ({manifest['num_tokens']:,} tokens) of `{_public(manifest['dataset'])}`, split "
            f"`{manifest['split']}`, tokens of `{manifest['tokenizer']['name']}` (fingerprint "
            f"{manifest['tokenizer']['fingerprint']}).\n"
        )
    if recipe.get("init_from"):
        lines.append(
            f"Began with the weights of `{_public(recipe['init_from'])}`: their training comes before these steps.\n"
        )
    if "step" in metrics:
        lines.append(f"Trained for {metrics['step']:,} steps when last validated.\n")
    settings = {
        key: _without_folders(value)
        for key, value in recipe.items()
        if key not in PRIVATE_SETTINGS and value is not None
    }
    if settings:
        verb = "finetune" if "label_smoothing" in settings else "pretrain"
        lines.append(f"Recipe of `toto {verb}`:\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n")
    if len(lines) == 1:
        lines.append("No record of the training came with this checkpoint.\n")
    return "\n".join(lines)


def _numbers(metrics: dict, probes: list[tuple[str, dict, dict]], num_codes: int) -> str:
    lines = ["## Numbers\n"]
    if "val_accuracy" in metrics:
        lines.append(classifier_numbers(metrics))
    elif "val_loss" in metrics:
        lines.append(
            f"Validation loss: **{metrics['val_loss']:.4f}** nats per code token (a uniform guess over {num_codes:,} "
            f"codes: {math.log(num_codes):.4f}).\n"
        )
    if probes:
        lines += [
            "Probes of frozen features, accuracy in percent on held-out test data with 95 % intervals; layer, head and",
            "learning rate were chosen on a validation split. Lead: this model minus the baseline, in points, on the",
            "same items; the baseline is beaten where the whole interval lies above 0.\n",
            "| data, label | features | layer, head | accuracy | 95 % interval | lead | test items |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
    for label, task, result in probes:
        for features, row in [("**this model**", task["best"]), *task.get("baselines", {}).items()]:
            where = ", ".join(str(row[key]) for key in ("layer", "head") if key in row)
            interval = "[{:.1f}, {:.1f}]".format(*(100 * end for end in row["ci95"])) if "ci95" in row else ""
            versus = task["best"].get("versus", {}).get(features)
            points = [100 * part for part in (versus["difference"], *versus["ci95"])] if versus else []
            lead = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points) if points else ""
            what = f"{_public(result['data']['dataset'])}, {label}"
            accuracy = f"{100 * row['accuracy']:.1f}"
            lines.append(f"| {what} | {features} | {where} | {accuracy} | {interval} | {lead} | {result['n_test']:,} |")
    if len(lines) == 1:
        lines.append("None measured yet: `toto probe` measures what the features know.")
    return "\n".join(lines).rstrip("\n") + "\n"
