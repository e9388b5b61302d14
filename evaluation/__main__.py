"""``python -m evaluation score --dataset JSON --predictions DIR``: the TRE of a submission."""

from pathlib import Path
from typing import Annotated

import typer

from evaluation.pairs import SPLITS, EvaluationError
from evaluation.summary import score_tre

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def describe() -> None:
    """Judge displacement fields in challenge format."""


@app.command()
def score(
    dataset: Annotated[Path, typer.Option(help="The dataset JSON.")],
    predictions: Annotated[Path, typer.Option(help="Folder of displacements disp_*.nii.gz or .npz.")],
    split: Annotated[str, typer.Option(help=" | ".join(SPLITS))] = "val",
) -> None:
    """Print the TRE of each pair before and after registration."""
    if split not in SPLITS:
        raise typer.BadParameter(f"expected one of {', '.join(SPLITS)}, got {split!r}", param_hint="--split")
    try:
        table = score_tre(dataset, predictions, split=split)
    except EvaluationError as error:
        typer.echo(f"ERROR: {error}", err=True)
        raise typer.Exit(1) from None
    table.loc["mean"] = table.mean()
    typer.echo(table.round(3).to_string())


if __name__ == "__main__":
    app()
