"""Linear transforms of other programs, from fixed to moving world positions (RAS mm); by what their text says.

FreeSurfer's ``.lta`` and MINC's ``.xfm`` map from src (source), the moving image, to dst (target), the fixed one.
Sources: FreeSurfer's wiki, "The LTA Transform Format", and ``lta_convert --help``; ``nitransforms`` reads them so, too; the
MINC toolkit's ``mincresample``; for the others see ``fsl`` and ``elastix``.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcbo.core.errors import InputError, ShapeError
from mcbo.geometry.grid import Grid
from mcbo.io.files import shown
from mcbo.io.foreign import elastix, fsl

_MAX_TEXT = 1 << 20

_VOX_TO_VOX, _RAS_TO_RAS = 0, 1
"""Types of FreeSurfer's linear transforms."""


def read_linear(path: Path, fixed: Grid | None, moving: Grid | None) -> NDArray[np.float64] | None:
    """A linear transform of another program as ``(4, 4)`` from fixed to moving world positions, RAS mm.

    Args:
        path: the file.
        fixed: grid of the fixed image, which FLIRT needs, and against which an LTA is checked.
        moving: grid of the moving image, which FLIRT needs.

    Returns:
        None if the file is not one of these: it may be ITK's, or a matrix alone.

    Raises:
        InputError: if it is one of these, and cannot be read; without its name.
    """
    with path.open("rb") as file:
        text = file.read(_MAX_TEXT).decode("latin-1")
    if text.lstrip().startswith("#Insight"):
        return None
    if elastix.is_elastix(text):
        return elastix.parse(text)
    elastix.check_toml(text)
    if text.startswith("MNI Transform File"):
        return _invert(parse_xfm(text))
    if re.search(r"^nxforms\s*=", text, re.MULTILINE):
        return _invert(parse_lta(text, fixed))
    if re.search(r"^(tkregister|round|tkregister\s)\s*$", text, re.MULTILINE):
        raise InputError(
            "expected an .lta of FreeSurfer, found its older register.dat: "
            "`lta_convert --inreg FILE --src MOVING --trg FIXED --outlta NEW.lta` converts it"
        )
    if text.startswith("DOF: "):
        raise InputError("expected an ITK transform, found one of MIRTK: `mirtk convert-dof FILE NEW.tfm -output-format itk`")
    try:
        matrix = parse_matrix(text)
    except InputError:
        return None
    if path.suffix.lower() != ".mat":
        return matrix
    if fixed is None or moving is None:
        raise InputError(
            "a text with a 4×4 matrix whose name ends in .mat is FLIRT's, in coordinates of both images: expected --reference "
            "with the fixed and --moving with the moving one, for their grids"
        )
    return fsl.flirt(_invertible(matrix), fixed, moving)


def parse_matrix(text: str) -> NDArray[np.float64]:
    """Four lines of four numbers, as they are; raises ``InputError`` for any other text."""
    try:
        rows = [[float(part) for part in line.replace(",", " ").split()] for line in text.splitlines()]
    except ValueError as error:
        raise InputError("expected four lines of four numbers, or an affine ITK transform") from error
    rows = [row for row in rows if row]
    if [len(row) for row in rows] != [4, 4, 4, 4]:
        raise InputError(f"expected four lines of four numbers, found lines of {[len(row) for row in rows][:8]} numbers")
    return np.array(rows)


def parse_xfm(text: str) -> NDArray[np.float64]:
    """The matrix in MINC's ``.xfm`` as it is: ``(4, 4)``, from source to target, RAS mm."""
    kinds = re.findall(r"^\s*Transform_Type\s*=\s*(\w+)", text, re.MULTILINE)
    if kinds != ["Linear"] or re.search(r"Invert_Flag\s*=\s*True", text):
        raise InputError(
            f"expected a linear transform of MINC, found {shown(', '.join(kinds) or 'none')}: apply it with mincresample, and "
            "register or warp the image that this makes"
        )
    match = re.search(r"Linear_Transform\s*=\s*([^;]*);", text)
    try:
        numbers = [float(part) for part in match[1].split()] if match else []
    except ValueError:
        numbers = []
    if len(numbers) != 12:
        raise InputError("expected a Linear_Transform of three lines of four numbers, found others")
    return np.vstack([np.reshape(numbers, (3, 4)), (0, 0, 0, 1)])


def parse_lta(text: str, fixed: Grid | None) -> NDArray[np.float64]:
    """The matrix in FreeSurfer's ``.lta``, from src to dst, RAS mm: ``(4, 4)``.

    Raises:
        InputError: also if src, but not dst, is on the grid of the fixed image.
    """
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    fields = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines if "=" in line)
    kind, count = _whole(fields.get("type", "")), _whole(fields.get("nxforms", ""))
    if kind not in (_VOX_TO_VOX, _RAS_TO_RAS) or count != 1:
        raise InputError(
            f"expected an .lta with one transform of type 0 or 1 (voxels or RAS), found {count} of type {kind}: "
            "`lta_convert --inlta FILE --outlta NEW.lta` converts one"
        )
    head = next((n for n, line in enumerate(lines) if re.fullmatch(r"1\s+4\s+4", line)), len(lines))
    matrix = parse_matrix("\n".join(lines[head + 1 : head + 5]))
    src, dst = (_volume(lines, name) for name in ("src", "dst"))
    if fixed is not None and src is not None and dst is not None:
        near = 0.1  # voxels: the file has about six digits
        if src.matches(fixed, within_voxels=near) and not dst.matches(fixed, within_voxels=near):
            remedy = "`lta_convert --inlta FILE --invert --outlta NEW.lta` inverts it"
            if "NiTransforms" in text:  # which writes the fixed image as src, but the matrix as FreeSurfer does
                remedy = "write it with nitransforms as ITK's instead, fmt='itk'"
            raise InputError(f"expected an .lta whose dst is the fixed image (--reference), found its src there: {remedy}")
    if kind == _RAS_TO_RAS:
        return matrix
    if src is None or dst is None:
        raise InputError("expected valid volume info of src and dst in an .lta from voxels to voxels, found none")
    return np.asarray(dst.affine @ matrix @ np.linalg.inv(src.affine))


def _volume(lines: list[str], name: str) -> Grid | None:
    """The grid in an ``.lta``'s ``src volume info``, or ``dst``; None where it says that it is not valid."""
    start = next((n for n, line in enumerate(lines) if line.startswith(f"{name} volume info")), None)
    if start is None:
        return None
    fields = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines[start + 1 : start + 9] if "=" in line)
    try:
        if _whole(fields["valid"]) != 1:
            return None
        height, width, depth = (int(part) for part in fields["volume"].split())
        size, *axes, center = (
            np.array([float(part) for part in fields[key].split()]) for key in ("voxelsize", "xras", "yras", "zras", "cras")
        )
        affine = np.eye(4)
        affine[:3, :3] = np.stack(axes, axis=1) * size
        affine[:3, 3] = center - affine[:3, :3] @ (np.array([height, width, depth]) / 2)
        return Grid((height, width, depth), affine)
    except (KeyError, ValueError, ShapeError) as error:
        raise InputError(f"expected {name} volume info as FreeSurfer writes it, found other lines") from error


def _invert(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(_invertible(matrix)))


def _invertible(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)) or abs(np.linalg.det(matrix)) < 1e-9:
        raise InputError(f"expected a finite 4×4 matrix that can be inverted, found {matrix.tolist()}")
    return matrix


def _whole(text: str) -> int | None:
    match = re.match(r"\d{1,9}(?!\d)", text)
    return int(match[0]) if match else None
