"""Variants of the method: presets, and presets with single fields replaced, given as a line of text."""

from collections.abc import Sequence
from dataclasses import dataclass

from mcbo.core.errors import InputError
from mcbo.io.files import shown
from mcbo.methods.config import Preset
from mcbo.methods.presets import TASKS, find_config
from mcbo.methods.settings import parse_assignment, replace_field


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
        path, value = parse_assignment(change, who)
        config = replace_field(config, path, value, who=who)
        made.append(f"{path}={value!r}")
    return Variant(f"{preset}:{';'.join(made)}", config)
