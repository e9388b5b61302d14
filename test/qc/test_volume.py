"""What the page holds for other slices, from images and displacements that are known, and what its script makes of it."""

import base64
import gzip
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mcbo.cli.main import main
from mcbo.core.field import warp
from mcbo.io.files import digest
from mcbo.qc.findings import look_at
from mcbo.qc.lengths import MILLIMETERS, Lengths
from mcbo.qc.page import _ticks
from mcbo.qc.view import PairImages, pair_images
from mcbo.qc.volume import coarser, make_small, packed, warped_whole

SHAPE = (6, 8, 7)
# Axis 0 runs to the left, 3 mm; axis 1 upward, 0.5 mm; axis 2 to the front, 1 mm.
AFFINE = np.array([[-3.0, 0, 0, 20], [0, 0, 1, -4], [0, 0.5, 0, 9], [0, 0, 0, 1]])
NAME = "disp_0001_0000_0001_0001"
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


Voxels: TypeAlias = NDArray[Any]


def images_of(moving: torch.Tensor, displacement: torch.Tensor) -> PairImages:
    fixed = torch.linspace(0, 1, moving.numel()).reshape(moving.shape)
    return pair_images(fixed, moving, warped_whole(moving, displacement))


def shift(*voxels: float, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.tensor(voxels, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def write_pair(
    folder: Path, displacement: Voxels, images: tuple[Voxels, Voxels], *, affine: NDArray[np.float64] = AFFINE
) -> Path:
    """A folder of results of one pair whose displacement and images are given; returns its report."""
    shape = displacement.shape[:3]
    (folder / "images").mkdir(parents=True)
    paths = [folder / "images" / f"T_0001_{channel}.nii" for channel in ("0000", "0001")]
    for path, image in zip(paths, images, strict=True):
        assert image.shape == shape
        nibabel.save(nibabel.Nifti1Image(image, affine), path)
    file = folder / f"{NAME}.nii"
    nibabel.save(nibabel.Nifti1Image(displacement.astype(np.float32), affine), file)
    case = {
        "inputs": {str(path): digest(path) for path in paths},
        "written": {file.name: digest(file)},
        "failed": {},
        "judgement": {NAME: {"chosen": "full", "similarity": {"identity": 0.1}, "confidence": 0.75}},
    }
    content = {"versions": {}, "device": "cpu", "threads": 1, "config": {}, "cases": {"0001": case}}
    (folder / "report.json").write_text(json.dumps(content))
    return folder / "report.json"


def page_of(report: Path) -> str:
    assert main(["report", str(report.parent)]) == 0
    return report.with_name("report.html").read_text(encoding="utf-8")


def unpacked(content: bytes, dtype: type[np.uint8 | np.int16]) -> Voxels:
    """What was packed, in one row, as the page's script does it."""
    return np.cumsum(np.frombuffer(gzip.decompress(content), dtype=np.dtype(dtype).newbyteorder("<")), dtype=dtype)


def attribute(page: str, name: str) -> str:
    found = re.search(rf' data-{name}="([^"]*)"', page)
    assert found is not None
    return html.unescape(found[1])


@pytest.mark.parametrize("most", [1000, 20_000, 800_000])
@pytest.mark.parametrize("shape", [(160, 160, 160), (32, 256, 256), (5, 2000, 5), (400, 12, 90)])
def test_a_coarser_grid_has_no_more_voxels_than_it_may_and_not_far_fewer(shape: tuple[int, int, int], most: int) -> None:
    found = coarser(shape, (3.2, 0.8, 0.8), most)
    assert all(2 <= few <= many for few, many in zip(found, shape, strict=True))
    assert math.prod(found) <= most
    if math.prod(shape) <= most:
        assert found == shape
    else:
        assert math.prod(found) > 0.5 * most


def test_the_finest_axes_lose_first() -> None:
    assert coarser((32, 256, 256), (3.2, 0.8, 0.8), 32 * 128 * 128) == (32, 128, 128)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_what_is_packed_comes_back(dtype: type[np.uint8 | np.int16]) -> None:
    limits = np.iinfo(dtype)
    array: Voxels = np.random.default_rng(3).integers(limits.min, limits.max, (4, 5, 6), dtype=dtype, endpoint=True)
    array[0, 0, :4] = limits.min, limits.max, limits.min, 0
    np.testing.assert_array_equal(unpacked(packed(array), dtype).reshape(array.shape), array)
    assert packed(array) == packed(array.copy())  # no time in it


def test_known_voxels_are_those_on_the_page(tmp_path: Path) -> None:
    """Read from the page as its script does: differences of neighbors, gzip, base64 for URLs."""
    moving = np.arange(math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    displacement = np.zeros((*SHAPE, 3))
    displacement[..., 1] = 1
    page = page_of(write_pair(tmp_path, displacement, (moving[::-1], moving)))
    told = json.loads(attribute(page, "small"))
    assert told["images"] == told["shape"] == list(SHAPE)
    volumes = {}
    for name in ("fixed", "moving", "warped"):
        volumes[name] = unpacked(base64.urlsafe_b64decode(attribute(page, name)), np.uint8).reshape(SHAPE).astype(int)
    scale = 255 / (math.prod(SHAPE) - 1)
    assert np.abs(volumes["moving"] - moving * scale).max() < 4  # black and white leave out half a percent at each end
    assert np.abs(volumes["fixed"] - volumes["moving"][::-1]).max() < 4  # each modality has its own gray window
    np.testing.assert_array_equal(volumes["warped"][:, :-1], volumes["moving"][:, 1:])  # in the same gray window
    counts = unpacked(base64.urlsafe_b64decode(attribute(page, "displacement")), np.int16)
    field = counts.reshape(3, *told["nodes"]) * told["step"]
    np.testing.assert_allclose(field, np.broadcast_to(np.reshape((0, 1, 0), (3, 1, 1, 1)), field.shape), atol=1e-4)
    np.testing.assert_allclose(np.array(told["place"]) @ (2, 4, 3, 1), (14, -1, 11))  # mm, RAS
    np.testing.assert_allclose(np.array(told["along"]) @ (0, 1, 0), (0, 0, 0.5))  # upward


def test_in_micrometers_positions_and_displacements_follow_the_axes_of_the_picture() -> None:
    """Voxels of 3, 0.5 and 1 µm; axis 0 is X, axis 2 is Y and axis 1 is Z; X is counted against the world's."""
    affine = AFFINE @ np.diag([1e-3, 1e-3, 1e-3, 1.0])
    affine[:3, 3] = 0.02, -0.004, 0.009
    small = make_small(None, shift(1, 2, -1), affine, Lengths("µm", 1000.0))
    np.testing.assert_allclose(small.along @ (1, 2, -1), (3, -1, 1))
    np.testing.assert_allclose(small.place @ (2, 4, 3, 1), (14, -1, 11))
    assert small.images == {}
    assert small.largest_error_mm < 1e-6


def test_what_lies_between_the_nodes_differs_by_what_the_page_says() -> None:
    """Ten nodes along 21 voxels: what is linear is told exactly, and a single voxel in the middle not at all."""
    shape = (21, 21, 21)
    linear = torch.zeros(1, 3, *shape)
    linear[0, 0] = torch.linspace(0, 3, 21).view(-1, 1, 1)
    assert make_small(None, linear, np.eye(4), MILLIMETERS, most_voxels=8000).largest_error_mm < 1e-3
    linear[0, 2, 10, 10, 10] = 1.5
    small = make_small(None, linear, np.diag([2.0, 2, 2, 1]), MILLIMETERS, most_voxels=8000)
    assert small.node_shape == (10, 10, 10)
    assert small.largest_error_mm == pytest.approx(3, abs=1e-3)


def test_small_voxels_are_means() -> None:
    volume = torch.zeros(1, 1, 40, 40, 40)
    volume[..., ::2] = 1
    small = make_small(
        images_of(volume, shift(0, 0, 0, shape=(40,) * 3)),
        shift(0, 0, 0, shape=(40,) * 3),
        np.eye(4),
        MILLIMETERS,
        most_voxels=8000,
    )
    assert small.image_shape == (20, 20, 20)
    assert set(unpacked(small.images["moving"], np.uint8).tolist()) == {128}


def test_warping_a_few_slices_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 1, *SHAPE, generator=generator)
    displacement = 3 * torch.randn(1, 3, *SHAPE, generator=generator)
    monkeypatch.setattr("mcbo.qc.volume.SLAB_VOXELS", 2 * SHAPE[1] * SHAPE[2])
    torch.testing.assert_close(warped_whole(volume, displacement), warp(volume, displacement), atol=1e-5, rtol=0)


def test_the_page_of_a_large_pair_of_noise_has_less_than_6_mb(tmp_path: Path) -> None:
    """Noise compresses worst."""
    shape = (160, 160, 160)
    rng = np.random.default_rng(0)
    i, j, k = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    displacement = np.stack([np.sin(i + j), np.cos(j - k), np.sin(2 * k)], axis=-1)
    noise = rng.integers(0, 255, shape, dtype=np.uint8)
    page = page_of(write_pair(tmp_path, displacement, (noise, noise), affine=np.eye(4)))
    assert len(page) < 6e6
    assert json.loads(attribute(page, "small"))["images"] == [92, 92, 92]


def test_pairs_share_what_a_page_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).random((16, 16, 16), dtype=np.float32)
    report = write_pair(tmp_path, np.zeros((16, 16, 16, 3)), (image, image))
    monkeypatch.setattr("mcbo.qc.findings.MOST_VOXELS_OF_ALL", 12**3)
    small = look_at(report).cases[0].pairs[0].small
    assert small is not None
    assert 1000 < math.prod(small.image_shape) <= 12**3


@pytest.mark.parametrize(
    ("high_mm", "lengths", "texts"),
    [
        (8.7, MILLIMETERS, ["0", "2", "4", "6", "8.7"]),
        (0.3, MILLIMETERS, ["0", "0.1", "0.2", "0.3"]),
        (100.0, MILLIMETERS, ["0", "20", "40", "60", "80", "100.0"]),
        (0.0125, Lengths("µm", 1000.0), ["0", "5", "10", "12.50"]),
        (1e-7, MILLIMETERS, ["0"]),
        (math.inf, MILLIMETERS, ["0", "inf"]),
    ],
)
def test_the_scale_has_round_numbers_and_the_largest_one(high_mm: float, lengths: Lengths, texts: list[str]) -> None:
    ticks = _ticks(high_mm, lengths)
    assert [text for _, text in ticks] == texts
    for at, text in ticks:
        assert (
            at == pytest.approx(100 * min(1, float(text) / (high_mm * lengths.per_mm)), abs=0.5, nan_ok=True) or text == "inf"
        )


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e25])
def test_a_displacement_of_any_size_has_a_page(tmp_path: Path, size: float) -> None:
    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    told = json.loads(attribute(page_of(write_pair(tmp_path, np.full((*SHAPE, 3), size), (image, image))), "small"))
    assert 0 < told["high"] < math.inf


