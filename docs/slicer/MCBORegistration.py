"""A module for 3D Slicer that registers two volumes with the command ``mcbo``, which is installed outside of Slicer.

It writes the volumes to a temporary folder, runs ``mcbo register`` and ``mcbo report`` in the background, and loads what they
write: ``transform.h5``, which then moves the moving volume, and the warped image. ``docs/slicer.md`` says how to add it.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

TASKS = {"ReMIND2Reg": "MRI and ultrasound", "COMULIS3DCLEM": "microscopy"}
POLL_MS = 500
PROGRAM_SETTING = "MCBO/program"


class RegistrationError(Exception):
    """Something that the user has to know, as a sentence."""


# What needs no Slicer.


def find_program(name: str) -> str:
    """The path of the command ``mcbo``, given its path or, if it is on the PATH, its name."""
    found = shutil.which(str(Path(name.strip()).expanduser()) if name.strip() else "mcbo")
    if found is None:
        raise RegistrationError(
            f"'{name.strip()}': expected the program mcbo, found none there; give its whole path, such as "
            "/home/me/mcbo/.venv/bin/mcbo"
        )
    return found


def register_command(program: str, fixed: Path, moving: Path, output: Path, task: str) -> list[str]:
    """The command that registers two files."""
    return [program, "register", str(fixed), str(moving), "--output", str(output), "--task", task]


def report_command(program: str, output: Path) -> list[str]:
    """The command that writes ``report.html`` into the folder of a result."""
    return [program, "report", str(output)]


@dataclass(frozen=True)
class Verdict:
    """What ``report.json`` says of a result: which one was chosen, how sure it is, and why it is not the full one."""

    chosen: str
    confidence: float | None
    reason: str
    warnings: tuple[str, ...]

    def text(self) -> str:
        """In lines."""
        sure = "not known" if self.confidence is None else f"{self.confidence:.2f}"
        lines = [f"Chosen: {self.chosen} result", f"Confidence: {sure}", self.reason and f"Reason: {self.reason}"]
        return "\n".join([*(line for line in lines if line), *self.warnings])


def read_verdict(folder: Path) -> Verdict:
    """The verdict on the result in a folder; raises ``RegistrationError`` if its report cannot be read."""
    path = folder / "report.json"
    try:
        (case,) = json.loads(path.read_text(encoding="utf-8"))["cases"].values()
        judged: dict[str, Any] = next(iter(case.get("judgement", {}).values()), {})
        confidence = float(judged["confidence"]) if judged else None
        warnings = tuple(map(str, case.get("warnings", ())))
        return Verdict(str(judged.get("chosen", "full")), confidence, str(judged.get("reason", "")), warnings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistrationError(f"{path}: expected the report of one registration by mcbo: {error}") from error


class Program:
    """A program that runs in the background and writes all that it says to a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        no_window = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # on Windows
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                creationflags=no_window,
            )

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """What it said last."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """Ends it, if it still runs."""
        if self.status() is None:
            self._process.terminate()
            self._process.wait()


# The module.


class MCBORegistration(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MCBO Registration"
        self.parent.categories = ["Registration"]
        self.parent.dependencies = []
        self.parent.contributors = ["The authors of MCBO"]
        self.parent.helpText = "Registers a volume to one of another modality: MRI to ultrasound, light to electron microscopy."
        self.parent.acknowledgementText = ""


class MCBORegistrationWidget(ScriptedLoadableModuleWidget):
    """Its panel."""

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = MCBORegistrationLogic()
        self.fixed, self.moving = _volume_selector(), _volume_selector()
        self.task = qt.QComboBox()
        for name, what in TASKS.items():
            self.task.addItem(f"{name} ({what})")
        self.program = qt.QLineEdit(str(qt.QSettings().value(PROGRAM_SETTING, "mcbo")))
        self.program.toolTip = "The program mcbo: its path, or its name if it is on the PATH."
        self.button = qt.QPushButton("Register")
        self.status = qt.QLabel()
        self.status.wordWrap = True
        form = qt.QFormLayout()
        rows = {"Fixed volume:": self.fixed, "Moving volume:": self.moving, "Task:": self.task, "Program:": self.program}
        for label, field in rows.items():
            form.addRow(label, field)
        form.addRow(self.button)
        form.addRow(self.status)
        self.layout.addLayout(form)
        self.layout.addStretch(1)
        self.button.connect("clicked(bool)", self.on_button)

    def cleanup(self) -> None:
        self.logic.stop()

    def on_button(self, _: bool = False) -> None:
        """Starts a registration, or cancels the one that runs."""
        if self.logic.is_running():
            self.logic.stop()
            self.tell("Canceled.")
            return
        qt.QSettings().setValue(PROGRAM_SETTING, self.program.text)
        try:
            self.logic.start(
                self.program.text,
                self.fixed.currentNode(),
                self.moving.currentNode(),
                list(TASKS)[self.task.currentIndex],
                tell=self.tell,
                done=self.done,
                failed=self.failed,
            )
        except RegistrationError as error:
            self.failed(str(error))

    def tell(self, text: str) -> None:
        """Shows how far it is."""
        self.status.text = text
        self.button.text = "Cancel" if self.logic.is_running() else "Register"

    def done(self, verdict: Verdict, page: Path | None) -> None:
        """Shows the verdict and opens the page."""
        self.tell(verdict.text())
        if page is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(page)))

    def failed(self, text: str) -> None:
        """Shows an error."""
        self.tell(text)
        slicer.util.errorDisplay(text, windowTitle="MCBO")


def _volume_selector() -> Any:
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.addEnabled = selector.removeEnabled = selector.noneEnabled = False
    selector.setMRMLScene(slicer.mrmlScene)
    return selector


class MCBORegistrationLogic(ScriptedLoadableModuleLogic):
    """Runs the commands, one after the other, and loads what they write. Slicer stays responsive: a timer looks at them."""

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._running: Program | None = None
        self._tell: Callable[[str], None] = print
        self._ended: Callable[[int, str], None] = print
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._look)

    def is_running(self) -> bool:
        """Whether a registration runs."""
        return self._running is not None

    def start(
        self,
        program: str,
        fixed: Any,
        moving: Any,
        task: str,
        *,
        tell: Callable[[str], None],
        done: Callable[[Verdict, Path | None], None],
        failed: Callable[[str], None],
    ) -> None:
        """Starts to register two volume nodes; raises ``RegistrationError`` if that is impossible.

        ``tell`` gets a line now and then. At the end, ``done`` gets the verdict and the page, None if that could not be
        written; or ``failed`` gets a sentence.
        """
        if self.is_running():
            raise RegistrationError("expected the running registration to end first")
        path = find_program(program)
        _check(fixed, moving)
        folder = Path(slicer.util.tempDirectory())
        files = folder / "fixed.nrrd", folder / "moving.nrrd"
        for node, file in zip((fixed, moving), files, strict=True):
            if not slicer.util.exportNode(node, str(file)):
                raise RegistrationError(f"{node.GetName()}: cannot be written to {file}")
        output = folder / "result"

        def registered(status: int, said: str) -> None:
            try:
                if status:
                    raise RegistrationError(said or f"mcbo register ended with status {status}")
                verdict = read_verdict(output)
                _load(output, fixed, moving)

                def reported(status: int, _: str) -> None:
                    done(verdict, None if status else output / "report.html")

                self._run(report_command(path, output), folder / "report.log", reported)
            except (RegistrationError, RuntimeError) as error:  # the latter is Slicer's
                failed(str(error))
            else:
                tell("Writing the visual report …")

        self._tell = tell
        self._run(register_command(path, *files, output, task), folder / "register.log", registered)
        tell("Registering …")

    def stop(self) -> None:
        """Ends what runs."""
        self._timer.stop()
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _run(self, command: Sequence[str], log: Path, ended: Callable[[int, str], None]) -> None:
        try:  # without Slicer's own PYTHONHOME and libraries, with which another Python does not start
            self._running = Program(command, log, slicer.util.startupEnvironment())
        except OSError as error:
            raise RegistrationError(f"{command[0]}: cannot be run: {error.strerror or error}") from error
        self._ended = ended
        self._timer.start()

    def _look(self) -> None:
        if (program := self._running) is None:
            return
        status, said = program.status(), program.last_line()
        if status is not None:
            self._timer.stop()
            self._running = None
            self._ended(status, said)
        elif said:
            self._tell(said)


def _check(fixed: Any, moving: Any) -> None:
    if fixed is None or moving is None:
        raise RegistrationError("expected a fixed and a moving volume; load them first")
    if fixed.GetID() == moving.GetID():
        raise RegistrationError(f"expected two volumes, got '{fixed.GetName()}' as the fixed and as the moving one")
    for node in (fixed, moving):
        if node.GetParentTransformNode() is not None:
            raise RegistrationError(
                f"{node.GetName()}: expected a volume without a transform, found it under "
                f"'{node.GetParentTransformNode().GetName()}'; harden that, or remove it"
            )


def _load(folder: Path, fixed: Any, moving: Any) -> None:
    """Loads a result: the transform, which then moves the moving volume, and the warped image, which is shown."""
    transform = slicer.util.loadTransform(str(folder / "transform.h5"))
    transform.SetName(f"{moving.GetName()} to {fixed.GetName()}")
    moving.SetAndObserveTransformNodeID(transform.GetID())
    warped = slicer.util.loadVolume(str(folder / "warped.nii.gz"), {"name": f"{moving.GetName()} warped"})
    slicer.util.setSliceViewerLayers(background=fixed, foreground=warped, foregroundOpacity=0.5)


class MCBORegistrationTest(ScriptedLoadableModuleTest):
    """Slicer's own test of the module: registers a shifted image, with ``mcbo`` from the settings."""

    def runTest(self) -> None:
        import numpy as np

        slicer.mrmlScene.Clear()
        noise = np.random.default_rng(0).standard_normal((12, 12, 12))
        image = np.kron(noise, np.ones((4, 4, 4)))
        fixed = slicer.util.addVolumeFromArray(image, name="fixed")
        moving = slicer.util.addVolumeFromArray(np.roll(image, 3, axis=2), name="moving")
        ended: list[object] = []
        logic = MCBORegistrationLogic()
        logic.start(
            str(qt.QSettings().value(PROGRAM_SETTING, "mcbo")),
            fixed,
            moving,
            "ReMIND2Reg",
            tell=self.delayDisplay,
            done=lambda verdict, _: ended.append(verdict),
            failed=ended.append,
        )
        while not ended:
            slicer.app.processEvents()
        self.assertIsInstance(ended[0], Verdict, ended[0])
        point = [0.0, 0.0, 0.0]
        slicer.util.getNode("moving to fixed").GetTransformToParent().TransformPoint((23.0, 23.0, 23.0), point)
        self.assertAlmostEqual(point[0], 20.0, delta=1.0)
        self.delayDisplay("Test passed")
