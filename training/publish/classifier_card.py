"""Sections of the model card of a fine-tuned classifier: its classes, how to call it, its accuracy."""

from __future__ import annotations

WHAT = """\
# {name}

A Toto fine-tuned to tell {num_labels} classes of {medium}s: a LLaMA-style transformer that was trained to predict the
next *visual token* of images and videos, and then, all of it, on labels. Made with an open implementation of
[An Empirical Study of Autoregressive Pre-training from Videos](https://arxiv.org/abs/2501.05453) (Rajasegaran et al.,
2025), whose authors released no weights: this model is not theirs.

{parameters:,} parameters: {num_hidden_layers} layers, width {hidden_size}, {num_attention_heads} heads;
{attention_mode} attention; its head, pooling by {pooler}, reads layer {feature_layer}. A frame is {tokens_per_frame}
tokens of a codebook of {num_codes:,}. The visual tokenizer comes with the model, in `visual_tokenizer/`.

Classes: {classes}.
"""

HOW = """\
## How to load it

```python
from transformers import {auto}, AutoProcessor

repo = "{repo}"
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
model = {auto}.from_pretrained(repo, trust_remote_code=True)
logits = model(**processor({call})).logits  # (1, {num_labels})
print(model.config.id2label[logits.argmax(-1).item()])
```

`trust_remote_code=True` runs the Python files of this repository: read them, or install the `modeling-toto` package and
`import modeling_toto, tokenization` first, and its own code is used instead. Video files need PyAV (`pip install av`).
"""
MEDIA = {"TotoForImageClassification": "image", "TotoForVideoClassification": "video"}
CALLS = {"image": "images=[picture]", "video": 'videos="clip.mp4"'}
SHOWN = 20  # classes listed


def classifier_facts(config) -> dict:
    """What the sections need from the config of a classifier; {"medium": None} for another model."""
    kind = (config.architectures or [""])[0]
    if kind not in MEDIA:
        return {"medium": None}
    names, medium = list(config.id2label.values()), MEDIA[kind]
    layer = max(1, config.num_hidden_layers // 2) if config.feature_layer is None else config.feature_layer
    return {
        "medium": medium,
        "auto": f"AutoModelFor{kind.removeprefix('TotoFor')}",
        "call": CALLS[medium],
        "attention_mode": config.attention_mode,
        "pooler": config.pooler.replace("_", " "),
        "feature_layer": layer,
        "num_labels": len(names),
        "classes": ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""),
    }


def classifier_sections(name: str, repo: str, facts: dict) -> list[str]:
    """The first sections of the card."""
    return [WHAT.format(name=name, **facts), HOW.format(repo=repo, **facts)]


def classifier_numbers(metrics: dict) -> str:
    """A sentence with the validation accuracy of a row, or with the test accuracy where the row has "test"."""
    if "test" not in metrics:
        return f"Validation accuracy: {100 * metrics['val_accuracy']:.2f} % of {metrics['val_rows']:,}.\n"
    best, count = metrics["test"]["best"], metrics["test"]["n_test"]
    return (
        f"Test accuracy: **{100 * best['accuracy']:.2f} %** ({best['correct']:,} of {count:,}), scored once, of step "
        f"{best['step']}, which was best on validation ({100 * best['val_accuracy']:.2f} %).\n"
    )
