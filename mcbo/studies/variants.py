"""Variants of the method: presets, and presets with single fields replaced, given as a line of text."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mcbo.core.errors import InputError
from mcbo.io.files import shown
from mcbo.methods.config import Preset
from mcbo.methods.presets import TASKS, find_config


@dataclass(frozen=True)
class Variant:
    """A configuration to try, named ``PRESET`` or ``PRESET:FIELD=VALUE``."""

    name: str
    config: Preset


def make_variants(task: str, *, presets: Sequence[str], changes: Sequence[str]) -> tuple[Variant, ...]:
    """Presets of a task (all, if none is named), then changes of presets (see ``parse_change``), without repeats.

    Raises:
        InputError: for an unknown task or preset, or an invalid change.
    """
    find_config(task)  # refuses an unknown task
    chosen = [Variant(name, find_config(task, name)) for name in presets or TASKS[task].presets]
    chosen += [parse_change(text, task=task) for text in changes]
    return tuple({variant.name: variant for variant in chosen}.values())


def parse_change(text: str, *, task: str) -> Variant:
    """A preset of a task with some fields replaced: ``PRESET:FIELD=VALUE``, with several ``FIELD=VALUE`` separated by ``;``.

    A field may be nested (``levels.3.refinement.iterations=30``); a value is a Python literal.

    Raises:
        InputError: for an unknown preset or field, or a value of another type.
    """
    who = f"--change {shown(text)}"
    preset, colon, changes = (part.strip() for part in text.partition(":"))
    if not colon:
        raise InputError(f"{who}: expected PRESET:FIELD=VALUE, found no colon")
    config = find_config(task, preset)
    made = []
    for change in changes.split(";"):
        path, value = _parse_assignment(change, who)
        config = replace_field(config, path, value, who=who)
        made.append(f"{path}={value!r}")
    return Variant(f"{preset}:{';'.join(made)}", config)


def _parse_assignment(text: str, who: str) -> tuple[str, object]:
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
        InputError: if there is no such field, or the value is of another type.
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
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        name = hint.__name__ if isinstance(hint, type) else re.sub(r"(typing|mcbo(\.\w+)+)\.", "", str(hint))
        raise InputError(f"{who}: expected {name}, got {shown(value)}") from error
