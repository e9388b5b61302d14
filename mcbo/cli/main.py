"""``python -m mcbo``, or ``mcbo`` where it is installed: all commands but the registration of datasets (``process.py``)."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mcbo.cli import options as cli
from mcbo.cli import register, studies, transforms
from mcbo.cli.outputs import check_outputs
from mcbo.cli.program import Command, Group, run_app, say
from mcbo.cli.warp import warp
from mcbo.core.entry import finish, loaded
from mcbo.progress import set_up_logging
from mcbo.qc.result_folder import find_report
from mcbo.runtime import keep_freed_memory, use_available_cores

app = typer.Typer(cls=Group, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback(
    epilog="Exit status: 0 done; 1 invalid input or usage, or an output cannot be written; 2 some pairs failed (ablate); "
    "130 interrupted; 143 terminated."
)
def _about(*, version: cli.Version = False) -> None:
    """Register 3D images of the same anatomy from different modalities, without training, on GPU or CPU.

    To register a whole dataset, use process.py.
    """
    del version


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a run, or its report.json.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write. Default: report.html beside the report.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="Dataset with the images and landmarks to show, if they are no longer where the report says."
        ),
    ] = None,
) -> None:
    """Write the visual report of a run: one HTML page with its images, displacements, landmarks, and metrics."""
    from mcbo.qc.findings import input_files, look_at  # here, because they import matplotlib, which writes to the home folder
    from mcbo.qc.page import write_page

    set_up_logging()
    path = find_report(results)
    page = output or path.with_suffix(".html")
    check_outputs({"--output": page}, [path, dataset, *input_files(path, dataset)])
    size = write_page(page, look_at(path, dataset=dataset))
    say(f"{page}: {size / 1e6:.1f} MB")


_COMMANDS: dict[str, Callable[..., None]] = {
    "register": register.register_files,
    "report": report,
    "warp": warp,
    "invert": transforms.invert,
    "compose": transforms.compose,
    "export": transforms.export,
    "import": transforms.import_,
    "benchmark": studies.benchmark,
    "ablate": studies.ablate,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(_command)


def main(arguments: Sequence[str] | None = None, *, name: str = "python -m mcbo") -> int:
    """Runs the command line (that of the process, if None) and returns its exit status, as ``--help`` lists them."""
    return run_app(app, sys.argv[1:] if arguments is None else arguments, name=name, takes_urls=False)


def run() -> None:
    """The program ``mcbo``: runs the command line of the process, and exits with its status."""
    loaded()
    keep_freed_memory()
    use_available_cores()
    finish(main(name="mcbo" if Path(sys.argv[0]).stem == "mcbo" else "python -m mcbo"))
