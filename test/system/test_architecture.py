"""The rules of the house that a machine can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ORDER: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "_version core",
        "geometry",
        "io steps",
        "dataset kernels",
        "methods runtime progress",
        "report",
        "qc",
        "runs api",
        "studies",
        "cli napari",
        "__init__ __main__",
    )
)
"""Packages, and the few modules beside them: each imports only from its own package and from earlier lines."""

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
    """``geometry.grid``; ``kernels.cpu`` for the package's own file."""
    parts = path.relative_to(ROOT / "mcbo").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def ours(path: Path) -> set[str]:
    """The modules of this package that one imports, as ``module_name`` calls them."""
    known = {module_name(module) for module in MODULES}
    found = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "mcbo":
            found.add(next((n for end in range(len(parts), 1, -1) if (n := ".".join(parts[1:end])) in known), "__init__"))
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    floor = {name: level for level, names in enumerate(ORDER) for name in names}
    here = module_name(path).split(".")[0]
    for other in {name.split(".")[0] for name in ours(path)} - {here}:
        assert floor[other] < floor[here], f"{module_name(path)} imports {other}, which is not on a lower floor"


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in MODULES}:
        assert len(list(folder.glob("*.py"))) <= 15, f"{folder}: more than 14 modules beside __init__.py"


def test_there_are_no_circles() -> None:
    edges = {module_name(path): ours(path) - {module_name(path)} for path in MODULES}
    done: set[str] = set()
    while free := {name for name, needs in edges.items() if name not in done and needs <= done}:
        done |= free
    assert done == set(edges)


def test_the_judge_and_the_method_share_nothing() -> None:
    for path in (ROOT / "evaluation").rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] == "mcbo"}, path
    users = {module_name(path) for path in MODULES for name in imported(path) if name.split(".")[0] == "evaluation"}
    assert users == {"studies.demo_results", "studies.ablation", "qc.findings"}  # what they show has to be what the judge says


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("nibabel", {"io.nifti", "io.nifti_header", "io.sandbox.with_nibabel"}),
        ("SimpleITK", {"io.itk", "io.itk_files", "io.sandbox.with_itk", "io.foreign.elastix", "api.transform"}),
        (
            "json",
            {
                "io.json_file",
                "io.sandbox.wire",
                "report",
                "progress",
                "qc.page",
                "studies.demo",
                "studies.device_use",
                "cli.studies",
            },
        ),
        ("matplotlib", {"studies.demo_results", "qc.picture"}),
        ("PIL", {"qc.picture"}),
        ("jinja2", {"qc.page"}),
        ("rich", {"progress"}),
        ("numba", {"kernels.simd", "kernels.cpu", "kernels.cpu.correlation", "kernels.cpu.features", "kernels.cpu.sampling"}),
        ("cuda", {"kernels.cuda.compiler", "kernels.cuda.device"}),
        ("isal", {"io.nifti", "io.nifti_header", "io.formats.format", "io.formats.gipl", "qc.volume"}),
        ("tifffile", {"io.microscopy.tiff", "io.microscopy.tiff_size"}),
        ("zarr", {"io.microscopy.ome_zarr", "io.microscopy.ngff_field"}),
        ("fsspec", {"dataset.fetch"}),
        ("aiohttp", {"dataset.fetch"}),
        ("dask", {"runs.cluster"}),
        ("distributed", {"runs.cluster"}),
        ("scipy", {"studies.phantom", "studies.demo_results", "qc.picture", "qc.view"}),
        ("cc3d", {"geometry.mask"}),
        ("napari", {"napari.widget"}),
        ("magicgui", {"napari.widget"}),
    ],
)
def test_libraries_stay_where_they_belong(library: str, allowed: set[str]) -> None:
    users = {module_name(path) for path in MODULES for name in imported(path) if name.split(".")[0] == library}
    assert users <= allowed


def test_only_runtime_and_the_launcher_speak_of_cuda_and_only_field_samples() -> None:
    for path in MODULES:
        text = path.read_text()
        if module_name(path) not in ("runtime", "kernels.cuda.device"):
            assert "torch.cuda" not in text
        if module_name(path) != "core.field":
            assert "grid_sample(" not in text


def test_no_task_is_named_outside_the_presets() -> None:
    for path in [*MODULES, ROOT / "process.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not words & {"ReMIND2Reg", "COMULIS3DCLEM"}, path
