"""What the user may choose of a registration: transform, settings, preset file, landmarks to start from."""

import json
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from geometry import make_grid

import mcbo
from mcbo.api.preset import base_of, read_preset_file, wanted_config
from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.geometry.linear_fit import fit_linear
from mcbo.geometry.rigid import linear_displacement
from mcbo.methods.presets import find_config
from mcbo.studies.phantom import make_phantom

SHAPE = (40, 44, 48)
GRID = make_grid(SHAPE, (1.0, 1.0, 1.0), (0, 0, 0), (5, -8, 40))


@pytest.fixture(scope="module")
def images() -> tuple[Any, Any]:
    phantom = make_phantom(SHAPE, seed=3, wedge=False)
    return phantom.fixed[0, 0].numpy(), phantom.cet1[0, 0].numpy()


def run(images: tuple[Any, Any], **options: Any) -> mcbo.Result:
    return mcbo.register(*images, affine=GRID.affine, preset="cascade", **options)


def nonlinear(result: mcbo.Result) -> float:
    """The largest distance of a displacement from its linear part, voxels."""
    displacement = torch.from_numpy(result.displacement).movedim(-1, 0).unsqueeze(0)
    coefficients = fit_linear(displacement, torch.ones((1, 1, *SHAPE), dtype=torch.bool), offset=(0, 0, 0))
    return float((displacement - linear_displacement(coefficients, SHAPE, offset=(0, 0, 0))).abs().max())


def stretch(result: mcbo.Result) -> float:
    """The largest difference of a singular value of the linear part from 1."""
    displacement = torch.from_numpy(result.displacement).movedim(-1, 0).unsqueeze(0)
    coefficients = fit_linear(displacement, torch.ones((1, 1, *SHAPE), dtype=torch.bool), offset=(0, 0, 0))
    return float((torch.linalg.svdvals(coefficients[0, :, :3] + torch.eye(3, dtype=torch.float64)) - 1).abs().max())


def test_a_transform_has_the_freedom_it_was_given(images: tuple[Any, Any]) -> None:
    results = {
        name: run(images, transform=name, accept="rigid" if name == "rigid" else "full")
        for name in ("rigid", "affine", "deformable")
    }
    assert nonlinear(results["rigid"]) < 1e-3
    assert stretch(results["rigid"]) < 1e-4
    assert nonlinear(results["affine"]) < 1e-3
    assert stretch(results["affine"]) > 1e-4
    assert nonlinear(results["deformable"]) > 0.05
    part = fit_linear(
        torch.from_numpy(results["deformable"].displacement).movedim(-1, 0).unsqueeze(0),
        torch.ones((1, 1, *SHAPE), dtype=torch.bool),
        offset=(0, 0, 0),
    )
    affine = torch.from_numpy(results["affine"].displacement).movedim(-1, 0)
    assert (linear_displacement(part, SHAPE, offset=(0, 0, 0))[0] - affine).abs().mean() < 0.1


def test_a_rigid_result_says_that_no_more_was_asked_for(images: tuple[Any, Any]) -> None:
    judgement = run(images, transform="rigid").judgement
    assert judgement is not None
    assert judgement.chosen in ("rigid", "identity", "cautious")
    assert "full" not in judgement.similarity
    if judgement.chosen == "rigid":
        assert judgement.reason == "only a rigid transform was sought, as the user asked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "spline"}, "transform: expected one of deformable, affine, rigid, got 'spline'"),
        ({"transform": "rigid", "accept": "full"}, "accept: expected rigid or identity where only a rigid transform is sought"),
        ({"transform": "rigid", "preset": "mcbo2024"}, "preset mcbo2024 seeks deformations only"),
        (
            {"settings": {"refinement.bendin": 1}},
            "'refinement.bendin': expected a field of GaussNewton .*bending.*'bendin'",
        ),
        ({"settings": {"refinement.bending": "soft"}}, "expected float, got 'soft'"),
        ({"settings": {"refinement.bending": float("nan")}}, "expected a number up to 1e.09, got nan"),
        ({"settings": {"margin": 10**12}}, "expected a number up to 1e.09"),
        ({"settings": {"margin": -3}}, "expected a whole number of 0 or more, got -3"),
        ({"preset": "missing.toml"}, "missing.toml: "),
    ],
)
def test_choices_that_cannot_be_made_are_told(options: dict[str, Any], message: str) -> None:
    preset, task = options.pop("preset", "cascade"), "ReMIND2Reg"
    with pytest.raises(InputError, match=message):
        wanted_config(preset, task, None, options.pop("accept", None), **options)


def test_settings_that_cannot_be_computed_with_are_blamed(images: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"set start.cells: expected settings that the method can compute with"):
        run(images, settings={"start.cells": 0})


