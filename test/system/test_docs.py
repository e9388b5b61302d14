"""The documentation does what it says: its commands run, its examples give their output, its links lead somewhere."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer

import process
from evaluation.__main__ import app as evaluation_app
from mcbo.cli.main import app as mcbo_app
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import make_phantom
from mcbo.studies.variants import parse_change

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {page.name: page for page in (*DOCS, README)}
BASH = shutil.which("bash") or "bash"
NOT_RUN = re.compile(r"<!-- (not run: \w.*|test-command) -->")
"""The line before a block that is not run here, with the reason; ``.ci/run`` runs the test command."""
RECIPE = re.compile(r"<!-- [\w.-]+ -->")
"""The line before a block of ``cluster.md`` that ``test_recipes.py`` looks at."""
RUN = ("README.md", "register.md", "warp.md", "challenge.md", "python.md")


@dataclass(frozen=True)
class Block:
    """A fenced block of code, and the line before it."""

    language: str
    text: str
    line: int
    marker: str

    @property
    def tested(self) -> bool:
        return not NOT_RUN.fullmatch(self.marker)


def blocks_of(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        marker = text[: match.start()].removesuffix("\n").rpartition("\n")[2]
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, marker))
    return found


def script_of(page: str) -> str:
    """A page as one script: its commands as written, its Python through the interpreter that they name."""
    lines = ["set -euo pipefail"]
    for block in blocks_of(page):
        if block.tested:
            python = block.language == "python"
            lines.append(f".venv/bin/python - <<'END'\n{block.text}END\n" if python else block.text)
    return "\n".join(lines)


def make_clone(folder: Path, dataset: str, *, shape: tuple[int, int, int]) -> Path:
    """What a reader has in front of them after installation, and a data set like the demo's with smaller images."""
    for name in ("process.py", "mcbo", "evaluation"):
        (folder / name).symlink_to(ROOT / name)
    for name, module in (("python", ""), ("mcbo", " -m mcbo")):
        program = folder / ".venv/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        program.chmod(0o755)
    write_dataset(make_phantom(shape, wedge=True), folder / dataset)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the guides, which start from the demo."""
    return make_clone(tmp_path_factory.mktemp("clone"), "demo/dataset", shape=(64, 56, 60))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the README, whose reader has two images and a data set of their own."""
    folder = make_clone(tmp_path_factory.mktemp("newcomer"), "DATA", shape=(48, 44, 46))
    for channel, name in (("0000", "FIXED"), ("0001", "MOVING")):
        shutil.copy(folder / f"DATA/imagesTr/ReMIND2Reg_0001_{channel}.nii.gz", folder / f"{name}.nii.gz")
    return folder


def run_pages(pages: Sequence[str], clone: Path) -> str:
    """What their commands print; fails with all of it if one of them does."""
    told = ""
    for page in pages:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [BASH, "-c", script_of(page)], cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page}: {done.stdout}{done.stderr}"
        told += done.stdout
    return told


@pytest.fixture(scope="module")
def told(clone: Path, newcomer: Path) -> dict[str, str]:
    """The output of the pages with commands, under the first one's name; side by side, since it takes a while."""
    chains = {("register.md", "warp.md"): clone, ("challenge.md",): clone, ("README.md",): newcomer}
    with ThreadPoolExecutor() as pool:
        outputs = pool.map(run_pages, chains, chains.values())
        return {pages[0]: output for pages, output in zip(chains, outputs, strict=True)}


def test_the_commands_of_register_and_warp(clone: Path, told: dict[str, str]) -> None:
    for name in ("warped.nii.gz", "displacement.nii.gz", "transform.h5", "inverse.nii.gz", "report.json", "report.html"):
        assert (clone / "result" / name).is_file(), name
    before, after = (float(line) for line in told["register.md"].split("\n") if re.fullmatch(r"\d+\.\d+", line))
    assert after < 0.6 * before  # voxels, the landmarks' truth is known
    start, back = (
        np.loadtxt(path, delimiter=",")
        for path in (clone / "demo/dataset/landmarksTr/ReMIND2Reg_0001_0000.csv", clone / "back.csv")
    )
    assert np.linalg.norm(back - start, axis=1).mean() < 0.6 * before


