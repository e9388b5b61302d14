"""The plugin in napari itself, on a screen that is not there; skipped where napari is missing.

Run them by ``pytest --disable-plugin-autoload test/viewers``: napari's own plugins for pytest, which are not used here, warn.
"""

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from mcbo.core.errors import InputError
from mcbo.io.nifti import write_displacement

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("NAPARI_CONFIG", "")  # no settings are read or written
with warnings.catch_warnings(action="ignore"):  # of napari's own use of pydantic
    napari = pytest.importorskip("napari", reason="napari is not installed: pip install -e '.[napari]'")
    from mcbo.napari.layers import common_world, place_of, voxels_of
    from mcbo.napari.registration import pair_of
    from mcbo.napari.widget import RegistrationWidget

pytestmark = pytest.mark.filterwarnings("default")  # napari's are not ours
MANIFEST = Path(__file__).resolve().parents[2] / "mcbo/napari/napari.yaml"
LIMIT_S = 120.0


@pytest.fixture
def viewer() -> Iterator[Any]:
    """The model of a viewer: layers, but no canvas, which needs OpenGL."""
    from napari.components import ViewerModel
    from napari.qt import get_qapp
    from napari.utils.notifications import notification_manager

    get_qapp()
    notification_manager.records.clear()
    yield ViewerModel()
    notification_manager.records.clear()


def told() -> list[tuple[str, str]]:
    """Severity and message of all notifications."""
    from napari.utils.notifications import notification_manager

    return [(str(record.severity), record.message) for record in notification_manager.records]


def opened(viewer: Any) -> Any:
    """The widget, given what napari gives to plugins: a viewer without its private parts, and so are its layers."""
    from napari.utils._proxies import PublicOnlyProxy

    return RegistrationWidget(PublicOnlyProxy(viewer))


def press(widget: Any) -> None:
    """Presses the button, and handles events until the registration has ended."""
    from napari.qt import get_qapp

    start = time.monotonic()
    widget["run"].native.click()
    while not widget["run"].enabled:
        assert time.monotonic() - start < LIMIT_S
        get_qapp().processEvents()
        time.sleep(0.01)


def noise(seed: int = 0, shape: tuple[int, int, int] = (56, 48, 52)) -> Any:
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.5)


def oblique(viewer: Any, **more: Any) -> Any:
    affine = np.array([[1, 0.1, 0, 5], [0, 0.9, 0.2, -7], [0, 0, 1.1, 2], [0, 0, 0, 1]])
    place = {"scale": (2, 1, 3), "translate": (10, 20, -5), "rotate": (20, 10, 5), "shear": (0.1, 0, 0.2), "affine": affine}
    return viewer.add_image(np.zeros((4, 5, 6)), **place, **more)


def test_an_image_lies_where_napari_shows_it(viewer: Any) -> None:
    layer = oblique(viewer, units=("um",) * 3)
    place = place_of(layer)
    affine, _, unit, note = common_world(place, place)
    assert (unit, note) == ("um", "")
    for voxel in np.random.default_rng(1).uniform(0, 6, (9, 3)):
        mm = (affine @ [*voxel, 1])[:3]
        np.testing.assert_allclose(1000 * mm, layer.data_to_world(tuple(voxel)))
    same = viewer.add_image(np.zeros((4, 5, 6)), **place.settings)
    np.testing.assert_allclose(same.data_to_world((3, 1, 4)), layer.data_to_world((3, 1, 4)))
    assert same.units == layer.units


@pytest.mark.parametrize(
    ("fixed", "moving", "sizes_mm", "note"),
    [
        (None, None, (1, 1), "'one' and 'two' state no unit of length; mm is assumed."),
        (("um",) * 3, None, (1e-3, 1e-3), "'two' states no unit of length; µm is assumed."),
        (None, ("nm",) * 3, (1e-6, 1e-6), "'one' states no unit of length; nm is assumed."),
        (("um",) * 3, ("mm",) * 3, (1e-3, 1), ""),
        (("inch",) * 3, ("m",) * 3, (25.4, 1000), ""),
    ],
)
def test_units_are_honored(viewer: Any, fixed: Any, moving: Any, sizes_mm: tuple[float, float], note: str) -> None:
    layers = [viewer.add_image(np.zeros((4, 5, 6)), name=name, units=u) for name, u in (("one", fixed), ("two", moving))]
    one, two, _, said = common_world(*map(place_of, layers))
    np.testing.assert_allclose((one[0, 0], two[0, 0]), sizes_mm)
    assert said == note


def test_each_axis_has_its_unit(viewer: Any) -> None:
    place = place_of(viewer.add_image(np.zeros((4, 5, 6)), units=("um", "nm", "nm"), scale=(2, 300, 300)))
    np.testing.assert_allclose(np.diag(common_world(place, place)[0]), (2e-3, 3e-4, 3e-4, 1))


