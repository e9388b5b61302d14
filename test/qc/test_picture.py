from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcbo.qc.picture import MOST_PIXELS, Scale, color_png, color_steps, edge_png, gray_png, pixels, window
from mcbo.qc.plane import Plane, planes_through

SHAPE = (24, 40, 30)


def axial(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), shape: tuple[int, int, int] = SHAPE) -> Plane:
    """Rows run along axis 1, from its high end; columns along axis 0, from its high end."""
    return planes_through([n / 2 for n in shape], shape=shape, affine=np.diag([*spacing_mm, 1.0]))[0]


def decoded(png: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(BytesIO(png)).convert("RGBA"))


def test_black_and_white_are_where_the_window_says() -> None:
    image = np.tile(np.array([-5, 0, 50, 100, 900, 900], dtype=np.float32).repeat(4), (40, 1))
    gray = decoded(gray_png(image, axial(), black=0, white=100))[0, ::4, 0]
    assert gray.tolist() == [0, 0, 128, 255, 255, 255]


def test_a_window_ignores_rare_extremes_and_a_large_background() -> None:
    rng = np.random.default_rng(0)
    volume = np.zeros((40, 50, 60), dtype=np.float32)
    volume[:8] = rng.uniform(100, 200, (8, 50, 60))
    volume[0, 0, :3] = 1e6
    black, white = window(volume)
    assert black == 0
    assert white == pytest.approx(199.5, abs=0.5)


def test_pixels_are_square_whatever_the_voxels_are() -> None:
    assert pixels(axial((3.0, 0.5, 1.0))) == (144, 40)  # 72 mm × 20 mm, in the finer size of 0.5 mm
    assert max(pixels(axial((3.0, 0.01, 1.0)))) == MOST_PIXELS


def test_edges_lie_on_the_border_of_a_disk_and_nowhere_else() -> None:
    shape = (90, 110, 30)
    rows, columns = np.mgrid[:110, :90]
    distance = np.hypot(rows - 54.5, columns - 44.5)
    image = (distance < 25).astype(np.float32)
    opacity = decoded(edge_png(image, axial(shape=shape), seen=np.ones_like(image, dtype=bool)))
    edge = (opacity[..., :3] == (255, 176, 0)).all(axis=-1) & (opacity[..., 3] == 255)
    at = (np.argwhere(edge) + 0.5) * 110 / opacity.shape[0]
    radius = np.hypot(*(at - (55, 45)).T)
    assert radius.size > 100
    assert np.abs(radius - 25).max() < 1


def test_the_outline_of_what_is_seen_is_no_edge() -> None:
    seen = np.zeros((40, 24), dtype=bool)
    seen[10:30, 6:18] = True
    assert decoded(edge_png(seen.astype(np.float32), axial(), seen=seen))[..., 3].max() == 0


def test_a_single_marked_voxel_shows_in_a_smaller_picture() -> None:
    shape = (3 * MOST_PIXELS, 1000, 9)
    marked = np.zeros((shape[1], shape[0]), dtype=bool)
    marked[501, 700] = True
    picture = decoded(
        color_png(np.zeros(marked.shape, dtype=np.float32), axial(shape=shape), Scale("PuOr", -1, 1), marked=marked)
    )
    assert (picture[..., :3] == 0).all(axis=-1).any()


def test_colors_of_a_scale() -> None:
    plane, scale = axial(), Scale("cividis", 0.0, 2.0)
    low, high = color_steps(scale, count=2)
    for value, color in ((-1.0, low), (0.0, low), (2.0, high), (5.0, high)):
        picture = decoded(color_png(np.full((40, 24), value, dtype=np.float32), plane, scale))
        assert "#" + bytes(picture[3, 3, :3]).hex() == color
