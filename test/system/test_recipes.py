"""The recipes of docs/cluster.md: what can be said of them without a cluster; stand-ins take the place of its programs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import write_dataset, write_nifti

from mcbo.studies.phantom import make_phantom

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/cluster.md").read_text()

APPTAINER = f"""#!{sys.executable}
import os, sys
arguments = sys.argv[1:]
image = next(i for i, argument in enumerate(arguments) if argument.endswith(".sif"))
assert arguments[0] == "run", arguments
inside = {{}}
for flag, bind in zip(arguments, arguments[1:]):
    if flag == "-B":
        here, there, *_ = bind.split(":")
        inside[there] = here
environment = {{k.removeprefix("APPTAINERENV_"): v for k, v in os.environ.items() if k.startswith("APPTAINERENV_")}}
environment |= {{"MCBO_INPUT": inside["/input"], "MCBO_OUTPUT": inside["/output"], "NUMBA_CACHE_DIR": "/tmp/numba"}}
environment |= {{"PATH": os.environ["PATH"], "MCBO_PRESET": "mcbo2024", "MCBO_DEVICE": "cpu"}}
os.execve(sys.executable, [sys.executable, "{ROOT / "process.py"}", *arguments[image + 1 :]], environment)
"""
"""Starts process.py with the folders that are bound, the arguments behind the image, and nothing else of the environment."""

ECHO = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
"""Says what it was called with."""

PARALLEL = f"""#!{sys.executable}
import subprocess, sys
command = sys.argv[sys.argv.index("--joblog") + 2 :]
for line in sys.stdin:
    subprocess.run([part.replace("{{}}", line.strip()) for part in command], check=True)
"""
"""The command for each line, one after the other."""


def recipe(name: str) -> str:
    """The code block that follows its name."""
    found = re.findall(rf"<!-- {re.escape(name)} -->\n```[a-z]*\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert len(found) == 1, name
    return str(found[0])


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def sh(script: str, folder: Path, variables: Mapping[str, str]) -> list[list[str]]:
    """Runs lines of shell in which programs of ``folder/bin`` come first; what the echoes among them were called with."""
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **variables}
    done = subprocess.run(["/bin/sh", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def shard_of(arguments: list[str]) -> str:
    return arguments[arguments.index("--shard") + 1]


def test_every_recipe_has_a_name_and_says_what_was_not_run() -> None:
    sections = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    assert len(sections) == 5
    for section in sections:
        assert re.search(r"^<!-- [\w.-]+ -->$", section, flags=re.MULTILINE)
        status = section.partition("**Status:**")[2]
        assert re.search(r"\b[Nn]ot run\s(on|with)\b", status), section


def test_the_shell_scripts_are_clean(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
    files = [program(tmp_path / f"{number}.sh", block) for number, block in enumerate(blocks)]
    done = subprocess.run([shellcheck, "--shell=bash", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases."""
    folder = tmp_path_factory.mktemp("data")
    for case in ("0001", "0002", "0003"):
        phantom = make_phantom((14, 12, 17), seed=int(case))
        for channel, image in enumerate((phantom.fixed, phantom.cet1)):
            write_nifti(folder / f"imagesTr/ReMIND2Reg_{case}_000{channel}.nii.gz", image[0, 0].numpy().astype(np.int16))
    write_dataset(folder, [(f"ReMIND2Reg_000{i}_0000.nii.gz", f"ReMIND2Reg_000{i}_0001.nii.gz") for i in (1, 2, 3)])
    return folder


