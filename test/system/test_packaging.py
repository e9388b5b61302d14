"""What an installation has, and what a stranger sees of it, told from the checkout: nothing is installed."""

import importlib
import pydoc
import re
import rlcompleter
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath

import pytest

import mcbo
from mcbo.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("mcbo", "evaluation")
PUBLIC = ["Result", "Transform", "register"]


def test_the_command_is_there() -> None:
    module, _, function = SETTINGS["project"]["scripts"]["mcbo"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_only_the_two_packages_are_installed() -> None:
    assert SETTINGS["tool"]["setuptools"]["packages"] == {"find": {"include": [f"{name}*" for name in PACKAGES]}}
    assert "py-modules" not in SETTINGS["tool"]["setuptools"]
    for file in (file for name in PACKAGES for file in (ROOT / name).rglob("*.py")):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent}: would not be found"


def test_every_file_that_is_no_code_is_package_data() -> None:
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    patterns = [f"{name.replace('.', '/')}/{pattern}" for name, listed in data.items() for pattern in listed]
    files = [file.relative_to(ROOT) for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()]
    others = [file for file in files if file.suffix != ".py" and "__pycache__" not in file.parts]
    assert {PurePath("mcbo/py.typed"), PurePath("evaluation/py.typed")} <= set(others)
    for file in others:
        assert any(file.match(pattern) for pattern in patterns), f"{file}: not in package-data"
    for pattern in patterns:
        assert any(file.match(pattern) for file in others), f"package-data: nothing is {pattern}"


def test_a_stranger_sees_the_public_names_and_no_others() -> None:
    importlib.import_module("mcbo.progress")  # makes it an attribute
    assert dir(mcbo) == sorted([*PUBLIC, "__version__"]) == sorted(mcbo.__all__)
    completed = rlcompleter.Completer({"mcbo": mcbo}).attr_matches("mcbo.")
    assert [name.removeprefix("mcbo.").rstrip("()") for name in completed] == PUBLIC
    page = pydoc.plain(pydoc.render_doc(mcbo))
    sections = re.split(r"^([A-Z][A-Z ]+)$", page, flags=re.MULTILINE)[1::2]
    assert sections == ["NAME", "DESCRIPTION", "PACKAGE CONTENTS", "CLASSES", "FUNCTIONS", "VERSION", "FILE"]
    assert re.findall(r"^    class (\w+)", page, flags=re.MULTILINE) == ["Result", "Transform"]
    functions = page[page.index("\nFUNCTIONS\n") : page.index("\nVERSION\n")]
    assert re.findall(r"^    (\w+)\(", functions, flags=re.MULTILINE) == ["register"]


def test_the_version_is_told_by_both_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mcbo {mcbo.__version__}\n"
    told = subprocess.run([sys.executable, "-m", "mcbo", "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == f"mcbo {mcbo.__version__}\n"
