"""What organizers run: jobs of grand-challenge.org, MetaImage displacements, and the folders of Codabench."""

import json
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import write_nifti
from numpy.typing import NDArray

from evaluation.__main__ import ALL_SCORED, BAD_INPUT, main
from evaluation.errors import EvaluationError
from evaluation.pairs import read_pairs
from evaluation.platforms.grand_challenge import run_each
from evaluation.platforms.jobs import assign, read_jobs
from evaluation.platforms.metaimage import read_metaimage
from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import make_phantom

SLUG = "displacement-field"
KEYS = ("aaaa", "bbbb", "cccc", "dddd")
SHAPE = (24, 26, 28)

LPS = np.array([-1.0, -1.0, 1.0])
FLIP = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Between RAS and LPS."""

Field = NDArray[np.float32]
Affine = NDArray[np.float64]


def metaimage(field: NDArray[np.float64], affine: Affine, *, vectors: bool, double: bool = True) -> sitk.Image:
    """LPS vectors ``(H, W, D, 3)`` on the grid of an affine in RAS, as ITK has them."""
    kind = np.float64 if double else np.float32
    array = field.astype(kind).transpose(2, 1, 0, 3) if vectors else field.astype(kind).transpose(3, 2, 1, 0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=vectors)
    lps = FLIP @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = np.eye(3 if vectors else 4)
    direction[:3, :3] = lps[:3, :3] / spacing
    extra = [] if vectors else [0.0]
    image.SetOrigin([*lps[:3, 3].tolist(), *extra])
    image.SetSpacing([*spacing.tolist(), *(1.0 for _ in extra)])
    image.SetDirection(direction.ravel().tolist())
    return image


def oblique(seed: int = 0) -> Affine:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([0.6, 0.8, 2.5])
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    return affine


def write_image(path: Path, affine: Affine, shape: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.float32), affine), path)
    return path


@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "four dimensions"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("same_grid", [True, False])
def test_itk_moves_points_as_the_displacement_does(tmp_path: Path, vectors: bool, compressed: bool, same_grid: bool) -> None:
    """Points of the fixed image, moved in the world by ITK's transform and in voxels by what is read, meet to 1e-3 mm."""
    shape = (7, 9, 6)
    fixed = write_image(tmp_path / "fixed.nii.gz", oblique(), shape)
    moving = fixed if same_grid else write_image(tmp_path / "moving.nii.gz", oblique(1), shape)
    of_fixed, of_moving = (np.asarray(nibabel.load(path).affine) for path in (fixed, moving))  # type: ignore[attr-defined]
    lps = np.random.default_rng(2).normal(0, 3, (*shape, 3))
    path = tmp_path / "field.mha"
    image = metaimage(lps, of_fixed, vectors=vectors)
    sitk.WriteImage(image, path, compressed)
    found = read_metaimage(path, fixed=fixed, moving=moving, shape=shape)
    transform = sitk.DisplacementFieldTransform(metaimage(lps, of_fixed, vectors=True))
    for voxel in ((0, 0, 0), (3, 4, 2), (6, 8, 5)):
        point = FLIP @ of_fixed @ [*voxel, 1]
        moved = transform.TransformPoint(point[:3].tolist())
        here = FLIP @ of_moving @ [*(np.array(voxel) + found[voxel]), 1]
        assert here[:3] == pytest.approx(np.array(moved), abs=1e-3)


def test_float32_and_double_give_the_same_bits(tmp_path: Path) -> None:
    """On voxels of 0.5 mm, that is: a displacement comes back from millimeters as it was."""
    affine = np.diag((0.5, 0.5, 0.5, 1))
    fixed = write_image(tmp_path / "fixed.nii.gz", affine, (6, 5, 4))
    field = np.random.default_rng(0).normal(0, 3, (6, 5, 4, 3)).astype(np.float32)
    for double in (True, False):
        sitk.WriteImage(metaimage(field * [-0.5, -0.5, 0.5], affine, vectors=True, double=double), tmp_path / "field.mha")
        assert np.array_equal(read_metaimage(tmp_path / "field.mha", fixed=fixed, moving=fixed, shape=(6, 5, 4)), field)


def header_with(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        assert old in whole
        return whole.replace(old, new, 1)

    return change


def flip_a_byte(whole: bytes) -> bytes:
    middle = whole.index(b"LOCAL") + (len(whole) - whole.index(b"LOCAL")) // 2
    return whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]


