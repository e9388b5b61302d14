"""A result where people work with it: in a notebook, pickled, in other processes, in the types of other libraries."""

import base64
import io
import pickle
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import nbformat
import nibabel
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import mcbo
from mcbo.io.image_like import Geometry, to_volume
from mcbo.studies.phantom import make_phantom

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

CELLS = (
    "import numpy as np, mcbo\n"
    "from scipy import ndimage\n"
    "fixed = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((36, 32, 40)), 2)\n"
    "result = mcbo.register(fixed, -np.roll(fixed, 2, axis=0), spacing=(1, 1, 2))",
    "result",
    "result.transforms[0]",
    "[name for name in dir(mcbo) if not name.startswith('_')]",
)


@pytest.fixture(scope="module")
def result() -> mcbo.Result:
    phantom = make_phantom((30, 33, 36), seed=7)
    fixed, moving = phantom.fixed[0, 0], phantom.cet1[0, 0]
    return mcbo.register(fixed, moving, affine=np.diag([1.0, 1.2, 1.5, 1]), preset="cascade")


def test_a_notebook_shows_a_sentence_and_a_picture() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [cell["outputs"] for cell in notebook["cells"]]
    assert all("</progress>" not in str(output) for output in outputs[0]), "the bar goes away"
    assert sum(len(str(output)) for output in outputs[0]) < 400
    (shown,) = (output["data"] for output in outputs[1])
    assert shown["text/plain"].startswith("<mcbo.Result: rigid result, confidence ")
    assert "36×32×40 voxels of 1×1×2 mm, moved by" in shown["text/plain"]
    assert len(shown["text/plain"]) < 400
    assert 1000 < len(shown["text/html"]) < 400_000
    (transform,) = (output["data"]["text/plain"] for output in outputs[2])
    assert transform.startswith("<mcbo.Transform: 36×32×40 voxels")
    assert outputs[3][0]["data"]["text/plain"] == "['Result', 'Transform', 'register']"


def test_the_picture_shows_three_planes(result: mcbo.Result) -> None:
    html = result._repr_html_()
    match = re.search(r"base64,([^\"]+)", html)
    assert match
    picture = Image.open(io.BytesIO(base64.b64decode(match[1])))
    assert picture.height == 220
    assert picture.width > 2 * 220
    assert result.judgement is not None
    assert result.judgement.chosen in html


def test_a_result_survives_pickling(result: mcbo.Result) -> None:
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.displacement, result.displacement)
    assert repr(again) == repr(result)


def test_warped_images_have_the_type_of_those_given(result: mcbo.Result) -> None:
    array = result.moving_images[0].volume[0, 0].numpy()
    expected = result.warp(array)
    assert isinstance(expected, np.ndarray)
    affine = result.transforms[0].moving.affine
    tensor, nifti = result.warp(torch.from_numpy(array)), result.warp(nibabel.Nifti1Image(array, affine))
    itk = result.warp(as_itk(array, affine))
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(nifti, nibabel.Nifti1Image)
    assert isinstance(itk, sitk.Image)
    for image in (tensor, nifti, itk):
        volume, grid = to_volume(image, "warped", Geometry(affine=result.affine))
        np.testing.assert_allclose(volume[0, 0].numpy(), expected, atol=1e-3)
        assert grid.matches(result.transforms[0].fixed)


def as_itk(array: Any, affine: Any) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(np.diag(affine)[:3].tolist())
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    return image


FORKED = """
import multiprocessing, numpy, mcbo
image = numpy.random.default_rng(0).random((24, 25, 26))
def work(_):
    try:
        mcbo.register(image, image, preset="cascade")
    except Exception as error:
        return str(error)
mcbo.register(image, image, preset="cascade")
print(multiprocessing.get_context("fork").Pool(1).map_async(work, [0]).get(60)[0])
"""


def test_a_forked_process_gets_a_sentence_instead_of_waiting_forever() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False)
    assert "found one forked" in done.stdout, done.stderr
