"""The control groups of this process, whose limits bound its cores and its memory."""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def groups_of(controller: str, root: Path = ROOT, own: Path = OWN) -> list[Path]:
    """The folders of the control groups that this process is in, its own first and then those around it; each may have a limit.

    A container has but one, seen as the root; services, sessions and jobs of a cluster have several, one within the other.
    Version 1 of control groups has a folder for each ``controller``, such as ``cpu``; version 2 has one for all.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        lines = []
    paths = {
        name: path.strip("/") for _, names, path in (line for line in lines if len(line) == 3) for name in names.split(",")
    }
    folders = []
    for base, path in ((root, paths.get("", "")), (root / controller, paths.get(controller, ""))):
        inner = base / path if ".." not in Path(path).parts else base  # a path beyond what this process can see
        folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(base))]
    return list(dict.fromkeys(folders))
