"""What the wheel holds: the four packages with their data, and no study, benchmark or test."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = {"modeling_toto", "tokenization", "training", "evaluation"}


@pytest.fixture
def arguments(monkeypatch):
    """The arguments of setup() in setup.py, which is run without building anything."""
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def data_files(arguments):
    """Files that package_data matches."""
    for package, patterns in arguments["package_data"].items():
        for pattern in patterns:
            found = [file for file in (ROOT / package.replace(".", "/")).glob(pattern) if file.is_file()]
            assert found, f"{pattern} of {package} matches no file"
            yield from (file.resolve().relative_to(ROOT) for file in found)


def test_the_wheel_holds_no_study_benchmark_or_test(arguments):
    assert {package.split(".")[0] for package in arguments["packages"]} == PRODUCT
    assert arguments["py_modules"] == ["toto_cli"]
    assert set(arguments["package_data"]) <= set(arguments["packages"])
    for file in data_files(arguments):
        assert file.parts[0] in PRODUCT, file


def test_the_wheel_holds_every_module_and_template(arguments):
    folders = {package.replace(".", "/") for package in arguments["packages"]}
    for package in PRODUCT:
        for file in (ROOT / package).rglob("*.py"):
            folder = file.parent.relative_to(ROOT).as_posix()
            assert folder in folders, f"setup.py does not name the package of {file.relative_to(ROOT)}"
    data = set(data_files(arguments))
    for package in PRODUCT:
        for file in (ROOT / package).rglob("templates/*"):
            assert file.relative_to(ROOT) in data, f"package_data does not match {file.relative_to(ROOT)}"


def test_type_checkers_read_the_annotations_of_every_package(arguments):
    """PEP 561: without py.typed in the wheel they ignore an installed package's annotations."""
    assert {Path(package, "py.typed") for package in PRODUCT} <= set(data_files(arguments))
