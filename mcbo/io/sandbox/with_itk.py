"""ITK as a reader: images with a format of ITK's, and its transforms. Geometry is as ITK has it, LPS millimeters."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.io.sandbox.wire import Frame

Read: TypeAlias = Callable[[], tuple[NDArray[Any], Frame]]
"""Reads the data: an array, C-contiguous, and what there is to say about it."""

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_GDCM = "GDCMImageIO"

DICOM_TAGS = {
    "0008|0008": "image type",
    "0008|0018": "uid",
    "0008|103e": "description",
    "0018|0081": "echo time",
    "0018|1060": "trigger time",
    "0018|9087": "b-value",
    "0020|000e": "series",
    "0020|0012": "acquisition",
    "0020|0032": "position",
    "0020|0037": "orientation",
    "0020|0100": "temporal position",
    "0028|0008": "frames",
    "0028|0030": "spacing",
    "0028|0100": "bits",
}
"""What is read of a DICOM header, and how it is called here."""

_MAX_TEXT = 256
"""Of one of them."""

_alive: list[sitk.Image] = []
"""Views do not keep their image; this process serves no other file."""


def open_file(request: Frame) -> tuple[Frame, Read]:
    """What a file holds, and how to read it; ``request["what"]`` is one of the keys below.

    Raises:
        InputError: for what is not 3D.
        RuntimeError: those of ITK.
    """
    kinds = {"image": _image, "transform": _transform, "linear": _linear, "headers": _dicom_headers, "slices": _dicom_slices}
    return kinds[request["what"]](request)


def _header(path: str, io: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)  # else ITK goes by the content, whatever the name
    reader.SetFileName(path)
    reader.ReadImageInformation()
    return reader


def _told(reader: sitk.ImageFileReader, size: list[int]) -> Frame:
    value = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    bits = int("".join(filter(str.isdigit, value)) or 64) * (2 if "complex" in value else 1)
    return {"size": size, "numbers": reader.GetNumberOfComponents(), "value_bytes": bits // 8}


def _image(request: Frame) -> tuple[Frame, Read]:
    reader = _header(request["path"], request["io"])
    size = list(reader.GetSize())
    if reader.GetDimension() == 4 and size[3] == 1:
        reader.SetExtractSize([*size[:3], 0])
    elif reader.GetDimension() != 3:
        raise InputError(f"expected a 3D image, found {reader.GetDimension()}D data of size {tuple(size)}")
    return _told(reader, size[:3]), lambda: _array(reader.Execute())


def _array(image: sitk.Image) -> tuple[NDArray[Any], Frame]:
    """The voxels of an image, ``(D, W, H)`` or, of vectors, ``(D, W, H, n)``, and where they lie."""
    _alive.append(image)
    about = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return sitk.GetArrayViewFromImage(image), about


def _dicom_headers(request: Frame) -> tuple[Frame, Read]:
    """Headers of DICOM files, None of one that holds no image; there is nothing else to read."""
    return {"headers": [_dicom_header(path) for path in request["files"]]}, lambda: (np.empty(0), {})


def _dicom_header(path: str) -> Frame | None:
    try:
        reader = _header(path, _GDCM)
    except RuntimeError:  # a report, a structure set, a presentation state
        return None
    tags = {name: _text(reader.GetMetaData(tag)) for tag, name in DICOM_TAGS.items() if reader.HasMetaDataKey(tag)}
    bits = tags.pop("bits", "")
    stored_bytes = int(bits) // 8 if bits.isdigit() else 0
    pixels = {"type": reader.GetPixelIDValue(), "stored_bytes": stored_bytes * reader.GetNumberOfComponents()}
    return tags | _told(reader, list(reader.GetSize())) | pixels


def _text(value: str) -> str:
    """A tag's text, as UTF-8 or else as Latin-1."""
    data = value.encode("utf-8", "surrogateescape")[:_MAX_TEXT].strip(b" \0")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _dicom_slices(request: Frame) -> tuple[Frame, Read]:
    """The pixels of files in their order, ``(slices, rows, columns)``, rescaled as each header says."""
    files = request["files"]
    reader = _header(files[0], _GDCM)
    header = _told(reader, [*reader.GetSize()[:2], len(files)])
    kind = reader.GetPixelIDValue()
    if request["as_float"]:
        header, kind = header | {"value_bytes": 8}, sitk.sitkFloat64
    return header, lambda: _array(sitk.ReadImage(files, kind, imageIO=_GDCM))


def _transform(request: Frame) -> tuple[Frame, Read]:
    """A transform as vectors: on the grid of a reference image, or, of a displacement field, on its own."""
    transform = sitk.ReadTransform(request["path"])
    if transform.GetDimension() != 3:
        raise InputError(f"expected a transform of 3 dimensions, found {transform.GetDimension()}")
    reference = request["reference"]
    if reference is not None:
        sampler = sitk.TransformToDisplacementFieldFilter()
        sampler.SetSize(reference["size"])
        sampler.SetOutputSpacing(reference["spacing"])
        sampler.SetOutputOrigin(reference["origin"])
        sampler.SetOutputDirection(reference["direction"])
        sampler.SetOutputPixelType(sitk.sitkVectorFloat64)
        return {"size": reference["size"], "numbers": 3, "value_bytes": 8}, lambda: _array(sampler.Execute(transform))
    simple = transform.Downcast()
    if isinstance(simple, sitk.CompositeTransform) and simple.GetNumberOfTransforms() == 1:
        simple = simple.GetNthTransform(0).Downcast()
    if not isinstance(simple, sitk.DisplacementFieldTransform):
        raise InputError(f"a {simple.GetName()} has no grid of its own: expected --reference with the fixed image")
    field = simple.GetDisplacementField()
    return {"size": list(field.GetSize()), "numbers": 3, "value_bytes": 8}, lambda: _array(field)


def _linear(request: Frame) -> tuple[Frame, Read]:
    """An affine transform as a matrix ``(4, 4)``."""
    transform = sitk.ReadTransform(request["path"])
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise InputError(
            f"expected an affine transform of 3 dimensions, found a {transform.GetName()} of {transform.GetDimension()}; "
            "`compose` combines a displacement field with a result"
        )
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([transform.TransformPoint(axis) for axis in np.eye(3).tolist()]).T - origin[:, None]
    matrix[:3, 3] = origin
    return {"size": [4, 4], "numbers": 1, "value_bytes": 8}, lambda: (matrix, {})
