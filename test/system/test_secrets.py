"""Names that speak to a terminal or a spreadsheet, or are no names; and URLs with secrets: of every command."""

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import calls, make_around

from evaluation.errors import EvaluationError, in_markdown, in_spreadsheet
from evaluation.errors import without_secrets as of_the_judge
from mcbo.core.errors import InputError
from mcbo.core.log import printable, without_secrets
from mcbo.io.files import shown
from mcbo.io.landmarks import parse_table
from mcbo.io.source import Source, is_url, shown_url
from mcbo.methods.presets import find_config
from mcbo.report import CaseReport, read_report, write_report
from mcbo.runs import cluster
from mcbo.studies.ablation import Row, to_markdown

SECRETS = ("s3cr3tPASS", "SIGNATUREx")
URLS = [
    "https://user:s3cr3tPASS@host.invalid/x.nii.gz?X-Amz-Signature=SIGNATUREx",
    "simplecache::s3://key:s3cr3tPASS@bucket/x.nii.gz",
    "//user:s3cr3tPASS@host.invalid/x.nii.gz",
    "https:/user:s3cr3tPASS@host.invalid/x.nii.gz;sig=SIGNATUREx",
    "tcp://user:s3cr3tPASS@127.0.0.1:1?token=SIGNATUREx#token=SIGNATUREx",
]
NAMES = ["a\x1b[31mred\nERROR: forged\r\x07\u202e", "n" * 5000, "d/" * 3000 + "x", os.fsdecode(b"a\xff\xfe.nii")]


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("around")
    make_around(folder)
    return folder


@pytest.mark.parametrize("word", NAMES, ids=["escapes", "long", "deep", "not UTF-8"])
def test_any_name_gives_a_sentence(
    around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.1)
    for name, program, arguments in calls(around, word, str(tmp_path / word)):
        status = program(arguments)
        told = capsys.readouterr()
        text = told.out + told.err
        assert status in (0, 1, 2), name
        assert text or status == 0, name
        assert all(line.isprintable() for line in text.split("\n")), name
        assert "\nERROR: forged" not in text, name
        assert len(text) < 9000, name


@pytest.mark.parametrize("word", URLS, ids=["https", "chained", "no scheme", "one slash", "tcp"])
def test_no_command_tells_secrets(
    around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.1)
    for name, program, arguments in calls(around, word, word):
        assert program(arguments) == 1, name
        told = capsys.readouterr()
        assert told.err, name
        for secret in SECRETS:
            assert secret not in told.out + told.err, name
    for folder, folders, files in os.walk(tmp_path):
        for name in (*folders, *files):
            assert not any(secret in name for secret in SECRETS)
        for name in files:
            content = Path(folder, name).read_bytes()
            assert not any(secret.encode() in content for secret in SECRETS)


TOLD = [
    ("https://u:p@h/x", "https://h/x"),
    ("https://token@h/x", "https://h/x"),
    ("s3://AKIA:a/b+c@bucket/k@2x.nii", "s3://bucket/k@2x.nii"),
    ("s3://AKIA:abc@bucket/k@2x.nii", "s3://bucket/k@2x.nii"),
    ("https:/u:p@h/x", "https:/h/x"),
    ("//u:p@h/x", "//h/x"),
    ("simplecache::s3://u:p@h/x", "simplecache::s3://h/x"),
    ("s3://b/x::https://u:p@h/y", "s3://b/x::https://h/y"),
    ("https://h/x?sig=1&a=b", "https://h/x"),
    ("https://h/x?plain", "https://h/x"),
    ("https://h/x#frag", "https://h/x"),
    ("https://h/x;sig=1", "https://h/x"),
    ("https://u:p w@h/x", "https://h/x"),
    ("https://u:p%40q@h/x", "https://h/x"),
    ("tcp://u:p@127.0.0.1:8786", "tcp://127.0.0.1:8786"),
    ("x.nii.gz?token=1", "x.nii.gz"),
    ("x.nii.gz;X-Amz-Signature=1&Expires=2", "x.nii.gz&Expires=2"),
    ("x?A=1&AWSAccessKeyId=2&password=3", "x?A=1"),
]
LEFT = [
    "/a/b.nii.gz",
    "tcp://127.0.0.1:8786",
    "s3://b/k@2x.nii",
    "a: b, c/d@e",
    "--memory-gb: expected 1/2",
    "a=b; c=d",
    "why?",
]


@pytest.mark.parametrize(("text", "told"), [*TOLD, *((text, text) for text in LEFT)])
@pytest.mark.parametrize("clean", [without_secrets, of_the_judge])
def test_what_is_told_of_a_url(clean: Callable[[str], str], text: str, told: str) -> None:
    assert clean(text) == told
    assert clean(f"{text}: expected '{text}', found \"{text}\", and ({text}) or {text}.") == (
        f"{told}: expected '{told}', found \"{told}\", and ({told}) or {told}."
    )


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_known_and_shown_without_secrets(url: str) -> None:
    assert is_url(url)
    assert not any(secret in shown_url(url) + str(Source(url)) + Source(url).name for secret in SECRETS)
    for error in (InputError(f"{url}: is wrong"), EvaluationError(f"{url}: is wrong")):
        assert str(error).endswith(": is wrong")
        assert not any(secret in str(error) for secret in SECRETS)


