"""Dependencies run one way, and files that travel to the Hub import only what every user of transformers has."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling_toto", "tokenization", "training", "evaluation")
# What a package may import of the project besides itself: modeling_toto, tokenization <- training <- evaluation.
MAY_IMPORT = {
    "modeling_toto": set(),
    "tokenization": set(),
    "training": {"modeling_toto", "tokenization"},
    "evaluation": {"modeling_toto", "tokenization", "training"},
}
REMOTE_ROOTS = (
    "modeling_toto/modeling_toto.py",
    "modeling_toto/configuration_toto.py",
    "tokenization/processing_toto.py",
    "tokenization/image_processing_toto.py",
    "tokenization/modeling_vqgan.py",
    "tokenization/modeling_dvae.py",
)
REMOTE_PACKAGES = {"torch", "numpy", "PIL", "transformers"}


def imports(path: Path):
    """(node, top-level names, inside a `try`?) of every import in a file, wherever it stands; relative ones too."""

    def visit(node: ast.AST, guarded: bool):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield child, {alias.name.split(".")[0] for alias in child.names}, guarded
            elif isinstance(child, ast.ImportFrom):
                yield child, set() if child.level else {child.module.split(".")[0]}, guarded
            yield from visit(child, guarded or isinstance(child, ast.Try))

    return visit(ast.parse(path.read_text(), str(path)), False)


def siblings(path: Path) -> list[Path]:
    """Files that a file reaches by `from .x import y`."""
    relative = [node for node, _, _ in imports(path) if isinstance(node, ast.ImportFrom) and node.level]
    for node in relative:
        assert node.level == 1 and node.module and "." not in node.module, (
            f"{path.name}:{node.lineno}: only `from .sibling import name` survives the trip to the Hub"
        )
    return [path.with_name(f"{node.module}.py") for node in relative]


def reachable(path: Path) -> set[Path]:
    found, waiting = set(), [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            assert path.is_file(), f"{path} is imported and does not exist"
            found.add(path)
            waiting += siblings(path)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for node, names, _ in imports(path):
            wrong = names & (set(PACKAGES) - MAY_IMPORT[package] - {package})
            assert not wrong, f"{path.relative_to(ROOT)}:{node.lineno}: {package} must not import {', '.join(wrong)}"
            assert "tests" not in names


@pytest.mark.parametrize("root", REMOTE_ROOTS)
def test_remote_code_imports_little(root):
    """transformers demands every import of remote code, even one inside a function, unless it stands in a `try`."""
    for path in reachable(ROOT / root):
        for node, names, guarded in imports(path):
            foreign = names - REMOTE_PACKAGES - set(sys.stdlib_module_names)
            assert guarded or not foreign, (
                f"{path.relative_to(ROOT)}:{node.lineno} is reached from {root} and imports {', '.join(foreign)}"
            )


def test_the_walk_reaches_the_visual_tokenizers():
    names = {path.name for path in reachable(ROOT / "tokenization/modeling_vqgan.py")}
    assert names >= {"modeling_vqgan.py", "configuration_vqgan.py", "tokenizer_base.py"}
    assert len(reachable(ROOT / "modeling_toto/modeling_toto.py")) > 1


def test_no_file_shadows_the_standard_library():
    """`tokenize.py` in a folder on sys.path breaks Python itself."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names, path
