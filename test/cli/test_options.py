"""What the two programs declare: which options, what their help says, where else values come from."""

import re
from pathlib import Path

import pytest
from helpers import write_dataset

import process
from mcbo.cli.main import main
from mcbo.cli.options import parse_expect

COMMANDS = ["register", "report", "warp", "invert", "compose", "export", "import", "benchmark", "ablate"]


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert (process.main if words[0] == "process.py" else main)([*words[words[0] == "process.py" :], "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["process.py", *COMMANDS])
def test_help_is_whole_and_gives_flags_no_type(
    command: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = help_of([command], capsys)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"<(bool|path|list|str)", text)
    assert not re.search(r"\w… ", text), "a word is cut off"
    assert ("MCBO_" in text) == (command == "process.py")


@pytest.mark.parametrize("option", ["--case", "--moving"])
@pytest.mark.parametrize("value", ["", " , "])
def test_no_names_are_not_all_names(option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, [("T_0001_0000.nii.gz", "T_0001_0001.nii.gz")])
    assert process.main([str(tmp_path), "--output", str(tmp_path / "out"), option, value]) == process.BAD_INPUT
    assert "expected names, separated by commas, got an empty text" in capsys.readouterr().err


def test_every_option_of_the_container_has_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["process.py"], capsys)
    options = re.findall(r"^│ --([a-z-]+) ", text, flags=re.MULTILINE)
    assert len(options) > 20
    variables = [f"MCBO_{name.upper().replace('-', '_')}" for name in options if name not in ("version", "help")]
    assert re.findall(r"\[env var: (\w+)\]", text) == variables


def test_a_variable_reaches_its_option_and_no_command_but_the_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCBO_VERSION", "1.2")  # as images of containers often have it
    monkeypatch.setenv("MCBO_HELP", "yes")
    monkeypatch.setenv("MCBO_INPUT_FOLDER", str(tmp_path / "absent"))  # a parameter, but no option
    monkeypatch.setenv("MCBO_INPUT", str(tmp_path))
    assert process.main([]) == 1
    assert str(tmp_path) in (said := capsys.readouterr().err)
    assert "absent" not in said
    monkeypatch.setenv("MCBO_SPLIT", "dev")
    assert process.main([str(tmp_path)]) == 1
    assert "--split: expected one of val, test, train, got 'dev'" in capsys.readouterr().err
    assert main(["ablate", "--dataset", str(tmp_path / "x.json")]) == 1
    assert "x.json: no such file" in capsys.readouterr().err


def test_checks_of_options_are_json_where_the_log_is(capsys: pytest.CaptureFixture[str]) -> None:
    contradiction = ["--quiet", "--verbose", "--log-json"]
    for status in (process.main(contradiction), main(["register", "a.nii", "b.nii", "--output", "out", *contradiction])):
        assert status == 1
    assert capsys.readouterr().err.count('"message": "expected --quiet or --verbose, got both"') == 2


@pytest.mark.parametrize(
    ("text", "mm"), [("5,3", 5.0), ("0.5um,3", 5e-4), ("500nm, 3", 5e-4), ("1e-1cm,3", 1.0), (" 2 ,3", 2.0), (None, None)]
)
def test_an_expected_shift_may_have_a_unit(text: str | None, mm: float | None) -> None:
    expected = parse_expect(text)
    if mm is None:
        assert expected is None
    else:
        assert expected is not None
        assert list(expected) == pytest.approx([mm, 3.0])