def test_a_secret_is_not_told_in_part_where_text_is_cut() -> None:
    url = f"https://user:{'s3cr3tPASS' * 30}@host/x"
    assert shown(url) == "'https://host/x'"
    assert printable(url) == "https://host/x"
    assert "s3cr3t" not in shown(url[:100] + "@host")


def test_text_full_of_beginnings_takes_no_time() -> None:
    for text in ("//a:b" * 20_000, "x://" * 20_000, "?a" * 40_000, "/" * 100_000, "a:/" * 30_000, "w" * 100_000):
        assert len(without_secrets(text)) == len(text)
        printable(text)


def test_reports_hold_no_secrets(tmp_path: Path) -> None:
    url = URLS[0]
    case = CaseReport(inputs={url: "1"}, failed={"disp": f"{url}: is away"}, images=[url], warnings=[url])
    write_report(tmp_path / "report.json", {url: case}, find_config("ReMIND2Reg", None), url, stopped=url)
    text = (tmp_path / "report.json").read_text()
    assert not any(secret in text for secret in SECRETS)
    assert "https://host.invalid/x.nii.gz" in read_report(tmp_path / "report.json").cases


@pytest.mark.parametrize(
    "text",
    [
        "![x](http://e.vil/a.png)",
        "[a](b)",
        "<img src=x>",
        "<http://e.vil>",
        "a|b",
        "a\\|b",
        "`a|b`",
        "www.e.vil",
        "a@b.c",
        "@you",
    ],
)
def test_names_are_text_in_markdown(text: str) -> None:
    told = in_markdown(f"{text}\n# more {text}")
    assert "\n" not in told
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`<>|]", told)
    assert not re.search(r"https?://|www\.|@(?!&#8203;)|\]\(", told)
    assert in_markdown("MCBO-2024 (ours), v1.0: 2 + 3 my_name") == "MCBO-2024 (ours), v1.0: 2 + 3 my_name"
    row = Row(text, text, text, asked=1, failed={text: text})
    table = to_markdown({}, [row])
    assert {len(re.findall(r"\|", re.sub(r"\\.", "", line))) for line in table.split("\n")[:3]} == {15}
    assert "](" not in table.replace(f"`{text}`", "")


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "--1", "-"]
)
def test_a_spreadsheet_runs_nothing(text: str) -> None:
    assert in_spreadsheet(text) == f"'{text}"
    if text.strip():
        written = parse_table(f'x,y,z,"{text}"\n1,2,3,"{text}"\n').format_with(torch.tensor([[4.0, 5.0, 6.0]]))
        for row in csv.reader(io.StringIO(written, newline="")):
            assert row[3][0] == "'"


@pytest.mark.parametrize("cell", ["-1", "+1.5e-3", "-.5", "a=b", "", "disp_0001", 1.0, None, -2])
def test_numbers_and_names_stay_as_they_are(cell: object) -> None:
    assert in_spreadsheet(cell) == cell
    if isinstance(cell, str) and cell:
        assert f"3.000000,{cell}\n" in parse_table(f"x,y,z,label\n0,0,0,{cell}\n").format_with(torch.tensor([[1.0, 2.0, 3.0]]))


def test_tables_of_the_judge_run_nothing(around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation.__main__ import main as judge

    monkeypatch.chdir(tmp_path)
    dataset = str(around / "data/ReMIND2Reg_dataset.json")
    (tmp_path / "=p").mkdir()
    config = {"evaluation_methods": [{"metric": "sdlogj", "name": "=1+1"}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    judged = ["--dataset", dataset, "--predictions"]
    assert judge(["score", *judged, str(around / "predictions"), "--config", "config.json", "--csv", "a.csv"]) == 0
    assert judge(["score", *judged, "=p", "--csv", "b.csv"]) == 2
    boards = ["leaderboard", f"=A={around / 'predictions'}", f"@B={around / 'predictions'}"]
    assert (
        judge(["leaderboard", f"+A={around / 'predictions'}", "--dataset", dataset, "--metrics", "sdlogj", "--output", "c.csv"])
        == 0
    )
    assert judge([*boards, "--dataset", dataset, "--output", "d.csv"]) == 1  # no name before the sign
    for name in ("a.csv", "b.csv", "c.csv"):
        for row in csv.reader(io.StringIO((tmp_path / name).read_text(), newline="")):
            for cell in row:
                assert not re.match(r"[=+@-](?![0-9.]+$)", cell), cell
    assert "'=1+1" in (tmp_path / "a.csv").read_text()
    assert "'=p/" in (tmp_path / "b.csv").read_text()
    assert "'+A" in (tmp_path / "c.csv").read_text()
