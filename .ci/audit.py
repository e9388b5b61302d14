#!/usr/bin/env python3
"""Asks pip-audit whether a package of the image has a known vulnerability.

usage: .ci/audit.py [OPTION OF PIP-AUDIT …]      --ignore-vuln ID accepts a vulnerability, say why beside it

Status 0: none is known, or no source of advisories answered, which is said. Status 1: one is known.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60
"""For all of it. A source that hangs is a source that does not answer."""


def pinned() -> list[str]:
    """What the image holds, each as ``name==version``: the lock, and torch beside it."""
    locked = re.findall(r"^[a-z0-9-]+==[^\s;]+", (ROOT / ".ci/image.lock").read_text(), flags=re.MULTILINE)
    return [*locked, *re.findall(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)]


def judge(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit status, and the lines to print.

    Args:
        report: what ``pip-audit --format json`` wrote. A package that its source does not know has no ``vulns`` there, and
            pip-audit itself calls that "no known vulnerabilities".
    """
    packages = report["dependencies"]
    known = [package for package in packages if "vulns" in package]
    unknown = [package["name"] for package in packages if "vulns" not in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for package in known
        for flaw in package["vulns"]
    ]
    if not known:
        return 0, ["NOT AUDITED: the source of advisories knows none of the packages"]
    lines = [f"audited {len(known)} packages, known vulnerabilities: {len(found)}", *found]
    if unknown:
        lines.append(f"NOT AUDITED, the source does not know them: {', '.join(unknown)}")
    return int(bool(found)), lines


def main() -> int:
    """Audits, prints, and gives the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        packages, report = Path(folder) / "packages.txt", Path(folder) / "report.json"
        packages.write_text("\n".join(pinned()))
        command = ["timeout", "--kill-after=5", str(LIMIT_S), str(ROOT / ".ci/tool"), "pip-audit", "pip-audit", "--disable-pip"]
        command += ["--no-deps", "--progress-spinner=off", "--format=json", f"--output={report}", f"--requirement={packages}"]
        done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True, check=False)
        reason = f"no answer within {LIMIT_S} s" if done.returncode == 124 else (done.stderr.splitlines() or ["unknown"])[-1]
        if not report.is_file():  # pip-audit has the same status for this and for a finding
            print(f"NOT AUDITED: no source of advisories answered: {reason}")
            return 0
        status, lines = judge(json.loads(report.read_text()))
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
