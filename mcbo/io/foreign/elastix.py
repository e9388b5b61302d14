"""Parameter files of elastix, ``TransformParameters.0.txt``: those of linear transforms.

They map fixed to moving points in LPS mm, as ITK's do. Source: elastix' manual and its page "Transform Parameters".
"""

import re

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.io.files import shown
from mcbo.io.itk import LPS, matrix_of_transform

_LINE = re.compile(r"\(\s*(\w+)\s+(.*?)\s*\)\s*")
_VALUE = re.compile(r'"([^"]*)"|(\S+)')

_CENTERED = {
    "EulerTransform": "Euler3DTransform",
    "SimilarityTransform": "Similarity3DTransform",
    "AffineTransform": "AffineTransform",
}
"""Names of elastix and of SimpleITK, whose parameters are in the same order."""

_REMEDY = "elastix' `transformix -def all -tp FILE -out DIR` writes a deformationField.mhd or .nii, which `mcbo import` reads"


def is_elastix(text: str) -> bool:
    """Whether a text is a parameter file of elastix."""
    return re.search(r'^\s*\(\s*Transform\s+"', text, re.MULTILINE) is not None


def check_toml(text: str) -> None:
    """Raises ``InputError`` for a parameter file in TOML, which elastix writes, too."""
    if re.search(r'^\s*Transform\s*=\s*"', text, re.MULTILINE):
        raise InputError(
            'expected a parameter file of elastix with lines such as (Transform "AffineTransform"), found one in TOML: let '
            f"elastix write .txt, or {_REMEDY}"
        )


def parse(text: str) -> NDArray[np.float64]:
    """The matrix of a linear transform, from fixed to moving world positions, RAS mm.

    Raises:
        InputError: for any other, with the way out.
    """
    fields = _fields(text)
    name = fields.get("Transform", [""])[0]
    before = next((fields[key][0] for key in fields if re.fullmatch("InitialTransformParameters?FileName", key)), "")
    others = {
        "FixedImageDimension": "3",
        "MovingImageDimension": "3",
        "UseDirectionCosines": "true",
        "UseBinaryFormatForTransformationParameters": "false",
    }
    unlike = [key for key, value in others.items() if fields.get(key, [value])[0] != value]
    if name not in ("TranslationTransform", *_CENTERED) or before not in ("", "NoInitialTransform") or unlike:
        what = f"{name!r:.60}"
        if unlike:
            what += f" with {unlike[0]} {fields[unlike[0]][0]!r:.40}"
        elif name in ("TranslationTransform", *_CENTERED):
            what += f" after another one, {before!r:.80}"
        raise InputError(
            f"expected a linear 3D transform of elastix (translation, Euler, similarity, affine), found {what}: {_REMEDY}"
        )
    return LPS @ _matrix(name, fields) @ LPS


def _matrix(name: str, fields: dict[str, list[str]]) -> NDArray[np.float64]:
    import SimpleITK as sitk

    numbers = _numbers(fields, "TransformParameters")
    if name == "TranslationTransform":
        transform = sitk.TranslationTransform(3)
    else:
        transform = getattr(sitk, _CENTERED[name])(*((3,) if name == "AffineTransform" else ()))
        center = _numbers(fields, "CenterOfRotationPoint")
        if len(center) != 3:
            raise InputError(f"expected CenterOfRotationPoint with three numbers, found {len(center)}")
        transform.SetCenter(center)
        if name == "EulerTransform":
            transform.SetComputeZYX(fields.get("ComputeZYX", ["false"])[0] == "true")
    if len(numbers) != transform.GetNumberOfParameters():
        raise InputError(f"expected {transform.GetNumberOfParameters()} TransformParameters of a {name}, found {len(numbers)}")
    transform.SetParameters(numbers)
    return matrix_of_transform(transform)


def _fields(text: str) -> dict[str, list[str]]:
    """Names and values; the first counts where one is repeated."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.split("//")[0].strip())
        if match:
            fields.setdefault(match[1], [quoted or plain for quoted, plain in _VALUE.findall(match[2])] or [""])
    return fields


def _numbers(fields: dict[str, list[str]], key: str) -> list[float]:
    try:
        numbers = [float(value) for value in fields.get(key, [])]
    except ValueError as error:
        raise InputError(f"expected numbers under {key}, found {shown(' '.join(fields[key]))}") from error
    if not np.isfinite(numbers).all():
        raise InputError(f"expected finite numbers under {key}, found {shown(' '.join(fields[key]))}")
    return numbers