def test_a_preset_file_replaces_settings_of_its_base(tmp_path: Path) -> None:
    path = tmp_path / "soft.toml"
    path.write_text(
        'base = "cascade"\nmargin = 9\n[refinement]\nbending = 0.3\n[refinement.stages.0]\nrounds = 3\n'
        "[deformation]\ncoupling_weights = [0.1, 1]\n"
    )
    assert read_preset_file(path)[0] == base_of(str(path)) == "cascade"
    config, before = wanted_config(str(path), "ReMIND2Reg", None), find_config("ReMIND2Reg")
    assert config.name == "soft"
    assert (config.margin, config.refinement.bending, config.refinement.stages[0].rounds) == (9, 0.3, 3)  # type: ignore[attr-defined]
    assert config.deformation.coupling_weights == (0.1, 1.0)  # type: ignore[attr-defined]
    assert config.judgement == before.judgement  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = ", "expected a preset in TOML, but it cannot be read"),
        ("base = 3", "base: expected the name of a preset, found 3"),
        ('base = "x.toml"', "base: expected the name of a preset"),
        ('base = "other"', "preset 'other' is not known .*auto, or a .toml file"),
        ("[refinement]\nbend = 1", "'refinement.bend': expected a field of GaussNewton"),
        ("\xff", "expected a preset in TOML"),
    ],
)
def test_other_preset_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.toml: .*" + message):
        wanted_config(str(path), "ReMIND2Reg", None)


def test_landmarks_bring_far_images_together_and_wrong_ones_are_named(
    images: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    away = np.eye(4)
    away[:3, 3] = (400, -300, 200)
    fixed = np.array([[5, 6, 7], [30, 8, 9], [6, 35, 10], [8, 9, 40], [20, 21, 22], [33, 30, 12], [11, 28, 31], [25, 12, 38.0]])
    moving = fixed.copy()
    moving[3] += 20
    caplog.set_level(logging.INFO, "mcbo")
    result = mcbo.register(
        (images[0], GRID.affine), (images[1], away @ GRID.affine), preset="cascade", initial_landmarks=(fixed, moving)
    )
    assert np.allclose(np.array(result.report.initial), away, atol=1e-6)
    assert np.abs(result.displacement - away[:3, 3] - run(images).displacement).max() < 0.05
    assert "initial landmarks (rigid, 7 pairs): mean distance 539 mm before, 0 after" in caplog.text
    assert "pair 4 was left out: it is 34.6 mm from where the others say" in caplog.text


def test_landmarks_in_another_order_are_doubted(images: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    fixed = np.array([[5, 6, 7], [30, 8, 9], [6, 35, 10], [8, 9, 40], [33, 30, 12], [11, 28, 31.0]])
    run(images, initial_landmarks=(fixed, fixed[[3, 0, 5, 1, 2, 4]]), transform="rigid", settings={"rigid.rounds": 1})
    assert "the landmarks fit badly: are these the same points in the same order" in caplog.text
    with pytest.raises(InputError, match="landmark_transform: expected with initial landmarks only"):
        run(images, landmark_transform="affine")


@pytest.mark.parametrize("kind", ["csv", "named", "fcsv", "bigwarp"])
def test_the_command_takes_landmarks_of_any_kind(tmp_path: Path, images: tuple[Any, Any], kind: str) -> None:
    for name, image in zip(("fixed", "moving"), images, strict=True):
        nibabel.save(nibabel.Nifti1Image(image, GRID.affine), tmp_path / f"{name}.nii.gz")
    voxels = np.array([[5, 6, 7], [30, 8, 9], [6, 35, 10], [8, 9, 40.0]])
    shifted = voxels + np.array([1, 2, -1])
    ends = {}
    for name, points in (("fixed", voxels), ("moving", shifted)):
        world = GRID.to_world(torch.from_numpy(points)).numpy()
        path = tmp_path / f"{name}.{'fcsv' if kind == 'fcsv' else 'csv'}"
        rows = {"csv": points, "named": world, "fcsv": world, "bigwarp": points}[kind]
        head = {"named": "r,a,s\n", "fcsv": "# CoordinateSystem = RAS\n# columns = id,x,y,z\n"}.get(kind, "")
        body = "".join(
            (f"p{n}," if kind == "fcsv" else "") + ",".join(map(repr, row)) + "\n" for n, row in enumerate(rows.tolist())
        )
        path.write_text(head + body)
        ends[name] = path
    if kind == "bigwarp":
        lines = [
            ",".join(f'"{cell}"' for cell in (f"Pt-{n}", "true", *moving, *fixed))
            for n, (fixed, moving) in enumerate(zip(voxels.tolist(), shifted.tolist(), strict=True))
        ]
        ends["fixed"].write_text("\n".join(lines) + "\n")
        ends["moving"] = ends["fixed"]
    options = [
        "--initial-landmarks",
        str(ends["fixed"]),
        str(ends["moving"]),
        "--transform",
        "rigid",
        "--set",
        "rigid.rounds=1",
    ]
    arguments = [str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"), "--output", str(tmp_path / "out"), "--quiet"]
    assert main(["register", *arguments, *options]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert np.allclose(np.array(report["cases"]["result"]["initial"])[:3, 3], (1, 2, -1) @ GRID.affine[:3, :3].T, atol=1e-5)
    assert report["cases"]["result"]["settings"]["set"] == {"rigid.rounds": 1}
    assert report["config"]["freedom"] == "rigid"
    assert main(["register", *arguments, *options, "--center"]) == 1
