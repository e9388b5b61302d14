"""``python -m mcbo``, or ``mcbo`` where it is installed."""

from mcbo.core.entry import begin


def run() -> None:
    """The program: runs the command line of the process, and exits with its status."""
    begin()
    from mcbo.cli.main import run as run_commands  # here, because it takes seconds

    run_commands()


if __name__ == "__main__":
    run()
