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


def make_widget(napari_viewer: Viewer) -> Container:
    """The widget for a viewer, as npe2 asks for it; its parts are ``fixed``, ``moving``, ``task``, ``run`` and ``result``."""

    def images(_: Any = None) -> list[Image]:
        return [layer for layer in napari_viewer.layers if isinstance(layer, Image)]

    fixed = ComboBox(name="fixed", label="fixed image", choices=images)
    moving = ComboBox(name="moving", label="moving image", choices=images)
    task = ComboBox(name="task", label="task", choices=list(TASKS), value=DEFAULT_TASK, tooltip=_TASKS)
    run = PushButton(name="run", text="Register")
    result = TextEdit(name="result", label=" ", value="")
    result.read_only = True
    about = Label(value="The moving image is warped onto the fixed one.")
    widget = Container(widgets=[about, fixed, moving, task, run, result])

    def follow(_: Any = None) -> None:
        """Offers the images that there are, and a pair of different ones."""
        fixed.reset_choices()
        moving.reset_choices()
        if fixed.value is moving.value and len(others := [layer for layer in images() if layer is not fixed.value]):
            moving.value = others[0]

    def start() -> None:
        try:
            pair = pair_of(fixed.value, moving.value)
        except McboError as error:
            fail(error)
            return
        run.enabled = False
        result.value = f"Registering '{pair.moving.name}' to '{pair.fixed.name}' …"
        create_worker(
            _attempt,
            pair,
            task.value,
            _progress={"desc": "MCBO registers"},
            _connect={"returned": lambda found: show(pair, *found), "errored": crash, "finished": finish},
        )

    def show(pair: Pair, found: Outcome | McboError) -> None:
        if isinstance(found, McboError):
            fail(found)
            return
        for data in found.layers:
            napari_viewer.add_layer(Layer.create(*data))
        pair.moving.visible = False
        result.value = "\n".join([*found.warnings, found.text])
        for warning in found.warnings:
            show_warning(warning)

    def fail(error: McboError) -> None:
        result.value = str(error)
        show_error(str(error))

    def crash(error: Exception) -> None:
        result.value = f"{type(error).__name__}: {error}"
        raise error  # napari shows it with its traceback

    def finish() -> None:
        run.enabled = True

    run.clicked.connect(start)
    for event in (napari_viewer.layers.events.inserted, napari_viewer.layers.events.removed):
        event.connect(follow)
    follow()
    return widget


def _attempt(pair: Pair, task: str) -> list[Outcome | McboError]:
    """What comes of a registration, in a list: napari's threads raise an error that is returned as such."""
    try:
        return [register_pair(pair, task)]
    except McboError as error:
        return [error]
