"""The documentation does what it says: its commands run, its examples give their output, its links lead somewhere."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import make_phantom

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BASH = shutil.which("bash") or "bash"
UNTESTED = "*Not tested here:"
RUN = ("register.md", "warp.md", "challenge.md", "python.md")


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``tested`` unless the paragraph before it says otherwise, to the reader too."""

    language: str
    text: str
    line: int
    tested: bool


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        paragraph = text[: match.start()].rstrip().rpartition("\n\n")[2]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, not paragraph.startswith(UNTESTED)))
    return found


def script_of(page: str) -> str:
    """A page as one script: its commands as written, its Python through the interpreter that they name."""
    lines = ["set -euo pipefail"]
    for block in blocks_of(ROOT / "docs" / page):
        if block.tested:
            python = block.language == "python"
            lines.append(f".venv/bin/python - <<'END'\n{block.text}END\n" if python else block.text)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has in front of them after installation and demo; the demo's images are smaller."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("process.py", "mcbo", "evaluation"):
        (folder / name).symlink_to(ROOT / name)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    write_dataset(make_phantom((64, 56, 60), wedge=True), folder / "demo/dataset")
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
def told(clone: Path) -> dict[str, str]:
    """The output of the pages with commands, under the first one's name; side by side, since it takes a while."""
    chains = [("register.md", "warp.md"), ("challenge.md",)]
    with ThreadPoolExecutor() as pool:
        outputs = pool.map(lambda pages: run_pages(pages, clone), chains)
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


def test_the_examples_in_python(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    page = ROOT / "docs/python.md"
    examples = "\n".join(block.text for block in blocks_of(page))
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert len(test.examples) > 15
    assert runner.run(test).failed == 0


def test_every_block_of_a_how_to_is_run_or_says_why_not() -> None:
    for name in ("index.md", *RUN):
        for block in blocks_of(ROOT / "docs" / name):
            assert block.language in ({"pycon"} if name == "python.md" else {"sh", "python"}), f"{name}:{block.line}"
            assert name in RUN or not block.tested, f"{name}:{block.line}"


def anchors_of(page: Path) -> set[str]:
    """As GitHub and mkdocs make them of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower())) for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
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
    assert sorted(listed) == [page.name for page in PAGES]
