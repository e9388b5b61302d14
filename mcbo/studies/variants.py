"""Variants of the method: presets, and presets of which single fields are replaced, as a line of text says."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mcbo.core.errors import InputError
from mcbo.methods.config import Preset
from mcbo.methods.presets import TASKS, find_config


@dataclass(frozen=True)
class Variant:
    """A method to try.

    Attributes:
        name: of the preset, or ``PRESET:FIELD=VALUE``.
        config: all its numbers.
    """

    name: str
    config: Preset


def make_variants(task: str, *, presets: Sequence[str], changes: Sequence[str]) -> tuple[Variant, ...]:
    """The presets of a task, then the changed ones; what is asked for twice counts once.

    Args:
        task: whose presets.
        presets: their names; all, if none is named.
        changes: as ``parse_change`` reads them.

    Raises:
        InputError: for an unknown task or preset, or a change that makes no sense.
    """
    find_config(task)  # refuses an unknown task
    chosen = [Variant(name, find_config(task, name)) for name in presets or TASKS[task].presets]
    chosen += [parse_change(text, task=task) for text in changes]
    return tuple({variant.name: variant for variant in chosen}.values())


def parse_change(text: str, *, task: str) -> Variant:
    """A preset with some fields replaced.

    Args:
        text: ``PRESET:FIELD=VALUE``, or several ``FIELD=VALUE`` separated by ``;``. A field may lie deeper
            (``levels.3.refinement.iterations=30``). A value is a Python literal.
        task: whose preset.

    Raises:
        InputError: for an unknown preset or field, or a value of another type.
    """
    who = f"--change {text!r}"
    preset, colon, changes = (part.strip() for part in text.partition(":"))
    if not colon:
        raise InputError(f"{who}: expected PRESET:FIELD=VALUE, found no colon")
    config = find_config(task, preset)
    told = []
    for change in changes.split(";"):
        path, value = _parse_assignment(change, who)
        config = replace_field(config, path, value, who=who)
        told.append(f"{path}={value!r}")
    return Variant(f"{preset}:{';'.join(told)}", config)


def _parse_assignment(text: str, who: str) -> tuple[str, object]:
    path, sign, literal = (part.strip() for part in text.partition("="))
    if not (path and sign):
        raise InputError(f"{who}: expected FIELD=VALUE, got {text!r}")
    try:
        return path, ast.literal_eval(literal)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # as its documentation lists them
        raise InputError(f"{who}: expected a Python literal such as 4, 0.5, None, 'text' or (), got {literal!r}") from error


def replace_field(owner: Any, path: str, value: object, *, who: str) -> Any:
    """A frozen dataclass with one field replaced, in it or in what it holds.

    Args:
        owner: any frozen dataclass; fields may hold others, and tuples of them.
        path: names of fields and numbers of places in tuples, from 0, joined by dots.
        value: the new one.
        who: begins the messages of errors.

    Returns:
        A new object of the owner's class.

    Raises:
        InputError: if there is no such field, or its type is another.
    """
    step, _, rest = path.partition(".")
    if is_dataclass(owner) and not isinstance(owner, type):
        names = [field.name for field in fields(owner)]
        if step not in names:
            raise InputError(f"{who}: expected a field of {type(owner).__name__} ({', '.join(names)}), got {step!r}")
        hints = get_type_hints(type(owner))
        new = replace_field(getattr(owner, step), rest, value, who=who) if rest else value
        return replace(owner, **{step: _checked(new, hints[step], f"{who}: {step}")})
    if isinstance(owner, tuple):
        if not (step.isdecimal() and int(step) < len(owner)):
            raise InputError(f"{who}: expected a number below {len(owner)}, got {step!r}")
        place = int(step)
        new = replace_field(owner[place], rest, value, who=who) if rest else value
        return (*owner[:place], new, *owner[place + 1 :])
    raise InputError(f"{who}: expected nothing after a field that holds {owner!r}, got {step!r}")


def _checked(value: object, hint: Any, who: str) -> Any:
    """The value, if a field of that type may hold it; a whole number where a float belongs becomes one."""
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        name = hint.__name__ if isinstance(hint, type) else re.sub(r"(typing|mcbo(\.\w+)+)\.", "", str(hint))
        raise InputError(f"{who}: expected {name}, got {value!r}") from error
