"""docs/limitations.md quotes committed results: every number in it is computed here from the file that holds it."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "limitations.md").read_text())
NANO = ROOT / "checkpoints" / "toto-nano"
STUDIES = ROOT / "docs" / "studies"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def of_cifar10() -> str:
    probe = read(NANO / "probe_cifar10.json")
    baselines = {name: percent(floor["accuracy"]) for name, floor in probe["baselines"].items()}
    return (
        f"a linear probe of toto-nano reaches {percent(probe['best']['accuracy'])}: more than raw pixels "
        f"({baselines['pixels']}) and less than 2,048 random filters ({baselines['random_filters']})"
    )


def of_rooms() -> str:
    probes = [read(NANO / f"probe_room_actions{which}.json") for which in ("", "_recordings")]
    leads = [lead for probe in probes for lead in probe["best"]["versus"].values()]
    assert len(leads) == 8 and {lead["verdict"] for lead in leads} == {"no significant difference"}
    best = [percent(probe["best"]["accuracy"]) for probe in probes]

    def both(name: str) -> str:
        """Of the model's layer 0 by its difference, of a baseline by itself; they agree."""
        found = [probe["best"]["accuracy"] - probe["best"]["versus"][name]["difference"] for probe in probes]
        return f"({percent(found[0])} and {percent(found[1])})"

    (videos,), (recordings,) = ({probe["n_test"] for probe in probes}, {probe["data"]["groups"] for probe in probes})
    return (
        f"On `room_actions` it reads {best[0]} of {videos} videos, and {best[1]} where each of the {recordings} "
        f"recordings is left out in turn: no significant difference from raw pixels {both('pixels')}, its embeddings "
        f"{both('layer 0')}, its untrained twin {both('untrained')} or a histogram of codes {both('histogram')}"
    )


def of_motion() -> str:
    motion, digit = (read(NANO / "probe.json")["tasks"][label] for label in ("motion", "digit"))
    return (
        f"the direction of motion can be read from two frames in {percent(motion['best']['accuracy'])} of the clips "
        f"(chance {percent(motion['chance'])}, raw pixels {percent(motion['baselines']['pixels']['accuracy'])}) and "
        f"digits in {percent(digit['best']['accuracy'])} (chance {percent(digit['chance'])})"
    )


def of_sizes() -> str:
    import safetensors

    with safetensors.safe_open(NANO / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
    tokens = sum(media["tokens"] for media in read(NANO / "media.json")["media"])
    return f"toto-nano has {parameters / 1e6:.0f} M parameters and was trained on {tokens / 1e6:.0f} M tokens"


def of_study_models() -> str:
    models = read(STUDIES / "probing" / "costs.json")["models"].values()
    (parameters,) = {model["parameters"] for model in models if model["kind"] == "toto"}
    return f"The models of the study have {parameters / 1e6:.1f} M parameters"


def of_tokenizer() -> str:
    folder = ROOT / "tokenization" / "weights" / "toto-tokenizer-64"
    psnr = {name: f"{one['psnr']:.1f}" for name, one in read(folder / "evaluation.json")["datasets"].items()}
    (real,) = re.findall(
        r"^\| real-camera clips, validation \| ([\d.]+) \| 0", (folder / "README.md").read_text(), re.M
    )
    return (
        f"Its reconstructions reach {psnr['toyworld']} dB in the plain embedded world, {psnr['toyworld:cluttered']} dB "
        f"with photographs, and {float(real):.1f} dB on clips of real cameras"
    )


def of_tokenizer_speed() -> str:
    page = (ROOT / "benchmarks" / "tokenizer.md").read_text()
    ((_, ratio),) = re.findall(r"^\| ours, bfloat16 \| ([\d.]+) \[.*?\] \| ([\d.]+) \|", page, re.M)
    (goal,) = re.findall(r"The goal of ([\d.]+) times", page)
    return (
        f"in bfloat16, {goal} times OpenAI's package on a CPU with AMX, is neither reached nor refuted: without AMX, "
        f"the speed is {float(ratio):.1f} times"
    )


def of_mup() -> str:
    sweep = read(STUDIES / "mup_sweep.json")
    rates = {one["width"]: one["log2_rate"] for one in sweep["optima"] if one["parametrisation"] == "muP"}
    assert sorted(rates) == [32, 64, 128, 256]
    training = sweep["training"]
    return (
        f"the best learning rate stays between 2^{min(rates.values()):.2f} and 2^{max(rates.values()):.2f} over three "
        f"doublings of the width, with {training['seeds']} seeds and {training['max_steps']} steps a run"
    )


def of_scaling() -> str:
    study = read(STUDIES / "scaling.json")
    smallest = min(study["runs"], key=lambda run: run["parameters"])["size"]
    assert {point["size"] for point in study["law"]["frontier"]} == {smallest}
    assert not any(point["bracketed"] for point in study["law"]["frontier"])
    return "**no compute-optimal frontier**: its smallest size is the best at every budget"


def of_cost() -> str:
    from training.flags import parse
    from training.plan import PlanArgs, plan
    from training.pretrain import TYPES

    args, *recipe = parse((PlanArgs, *TYPES), ["--recipe", "1b"], "toto plan", "")
    cost = plan(*recipe, args)
    flops = f"{cost['flops']:.1e}".replace("e+", "e")
    return (
        f"The {cost['tokens'] / 1e12:.2f} T tokens of the 1b model are {flops} FLOPs, "
        f"or {round(cost['gpu_hours'], -2):,.0f} H100-hours at an estimated {100 * cost['mfu']:.0f} % MFU"
    )


def of_subsets() -> str:
    from evaluation.probe.args import ProbeArgs

    fields = ProbeArgs.__dataclass_fields__
    return (
        f"at most {fields['max_train'].default:,} items to train and {fields['max_eval'].default:,} to test, "
        f"and averages tokens to {fields['max_tokens'].default} for the attention head"
    )


QUOTES = [
    *(of_cifar10, of_rooms, of_motion, of_sizes, of_study_models, of_tokenizer, of_tokenizer_speed),
    *(of_mup, of_scaling, of_cost, of_subsets),
]
# Numbers of the paper and of plain words, which no result file holds.
NOT_MEASURED = ("120 M to 1.1 B parameters", "App. A.1", "App. A.2", "95 %")


@pytest.mark.parametrize("quote", QUOTES, ids=[quote.__name__ for quote in QUOTES])
def test_the_page_quotes_the_committed_number(quote):
    assert quote() in PAGE


def test_no_other_measured_number_stands_there():
    rest = PAGE
    for words in (*NOT_MEASURED, *(quote() for quote in QUOTES)):
        rest = rest.replace(words, "")
    assert not re.findall(r"\d+\.\d+\w*|\d+ %|\d,\d{3}", rest)
