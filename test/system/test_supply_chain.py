"""The lock of the image, and what the audit says of it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "run .ci/lock and commit .ci/image.lock"


def locked() -> dict[str, tuple[str, str]]:
    """Name → version and all that follows it up to the next name."""
    entries = re.findall(r"^([a-z0-9-]+)==([^\s;]+)(.*(?:\n .*)*)", (ROOT / ".ci/image.lock").read_text(), flags=re.MULTILINE)
    assert len({name for name, *_ in entries}) == len(entries) > 0, f"one version of each package; {REMEDY}"
    return {name: (version, rest) for name, version, rest in entries}


def test_the_lock_has_what_requirements_pin() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    entries = [line.partition(" ;")[0] for line in lines if line and not line.startswith("#")]
    pins = dict(entry.lower().replace("_", "-").split("==") for entry in entries)
    del pins["torch"]  # see Dockerfile
    versions = {name: version for name, (version, _) in locked().items()}
    assert pins == {name: versions.get(name) for name in pins}, REMEDY


def test_every_line_of_the_lock_is_an_entry_with_hashes() -> None:
    entries = locked()
    lines = [line for line in (ROOT / ".ci/image.lock").read_text().splitlines() if not line.startswith("#")]
    assert sum(1 + rest.count("\n") for _, rest in entries.values()) == len(lines), REMEDY
    for name, (_, rest) in entries.items():
        marker, *hashes = rest.split("\\\n")
        assert hashes, f"{name} has no hash; {REMEDY}"
        assert re.fullmatch(r" (; [a-z_]+ [<=>]+ '[a-z0-9.]+' )?", marker), f"{name}: {marker}"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64} ?", line) for line in hashes), name


def test_what_an_index_decides_is_not_in_the_lock() -> None:
    ours = {"cuda-core", "cuda-pathfinder"}  # one package for every index
    assert not [name for name in locked() if name.startswith(("torch", "triton", "nvidia", "cuda")) and name not in ours]


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, on a tree of its own whose ``.ci/tool`` the test writes."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/image.lock").write_text(
        "# made\nrich==15.0.0 \\\n    --hash=sha256:0\nwin==1 ; os == 'x' \\\n    --hash=sha256:1\n"
    )
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\nrich==15.0.0\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["audit.py"])
    return module


def answer(audit: ModuleType, script: str) -> None:
    tool = audit.ROOT / ".ci/tool"
    tool.write_text(f"#!/bin/sh\nfor option; do case $option in --output=*) out=${{option#*=}} ;; esac; done\n{script}\n")
    tool.chmod(0o755)


CLEAN: dict[str, Any] = {"name": "rich", "version": "15.0.0", "vulns": []}
FLAWED: dict[str, Any] = {"name": "win", "version": "1", "vulns": [{"id": "CVE-1-2", "fix_versions": ["2", "3"]}]}
SKIPPED: dict[str, Any] = {"name": "torch", "skip_reason": "not found"}


def test_the_audit_asks_for_the_lock_and_torch(audit: ModuleType) -> None:
    assert audit.pinned() == ["rich==15.0.0", "win==1", "torch==2.13.0"]


@pytest.mark.parametrize(
    ("packages", "status", "lines"),
    [
        ([CLEAN], 0, ["audited 1 packages, known vulnerabilities: 0"]),
        ([CLEAN, FLAWED], 1, ["audited 2 packages, known vulnerabilities: 1", "win 1: CVE-1-2, mended in 2, 3"]),
        (
            [CLEAN, SKIPPED],
            0,
            ["audited 1 packages, known vulnerabilities: 0", "NOT AUDITED, the source does not know them: torch"],
        ),
        ([SKIPPED], 0, ["NOT AUDITED: the source of advisories knows none of the packages"]),
    ],
)
def test_the_verdict(audit: ModuleType, packages: list[dict[str, Any]], status: int, lines: list[str]) -> None:
    assert audit.judge({"dependencies": packages}) == (status, lines)


def test_a_finding_fails(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    flaw = '{"id": "CVE-1-2", "fix_versions": []}'
    answer(audit, f"""echo '{{"dependencies": [{{"name": "win", "version": "1", "vulns": [{flaw}]}}]}}' > "$out"; exit 1""")
    assert audit.main() == 1
    assert "win 1: CVE-1-2, mended in no version" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "reason"), [("echo 'no route' >&2; exit 1", "no route"), ("sleep 60", "no answer within 1 s")]
)
def test_a_source_that_cannot_be_reached_is_said_and_does_not_fail(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, reason: str
) -> None:
    monkeypatch.setattr(audit, "LIMIT_S", 1)
    answer(audit, script)
    assert audit.main() == 0
    assert capsys.readouterr().out == f"NOT AUDITED: no source of advisories answered: {reason}\n"
