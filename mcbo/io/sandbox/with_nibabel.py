"""nibabel as a reader, of all its formats but NIfTI, which has a reader of our own."""

from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.io.sandbox.wire import Frame


def open_file(request: Frame) -> tuple[Frame, Callable[[], tuple[NDArray[Any], Frame]]]:
    """What a file holds, and how to read it; the array is ``(D, W, H)``, of floating point in float32.

    Raises:
        InputError: if it is no image in space, or not of real numbers.
        Exception: of nibabel's many kinds.
    """
    image: Any = nibabel.load(request["path"])
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise InputError(f"expected an image with an affine, found a {type(image).__name__}")
    dtype = np.dtype(image.get_data_dtype())
    if dtype.kind not in "biuf":
        raise InputError(f"expected one number per voxel, found data of type {dtype}")
    shape = [int(n) for n in image.shape]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    files = [holder.filename for holder in image.file_map.values() if holder.filename is not None]
    header = {"size": shape, "numbers": 1, "value_bytes": dtype.itemsize, "files": files}
    return header, lambda: (_values(image, shape), {"affine": np.asarray(image.affine, dtype=np.float64).tolist()})


def _values(image: Any, shape: list[int]) -> NDArray[Any]:
    array = np.asanyarray(image.dataobj).reshape(shape, order="F")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    return np.ascontiguousarray(array.T)
