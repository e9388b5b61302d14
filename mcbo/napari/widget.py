"""The widget of the plugin: choose two layers, register them, see the result and how sure it is."""

from typing import Any

from magicgui.widgets import ComboBox, Container, Label, PushButton, TextEdit
from napari.layers import Image, Layer
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_warning
from napari.viewer import Viewer

from mcbo.core.errors import McboError
from mcbo.methods.presets import DEFAULT_TASK, TASKS
from mcbo.napari.registration import Outcome, Pair, pair_of, register_pair

_TASKS = "ReMIND2Reg for MRI and ultrasound, COMULIS3DCLEM for microscopy; both for whatever looks more like it."


class RegistrationWidget(Container):
    """The widget for a viewer, as napari asks for it; its parts are ``fixed``, ``moving``, ``task``, ``run`` and ``result``."""

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self._fixed = ComboBox(name="fixed", label="fixed image", choices=self._images)
        self._moving = ComboBox(name="moving", label="moving image", choices=self._images)
        self._task = ComboBox(name="task", label="task", choices=list(TASKS), value=DEFAULT_TASK, tooltip=_TASKS)
        self._run = PushButton(name="run", text="Register")
        self._result = TextEdit(name="result", label=" ", value="")
        self._result.read_only = True
        about = Label(value="The moving image is warped onto the fixed one.")
        super().__init__(widgets=[about, self._fixed, self._moving, self._task, self._run, self._result])
        self._run.clicked.connect(self._start)
        for event in (napari_viewer.layers.events.inserted, napari_viewer.layers.events.removed):
            event.connect(self._follow)
        self._follow()

    def _images(self, _: Any = None) -> list[Image]:
        return [layer for layer in self._viewer.layers if isinstance(layer, Image)]

    def _follow(self, _: Any = None) -> None:
        """Offers the images that there are, and a pair of different ones."""
        self._fixed.reset_choices()
        self._moving.reset_choices()
        others = [layer for layer in self._images() if layer != self._fixed.value]
        if others and self._fixed.value == self._moving.value:
            self._moving.value = others[0]

    def _start(self) -> None:
        try:
            pair = pair_of(self._fixed.value, self._moving.value)
        except McboError as error:
            self._fail(error)
            return
        self._run.enabled = False
        self._result.value = f"Registering '{pair.moving.name}' to '{pair.fixed.name}' …"
        create_worker(
            _attempt,
            pair,
            self._task.value,
            _progress={"desc": "MCBO registers"},
            _connect={"returned": lambda found: self._show(pair, *found), "errored": self._crash, "finished": self._finish},
        )

    def _show(self, pair: Pair, found: Outcome | McboError) -> None:
        if isinstance(found, McboError):
            self._fail(found)
            return
        for data in found.layers:
            self._viewer.add_layer(Layer.create(*data))
        pair.moving.visible = False
        for warning in found.warnings:
            show_warning(warning)
        self._result.value = found.text

    def _fail(self, error: McboError) -> None:
        show_error(str(error))
        self._result.value = str(error)

    def _crash(self, error: Exception) -> None:
        self._result.value = f"{type(error).__name__}: {error}"
        raise error  # napari shows it with its traceback

    def _finish(self) -> None:
        self._run.enabled = True


def _attempt(pair: Pair, task: str) -> list[Outcome | McboError]:
    """What comes of a registration, in a list: napari's threads raise an error that is returned as such."""
    try:
        return [register_pair(pair, task)]
    except McboError as error:
        return [error]
