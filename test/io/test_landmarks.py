import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbo.core.errors import InputError, OutputError
from mcbo.io.landmarks import Landmarks, parse_fcsv, parse_markups, parse_table, read_landmarks, write_landmarks

NUMBERS = st.floats(-1e5, 1e5)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6)
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=9)

FCSV = """# Markups fiducial file version = 4.11
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
1,10.5,-20,30,0,0,0,1,1,1,0,"tip, left",,vtkMRMLScalarVolumeNode1
2,1,2,3,0,0,0,1,1,1,0,F-2,,
"""


def markups(*positions: object, **more: object) -> dict[str, Any]:
    controls = [{"id": str(n), "label": f"F-{n}", "position": p, "positionStatus": "defined"} for n, p in enumerate(positions)]
    return {"@schema": "…", "markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": controls, **more}]}


@settings(deadline=None)
@given(POINTS)
def test_learn2reg_tables_there_and_back(points: list[tuple[float, float, float]]) -> None:
    found = parse_table("".join(f"{x!r},{y!r},{z!r}\n" for x, y, z in points))
    assert found.space == "table"
    assert found.points.tolist() == [list(point) for point in points]
    again = parse_table(found.format_with(found.points + 1))
    assert torch.allclose(again.points, found.points + 1, atol=1e-5)


@settings(deadline=None)
@given(POINTS, LABELS)
def test_names_and_labels_of_a_table_are_kept(points: list[tuple[float, float, float]], label: str) -> None:
    quoted = label.replace('"', '""')
    found = parse_table("x,y,z,label\n" + "".join(f'{x!r},{y!r},{z!r},"{quoted}"\n' for x, y, z in points))
    lines = found.format_with(found.points * 0).splitlines()
    assert lines[0] == "x,y,z,label"
    assert len(lines) == len(points) + 1
    assert parse_table(found.format_with(found.points)).format_with(found.points) == found.format_with(found.points)
    assert label in found.format_with(found.points).replace('""', '"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n1,2\n", "point 2: expected three finite numbers"),
        ("1,2,3\n4,5,x\n", "point 2: expected three finite numbers, found .*'x'"),
        ("1,2,nan\n", "expected three numbers or three names"),
        ("1,2,3\n1,2,inf\n", "point 2: expected three finite numbers"),
        ("1;2;3\n", "line 1: expected three numbers or three names, found '1;2;3'"),
        ("1;2;3\n1;2;3\n", "line 1: expected three numbers or three names"),
    ],
)
def test_broken_tables_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_table(text)


WORDS = ["1", "-2.5", ",", "\n", "\r", "#", " = ", "columns", "x", "y", "z", "CoordinateSystem", "LPS", "nan", '"', "1e999"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=30).map("".join) | st.text(max_size=60)
KEYS = ["markups", "controlPoints", "position", "positionStatus", "coordinateSystem", "coordinateUnits"]
LEAVES = st.none() | st.booleans() | st.floats() | st.sampled_from(["mm", "LPS", "defined", 10**400, 1])
JSON = st.recursive(
    LEAVES, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(KEYS), c, max_size=3), max_leaves=12
)
GROUPS = st.fixed_dictionaries({"controlPoints": st.lists(st.fixed_dictionaries({"position": JSON}) | JSON) | JSON})


@settings(deadline=None)
@given(TEXTS | (JSON | st.fixed_dictionaries({"markups": st.lists(GROUPS, max_size=2)})).map(json.dumps))
def test_any_text_gives_landmarks_or_a_sentence(text: str) -> None:
    for parse in (parse_table, parse_fcsv, parse_markups):
        try:
            found = parse(text)
        except InputError:
            continue
        assert found.points.shape[1] == 3
        assert torch.isfinite(found.points).all()
        found.format_ras(found.points)


