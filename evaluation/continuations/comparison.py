"""`toto generate --compare`: the results of several models on the same clips, as one figure and one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evaluation.continuations.args import COMPARE_DESCRIPTION, CompareArgs
from evaluation.results import ContinuationResult, FrameContinuationResult
from training.flags import parse, require

# What must be equal for two results to be of the same clips and pixels; a result without a field has None.
SAME = ("dataset", "split", "clips", "num_prompt_frames", "num_frames", "resolution", "stride", "fps", "sources")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((CompareArgs,), argv, "toto generate --compare", COMPARE_DESCRIPTION)

    from evaluation.continuations.figures import draw_comparison
    from evaluation.continuations.tables import comparison_table

    results = read_results(args.compare, args.way)
    print(comparison_table(results, args.way))
    if not same_tokens(results):
        print("the models have different tokens, so codes and losses are not compared")
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_comparison(results, args.way, output)
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {output}")


def read_results(files: list[str], way: str = "greedy") -> dict[str, ContinuationResult]:
    """Label -> result of each file: the model's name, and the file's too where several models have the same.

    way: of continuing; sampled ones are compared if they were sampled in the same way.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is no result of `toto generate --score`, or results that are not of the same clips.
    """
    results = [_read(Path(file)) for file in files]
    for file, result in zip(files[1:], results[1:], strict=True):
        for name in SAME if way == "greedy" else (*SAME, "sampling"):
            one, other = (getattr(each, name, None) for each in (results[0], result))
            shown = f" ({one} and {other})" if name != "sources" else ""
            require(
                one == other,
                f"{files[0]} and {file} differ in {name}{shown}; compare models scored on the same data, prompt and "
                "clips.",
            )
    labels = []
    names = [Path(result.model).name for result in results]
    for name, file in zip(names, files, strict=True):
        labels.append(name if names.count(name) == 1 else f"{name}, {Path(file).stem}")
    require(
        len(set(labels)) == len(labels),
        f"--compare names results of the same name and model: {', '.join(files)}; name each once, or rename a file.",
    )
    return dict(zip(labels, results, strict=True))


def _read(file: Path) -> ContinuationResult:
    refused = f"{file} is not a result of toto generate --score; name its .json file."
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}; name a result of toto generate --score.")
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(refused) from error
    scores = content.get("scores") if isinstance(content, dict) else None
    require(isinstance(scores, dict) and "greedy" in scores, refused)
    kind = ContinuationResult if "iou" in scores["greedy"] else FrameContinuationResult
    return kind.from_json(content)


def same_tokens(results: dict[str, ContinuationResult]) -> bool:
    """Whether all models have the same visual tokenizer, so that their codes and losses can be compared."""
    return len({result.tokenizer for result in results.values()}) == 1