def test_the_commands_of_the_challenge(clone: Path, told: dict[str, str]) -> None:
    assert "TRE" in told["challenge.md"]
    assert (clone / "scores.html").is_file()
    assert (clone / "board.html").is_file()


def test_the_commands_of_the_readme(newcomer: Path, told: dict[str, str]) -> None:
    for name in ("result/report.html", "submission/report.json", "scores.html", "saved/displacement.nii.gz"):
        assert (newcomer / name).is_file(), name
    assert "(48, 44, 46, 3)" in told["README.md"]


def test_the_examples_in_python(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    examples = "\n".join(block.text for block in blocks_of("python.md"))
    test = doctest.DocTestParser().get_doctest(examples, {}, "python.md", None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert len(test.examples) > 15
    assert runner.run(test).failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    for block in blocks_of(page):
        if block.tested and page == "cluster.md":
            assert RECIPE.fullmatch(block.marker), f"{page}:{block.line}"
        elif block.tested:
            assert page in RUN, f"{page}:{block.line}"
            assert block.language in ({"pycon"} if page == "python.md" else {"sh", "python"}), f"{page}:{block.line}"
    assert "not tested here" not in PAGES[page].read_text(encoding="utf-8").lower()  # a note to ourselves, not to readers


def test_the_readme_is_short_and_begins_with_what_a_newcomer_needs() -> None:
    text = README.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 120
    assert len(text.split()) <= 1200
    screen = "\n".join(lines[:40])
    for part in (
        "MCBO registers 3D images",
        "](docs/demo.png)",
        "| initial error |",
        "process.py --demo",
        "mcbo register FIXED",
    ):
        assert part in screen, part


def test_the_results_of_the_readme_are_those_of_the_results_page() -> None:
    rows = re.findall(r"^\| .*(?:mm|voxels) \|$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) == 4
    accuracy = PAGES["results.md"].read_text(encoding="utf-8").partition("## Accuracy")[2].partition("## ")[0]
    figures = set(re.findall(r"\d+\.\d+", accuracy))
    assert set(re.findall(r"\d+\.\d+", " ".join(rows))) <= figures


def test_the_installation_is_the_same_everywhere() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -q -e ."
    assert f"{install} && .venv/bin/python process.py --demo --output demo\n" in README.read_text(encoding="utf-8")
    assert f"{install}\n" in PAGES["index.md"].read_text(encoding="utf-8")


def commands() -> Iterator[tuple[str, set[str]]]:
    """Headings of ``cli.md``, and the options of what they are about."""
    for program, app in (("process.py", process.app), ("mcbo", mcbo_app), ("evaluation", evaluation_app)):
        whole = typer.main.get_command(app)
        for name, command in getattr(whole, "commands", {"": whole}).items():
            options = {parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"}
            yield f"{program} {name}".strip(), options


def test_the_page_of_commands_has_every_option_and_no_other() -> None:
    sections = PAGES["cli.md"].read_text(encoding="utf-8").split("\n## ")
    listed = {
        section.partition("\n")[0]: set(re.findall(r"^\| `(--[a-z-]+)", section, flags=re.MULTILINE)) for section in sections
    }
    assert {name: options for name, options in listed.items() if options} == dict(commands())


def test_the_changes_of_the_ablation_can_be_made() -> None:
    changes = set(re.findall(r"[`'](\w+:[^`'\n]+=[^`'\n]+)[`']", PAGES["ablation.md"].read_text(encoding="utf-8")))
    assert len(changes) > 4
    for change in changes:
        parse_change(change, task=DEFAULT_TASK)


@pytest.mark.parametrize("page", [*PAGES.values(), *(ROOT / ".github").glob("*.md")], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:mcbo|evaluation|test|docs|\.ci)/[\w./-]*)", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def anchors_of(page: Path) -> set[str]:
    """As GitHub and mkdocs make them of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower())) for title in titles}


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


def test_the_site_has_every_page() -> None:
    listed = re.findall(r": (\w+\.md)$", (ROOT / ".ci/mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == [page.name for page in DOCS]
