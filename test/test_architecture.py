"""The rules of the house that a machine can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS: list[set[str]] = [
    {"types", "errors", "figures"},
    {"field", "timing", "files", "options", "grid", "jacobian"},
    {"mind", "cost_volume", "convex", "consistency", "refinement", "fusion", "config", "kernels", "memory"}
    | {"mask", "cells", "rigid", "search", "deform", "gauss_newton", "similarity", "global_start", "sanity"}
    | {"resample", "continued", "inverse", "compose", "points"},
    {"location", "fetch_error", "paths", "description", "header", "archive"},
    {"cascade", "pipeline", "tasks", "dataset", "nifti", "runtime", "phantom", "progress", "figure", "variants", "truth"}
    | {"lock", "itk", "itk_files", "images", "landmarks", "initial", "image_like", "working_grid", "world"}
    | {"plane", "picture", "view", "result_folder"},
    {"report", "outputs", "transform", "case_result", "resume", "remote", "plan"},
    {"case_run", "case_load", "case_compute", "case_write", "ledger", "assembly_line", "worker", "cluster"},
    {"runner", "result_files"},
    {"api"},
    {"demo", "benchmark", "ablation", "transform_commands", "register_command", "plan_command"} | {"findings", "html_report"},
    {"__main__"},
]
"""Imports point to a lower layer, or to a neighbor where that makes no circle."""

MODULES = sorted((ROOT / "mcbo").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    return path.relative_to(ROOT / "mcbo").with_suffix("").parts[0]


def layer_of(name: str) -> int:
    return next(level for level, names in enumerate(LAYERS) if name in names)


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("mcbo.")} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    if module_name(path) == "__init__":
        return
    here = layer_of(module_name(path))
    for other in ours(path):
        assert layer_of(other) <= here, f"{module_name(path)} imports {other} from a higher layer"


def test_there_are_no_circles() -> None:
    edges = {module_name(path): ours(path) - {module_name(path)} for path in MODULES}
    done: set[str] = set()
    while free := {name for name, needs in edges.items() if name not in done and needs <= done}:
        done |= free
    assert done == set(edges)


def test_the_judge_and_the_method_share_nothing() -> None:
    for path in (ROOT / "evaluation").glob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] == "mcbo"}, path
    users = {module_name(path) for path in MODULES for name in imported(path) if name.split(".")[0] == "evaluation"}
    assert users == {"demo", "ablation", "findings"}  # what they show has to be what the judge says


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("nibabel", {"nifti", "header"}),
        ("SimpleITK", {"itk", "itk_files", "initial", "transform"}),
        (
            "json",
            {
                "description",
                "report",
                "demo",
                "benchmark",
                "ablation",
                "landmarks",
                "progress",
                "result_folder",
                "html_report",
                "plan_command",
            },
        ),
        ("matplotlib", {"figure", "picture"}),
        ("PIL", {"picture"}),
        ("jinja2", {"html_report"}),
        ("rich", {"progress"}),
        ("numba", {"kernels"}),
        ("isal", {"nifti", "header"}),
        ("fsspec", {"remote"}),
        ("aiohttp", {"remote"}),
        ("dask", {"cluster"}),
        ("distributed", {"cluster"}),
        ("scipy", {"phantom", "figure", "mask", "picture", "view"}),
    ],
)
def test_libraries_stay_where_they_belong(library: str, allowed: set[str]) -> None:
    users = {module_name(path) for path in MODULES for name in imported(path) if name.split(".")[0] == library}
    assert users <= allowed


def test_only_runtime_speaks_of_cuda_and_only_field_samples() -> None:
    for path in MODULES:
        text = path.read_text()
        if module_name(path) != "runtime":
            assert "torch.cuda" not in text
        if module_name(path) != "field":
            assert "grid_sample(" not in text


def test_no_task_is_named_outside_the_presets() -> None:
    for path in [*MODULES, ROOT / "process.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not words & {"ReMIND2Reg", "COMULIS3DCLEM"}, path