def test_the_slurm_script_does_an_array_and_then_the_whole(data: Path, tmp_path: Path) -> None:
    script = program(tmp_path / "mcbo.sbatch", recipe("mcbo.sbatch"))
    program(tmp_path / "bin/apptainer", APPTAINER)
    (tmp_path / "out").mkdir()
    given = {"DATA": str(data), "OUT": str(tmp_path / "out"), "IMAGE": "/SHARED/mcbo.sif"}

    def start(task: int, count: int) -> subprocess.Popen[str]:
        slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
        slurm |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "8192"}
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **given, **slurm}
        return subprocess.Popen([script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for task in [start(1, 2), start(2, 2)]:
        said = task.communicate(timeout=600)[0]
        assert task.returncode == 0, said
    reports = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("report*.json")}
    assert {name: sorted(report["cases"]) for name, report in reports.items()} == {
        "report-1-of-2.json": ["0001", "0003"],
        "report-2-of-2.json": ["0002"],
    }
    assert reports["report-1-of-2.json"]["threads"] == 1
    whole = start(1, 1)
    said = whole.communicate(timeout=600)[0]
    assert whole.returncode == 0, said
    assert said.count("done before with the same input and config, skipped") == 3
    assert len(list((tmp_path / "out").glob("disp_*.nii.gz"))) == 3


def test_the_slurm_script_asks_for_its_folders(tmp_path: Path) -> None:
    script = program(tmp_path / "mcbo.sbatch", recipe("mcbo.sbatch"))
    done = subprocess.run([script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the data set folder" in done.stderr


def test_the_dask_script_compiles_and_has_one_case_a_worker() -> None:
    text = recipe("run_on_slurm.py")
    compile(text, "run_on_slurm.py", "exec")
    assert "cores=1" in text
    assert "processes=1" in text


def test_the_kubernetes_job_fits_together_and_gives_every_index_its_shard(tmp_path: Path) -> None:
    job: dict[str, Any] = yaml.safe_load(recipe("mcbo-job.yaml"))
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # as a pod failure policy has it
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"] == {"containerName": "mcbo", "operator": "In", "values": [1, 2]}
    assert container["name"] == "mcbo"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert set(mounts.values()) == {"/input", "/output", "/tmp"}
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    program(tmp_path / "bin/python", ECHO)
    assert container["command"] == ["sh", "-c"]
    (line,) = container["args"]
    count = spec["completions"]
    shards = [shard_of(sh(line, tmp_path, {"JOB_COMPLETION_INDEX": str(index)})[0]) for index in (0, count - 1)]
    assert shards == [f"1/{count}", f"{count}/{count}"]


def test_the_batch_image_gives_every_index_its_shard(tmp_path: Path) -> None:
    definition = json.loads(recipe("job-definition.json"))
    properties = definition["containerProperties"]
    assert {mount["sourceVolume"] for mount in properties["mountPoints"]} == {one["name"] for one in properties["volumes"]}
    entry: list[str] = json.loads(re.findall(r"^ENTRYPOINT (.*)$", recipe("Dockerfile.batch"), flags=re.MULTILINE)[0])
    program(tmp_path / "bin/python", ECHO)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "AWS_BATCH_JOB_ARRAY_SIZE": "20"}
    for index, shard in ((0, "1/20"), (19, "20/20")):
        environment["AWS_BATCH_JOB_ARRAY_INDEX"] = str(index)
        done = subprocess.run([*entry, *properties["command"]], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == ["process.py", "--shard", shard, *properties["command"]]


def test_the_pins_of_the_recipes_are_those_of_the_extra() -> None:
    pins = re.findall(r"s3fs==[0-9.]+", (ROOT / "pyproject.toml").read_text())
    assert set(re.findall(r"s3fs==[0-9.]+", TEXT)) == set(pins)


def test_the_lines_for_parallel_do_every_shard_and_then_the_whole(tmp_path: Path) -> None:
    program(tmp_path / "bin/parallel", PARALLEL)
    program(tmp_path / ".venv/bin/python", ECHO)
    calls = sh(recipe("parallel.sh"), tmp_path, {})
    assert [shard_of(call) for call in calls[:-1]] == [f"{number}/8" for number in range(1, 9)]
    assert "--shard" not in calls[-1]
