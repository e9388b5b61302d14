"""Settings of a preset replaced by name, as ``ablate --change`` and ``register --set`` name them."""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mcbo.core.errors import InputError
from mcbo.io.files import shown
from mcbo.methods.config import Preset

LARGEST = 1e9
"""No number of a setting is larger, up to its sign."""

AnyPreset = TypeVar("AnyPreset", bound=Preset)


def with_settings(config: AnyPreset, changes: Mapping[str, object], *, who: str) -> AnyPreset:
    """A preset with settings replaced, by name; see ``replace_field`` for names and errors."""
    for path, value in changes.items():
        config = replace_field(config, path, value, who=f"{who} {shown(path)}")
    return config


def parse_assignment(text: str, who: str) -> tuple[str, object]:
    """The name and the value of ``FIELD=VALUE``, a Python literal; raises ``InputError`` for anything else."""
    path, sign, literal = (part.strip() for part in text.partition("="))
    if not (path and sign):
        raise InputError(f"{who}: expected FIELD=VALUE, got {shown(text)}")
    try:
        return path, ast.literal_eval(literal)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # those of its documentation
        raise InputError(
            f"{who}: expected a Python literal such as 4, 0.5, None, 'text' or (), got {shown(literal)}"
        ) from error


def replace_field(owner: Any, path: str, value: object, *, who: str) -> Any:
    """A copy of a frozen dataclass, or of a tuple, with one field replaced, however deeply nested.

    ``path`` joins field names and positions in tuples, from 0, by dots; ``who`` begins the messages of errors.

    Raises:
        InputError: if there is no such field, or the value is of another type, or no finite number below ``LARGEST``.
    """
    step, _, rest = path.partition(".")
    if is_dataclass(owner) and not isinstance(owner, type):
        names = [field.name for field in fields(owner) if field.metadata.get("decides", True)]
        if step not in names:
            raise InputError(f"{who}: expected a field of {type(owner).__name__} ({', '.join(names)}), got {shown(step)}")
        hints = get_type_hints(type(owner))
        new = replace_field(getattr(owner, step), rest, value, who=who) if rest else value
        return replace(owner, **{step: _checked(new, hints[step], f"{who}: {step}")})
    if isinstance(owner, tuple):
        if step not in map(str, range(len(owner))):
            raise InputError(f"{who}: expected a number below {len(owner)}, got {shown(step)}")
        index = int(step)
        new = replace_field(owner[index], rest, value, who=who) if rest else value
        return (*owner[:index], new, *owner[index + 1 :])
    raise InputError(f"{who}: expected nothing after a field that holds {shown(owner)}, got {shown(step)}")


def _checked(value: object, hint: Any, who: str) -> Any:
    """The value, if it has the type of the field; for a float field, a whole number becomes one."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not (math.isfinite(number) and abs(number) <= LARGEST):
            raise InputError(f"{who}: expected a number up to {LARGEST:g}, got {shown(number)}")
        if isinstance(number, int) and number < 0 and hint is not float:
            raise InputError(f"{who}: expected a whole number of 0 or more, got {shown(number)}")
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        name = hint.__name__ if isinstance(hint, type) else re.sub(r"(typing|mcbo(\.\w+)+)\.", "", str(hint))
        raise InputError(f"{who}: expected {name}, got {shown(value)}") from error
