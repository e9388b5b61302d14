"""The page of a run, made from small results whose truth is known."""

import base64
import json
import re
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers import cascade_config
from PIL import Image

from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.io.files import digest
from mcbo.qc.findings import look_at
from mcbo.qc.picture import MOST_PIXELS
from mcbo.qc.result_folder import displacement_files, find_report, input_pairs
from mcbo.report import CaseReport

SHAPE = (12, 20, 16)
# Axis 0 runs to the left, 3 mm; axis 1 to the front, 0.5 mm; axis 2 to the feet, 1 mm.
AFFINE = np.array([[-3.0, 0, 0, 20], [0, 0.5, 0, -4], [0, 0, -1, 9], [0, 0, 0, 1]])
NAME = "disp_0001_0000_0001_0001"
CASE_8 = {"written": {}, "failed": {"disp_8": "memory"}, "placeholder": {"disp_8": "zero"}}
SANITY = {
    "folded_share": 0.25,
    "largest_voxels": [1, 2, 3],
    "search_range_voxels": [15.5, 15.5, 15.5],
    "distance_before": 0.5,
    "distance_after": 0.125,
}
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Checks that every element is closed in order; collects what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.images: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        named = dict(attrs)
        assert len(named) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.addresses += [named[key] or "" for key in ("src", "href", "action", "srcset", "data", "poster") if key in named]
        self.ids += [named["id"] or ""] if "id" in named else []
        if tag == "img":
            self.images.append(named)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # as SVG has them
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def write(path: Path, array: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), AFFINE), path)
    return path