@pytest.mark.parametrize(
    ("compressed", "spoil", "message"),
    [
        (False, lambda whole: whole[: len(whole) // 2], "its header claims 1440 bytes, and"),
        (False, lambda whole: whole + b"0", "its header claims 1440 bytes, and 1441 follow it"),
        (True, lambda whole: whole[:-200], "its data cannot be read"),
        (True, flip_a_byte, "its data cannot be read"),
        (True, header_with(b"DimSize = 6 5 4", b"DimSize = 6 5 3"), "expected the shape"),
        (True, header_with(b"DimSize = 6 5 4", b"DimSize = 999999 99 4"), "its header claims the sizes"),
        (True, header_with(b"DimSize = 6 5 4", b"DimSize = 600 500 400"), "its header claims 1440000000 bytes"),
        (True, header_with(b"DimSize = 6 5 4", b"DimSize = -6 5 4"), "not 3 whole numbers"),
        (True, header_with(b"NDims = 3", b"NDims = -3"), "not 1 whole number"),
        (True, header_with(b"NDims = 3", b"NDims = 16"), "it has 16 dimensions"),
        (False, header_with(b"Channels = 3", b"Channels = 2"), "not vectors of three components"),
        (False, header_with(b"MET_FLOAT", b"MET_SHORT"), "its voxels are 'MET_SHORT', not MET_FLOAT or MET_DOUBLE"),
        (False, header_with(b"LOCAL", b"/etc/passwd"), "ElementDataFile '/etc/passwd', not LOCAL"),
        (False, header_with(b"LOCAL", b"s%s.raw 1 10 1"), "not LOCAL"),
        (False, header_with(b"LOCAL", b"LIST"), "not LOCAL"),
        (False, header_with(b"ObjectType", b"HeaderSize = 9\nObjectType"), "has a HeaderSize"),
        (False, header_with(b"NDims = 3", b"NDims = 3\nNDims = 3"), "has 'NDims' twice"),
        (False, header_with(b"NDims = 3", b"hello"), "has the line 'hello'"),
        (False, header_with(b"Offset = 0 0 0", b"Offset = 0 0 nan"), "not one of 3 numbers"),
        (False, header_with(b"Offset = 0 0 0", b"Offset = 0 0 1e999"), "a corner lies"),
        (False, header_with(b"Offset = 0 0 0", b"Offset = 0 0 1"), "a corner lies 1 mm from its own; copy the origin"),
        (False, header_with(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 2 1"), "a corner lies 4 mm from its own"),
        (False, header_with(b"CompressedData = False", b"CompressedData = maybe"), "not True or False"),
        (False, lambda _: b"", "found an empty file"),
        (False, lambda _: b"x" * 99, "have no line ElementDataFile"),
        (False, lambda _: b"\x00" * 99999, "have no line ElementDataFile"),
    ],
)
def test_metaimages_that_are_none(tmp_path: Path, compressed: bool, spoil: Callable[[bytes], bytes], message: str) -> None:
    fixed = write_image(tmp_path / "fixed.nii.gz", FLIP, (6, 5, 4))
    path = tmp_path / "field.mha"
    field = np.random.default_rng(0).normal(0, 3, (6, 5, 4, 3))
    sitk.WriteImage(metaimage(field, FLIP, vectors=True, double=False), path, compressed)
    read_metaimage(path, fixed=fixed, moving=fixed, shape=(6, 5, 4))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(EvaluationError, match=r"field\.mha: expected") as caught:
        read_metaimage(path, fixed=fixed, moving=fixed, shape=(6, 5, 4))
    assert message in str(caught.value)


def test_a_small_file_cannot_become_a_large_one(tmp_path: Path) -> None:
    fixed = write_image(tmp_path / "fixed.nii.gz", FLIP, (6, 5, 4))
    path = tmp_path / "field.mha"
    sitk.WriteImage(metaimage(np.zeros((6, 5, 4, 3)), FLIP, vectors=True), path, True)
    header = path.read_bytes().partition(b"LOCAL\n")[0]
    path.write_bytes(header + b"LOCAL\n" + zlib.compress(bytes(10**8)))
    with pytest.raises(EvaluationError, match="longer than the header claims"):
        read_metaimage(path, fixed=fixed, moving=fixed, shape=(6, 5, 4))


# --- jobs ---


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Four pairs of two cases, as a tarball of ground truth may hold them: in a folder of its own."""
    pairs = []
    for case, seed in (("0001", 1), ("0002", 2)):
        path = write_dataset(make_phantom(SHAPE, seed=seed), tmp_path / "truth" / "data", case=case)
        content = json.loads(path.read_text())
        pairs += content["registration_val"]
    path.write_text(json.dumps(content | {"registration_val": pairs}))
    return path


def field_of(seed: int) -> Field:
    return np.moveaxis(make_phantom(SHAPE, seed=seed).displacement[0].numpy(), 0, -1)


def write_jobs(folder: Path, truth: Path, fields: list[NDArray[np.float64] | None]) -> list[dict[str, Any]]:
    """A job per pair; each field, LPS millimeters, as its output, in an order that is not that of the pairs."""
    jobs = []
    for key, pair, field in zip(KEYS, read_pairs(truth), fields, strict=True):
        socket = {"slug": SLUG, "relative_path": f"images/{SLUG}", "kind": "Displacement field", "super_kind": "Image"}
        images: list[dict[str, Any]] = [
            {"image": {"name": path.name.replace(".nii.gz", ".mha")}} for path in (pair.fixed, pair.moving)
        ]
        inputs = [{"socket": {"slug": slug}} | image for slug, image in zip(("us", "mr"), images, strict=True)]
        outputs = [{"socket": socket, "image": {"name": "output.mha"}}]
        jobs.append(
            {
                "pk": key,
                "inputs": inputs,
                "outputs": outputs,
                "status": "Succeeded",
                "exec_duration": "P0DT00H02M03.5S",
                "invoke_duration": None,
            }
        )
        out = folder / key / "output" / "images" / SLUG
        out.mkdir(parents=True)
        if field is not None:
            sitk.WriteImage(metaimage(field, np.eye(4), vectors=key < "c"), out / "a-uuid.mha", True)
    jobs.reverse()
    (folder / "predictions.json").write_text(json.dumps(jobs))
    return jobs


@pytest.fixture
def jobs(tmp_path: Path, truth: Path) -> list[dict[str, Any]]:
    """Right, missing, NaN, and of another shape."""
    right, other = (field_of(seed).astype(np.float64) * LPS for seed in (1, 2))
    broken = other.copy()
    broken[3, 3, 3, 1] = np.nan
    return write_jobs(tmp_path / "input", truth, [right, None, broken, other[:-1]])


def evaluate(tmp_path: Path, *arguments: str) -> Any:
    """Runs the command in one process, and returns ``metrics.json``."""
    folders = ["--input", str(tmp_path / "input"), "--ground-truth", str(tmp_path / "truth"), "--output", str(tmp_path / "out")]
    options = ["--workers", "1", *arguments] if "--workers" not in arguments else list(arguments)
    assert main(["grand-challenge", *folders, *options]) == ALL_SCORED
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_four_jobs_right_missing_nan_and_misshapen(
    tmp_path: Path, truth: Path, jobs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(tmp_path)
    assert len(jobs) == len(found["results"]) == 4
    right, *failed = found["results"]
    assert right["TRE_lm"]["mean"] < 0.01
    assert (right["job"], right["status"], right["runtime_s"], right["case"]) == ("aaaa", "Succeeded", 123.5, "0001")
    for result, message in zip(failed, ("found 'an empty folder'", "NaN or infinite", "expected the shape"), strict=True):
        assert result["TRE_lm"] == {"mean": None, "detailed": None}
        assert message.replace("'", "") in result["error"].replace("'", "")
    assert (found["aggregates"]["scored"], found["aggregates"]["failed"]) == (1, 3)
    assert found["aggregates"]["runtime_s"] == {"mean": 123.5, "std": 0, "max": 123.5, "sum": 494, "jobs": 4}
    assert found["problems"] == []
    told = capsys.readouterr().err
    assert told.count("ERROR") == 3
    # A method does not gain by leaving out: the three count as they were before.
    initial = [
        pair["TRE_lm"]["initial_mean"] for pair in score(tmp_path, truth, [field_of(s) for s in (1, 1, 2, 2)])["cases"].values()
    ]
    expected = np.mean([right["TRE_lm"]["mean"], *initial[1:]])
    assert found["aggregates"]["TRE_lm"]["mean_failed_as_identity"] == pytest.approx(expected, abs=1e-12)


def score(tmp_path: Path, truth: Path, fields: list[Field]) -> Any:
    """What ``evaluation score`` says of displacements in challenge format."""
    for pair, field in zip(read_pairs(truth), fields, strict=True):
        write_nifti(tmp_path / "predictions" / f"{pair.field_name}.nii.gz", field)
    arguments = ["--dataset", str(truth), "--predictions", str(tmp_path / "predictions"), "--output", str(tmp_path / "s.json")]
    main(["score", *arguments])
    return json.loads((tmp_path / "s.json").read_text())


def test_the_numbers_are_those_of_score_in_any_order_and_number_of_processes(tmp_path: Path, truth: Path) -> None:
    rng = np.random.default_rng(0)
    fields = [(field_of(seed) + rng.normal(0, 0.3, (*SHAPE, 3))).astype(np.float32) for seed in (1, 1, 2, 2)]
    jobs = write_jobs(tmp_path / "input", truth, [field.astype(np.float64) * LPS for field in fields])
    expected = score(tmp_path, truth, fields)
    found = evaluate(tmp_path, "--workers", "2")
    assert sum(agree(expected["cases"][result["pair"]], result) for result in found["results"]) > 200
    assert agree(expected["aggregates"], found["aggregates"]) > 30
    (tmp_path / "input" / "predictions.json").write_text(json.dumps([jobs[2], jobs[0], jobs[3], jobs[1]]))
    assert evaluate(tmp_path) == found


def agree(expected: Any, found: Any) -> int:
    """Whatever one holds, the other holds too, to 1e-9. Returns how many numbers were compared."""
    if isinstance(expected, dict):
        return sum(agree(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list):
        return sum(agree(a, b) for a, b in zip(expected, found, strict=True))
    if not isinstance(expected, int | float):
        assert found == expected
        return 0
    assert found == pytest.approx(expected, rel=0, abs=1e-9)
    return 1


def change(tmp_path: Path, jobs: list[dict[str, Any]]) -> Any:
    (tmp_path / "input" / "predictions.json").write_text(json.dumps(jobs))
    return evaluate(tmp_path)


def test_a_job_that_failed_is_not_scored_whatever_it_wrote(tmp_path: Path, jobs: list[dict[str, Any]]) -> None:
    jobs[-1]["status"] = "Failed"
    jobs[-1]["exec_duration"] = "soon"
    found = change(tmp_path, jobs)["results"][0]
    assert "expected the status Succeeded, found 'Failed'" in found["error"]
    assert found["runtime_s"] is None


def test_jobs_that_are_none_or_too_many_cost_only_themselves(tmp_path: Path, jobs: list[dict[str, Any]]) -> None:
    again = jobs[-1] | {"pk": "zzzz", "status": "Failed"}
    strange = jobs[-1] | {"pk": "eeee", "inputs": [{"image": {"name": "holiday.mha"}}]}
    found = change(tmp_path, [3, {"pk": "../.."}, jobs[0] | {"outputs": [4]}, again, strange, *jobs])  # type: ignore[list-item]
    assert found["aggregates"]["scored"] == 1
    assert found["results"][0]["job"] == "aaaa"
    text = "\n".join(found["problems"])
    for part in ("expected an object, found 3", "expected a primary key under pk", "a list of objects under outputs"):
        assert part in text
    assert "aaaa is scored, zzzz not" in text
    assert "job eeee: expected the two images of a pair among its inputs, found ['holiday']" in text
    assert change(tmp_path, jobs[:-1])["results"][0]["error"] == "expected a job with its two images, found none"


def test_one_job_with_three_images_serves_two_pairs(tmp_path: Path, truth: Path) -> None:
    field = field_of(1).astype(np.float64) * LPS
    jobs = write_jobs(tmp_path / "input", truth, [field, None, None, None])
    job = jobs[-1]
    job["inputs"].append({"image": {"name": "ReMIND2Reg_0001_0002.nii.gz"}})
    found = change(tmp_path, [job])
    assert [result["job"] for result in found["results"]] == ["aaaa", "aaaa", None, None]
    assert found["aggregates"]["scored"] == 2
    assert found["aggregates"]["runtime_s"]["jobs"] == 1


def test_the_socket_may_have_to_be_named(tmp_path: Path, jobs: list[dict[str, Any]]) -> None:
    other = {"socket": {"slug": "displacement-preview", "relative_path": "images/other"}}
    report = {"interface": {"slug": "report", "relative_path": "report.json"}}
    jobs[-1]["outputs"].append(report)
    assert change(tmp_path, jobs)["aggregates"]["scored"] == 1  # only one is called displacement
    jobs[-1]["outputs"].append(other)
    error = change(tmp_path, jobs)["results"][0]["error"]
    assert "name its socket with --socket, found ['displacement-field', 'report', 'displacement-preview']" in error
    assert evaluate(tmp_path, "--socket", SLUG)["aggregates"]["scored"] == 1


@pytest.mark.parametrize("where", ["/etc/passwd", "../../../secret.mha", "images/link", "images/inside", "", "images/\x00"])
def test_outputs_stay_in_the_folder_of_their_job(tmp_path: Path, jobs: list[dict[str, Any]], where: str) -> None:
    """The right answer may lie beside: nobody is led to it."""
    folder = tmp_path / "input" / "aaaa" / "output" / "images"
    (tmp_path / "secret.mha").write_bytes((folder / SLUG / "a-uuid.mha").read_bytes())
    (folder / "link").symlink_to(tmp_path / "secret.mha")
    (folder / "inside").mkdir()
    (folder / "inside" / "x.mha").symlink_to(tmp_path / "secret.mha")
    jobs[-1]["outputs"][0]["socket"]["relative_path"] = where
    error = change(tmp_path, jobs)["results"][0]["error"]
    assert "leads out of the job's folder" in error or "no such file" in error


def test_the_challenge_format_is_read_too(tmp_path: Path, jobs: list[dict[str, Any]]) -> None:
    folder = tmp_path / "input" / "aaaa" / "output" / "images" / SLUG
    (folder / "a-uuid.mha").unlink()
    write_nifti(folder / "disp.nii.gz", field_of(1))
    assert change(tmp_path, jobs)["results"][0]["TRE_lm"]["mean"] < 0.01


def test_without_ground_truth_or_list_of_jobs_there_is_no_evaluation(
    tmp_path: Path, truth: Path, jobs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--input", str(tmp_path / "input"), "--ground-truth", str(tmp_path / "truth"), "--output", str(tmp_path / "out")]
    (tmp_path / "input" / "predictions.json").write_text(json.dumps(jobs[0]))
    assert main(["grand-challenge", *folders]) == BAD_INPUT
    assert "expected a JSON list, found a dict" in capsys.readouterr().err
    truth.rename(truth.with_name("dataset.json"))
    assert main(["grand-challenge", *folders]) == BAD_INPUT
    assert "expected one *_dataset.json" in capsys.readouterr().err


def test_jobs_are_assigned_alike_in_any_order(tmp_path: Path, truth: Path, jobs: list[dict[str, Any]]) -> None:
    pairs = read_pairs(truth)
    listed, _ = read_jobs(tmp_path / "input" / "predictions.json")
    again, _ = assign(listed[::-1], pairs)
    assert assign(listed, pairs)[0] == again
    assert [job.key for job in again.values()] == list(KEYS)
    assert len(jobs) == 4


def test_a_process_that_is_killed_costs_its_task_only() -> None:
    """Tasks of the standard library alone: a process that needs no more starts quickly."""
    tasks: list[Callable[[], Any]] = [partial(int, "1"), partial(os._exit, 9), partial(int, "no"), partial(int, "4")]
    first, killed, failed, last = run_each(tasks, 2)
    assert (first, last) == (1, 4)
    assert killed == "its process was killed, perhaps for lack of memory"
    assert str(failed).startswith("ValueError: invalid literal")


# --- Codabench ---


def test_codabench(tmp_path: Path, truth: Path) -> None:
    """Two digits a channel are accepted, and so are the names of Learn2Reg; a pair is missing."""
    (tmp_path / "app" / "input").mkdir(parents=True)
    truth.parent.rename(tmp_path / "app" / "input" / "ref")
    results = tmp_path / "app" / "input" / "res"
    write_nifti(results / "disp_0001_00_0001_01.nii.gz", field_of(1))
    write_nifti(results / "disp_0001_0000_0001_0002.nii.gz", field_of(1))
    write_nifti(results / "disp_0002_00_0002_01.nii.gz", field_of(2))
    out = tmp_path / "app" / "output"
    assert main(["codabench", "--input", str(tmp_path / "app" / "input"), "--output", str(out)]) == ALL_SCORED
    flat = json.loads((out / "scores.json").read_text())
    assert (flat["scored"], flat["failed"]) == (3, 1)
    assert flat["TRE_lm"] < 0.01 < flat["TRE_lm_failed_as_identity"]
    assert {"TRE_lm_std", "LogJacDetStd", "NDV"} <= set(flat)
    assert all(isinstance(value, int | float) for value in flat.values())
    assert "No score" in (out / "detailed_results.html").read_text()


def test_codabench_wants_numbers_even_if_there_is_nothing(tmp_path: Path, truth: Path) -> None:
    (tmp_path / "input" / "res").mkdir(parents=True)
    truth.parent.rename(tmp_path / "input" / "ref")
    assert main(["codabench", "--input", str(tmp_path / "input"), "--output", str(tmp_path / "out")]) == ALL_SCORED
    flat = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert flat["TRE_lm"] == 1e6
    assert flat["failed"] == 4
    assert main(["codabench", "--input", str(tmp_path), "--output", str(tmp_path / "out")]) == BAD_INPUT
