"""The preset that a registration asks for: by name or from a TOML file, with settings of its own."""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcbo.core.errors import InputError, McboError, NonFiniteError
from mcbo.core.types import Choice, Freedom
from mcbo.io.files import reading, reason_of, regular_size, shown
from mcbo.methods.config import Preset
from mcbo.methods.presets import TASKS, find_config
from mcbo.methods.settings import with_settings

AUTO = "auto"
"""The task's default preset on a working grid of its own (``working_grid.py``) instead of the fixed grid."""

DEFAULT_PRESET = AUTO
"""Where the fixed image's voxels are anisotropic it halves the error (docs/ablation.md); elsewhere it is much the same."""

SUFFIX = ".toml"
"""Of preset files."""

_BASE = "base"
_MAX_BYTES = 1 << 16


def base_of(preset: str) -> str:
    """The name of a preset, or of the one that a preset file is based on."""
    return read_preset_file(Path(preset))[0] if preset.lower().endswith(SUFFIX) else preset


def read_preset_file(path: Path) -> tuple[str, dict[str, object]]:
    """The base of a preset file, ``auto`` unless it names one, and its settings by name.

    A file is TOML: ``base = "cascade"``, and settings in tables that are called as they are: ``[refinement]`` with
    ``bending = 0.3``, ``[refinement.stages.0]`` with ``rounds = 3``.

    Raises:
        InputError: if it is no such file.
    """
    if regular_size(path, "a preset") > _MAX_BYTES:
        raise InputError(f"{path}: expected a preset of at most {_MAX_BYTES} bytes")
    with reading(path, "a preset in TOML", (OSError, ValueError, RecursionError)):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    base = content.pop(_BASE, AUTO)
    if not isinstance(base, str) or base.lower().endswith(SUFFIX):
        raise InputError(f"{path}: {_BASE}: expected the name of a preset, found {shown(base)}")
    return base, dict(_flattened(content, ""))


def _flattened(table: Mapping[str, Any], before: str) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{before}{key}.")
        else:
            yield before + key, _frozen(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


@contextmanager
def changed_settings(preset: str, settings: Mapping[str, object] | None) -> Iterator[None]:
    """Blames the user's own settings, if there are any, for an error of the computation in the block."""
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, McboError, RuntimeError, TypeError, ValueError) as error:
        own = [*(settings or {}), *([preset] if base_of(preset) != preset else [])]
        if not own or (isinstance(error, McboError) and not isinstance(error, NonFiniteError)):
            raise
        raise InputError(
            f"set {', '.join(own)}: expected settings that the method can compute with, but it fails: {reason_of(error)}"
        ) from error


def wanted_config(
    preset: str,
    task: str,
    expect: tuple[float, float] | None,
    accept: Choice | None = None,
    *,
    transform: Freedom = "deformable",
    settings: Mapping[str, object] | None = None,
) -> Preset:
    """The config of a preset, ``auto`` included; arguments as of ``register``.

    Raises:
        InputError: for unknown names, and values that they cannot have.
    """
    base, changes = read_preset_file(Path(preset)) if preset.lower().endswith(SUFFIX) else (preset, {})
    try:
        config = find_config(task, None if base == AUTO else base)
    except InputError as error:
        named = f"{preset}: " if base != preset else ""
        raise InputError(f"{named}{error}{'' if task not in TASKS else f', {AUTO}, or a {SUFFIX} file'}") from error
    if base != preset:
        config = replace(with_settings(config, changes, who=f"{preset}:"), name=Path(preset).stem)
    config = with_settings(config, settings or {}, who="set").restricted_to(transform)
    if accept is not None:
        config = config.accepting(accept)
    if expect is None:
        return config
    try:
        mm, degrees = (float(number) for number in expect)
    except (TypeError, ValueError) as error:
        raise InputError(f"expect: expected two numbers, mm and degrees, such as (5, 3), got {expect!r:.80}") from error
    return config.expecting(mm, degrees)