def images_of(folder: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(5)
    fixed, moving = (folder / "imagesTr" / f"Task_0001_{channel}.nii.gz" for channel in ("0000", "0001"))
    return write(fixed, rng.random(SHAPE)), write(moving, rng.random(SHAPE))


def write_run(folder: Path, displacement: np.ndarray[Any, Any], **changes: Any) -> Path:
    """A folder of results of one case with one pair; images beside it. ``changes`` go to the case's entry."""
    fixed, moving = images_of(folder / "data")
    results = folder / "results"
    file = write(results / f"{NAME}.nii.gz", displacement)
    entry = {
        "inputs": {str(path): digest(path) for path in (fixed, moving)},
        "written": {file.name: digest(file)},
        "failed": {},
        "seconds": 1.5,
        "stages": {"read": {"seconds": 0.5, "peak_memory_mb": 10}, "write": {"seconds": 1.0, "peak_memory_mb": 20}},
        "judgement": {NAME: {"chosen": "full", "similarity": {"identity": 0.1, "full": 0.15}, "confidence": 0.15}},
    }
    write_report(results, {"0001": entry | changes})
    return results


def write_report(results: Path, cases: dict[str, Any]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    content = {
        "versions": {"mcbo": "0", "torch": "0"},
        "device": "cpu",
        "threads": 2,
        "config": asdict(cascade_config()),
        "cases": cases,
    }
    (results / "report.json").write_text(json.dumps(content), encoding="ascii")


def write_landmarks(folder: Path, fixed: list[list[float]], moving: list[list[float]]) -> None:
    (folder / "data" / "landmarksTr").mkdir()
    for channel, points in (("0000", fixed), ("0001", moving)):
        np.savetxt(folder / "data" / "landmarksTr" / f"Task_0001_{channel}.csv", points, delimiter=",")


def make_page(results: Path, *arguments: str) -> tuple[str, Page]:
    assert main(["report", str(results), *arguments]) == 0
    text = (results / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def shift(*voxels: float) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.array(voxels), (*SHAPE, 3)).copy()


def size_of(image: dict[str, str | None]) -> tuple[int, int]:
    return Image.open(BytesIO(base64.b64decode((image["src"] or "").partition(",")[2]))).size


def test_a_page_is_whole_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    results = write_run(tmp_path, shift(0, 0, 1))
    write_landmarks(tmp_path, [[5, 9, 7], [6, 10, 8]], [[5, 9, 8], [6, 10, 10]])
    text, page = make_page(results)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    own = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"//[a-z]|url\(|@import", own)
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert {a.removeprefix("#") for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert all("alt" in image for image in page.images)
    assert page.tags["img"] == 3 * (4 + 2 + 1)  # fixed, moving, warped, edges; magnitude, determinant; edges by the landmarks
    assert len(text) < 5e6


def test_figures_of_a_known_shift(tmp_path: Path) -> None:
    """One voxel of 1 mm along axis 2; landmarks that moved by one voxel and by two."""
    results = write_run(tmp_path, shift(0, 0, 1))
    write_landmarks(tmp_path, [[5, 9, 7], [6, 10, 8]], [[5, 9, 8], [6, 10, 10]])
    pair = look_at(results / "report.json").cases[0].pairs[0]
    assert pair.landmarks is not None
    assert pair.regularity is not None
    assert pair.magnitude_scale is not None
    np.testing.assert_allclose(pair.landmarks.before_mm, [1, 2], atol=1e-6)
    np.testing.assert_allclose(pair.landmarks.after_mm, [0, 1], atol=1e-6)
    assert pair.magnitude_scale.high == pytest.approx(1)
    assert (pair.regularity.folded_voxels, [view.folded for view in pair.views]) == (0, [0, 0, 0])
    assert [view.plane.index for view in pair.views] == [8, 10, 6]  # through the middle of the landmarks, 7.5, 9.5, 5.5
    text = make_page(results)[1].text
    assert "TRE 1.50 mm before, 0.50 mm after" in text
    assert "0.15 low" in text  # confidence below what the preset calls doubtful
    assert "Full result, low confidence 0.15." in text


def test_planes_have_the_letters_and_the_aspect_of_the_world(tmp_path: Path) -> None:
    results = write_run(tmp_path, shift(0, 0, 0))
    text, page = make_page(results)
    letters = re.findall(r'<b class="(left|right|top|bottom)" aria-hidden="true">(.)</b>', text)
    assert letters[:4] == [("left", "R"), ("right", "L"), ("top", "A"), ("bottom", "P")]  # axial
    assert letters[8:12] == [("left", "A"), ("right", "P"), ("top", "S"), ("bottom", "I")]  # sagittal
    for plane, (width_mm, height_mm) in {"axial": (36, 10), "coronal": (36, 16), "sagittal": (10, 16)}.items():
        assert f"--w: {width_mm:.3f}; --h: {height_mm:.3f}" in text
        for image in page.images:
            if plane in (image["alt"] or ""):
                width, height = size_of(image)
                assert max(width, height) <= 512
                assert width / height == pytest.approx(width_mm / height_mm, rel=0.03)


def test_the_warped_picture_is_the_moving_one_where_nothing_moves(tmp_path: Path) -> None:
    view = look_at(write_run(tmp_path, shift(0, 0, 0)) / "report.json").cases[0].pairs[0].views[0]
    assert view.warped == view.moving != view.fixed


def test_the_grid_moves_as_the_displacement_says(tmp_path: Path) -> None:
    """One voxel along axis 2, 1 mm to the feet, shows as 1 mm down from the front and from the side, and not from above."""
    still, moved = (
        look_at(write_run(tmp_path / str(x), shift(0, 0, x)) / "report.json").cases[0].pairs[0].views for x in (0, 1)
    )
    assert still[0].grid == moved[0].grid
    for before, after in zip(still[1:], moved[1:], strict=True):
        (x0, y0), (x1, y1) = (map(int, re.match(r"M(-?\d+) (-?\d+)", view.grid).groups()) for view in (before, after))  # type: ignore[union-attr]
        assert x1 == x0
        assert y1 - y0 == pytest.approx(1000 / max(before.plane.size_mm), abs=1)


def test_folds_are_counted_and_marked(tmp_path: Path) -> None:
    """u grows by −2 a voxel along axis 1 from 8 to 10: by central differences det J is 0, −1 and 0 there, else 1."""
    displacement = shift(0, 0, 0)
    displacement[:, 9, :, 1], displacement[:, 10:, :, 1] = -2, -4
    results = write_run(tmp_path, displacement)
    pair = look_at(results / "report.json").cases[0].pairs[0]
    assert pair.regularity is not None
    assert pair.regularity.folded_voxels == 8 * 3 * 12  # two voxels at each face do not count
    axial = pair.views[0]
    assert axial.folded == SHAPE[0] * 3
    picture = np.array(Image.open(BytesIO(axial.jacobian)))
    assert (picture == 255).sum() / picture.size == pytest.approx(3 / SHAPE[1], abs=0.02)
    assert f"Folded voxels: {8 * 3 * 12}." in make_page(results)[1].text


def test_hostile_names_and_sentences_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"
    results = write_run(
        tmp_path,
        shift(0, 0, 0),
        failed={evil: evil},
        warnings=[evil],
        stages={evil: {"seconds": 1, "peak_memory_mb": 1}},
        judgement={NAME: {"chosen": evil, "similarity": {evil: 1.0}, "confidence": 1.0}},
        placeholder={evil: evil},
        sanity={NAME: SANITY},
    )
    content = json.loads((results / "report.json").read_text())
    content["cases"] = {evil: content["cases"]["0001"]}
    content["device"] = content["config"]["name"] = content["versions"]["torch"] = evil
    content["config"]["lone"] = "\udcff"
    (results / "report.json").write_text(json.dumps(content))
    text, page = make_page(results)
    assert page.tags["script"] == 1
    assert "<script>alert" not in text
    assert page.text.count(evil) >= 10
    assert not any("onerror" in image for image in page.images)


def test_without_its_images_a_page_says_so_and_shows_the_displacement(tmp_path: Path) -> None:
    results = write_run(tmp_path, shift(0, 0, 1))
    for file in (tmp_path / "data" / "imagesTr").iterdir():
        file.rename(file.with_name(f"gone-{file.name}"))
    _, page = make_page(results)
    assert "No pictures of the images:" in page.text
    assert "no such file" in page.text
    assert page.tags["img"] == 3 * 2


def test_images_elsewhere_are_found_by_a_dataset(tmp_path: Path) -> None:
    results = write_run(tmp_path, shift(0, 0, 1))
    write_landmarks(tmp_path, [[5, 9, 7]], [[5, 9, 8]])
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere")
    pairs = [{"fixed": "./imagesTr/Task_0001_0000.nii.gz", "moving": "./imagesTr/Task_0001_0001.nii.gz"}]
    (moved / "Task_dataset.json").write_text(json.dumps({"name": "Task", "registration_test": pairs}))
    text = make_page(results, "--dataset", str(moved / "Task_dataset.json"))[1].text
    assert "TRE 1.00 mm before, 0.00 mm after" in text
    assert "No pictures" not in text


def test_what_was_changed_since_is_told(tmp_path: Path) -> None:
    results = write_run(tmp_path, shift(0, 0, 1))
    write(results / f"{NAME}.nii.gz", shift(0, 1, 0))
    moving = tmp_path / "data" / "imagesTr" / "Task_0001_0001.nii.gz"
    write(moving, np.random.default_rng(6).random(SHAPE))
    text = make_page(results)[1].text
    assert f"{NAME}.nii.gz is not what the run wrote" in text
    assert f"{moving} is not the image that was registered" in text


@pytest.mark.parametrize("break_it", ["gone", "cut off", "not finite"])
def test_a_broken_displacement_is_told_and_the_rest_is_shown(tmp_path: Path, break_it: str) -> None:
    results = write_run(tmp_path, shift(0, 0, 1), failed={"disp_0001_0000_0001_0002": "no such file; expected an image"})
    file = results / f"{NAME}.nii.gz"
    if break_it == "gone":
        file.unlink()
    elif break_it == "cut off":
        file.write_bytes(file.read_bytes()[:100])
    else:
        write(file, shift(0, 0, np.nan))
    _, page = make_page(results)
    assert "0 of 2, 2 without a result" in page.text
    assert "no such file; expected an image" in page.text
    assert page.tags["img"] == 0


def test_a_case_that_failed_altogether_is_in_the_summary(tmp_path: Path) -> None:
    write_report(tmp_path, {"0007": {"written": {}, "failed": {}}, "0008": CASE_8})
    text = make_page(tmp_path)[1].text
    assert "no displacement" in text
    assert "disp_8: memory (a zero displacement was written instead)" in text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cases": 3}', '{"cases": {}}', "[" * 100_000, "null"])
def test_a_foreign_report_is_refused_in_one_sentence(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "expected the report of a run" in told[0]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"fallback": {}}, "fallback is unknown"),
        ({"written": 3}, "written is missing or of another type"),
        (
            {"sanity": {NAME: SANITY | {"distance_after": "near"}}},
            f"sanity.{NAME}.distance_after is missing or of another type",
        ),
        ({"sanity": {NAME: SANITY | {"finite": True}}}, f"sanity.{NAME}.finite is unknown"),
    ],
)
def test_a_report_of_another_version_is_refused_and_what_differs_is_named(
    tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    write_report(tmp_path, {"0001": changes})
    with pytest.raises(InputError, match=f"expected the report of a run by this version of mcbo, but cases.0001.{where}"):
        look_at(tmp_path / "report.json")


def test_the_checks_of_a_displacement_are_shown(tmp_path: Path) -> None:
    text = make_page(write_run(tmp_path, shift(0, 0, 1), sanity={NAME: SANITY}))[1].text
    assert "folded share0.25largest voxels1, 2, 3search range voxels15.5, 15.5, 15.5" in text
    assert "distance before0.5distance after0.125" in text


def test_a_report_has_to_be_there_and_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder of results with a report\.json"):
        find_report(tmp_path)
    (tmp_path / "a.report.json").touch()
    assert find_report(tmp_path) == tmp_path / "a.report.json"
    (tmp_path / "b.report.json").touch()
    with pytest.raises(InputError, match=r"a\.report\.json, b\.report\.json"):
        find_report(tmp_path)
    (tmp_path / "report.json").touch()
    assert find_report(tmp_path) == tmp_path / "report.json"


def test_which_files_are_displacements_and_which_images_are_theirs() -> None:
    images: dict[str, str | None] = {
        "/d/T_0001_0000.nii.gz": None,
        "/d/T_0001_0002.nii.gz": None,
        "/d/T_0001_0001.nii.gz": None,
    }
    name = "disp_0001_0000_0001_0001"
    written: dict[str, str | None] = {f"{name}.nii.gz": None, f"{name}.npz": None, "warped_0001_0000_0001_0001.nii.gz": None}
    case = CaseReport(inputs=images, written=written, failed={})
    assert list(displacement_files(case)) == [name]
    assert input_pairs(case, [name])[name].moving == Path("/d/T_0001_0001.nii.gz")
    free = CaseReport(inputs={"a.nii": None, "b.nii": None}, written={"field.npz": None}, failed={})
    assert input_pairs(free, ["field"])["field"].moving == Path("b.nii")


def test_large_slices_are_made_smaller(tmp_path: Path) -> None:
    """A page's size is bounded by pixels, not by voxels."""
    shape = (8, 2 * MOST_PIXELS, 9)
    rng = np.random.default_rng(0)
    fixed, moving = (write(tmp_path / "data" / "imagesTr" / f"T_0001_{c}.nii.gz", rng.random(shape)) for c in ("0000", "0001"))
    file = write(tmp_path / f"{NAME}.nii.gz", np.zeros((*shape, 3)))
    inputs = {str(path): digest(path) for path in (fixed, moving)}
    write_report(tmp_path, {"0001": {"inputs": inputs, "written": {file.name: digest(file)}, "failed": {}}})
    _, page = make_page(tmp_path)
    grays = [size_of(image) for image in page.images if image.get("class") != "edges"]
    assert max(max(size) for size in grays) == MOST_PIXELS