def test_what_was_chosen_and_how_sure_it_is_come_first(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    page = page_of(write_pair(tmp_path, np.zeros((*SHAPE, 3)), (image, image)))
    heads = re.findall(r"<th(?: [^>]*)?>([^<]*)", page.partition('<table class="summary">')[2].partition("</thead>")[0])
    assert heads[:2] == ["chosen", "confidence"]
    row = re.findall(r"<td[^>]*>([^<]*)", page.partition("<tbody>")[2])
    assert row[:2] == ["full", "0.75"]


SCRIPT = """
async function type(picture, ...keys) {
  picture.focus();
  for (const [key, shiftKey] of keys) {
    picture.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true, cancelable: true }));
  }
  const [x, y] = ["--x", "--y"].map((name) => picture.style.getPropertyValue(name));
  const told = [...document.querySelectorAll(".explore dd")].map((one) => one.textContent);
  const canvas = picture.querySelector("canvas.moving");
  const gray = picture.matches(".moved") ? canvas.getContext("2d").getImageData(1, 2, 1, 1).data[0] : null;
  return [document.activeElement === picture, x, y, gray, ...told];
}
(async () => {
  while (document.querySelector(".explore[hidden]")) await new Promise((done) => setTimeout(done, 20));
  const [axial, coronal] = document.querySelectorAll(".viewer .pic");
  const found = [
    await type(axial),
    await type(axial, ["ArrowRight"], ["ArrowRight"], ["ArrowUp"]),
    await type(axial, ["PageUp"]),
    await type(coronal, ["ArrowDown", true]),
    await type(axial, ["Home"]),
  ];
  const saved = new Promise((done) => { HTMLAnchorElement.prototype.click = function () { done(this); }; });
  document.querySelector(".download").click();
  const link = await saved;
  document.title = "done " + JSON.stringify([...found, [link.download, link.protocol]]);
})();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_the_keys_move_the_crosshair_and_the_picture_is_saved(tmp_path: Path) -> None:
    """In the axial plane the picture's right is the high end of axis 0, its top that of axis 2; Page Up leads along axis 1."""
    assert CHROMIUM is not None
    moving = np.arange(math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    displacement = np.zeros((*SHAPE, 3))
    displacement[..., 1] = np.arange(6).reshape(-1, 1, 1) / 5  # 0.1 mm upward per voxel to the left
    page = page_of(write_pair(tmp_path, displacement, (moving, moving)))
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{allowed}' ").replace(
        "</body>", f"<script>{SCRIPT}</script></body>"
    )
    file = tmp_path / "with_keys.html"
    file.write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    told = None
    for budget in (10**4, 10**5, 10**6):  # the browser's own time, which on a busy machine runs ahead of its threads
        now = [*command, f"--virtual-time-budget={budget}", "--dump-dom", file.as_uri()]
        shown = subprocess.run(now, capture_output=True, timeout=120, check=True).stdout.decode()
        told = re.search(r"<title>done (.*?)</title>", shown)
        if told:
            break
    assert told is not None
    start, moved, up, clamped, home, saved = json.loads(html.unescape(told[1]))
    i, j, k = (int(index) for index in start[4].split(", "))
    assert moved[4] == f"{i + 2}, {j}, {k + 1}"
    assert moved[5] == f"{20 - 3 * (i + 2):.2f}, {-4 + (k + 1):.2f}, {9 + 0.5 * j:.2f}"
    assert moved[6:] == [f"0.00, 0.00, {0.1 * (i + 2):.2f}", f"{0.1 * (i + 2):.2f}"]
    right, down = (float(part.rstrip("%")) for part in moved[1:3])
    assert (right, down) == pytest.approx((100 * (i + 2.5) / 6, 100 * (1 - (k + 1.5) / 7)))
    assert up[4] == f"{i + 2}, {j + 1}, {k + 1}"
    volume = look_at(tmp_path / "report.json").cases[0].pairs[0].small
    assert volume is not None
    assert up[3] == unpacked(volume.images["moving"], np.uint8).reshape(SHAPE)[1, j + 1, SHAPE[2] - 1 - 2]
    assert clamped[4] == f"{i + 2}, 0, {k + 1}"
    assert home[4] == start[4]
    assert saved == [f"{NAME}.png", "blob:"]
    assert [step[0] for step in (start, moved, up, clamped, home)] == [True] * 5
