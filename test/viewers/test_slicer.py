"""The module for 3D Slicer: what needs no Slicer, and its logic with the real command and a stand-in for Slicer."""

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from mcbo.studies.phantom import make_phantom

MODULE = Path(__file__).resolve().parents[2] / "docs/slicer/MCBORegistration.py"
LIMIT_S = 120.0


class Timer:
    """Of Qt; the test lets it ring."""

    def __init__(self) -> None:
        self.ring: Callable[[], None] = lambda: None
        self.runs = False

    def setInterval(self, _: int) -> None:  # noqa: N802
        pass

    def connect(self, _: str, function: Callable[[], None]) -> None:
        self.ring = function

    def start(self) -> None:
        self.runs = True

    def stop(self) -> None:
        self.runs = False


class Volume:
    """A node of Slicer with an image in a file."""

    def __init__(self, name: str, file: Path, parent: Any = None) -> None:
        self.name, self.file, self.parent = name, file, parent
        self.transform = ""

    def GetID(self) -> str:  # noqa: N802
        return self.name

    GetName = GetID

    def GetParentTransformNode(self) -> Any:  # noqa: N802
        return self.parent

    def SetAndObserveTransformNodeID(self, name: str) -> None:  # noqa: N802
        self.transform = name


@pytest.fixture
def slicer() -> MagicMock:
    stand_in = MagicMock()
    stand_in.util.startupEnvironment = lambda: os.environ | {"OMP_NUM_THREADS": "1"}
    stand_in.util.exportNode = lambda node, file: bool(shutil.copy(node.file, file))
    return stand_in


