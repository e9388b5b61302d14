"""Every malformed input of the corpus, through all programs: one sentence, in time, and nothing written elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from front_doors import LIMIT_S

MAX_BYTES = 2e9
LEAST_NAMES = {"front_doors.py": 200, "command_doors.py": 600}
"""How many different inputs each program meets at least."""


@pytest.fixture(scope="module", params=list(LEAST_NAMES))
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lines(program: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of every call, in one process of its own, and how much memory that took."""
    path = Path(__file__).parents[1] / "support" / program
    call = [sys.executable, "-W", "error", str(path), str(tmp_path_factory.mktemp("corpus"))]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"MCBO_DEVICE": "cpu"}, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def complaints(line: dict[str, Any]) -> Iterator[str]:
    """What is wrong with what came of a call; an expected sentence of "" means that any will do, or none."""
    if isinstance(line["status"], str):
        yield line["status"]
    elif line["expected"] is None and line["status"] != 0:
        yield "refused"
    elif line["expected"] and line["status"] == 0:
        yield "not refused"
    if line["expected"] and line["expected"] not in line["said"]:
        yield "another sentence"
    if any(not part.isprintable() or len(part) > 2000 for part in line["said"].split("\n")):
        yield "what a terminal would obey, or nobody would read"
    if line["new"]:
        yield f"new files: {line['new']}"
    if line["seconds"] > LIMIT_S:
        yield "too slow"


def test_every_malformed_input_gets_its_sentence_and_does_no_harm(program: str, lines: list[dict[str, Any]]) -> None:
    calls = lines[:-1]
    assert len({line["name"] for line in calls}) >= LEAST_NAMES[program]
    found = {f"{line['name']}, {line['program']}": [*complaints(line), line["said"]] for line in calls if any(complaints(line))}
    assert not found


def test_the_whole_corpus_takes_little_memory(lines: list[dict[str, Any]]) -> None:
    assert lines[-1]["peak_bytes"] < MAX_BYTES
