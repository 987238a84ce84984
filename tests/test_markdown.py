"""The Markdown pages: lines of at most 120 characters; every path, module and name that they mention exists."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "benchmarks", "studies", "checkpoints/*", "tokenization/weights/*")
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))]
PACKAGES = "tokenization|modeling_toto|training|evaluation|studies"
WIDTH = 120

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def prose(text: str) -> list[tuple[int, str]]:
    """(line number, line) of what is neither front matter, nor code, nor a table, nor a single link."""
    lines = text.splitlines()
    found, fenced = [], False
    start = lines.index("---", 1) + 1 if lines[0] == "---" else 0
    for number, line in enumerate(lines[start:], start + 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("|") and " " in line.strip().removeprefix("- "):
            found.append((number, line))
    return found


@each_page
def test_lines_are_wrapped(page):
    long = [f"{page.name}:{number}: {len(line)}" for number, line in prose(page.read_text()) if len(line) > WIDTH]
    assert not long


def paths(text: str) -> set[str]:
    """Paths of the repository, such as training/engine/loop.py; `benchmarks/*.md` and `RUN/x` are none."""
    folders = f"{PACKAGES}|benchmarks|checkpoints|docs|examples|tests"
    return set(re.findall(rf"(?<![\w./-])((?:{folders})/(?:[\w.-]+/)*[\w-]+(?:\.\w+)?/?)(?![\w*])", text))


@each_page
def test_paths_exist(page):
    # Links of a page are relative to it, and tests/test_readme.py follows them.
    text = re.sub(r"\[[^\]]*\]\((?!http)[^)]*\)", "", page.read_text())
    missing = sorted(path for path in paths(text) if not (ROOT / path).exists())
    assert not missing


def exists(name: str) -> bool:
    """Is a dotted name a module of this clone, or something in one?"""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            thing = importlib.import_module(".".join(parts[:length])) if parts[length:] else None
            for part in parts[length:]:
                # A submodule of another installation may be an attribute too; only files of this clone count.
                if inspect.ismodule(thing := getattr(thing, part, None)) or thing is None:
                    return False
            return True
    return False


@each_page
def test_modules_and_names_exist(page):
    text = page.read_text()
    modules = set(re.findall(rf"-m ((?:{PACKAGES})(?:\.\w+)*)", text))
    names = set(re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)(?:\(|`)", text))
    files = {name for name in names if name.endswith((".py", ".md", ".json"))}
    assert not sorted(name for name in modules | names - files if not exists(name))


def test_commands_and_names_are_found():
    text = "see training/engine/loop.py, docs/log.md, ../docs/x and benchmarks/*.md"
    assert paths(text) == {"training/engine/loop.py", "docs/log.md"}
    assert exists("training.engine.loop") and exists("tokenization.toyworld.ToyWorld")
    assert not exists("training.media") and not exists("tokenization.toyworld.Nothing")