@pytest.mark.parametrize(
    ("system", "expected"), [("LPS", (-10.5, 20, 30)), ("RAS", (10.5, -20, 30)), ("0", (10.5, -20, 30)), ("1", (-10.5, 20, 30))]
)
def test_fcsv_in_both_conventions(system: str, expected: tuple[float, float, float]) -> None:
    found = parse_fcsv(FCSV.format(system=system))
    assert found.to_ras()[0].tolist() == pytest.approx(expected)
    text = found.format_ras(found.to_ras() + torch.tensor([1.0, 2, 3]))
    assert parse_fcsv(text).to_ras()[1].tolist() == pytest.approx((found.to_ras()[1] + torch.tensor([1.0, 2, 3])).tolist())
    assert text.splitlines()[:3] == FCSV.format(system=system).splitlines()[:3]
    assert '"tip, left",,vtkMRMLScalarVolumeNode1' in text


def test_fcsv_of_old_without_a_word_on_coordinates_is_ras() -> None:
    found = parse_fcsv("# name = F\n# columns = label,x,y,z,sel,vis\nA,1,2,3,1,1\n")
    assert found.to_ras().tolist() == [[1, 2, 3]]


@settings(deadline=None)
@given(POINTS, LABELS)
def test_markups_there_and_back(points: list[tuple[float, float, float]], label: str) -> None:
    content = markups(*map(list, points))
    content["markups"][0]["controlPoints"][0]["label"] = label
    found = parse_markups(json.dumps(content))
    assert found.to_ras().tolist() == [[-x, -y, z] for x, y, z in points]
    again = json.loads(found.format_ras(found.to_ras()))
    assert again == content


def test_markups_in_ras_and_points_that_were_never_placed() -> None:
    content = markups([1, 2, 3], None, [4, 5, 6], coordinateSystem="RAS")
    content["markups"][0]["controlPoints"].append({"position": [0, 0, 0], "positionStatus": "undefined"})
    found = parse_markups(json.dumps(content))
    assert found.to_ras().tolist() == [[1, 2, 3], [4, 5, 6]]
    again = json.loads(found.format_ras(found.points + 1))["markups"][0]["controlPoints"]
    assert [point["position"] for point in again] == [[2, 3, 4], None, [5, 6, 7], [0, 0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a list 'markups'"),
        ({"markups": [1]}, "expected a list 'markups'"),
        (markups([1, 2, 3], coordinateSystem="IJK"), "expected one coordinate system, RAS or LPS, found IJK"),
        (markups([1, 2, 3], coordinateUnits="um"), "expected coordinates in mm, found 'um'"),
        (markups([1, 2]), "point 1: expected three finite numbers"),
        (markups([1, 2, 3], [1, 2, "x"]), "point 2: expected three finite numbers"),
        (markups([1, 2, float("nan")]), "point 1: expected three finite numbers"),
    ],
)
def test_broken_markups_are_named(content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_markups(json.dumps(content))


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("\ufeff1,2,3\r\n4,5,6\r\n", encoding="utf-8")
    found = read_landmarks(tmp_path / "a.csv")
    assert isinstance(found, Landmarks)
    assert found.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    write_landmarks(tmp_path / "b.csv", found.format_with(found.points), like=tmp_path / "a.csv")
    assert (tmp_path / "b.csv").read_bytes() == b"1.000000,2.000000,3.000000\n4.000000,5.000000,6.000000\n"
    with pytest.raises(OutputError, match=r"b\.fcsv: expected the format of a\.csv, a name ending in \.csv"):
        write_landmarks(tmp_path / "b.fcsv", "", like=tmp_path / "a.csv")
    with pytest.raises(InputError, match=r"absent\.csv: no such file"):
        read_landmarks(tmp_path / "absent.csv")
    with pytest.raises(InputError, match=r"a\.txt: expected landmarks in a file ending in \.csv, \.fcsv, \.mrk\.json"):
        read_landmarks(tmp_path / "a.txt")
    (tmp_path / "binary.fcsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.fcsv: expected landmarks as text"):
        read_landmarks(tmp_path / "binary.fcsv")
    monkeypatch.setattr("mcbo.io.landmarks.MAX_BYTES", 5)
    with pytest.raises(InputError, match="expected at most 5 bytes"):
        read_landmarks(tmp_path / "a.csv")