@pytest.fixture
def module(slicer: MagicMock, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    bases = ModuleType("slicer.ScriptedLoadableModule")
    for end in ("", "Logic", "Test", "Widget"):
        setattr(bases, f"ScriptedLoadableModule{end}", type(f"Base{end}", (), {"__init__": lambda *_: None}))
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    monkeypatch.setitem(sys.modules, "slicer.ScriptedLoadableModule", bases)
    monkeypatch.setitem(sys.modules, "qt", MagicMock(QTimer=Timer))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("MCBORegistration", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "MCBORegistration", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The command ``mcbo`` in a folder with a space."""
    path = tmp_path / "some programs" / "mcbo"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mcbo "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Volume, Volume]:
    """Two volumes in NRRD, as Slicer writes them."""
    sitk = pytest.importorskip("SimpleITK")
    monkeypatch.setenv("PYTHONPATH", str(MODULE.parents[2]))
    phantom = make_phantom((32, 30, 34), wedge=True)
    nodes = []
    for name, volume in (("US", phantom.fixed), ("MR", phantom.cet1)):
        sitk.WriteImage(sitk.GetImageFromArray(volume[0, 0].numpy().T), str(tmp_path / f"{name}.nrrd"))
        nodes.append(Volume(name, tmp_path / f"{name}.nrrd"))
    return nodes[0], nodes[1]


def run(logic: Any, program: str, fixed: Any, moving: Any, task: str = "ReMIND2Reg") -> tuple[list[str], list[Any]]:
    """What the logic tells, and how it ends."""
    told: list[str] = []
    ended: list[Any] = []
    logic.start(program, fixed, moving, task, tell=told.append, done=lambda *all: ended.append(all), failed=ended.append)
    start = time.monotonic()
    while not ended:
        assert time.monotonic() - start < LIMIT_S
        time.sleep(0.05)
        if logic._timer.runs:
            logic._timer.ring()
    assert not logic.is_running()
    return told, ended


def test_two_volumes_are_registered_by_the_command(
    module: Any, slicer: MagicMock, program: str, pair: tuple[Volume, Volume], tmp_path: Path
) -> None:
    slicer.util.tempDirectory = lambda: str(tmp_path)
    slicer.util.loadTransform.return_value.GetID.return_value = "transform"
    told, ended = run(module.MCBORegistrationLogic(), program, *pair)
    assert told[0] == "Registering …"
    assert "Writing the visual report …" in told
    ((verdict, page),) = ended
    judged = next(iter(json.loads((tmp_path / "result/report.json").read_text())["cases"]["result"]["judgement"].values()))
    assert (verdict.chosen, verdict.confidence, verdict.reason) == (judged["chosen"], judged["confidence"], judged["reason"])
    assert page.read_text(encoding="utf-8").startswith("<!")
    (loaded,) = slicer.util.loadTransform.call_args.args
    assert Path(loaded).is_file()
    assert Path(slicer.util.loadVolume.call_args.args[0]).is_file()
    assert (pair[0].transform, pair[1].transform) == ("", "transform")


def test_an_error_of_the_command_is_told_as_it_says_it(
    module: Any, slicer: MagicMock, program: str, pair: tuple[Volume, Volume], tmp_path: Path
) -> None:
    slicer.util.tempDirectory = lambda: str(tmp_path)
    pair[1].file.write_bytes(b"no image")
    _, (message,) = run(module.MCBORegistrationLogic(), program, *pair)
    assert message.startswith("ERROR: ")
    assert "moving.nrrd" in message
    slicer.util.loadTransform.assert_not_called()
    assert pair[1].transform == ""


def test_a_registration_can_be_stopped(module: Any, slicer: MagicMock, tmp_path: Path) -> None:
    slicer.util.tempDirectory = lambda: str(tmp_path)
    slow = tmp_path / "mcbo"
    slow.write_text("#!/bin/sh\necho started\nexec sleep 60\n")
    slow.chmod(0o755)
    (tmp_path / "image").write_bytes(b"")
    logic = module.MCBORegistrationLogic()
    ended: list[object] = []
    nodes = [Volume(name, tmp_path / "image") for name in ("US", "MR")]
    start = time.monotonic()
    logic.start(str(slow), *nodes, "ReMIND2Reg", tell=print, done=ended.append, failed=ended.append)
    with pytest.raises(module.RegistrationError, match="to end first"):
        logic.start(str(slow), *nodes, "ReMIND2Reg", tell=print, done=ended.append, failed=ended.append)
    logic.stop()
    assert time.monotonic() - start < 30
    assert not logic.is_running()
    assert ended == []


def test_what_cannot_be_registered_is_refused(module: Any, slicer: MagicMock, program: str, tmp_path: Path) -> None:
    one, moved = Volume("one", tmp_path), Volume("moved", tmp_path, parent=Volume("linear", tmp_path))
    for fixed, moving, words in (
        (None, one, "load them first"),
        (one, one, "'one' as the fixed and as the moving one"),
        (one, moved, "moved: expected a volume without a transform, found it under 'linear'"),
    ):
        with pytest.raises(module.RegistrationError, match=words):
            run(module.MCBORegistrationLogic(), program, fixed, moving)
    slicer.util.tempDirectory.assert_not_called()


@pytest.mark.parametrize("name", ["/no/such/program", "/", "no-such-program-at-all"])
def test_a_program_that_is_not_there_is_named(module: Any, name: str) -> None:
    with pytest.raises(module.RegistrationError, match=f"'{name}': expected the program mcbo"):
        module.find_program(name)


def test_the_commands(module: Any) -> None:
    command = module.register_command("/a b/mcbo", Path("f.nrrd"), Path("m.nrrd"), Path("out"), "COMULIS3DCLEM")
    assert command == ["/a b/mcbo", "register", "f.nrrd", "m.nrrd", "--output", "out", "--task", "COMULIS3DCLEM"]
    assert module.report_command("mcbo", Path("out")) == ["mcbo", "report", "out"]


def test_the_verdict(module: Any, tmp_path: Path) -> None:
    def written(content: object) -> Path:
        (tmp_path / "report.json").write_text(json.dumps(content))
        return tmp_path

    judged = {"chosen": "rigid", "confidence": 0.375, "similarity": {}, "reason": "so it is"}
    verdict = module.read_verdict(written({"cases": {"result": {"judgement": {"MR": judged}, "warnings": ["MR: beware"]}}}))
    assert verdict.text() == "Chosen: rigid result\nConfidence: 0.38\nReason: so it is\nMR: beware"
    unjudged = module.read_verdict(written({"cases": {"result": {}}}))  # of preset mcbo2024
    assert unjudged.text() == "Chosen: full result\nConfidence: not known"
    broken: tuple[object, ...] = (
        {},
        [],
        {"cases": {}},
        {"cases": {"result": {"judgement": {"MR": {"chosen": "full"}}}}},
        {"cases": 3},
    )
    for content in broken:
        with pytest.raises(module.RegistrationError, match=r"report\.json: expected the report"):
            module.read_verdict(written(content))
    (tmp_path / "report.json").unlink()
    with pytest.raises(module.RegistrationError, match=r"report\.json: expected the report"):
        module.read_verdict(tmp_path)


def test_the_panel_starts_tells_and_cancels(module: Any, slicer: MagicMock, tmp_path: Path) -> None:
    slow = tmp_path / "mcbo"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    (tmp_path / "image").write_bytes(b"")
    slicer.util.tempDirectory = lambda: str(tmp_path)
    slicer.qMRMLNodeComboBox = lambda: MagicMock(currentNode=lambda: None)
    module.ScriptedLoadableModuleWidget.setup = lambda _: None
    widget = module.MCBORegistrationWidget()
    widget.layout = MagicMock()
    widget.setup()
    widget.program.text, widget.task.currentIndex = str(slow), 1
    widget.on_button()
    assert slicer.util.errorDisplay.call_args.args == ("expected a fixed and a moving volume; load them first",)
    for name in ("fixed", "moving"):
        getattr(widget, name).currentNode = lambda name=name: Volume(name, tmp_path / "image")
    widget.on_button()
    assert widget.logic.is_running()
    assert (widget.status.text, widget.button.text) == ("Registering …", "Cancel")
    widget.on_button()
    assert not widget.logic.is_running()
    assert (widget.status.text, widget.button.text) == ("Canceled.", "Register")
    widget.done(module.Verdict("full", 0.75, "", ()), tmp_path / "report.html")
    assert widget.status.text == "Chosen: full result\nConfidence: 0.75"