def test_layers_that_cannot_be_registered_are_refused_with_their_names(viewer: Any) -> None:
    good = viewer.add_image(noise(), name="good")
    for other, words in (
        (viewer.add_image(np.zeros((2, 4, 5, 6)), name="stack"), "'stack': expected a 3D image, found 4 dimensions"),
        (viewer.add_image(np.zeros((4, 5)), name="flat"), "'flat': expected a 3D image, found 2 dimensions"),
        (viewer.add_image(np.zeros((4, 5, 6, 3)), name="colors", rgb=True), "'colors': expected one number per voxel"),
        (viewer.add_image(np.zeros((4, 5, 6)), name="half", units=("pixel", "um", "um")), "'half': expected a unit of length"),
        (good, "expected two layers, got 'good'"),
        (None, "expected two layers"),
    ):
        for pair in ((good, other), (other, good)):
            with pytest.raises(InputError, match=words):
                pair_of(*pair)


def test_of_a_pyramid_the_finest_level_is_read(viewer: Any) -> None:
    layer = viewer.add_image([np.ones((8, 8, 8)), np.zeros((4, 4, 4))], multiscale=True)
    assert voxels_of(layer).shape == (8, 8, 8)


@pytest.mark.parametrize("unit", [None, "um"])
def test_two_layers_are_registered(viewer: Any, unit: str | None) -> None:
    """The moving image is shifted by 3 voxels along axis 0, and its layer lies 2 voxels lower along axis 1."""
    image = noise()
    place = {"scale": (1, 1, 2), "units": unit and (unit,) * 3}
    fixed = viewer.add_image(image, name="fixed", translate=(7, 8, 9), **place)
    moving = viewer.add_image(-np.roll(image, 3, axis=0), name="moving", translate=(7, 6, 9), **place)
    widget = opened(viewer)
    assert (widget["fixed"].value, widget["moving"].value) == (fixed, moving)
    press(widget)
    _, _, warped, arrows = viewer.layers
    assert (warped.name, moving.visible) == ("moving registered to fixed", False)
    inside = (slice(8, -8),) * 3
    assert np.corrcoef(image[inside].flat, warped.data[inside].flat)[0, 1] < -0.95
    for layer in (warped, arrows):
        np.testing.assert_allclose(layer.data_to_world((3, 1, 4)), fixed.data_to_world((3, 1, 4)))
        assert layer.units == fixed.units
    starts, steps = arrows.data[:, 0], arrows.data[:, 1]
    middle = ((starts > 10) & (starts < np.array(image.shape) - 10)).all(axis=1)
    assert middle.sum() > 100
    assert len(starts) <= 10_000
    np.testing.assert_allclose(np.median(steps[middle], axis=0), (3, -2, 0), atol=0.3)
    np.testing.assert_allclose(np.median(arrows.features["length"][middle]), np.hypot(3, 2), atol=0.3)
    text = widget["result"].value
    assert "Chosen: " in text
    assert "Confidence: 1.00" in text
    assert f"of 1×1×2 {'µm' if unit else 'mm'}, moved by" in text
    assert ("mm is assumed" in text) is (unit is None)
    assert told() == []


def test_a_doubtful_result_is_a_warning(viewer: Any) -> None:
    for seed in (0, 1):
        viewer.add_image(noise(seed, (32, 28, 30)), name=f"noise {seed}", units=("mm",) * 3)
    widget = opened(viewer)
    press(widget)
    assert "low confidence" in widget["result"].value
    assert "Reason: " in widget["result"].value
    assert any(severity == "warning" and "low confidence" in message for severity, message in told())


def test_errors_are_notifications_with_their_sentence(viewer: Any) -> None:
    widget = opened(viewer)
    press(widget)
    assert told()[-1] == ("error", "expected two layers with images, one fixed and one moving; open or add them first")
    viewer.add_image(noise(), name="good")
    viewer.add_image(np.ones((20, 20, 20)), name="constant")
    press(widget)  # which followed the layers; this error is the worker's
    severity, message = told()[-1]
    assert severity == "error"
    assert "constant: expected an image with structure" in message
    assert widget["result"].value == message
    assert len(viewer.layers) == 2


def test_the_choices_follow_the_layers(viewer: Any) -> None:
    widget = opened(viewer)
    one = viewer.add_image(noise(), name="one")
    viewer.add_labels(np.zeros((4, 5, 6), int), name="labels")
    two = viewer.add_image(noise(), name="two")
    assert list(widget["fixed"].choices) == [one, two]
    assert (widget["fixed"].value, widget["moving"].value) == (one, two)
    viewer.layers.remove(two)
    assert list(widget["moving"].choices) == [one]


def test_the_manifest_is_complete_and_napari_opens_by_it(viewer: Any, tmp_path: Path) -> None:
    from npe2 import PluginManager, PluginManifest

    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    manager = PluginManager.instance()
    if manifest.name not in manager:
        manager.register(manifest)
    displacement = torch.zeros(1, 3, 5, 6, 7)
    displacement[0, 0] = 4
    write_displacement(tmp_path / "displacement.nii.gz", displacement, np.diag([2.0, 2, 3, 1]), "um")
    (layer,) = viewer.open(tmp_path / "displacement.nii.gz", plugin="mcbo")
    assert type(layer) is napari.layers.Vectors
    np.testing.assert_array_equal(np.unique(layer.data[:, 1], axis=0), [[4, 0, 0]])
    np.testing.assert_allclose(layer.data_to_world((1, 1, 1)), (2000, 2000, 3000))
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 3
    assert [layer.name for layer in viewer.open_sample("mcbo", "demo")] == ["ultrasound", "MRI"]
