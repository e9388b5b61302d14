"""What can be said of the image without building it; ``container.sh`` builds and runs it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import process

ROOT = Path(process.__file__).parent


def tool(name: str, *arguments: str) -> None:
    """Runs a linter that is installed beside this interpreter."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or name
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_clean() -> None:
    tool("hadolint", "Dockerfile")


def test_the_shell_scripts_are_clean() -> None:
    tool(
        "shellcheck",
        "test/container.sh",
        "test/manual/cuda_compile.sh",
        "test/manual/gpu_check.sh",
        ".ci/run",
        ".ci/tool",
        ".ci/lock",
        ".ci/sbom",
    )


def test_the_image_gets_what_the_program_imports_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    assert {f"!{name}" for name in sources} == {line for line in ignored if line.startswith("!")}


def test_requirements_are_pinned() -> None:
    pinned = r"[A-Za-z0-9_.-]+(\[[a-z0-9,]+\])?==[0-9][A-Za-z0-9.]*( ; sys_platform == '[a-z0-9]+')?"
    for file in ("requirements.txt", "test/requirements.txt", ".ci/requirements.txt"):
        lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(pinned, line) for line in lines), file
