"""A job of grand-challenge.org: which of its sockets hold the images to register, as ``inputs.json`` lists them.

A socket is an input or output of an algorithm, known by its slug, such as ``preoperative-mri``. ``inputs.json`` says which
sockets a job has, and not what they are for: their slugs have to tell, or the user.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AliasChoices, BaseModel, FailFast, Field, TypeAdapter, ValidationError

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.dataset.folders import Folder
from mcbo.io.files import shown, suffix_of
from mcbo.io.formats.registry import FORMATS
from mcbo.io.json_file import read_json

INPUTS = "inputs.json"
"""What the site puts into the input folder of a job."""

DISPLACEMENT, NONE = "displacement", "none"
"""What a user may call a socket besides a role: the output, or an input that is not to be used."""

DEFAULT_OUTPUT = "displacement-field"
"""The slug of the output, as Learn2Reg 2023 had it."""

Side: TypeAlias = Literal["fixed", "moving"]


@dataclass(frozen=True)
class Role:
    """What a user may call an image: its side, or its modality, which has a usual side. ``words`` of a slug tell either."""

    name: str
    side: Side
    words: frozenset[str]

    @property
    def is_modality(self) -> bool:
        return self.name != self.side


def _role(name: str, side: Side, words: str) -> Role:
    return Role(name, side, frozenset(words.split()))


ROLES = (
    _role("fixed", "fixed", "fixed target reference"),
    _role("moving", "moving", "moving source floating"),
    _role("ultrasound", "fixed", "ultrasound us ius ultrasonography sonography"),
    _role("ceT1", "moving", "cet1 t1ce t1c t1gd t1 t1w"),
    _role("T2", "moving", "t2 t2w flair"),
    _role("MRI", "moving", "mri mr"),
    _role("EM", "fixed", "em electron sem tem fibsem sbfsem"),
    _role("LM", "moving", "lm light fluorescence fluorescent fm confocal"),
)
"""The first modality that a slug tells counts; moving images are registered in this order."""

_ROLES = {role.name: role for role in ROLES}

_BESIDE_WORDS = frozenset(
    f"{word}{ending}"
    for word in ("mask", "segmentation", "label", "landmark", "keypoint", "overlay", "displacement", "deformation")
    for ending in ("", "s")
)
_BESIDE_KINDS = ("segmentation", "heat map", "displacement field")
"""What tells that a socket holds something about an image."""

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Sockets:
    """What a user says of sockets: names of roles (or ``none``) by slug, for inputs; and the slug of the output."""

    roles: Mapping[str, str] = field(default_factory=dict)
    output: str = DEFAULT_OUTPUT


@dataclass(frozen=True)
class Socket:
    """An input that is registered.

    Attributes:
        slug: its name on the site.
        side: of the pair.
        modality: the name of a role, if known.
        path: of the image.
        original: the name under which somebody uploaded the image, if known.
    """

    slug: str
    side: Side
    modality: str | None
    path: Path
    original: str | None


@dataclass(frozen=True)
class Job:
    """The inputs of a job: a fixed image, and one or more moving ones of the same object."""

    fixed: Socket
    movings: tuple[Socket, ...]

    @property
    def modalities(self) -> set[str]:
        """Those that are known."""
        return {socket.modality for socket in (self.fixed, *self.movings) if socket.modality}


class _Named(BaseModel):
    name: str


class _Interface(BaseModel):
    slug: str = Field(pattern=f"^{_SLUG.pattern}$")
    relative_path: str
    kind: str | None = None
    super_kind: str | None = None


class _Entry(BaseModel):
    interface: _Interface = Field(validation_alias=AliasChoices("socket", "interface"))  # the newer name, and the older
    image: _Named | None = None

    @property
    def is_image(self) -> bool:
        """Whether it holds an image that could be registered."""
        interface = self.interface
        if _words(interface.slug) & _BESIDE_WORDS or (interface.kind or "").lower() in _BESIDE_KINDS:
            return False
        is_of_images = self.image is not None or (interface.super_kind or "").lower() == "image"
        return is_of_images or _names_image(interface.relative_path)


_ENTRIES = TypeAdapter(Annotated[list[_Entry], FailFast()])  # of millions of errors, the first is enough
_MEANINGS = TypeAdapter(dict[str, str])


def parse_sockets(text: str | None) -> Sockets:
    """Roles by slug, from JSON such as ``{"preop-scan": "ceT1", "result": "displacement"}``; raises ``InputError``."""
    who = "--sockets or MCBO_SOCKETS"
    try:
        given = _MEANINGS.validate_json(text or "{}")
    except ValidationError as error:
        raise InputError(f'{who}: expected JSON such as {{"my-slug": "{ROLES[0].name}"}}, got {shown(text)}') from error
    known = {name.lower(): name for name in (*_ROLES, DISPLACEMENT, NONE)}
    for slug, name in given.items():
        if not _SLUG.fullmatch(slug):
            raise InputError(f"{who}: expected slugs of letters, digits and hyphens, got {shown(slug)}")
        if name.lower() not in known:
            raise InputError(f"{who}: expected for '{slug}' one of {', '.join(known.values())}, got {shown(name)}")
    roles = {slug: known[name.lower()] for slug, name in given.items()}
    outputs = [slug for slug, name in roles.items() if name == DISPLACEMENT]
    if len(outputs) > 1:
        raise InputError(f"{who}: expected one socket as {DISPLACEMENT}, got {', '.join(outputs)}")
    return Sockets(roles, output=outputs[0] if outputs else DEFAULT_OUTPUT)


def read_job(path: Path, sockets: Sockets, *, trust_paths: bool = False) -> Job:
    """The job that an ``inputs.json`` describes. Unless paths are trusted, no path of it leads out of its folder.

    Raises:
        InputError: if it is none, or there is not one fixed image and at least one moving one; the message names the sockets.
    """
    entries = _read_entries(path)
    sides = {slug: _side_of(entry, sockets.roles.get(slug)) for slug, entry in entries.items()}
    fixed, moving = ([slug for slug in entries if sides[slug] == side] for side in ("fixed", "moving"))
    if len(fixed) != 1 or not moving:
        found = ", ".join(f"'{slug}' ({sides[slug] or 'no role'})" for slug in entries) or "none"
        raise InputError(
            f"{path}: expected one socket with a fixed image and at least one with a moving image, found {found}; "
            "say which is which with --sockets or MCBO_SOCKETS"
        )
    for slug, entry in entries.items():
        if sides[slug] is None and entry.is_image and sockets.roles.get(slug) != NONE:
            log.warning("socket '%s' is not used: its slug tells no role; --sockets or MCBO_SOCKETS can give it one", slug)
    folder = Folder(path.parent, trusted=trust_paths)
    movings = [_find(entries[slug], "moving", sockets.roles.get(slug), folder) for slug in moving]
    rank = {name: number for number, name in enumerate(_ROLES)}
    movings.sort(key=lambda socket: (rank[socket.modality or socket.side], socket.slug))
    return Job(_find(entries[fixed[0]], "fixed", sockets.roles.get(fixed[0]), folder), tuple(movings))


def _read_entries(path: Path) -> dict[str, _Entry]:
    """The entries of an ``inputs.json``, by slug."""
    try:
        entries = _ENTRIES.validate_python(read_json(path, "the inputs of a job"))
    except ValidationError as error:
        where = "".join(f"[{shown(part)}]" for part in error.errors()[0]["loc"]) or "the whole"
        raise InputError(
            f'{path}: expected a list of {{"socket": {{"slug": …, "relative_path": …}}, …}}, but {where} is missing or of '
            "another kind"
        ) from error
    found: dict[str, _Entry] = {}
    for entry in entries:
        slug = entry.interface.slug
        if found.setdefault(slug, entry) is not entry:
            raise InputError(f"{path}: expected every socket once, found '{slug}' twice")
    return found


def _told(entry: _Entry) -> list[Role]:
    """The roles of which the slug has words."""
    return [role for role in ROLES if role.words & _words(entry.interface.slug)] if entry.is_image else []


def _side_of(entry: _Entry, given: str | None) -> Side | None:
    """The side that the user gives an input, or its slug tells; None if that tells none, or both."""
    if given is not None:
        return _ROLES[given].side if given in _ROLES else None
    told = _told(entry)
    sides = {role.side for role in told if not role.is_modality} or {role.side for role in told}
    return sides.pop() if len(sides) == 1 else None


def _words(slug: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", slug.lower()))


def _find(entry: _Entry, side: Side, given: str | None, folder: Folder) -> Socket:
    """The socket of an entry, with its image: the only one in its folder."""
    interface = entry.interface
    where = f"socket '{interface.slug}'"
    path = folder.join(interface.relative_path, where)
    try:
        if path.is_dir():
            names = [name for name in folder.names(interface.relative_path) if _names_image(name)]
            if len(names) != 1:
                found = ", ".join(map(shown, names)) or "none"
                raise InputError(f"{where}: expected one image (.mha, .tif or .nii.gz) in {path}, found {found}")
            path = folder.join(f"{interface.relative_path}/{names[0]}", where)
        elif not path.is_file():
            raise InputError(f"{where}: expected a folder with its image, or the image, but there is no {path}")
    except OSError as error:
        raise InputError(f"{where}: expected a readable {path}, but: {error.strerror or error}") from error
    modality = next((role.name for role in (_ROLES.get(given or ""), *_told(entry)) if role and role.is_modality), None)
    return Socket(interface.slug, side, modality, path, entry.image.name if entry.image else None)


def _names_image(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and any(suffix_of(Path(name)) in known.suffixes for known in FORMATS)
