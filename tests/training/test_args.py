"""Recipes give defaults, flags win, and every mistake in either is reported in one sentence."""

from dataclasses import dataclass

import pytest

from training.args import OptimArgs
from training.flags import find_recipe, idle, option, parse, refuse_idle, require, typed_flags


@dataclass(frozen=True)
class PaintArgs:
    recipe: str | None = option(None, "YAML file")
    colours: list[str] = option(["red"], "which")
    coats: int = option(2, "how many")
    gloss: float | None = option(0.5, "None is matt")
    settings: str = option("{}", "JSON")

    def __post_init__(self):
        require(self.coats > 0, "--coats must be above 0.")


def parsed(*argv):
    return parse((PaintArgs, OptimArgs), list(argv), "toto paint", "Paints.")


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "paint.yaml").write_text(text)
        return str(tmp_path / "paint.yaml")

    return write


def test_defaults_are_the_papers():
    _, optim = parsed()
    assert (optim.learning_rate, optim.warmup_steps, optim.adam_beta1, optim.adam_beta2) == (3e-4, 2000, 0.9, 0.95)


def test_a_recipe_gives_defaults_and_flags_win(recipe):
    path = recipe("coats: 3\ncolours: [blue, green]\nlearning_rate: 1e-3\nwarmup_steps: 5\n")
    paint, optim = parsed("--warmup_steps", "7", "--recipe", path, "--colours", "grey")
    assert paint == PaintArgs(recipe=path, colours=["grey"], coats=3)
    assert (optim.learning_rate, optim.warmup_steps) == (1e-3, 7)  # YAML reads 1e-3 as a string
    assert parsed("--recipe", path)[0].colours == ["blue", "green"]


def test_nothing_in_a_recipe_is_none(recipe):
    paint, optim = parsed("--recipe", recipe("gloss:\nmax_grad_norm: null\n"))
    assert paint.gloss is None and optim.max_grad_norm is None
    with pytest.raises(ValueError, match="leaves 'coats' empty; give it a value"):
        parsed("--recipe", recipe("coats:\n"))


def test_one_source_needs_no_list_and_a_mapping_becomes_json(recipe):
    paint, _ = parsed("--recipe", recipe("colours: blue\nsettings: {num_codes: 512}\n"))
    assert paint.colours == ["blue"] and paint.settings == '{"num_codes": 512}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("coat: 3\n", "unknown key 'coat'; did you mean 'coats'"),
        ("zzzzzz: 3\n", "unknown key 'zzzzzz'; the keys are .*coats"),
        ("- coats\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("coats: [3\n", "is not YAML"),
        ("coats: [3, 4]\n", "'4' is unknown"),
        ("coats: 0\n", "--coats must be above 0"),
        ("learning_rate: 0\n", "--learning_rate is 0.0; it must be above 0"),
    ],
)
def test_wrong_recipes(recipe, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parsed("--recipe", recipe(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("coats: many\n", "--coats is 'many'; it must be a whole number"),
        ("coats: 2.5\n", "--coats is '2.5'; it must be a whole number"),
        ("colours: []\n", "--colours has no value"),
        ("learning_rate: fast\n", "--learning_rate is 'fast'; it must be a number"),
    ],
)
def test_values_of_another_kind_are_refused_as_flags_are(recipe, text, words):
    with pytest.raises(ValueError, match=words):
        parsed("--recipe", recipe(text))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--coatz", "3"], "'--coatz' is unknown; did you mean --coats"),
        (["3"], "'3' is unknown"),
        (["--coats", "-1"], "--coats must be above 0"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--warmup_steps", "-1"], "--warmup_steps is -1; it must be at least 0"),
        (["--min_lr_ratio", "1.5"], "--min_lr_ratio is 1.5; it must be from 0 to 1"),
        (["--max_grad_norm", "0"], "--max_grad_norm is 0.0; it must be above 0"),
    ],
)
def test_wrong_flags(argv, words):
    with pytest.raises(ValueError, match=words):
        parsed(*argv)


def test_a_retired_key_is_passed_over_at_its_only_value(recipe):
    (paint,) = parse((PaintArgs,), ["--recipe", recipe("scale: full\ncoats: 4\n")], "x", "", {"scale": "full"})
    assert paint.coats == 4
    with pytest.raises(ValueError, match="unknown key 'scale'"):
        parse((PaintArgs,), ["--recipe", recipe("scale: tiny\n")], "x", "", {"scale": "full"})


def test_idle_flags_are_those_that_were_typed():
    argv = ["--max-train=3", "--fps", "7", "--no_flip", "5"]
    assert typed_flags(argv) == {"max_train", "fps", "no_flip"}
    assert idle(argv, "fps", "stride", "max_train") == "--fps, --max_train" and idle(argv, "stride") == ""
    refuse_idle(argv, ("stride",), "anywhere")
    with pytest.raises(ValueError, match=r"^--fps would have no effect on images; leave it out\.$"):
        refuse_idle(argv, ("stride", "fps"), "on images")


def test_a_missing_recipe_names_those_that_ship():
    with pytest.raises(FileNotFoundError, match=r"There is no recipe 'nowhere'; .*toto_tokenizer_64"):
        parsed("--recipe", "nowhere")


def test_recipes_are_found_by_their_bare_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not by luck of the current folder
    assert find_recipe("toto_tokenizer_64").name == "toto_tokenizer_64.yaml"
    assert find_recipe("tokenizer/toto_tokenizer_64.yaml").is_file()
    own = tmp_path / "mine.yaml"
    own.write_text("coats: 1\n")
    assert find_recipe(str(own)) == own and find_recipe("mine").is_file()
