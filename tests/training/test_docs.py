"""What docs/scaling.md shows of `toto plan` is what it prints; the links between the documents lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from training.args import DataArgs, Source
from training.plan import main

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = sorted((DOCS.parent / "training" / "recipes").glob("*.yaml"))
PLANS = re.findall(r"\$ toto plan (.*)\n((?:.+\n)+?)```", (DOCS / "scaling.md").read_text())


@pytest.mark.parametrize("flags, shown", PLANS, ids=[flags for flags, _ in PLANS])
def test_plans_are_as_printed(flags, shown, capsys):
    main(shlex.split(flags))
    plan, _, _ = capsys.readouterr().out.partition("next: toto pretrain ")
    assert plan == shown


def test_plans_are_found():
    assert len(PLANS) == 8


@pytest.mark.parametrize("page", ["scaling.md", "datasets.md"])
def test_links_and_paths_lead_somewhere(page):
    text = (DOCS / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"(?:training|tests|benchmarks)/[\w/]+\.\w+", text)
    assert links and paths
    missing = [link for link in links if not (DOCS / link).exists()]
    assert not missing + [path for path in paths if not (DOCS.parent / path).exists()]


def test_the_mixture_shown_is_one():
    (shown,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "datasets.md").read_text(), re.S)
    mixture = DataArgs(sources=[json.dumps(source) for source in yaml.safe_load(shown)["sources"]]).mixture()
    assert [source.weight for source in mixture] == [0.2, 0.8]
    keys = " ".join(re.findall(r"^\| (`[^|]+) \|", (DOCS / "datasets.md").read_text(), re.M))
    assert all(f"`{key}`" in keys for key in Source.__dataclass_fields__)


def test_commands_shown_are_understood():
    from transformers.hf_argparser import HfArgumentParser

    from tokenization.tokenize_dataset import TokenizeArgs

    text = (DOCS / "datasets.md").read_text().replace("\\\n", "")
    shown = re.findall(r"^(?:toto tokenize|accelerate launch -m tokenization.tokenize_dataset) (--.*)$", text, re.M)
    assert len(shown) == 12
    crops = {}
    for flags in shown:
        (args,) = HfArgumentParser(TokenizeArgs).parse_args_into_dataclasses(shlex.split(flags))
        assert args.output.startswith("shards/")
        crops[args.output.removeprefix("shards/")] = args.crops
    # random crops of what the paper's recipes read more than once
    read = {each["data"] for path in RECIPES for each in yaml.safe_load(path.read_text()).get("sources") or []}
    several = {name for name in crops if f"shards/{name}" in read}
    assert several == {f"{name}-dvae" for name in ("imagenet21k", "kinetics600", "kinetics400", "ego4d")} | {
        "imagenet1k-dvae16",
        "imagenet1k-dvae32",
    }
    assert all(crops[name] > 1 for name in several)
    assert "--crops" in (DOCS / "reproduce.md").read_text()
