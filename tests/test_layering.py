"""Dependencies run one way, and files that travel to the Hub import only what every user of transformers has."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling_toto", "tokenization", "training", "evaluation", "studies", "benchmarks")
# What a package may import of the project besides itself: modeling_toto, tokenization <- training <- evaluation, and
# on top of these the repository's own studies and benchmarks.
MAY_IMPORT = {
    "modeling_toto": set(),
    "tokenization": set(),
    "training": {"modeling_toto", "tokenization"},
    "evaluation": {"modeling_toto", "tokenization", "training"},
    "studies": {"modeling_toto", "tokenization", "training", "evaluation"},
    "benchmarks": {"modeling_toto", "tokenization", "training", "evaluation"},
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


def imported_files(path: Path, root: Path) -> set[Path]:
    """Files of the project that a file imports by name, relatively or absolutely, wherever the import stands.

    `from package.x import y` is package/x/y.py, package/x.py or package/x/__init__.py, whichever exists first. The
    packages on the way, whose `__init__` Python runs as well, do not count.
    """

    def file_of(parts: list[str]) -> Path | None:
        base = root.joinpath(*parts)
        return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if parts and f.is_file()), None)

    found = set()
    for node, _, _ in imports(path):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name.split(".")) for alias in node.names}
            continue
        start = list(path.relative_to(root).parent.parts)
        start = start[: len(start) - node.level + 1] if node.level else []
        module = start + (node.module.split(".") if node.module else [])
        found |= {file_of([*module, alias.name]) or file_of(module) for alias in node.names}
    return found - {None}


def circle(package: Path) -> list[str]:
    """Files of a package that import each other in a circle, the first one last again; empty where there is none."""
    graph = {path: imported_files(path, package.parent) for path in package.rglob("*.py")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [path.relative_to(package).as_posix() for path in reversed(error.args[1])]
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_another_in_a_circle(package):
    """Imports inside functions and under TYPE_CHECKING count."""
    assert not circle(ROOT / package)


@pytest.mark.parametrize(
    "back",
    [
        "from .a import f",
        "from . import a",
        "import package.a",
        "from package import a",
        "from package.a import f",
        "from ..package.a import f",
        "def f():\n    from .a import f",
        "if TYPE_CHECKING:\n    from .a import f",
        "try:\n    import package.a as b\nexcept ImportError:\n    pass",
        "from package import f",  # the package's face, which imports a
    ],
)
def test_a_circle_is_found(tmp_path, back):
    for name, text in {"__init__": "from .a import f", "a": "import torch\nfrom .room.c import g", "b": back}.items():
        (tmp_path / "package" / "room").mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / f"{name}.py").write_text(text)
    (tmp_path / "package" / "room" / "c.py").write_text("from package import b\nfrom os import path")
    found = circle(tmp_path / "package")
    assert found[0] == found[-1] and {"a.py", "b.py", "room/c.py"} <= set(found)
    (tmp_path / "package" / "b.py").write_text("from os import path")
    (tmp_path / "package" / "room" / "c.py").write_text("from package import b")
    assert not circle(tmp_path / "package")


def test_no_room_imports_another_in_a_circle():
    """A room is a folder of a package, or a file at its root."""

    def room(path: Path) -> str:
        return "/".join(path.relative_to(ROOT).parts[:2])

    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            graph.setdefault(room(path), set()).update(room(file) for file in imported_files(path, ROOT))
    assert "evaluation/probe" in graph and "training/engine" in graph["training/pretrain.py"]
    TopologicalSorter({name: rooms - {name} for name, rooms in graph.items()}).prepare()


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
