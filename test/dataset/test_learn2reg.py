import json
import string
from pathlib import Path

import pytest
from helpers import write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation import pairs as judged
from mcbo.core.errors import InputError
from mcbo.dataset.folders import Folder
from mcbo.dataset.learn2reg import (
    SPLITS,
    Dataset,
    group_pairs,
    open_input,
    parse_name,
    scan_folder,
    select_cases,
    single_pair,
    strip_suffix,
)

FOUR_DIGITS = st.integers(0, 9999).map(lambda n: f"{n:04d}")
TASKS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)
IMAGES = st.tuples(TASKS, FOUR_DIGITS, FOUR_DIGITS).map("_".join).map(lambda stem: f"{stem}.nii.gz")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@given(task=TASKS, case=FOUR_DIGITS, channel=FOUR_DIGITS, suffix=st.sampled_from([".nii.gz", ".nii"]))
def test_names_are_taken_apart(task: str, case: str, channel: str, suffix: str) -> None:
    assert parse_name(Path(f"imagesTr/{task}_{case}_{channel}{suffix}")) == (task, case, channel)


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "T_001_0000.nii.gz", "T_0001_0000.nii.gz.bak", "T_0001_0000.mha", "_0001_0000.nii"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="expected a file name like ReMIND2Reg_0099_0001"):
        parse_name(Path(name))


@given(pairs=st.lists(st.tuples(IMAGES, IMAGES), min_size=1, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_pair_of_the_json_is_in_one_case(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    file = write_dataset(tmp_path, pairs, name="ReMIND2Reg")
    names = {tuple(parse_name(Path(image))[1:] for image in pair) for pair in pairs}
    if len(names) < len(set(pairs)):  # two tasks in one file, with the same numbers
        with pytest.raises(InputError, match="expected one pair for disp_"):
            open_input(file, split="val")
        return
    dataset = open_input(file, split="val")
    found = [(pair.fixed.name, pair.moving.name) for case in dataset.cases for pair in case.pairs]
    assert sorted(found) == sorted(set(pairs))
    assert len({case.name for case in dataset.cases}) == len(dataset.cases)
    for case in dataset.cases:
        assert {pair.fixed for pair in case.pairs} == {case.fixed}


@given(content=ANY_JSON, under=st.sampled_from([None, "registration_val", "name"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_json_gives_a_dataset_or_a_sentence(tmp_path: Path, content: object, under: str | None) -> None:
    file = write(tmp_path / "x_dataset.json", content if under is None else {under: content})
    message = "expected"
    try:
        assert isinstance(open_input(file, split="val"), Dataset)
    except InputError as error:
        message = str(error)
    assert "expected" in message


@given(junk=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_sentence(tmp_path: Path, junk: bytes) -> None:
    file = tmp_path / "x_dataset.json"
    file.write_bytes(junk)
    with pytest.raises(InputError, match="expected"):
        open_input(file, split="val")


def test_pairs_of_one_patient_make_a_case_and_names_are_long() -> None:
    fixed, cet1, t2 = (Path(f"ReMIND2Reg_0099_000{c}.nii.gz") for c in range(3))
    other = Path("ReMIND2Reg_0100_0001.nii.gz")
    cases = group_pairs([(fixed, cet1), (fixed, other), (fixed, t2), (fixed, cet1)])
    assert [case.name for case in cases] == ["0099", "0099-0100"]
    assert [pair.field_name for pair in cases[0].pairs] == ["disp_0099_0000_0099_0001", "disp_0099_0000_0099_0002"]
    assert [pair.field_name for pair in cases[1].pairs] == ["disp_0099_0000_0100_0001"]


def test_pairs_that_would_overwrite_each_other_are_refused() -> None:
    pairs = [
        (Path(f"{folder}/T_0001_0000.nii.gz"), Path(f"{folder}/T_0001_0001.nii.gz")) for folder in ("imagesTr", "imagesTs")
    ]
    with pytest.raises(InputError, match="expected one pair for disp_0001_0000_0001_0001, found imagesTr"):
        group_pairs(pairs)


def test_cases_of_one_patient_have_names_of_their_own() -> None:
    a, b = Path("T_0001_0000.nii.gz"), Path("T_0001_0001.nii.gz")
    assert [case.name for case in group_pairs([(a, b), (b, a)])] == ["0001_0000_0001_0001", "0001_0001_0001_0000"]


def test_numbers_of_too_many_digits_and_odd_names_give_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "x_dataset.json"
    file.write_text('{"numTest": ' + "9" * 5000 + "}")
    with pytest.raises(InputError, match="expected a dataset JSON"):
        open_input(file, split="val")


def test_the_judge_knows_the_same_splits() -> None:
    assert judged.SPLITS == SPLITS


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("registration_val", "val"),
        ("validation_paired", "val"),
        ("validation", "val"),
        ("registration_test", "test"),
        ("training_paired_images", "train"),
    ],
)
def test_lists_have_many_names(tmp_path: Path, key: str, split: str) -> None:
    entry = {"fixed": "./imagesTr/T_0001_0000.nii.gz", "moving": "./imagesTr/T_0001_0001.nii.gz", "comment": "ignored"}
    content = {"name": "T", "release": 3, "numRegistration_val": "many", key: [entry], "registration_val_": []}
    dataset = open_input(write(tmp_path / "T_dataset.json", content), split=split)
    assert dataset.cases[0].fixed == tmp_path / "imagesTr" / "T_0001_0000.nii.gz"


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected pairs under registration_test .* found none; there are pairs for --split val"
    ):
        open_input(write_dataset(tmp_path, [("T_0001_0000.nii.gz", "T_0001_0001.nii.gz")]), split="test")


def test_a_malformed_entry_is_pointed_at(tmp_path: Path) -> None:
    content = {"registration_val": [{"fixed": "a", "moving": "b"}, {"fixed": "a"}]}
    with pytest.raises(InputError, match=r"registration_val\[1\]\['moving'\] is missing or of another kind"):
        open_input(write(tmp_path / "T_dataset.json", content), split="val")


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("subfolder", [".", "imagesTs", "imagesTr"])
def test_a_folder_of_images_is_paired_by_names(tmp_path: Path, subfolder: str) -> None:
    names = [f"ReMIND2Reg_{case}_{channel}.nii.gz" for case in ("0099", "0100") for channel in ("0000", "0001", "0002")]
    touch(tmp_path / subfolder, *names, "notes.nii.gz", "ReMIND2Reg_0101_0001.nii.gz")
    dataset = open_input(tmp_path, split="val")
    assert dataset.task == "ReMIND2Reg"
    assert [(case.name, len(case.pairs)) for case in dataset.cases] == [("0099", 2), ("0100", 2)]


def test_folders_that_tell_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found neither"):
        scan_folder(Folder(tmp_path))
    with pytest.raises(InputError, match="no such file or folder"):
        open_input(tmp_path / "absent", split="val")
    touch(tmp_path, *(f"{task}_0001_000{c}.nii.gz" for task in "AB" for c in range(2)))
    with pytest.raises(InputError, match="images of one task, found A, B"):
        scan_folder(Folder(tmp_path))
    touch(tmp_path, "A_dataset.json", "B_dataset.json")
    with pytest.raises(InputError, match=r"one \*_dataset\.json, found A_dataset\.json, B_dataset\.json"):
        open_input(tmp_path, split="val")


def test_cases_and_channels_can_be_chosen() -> None:
    paths = {(case, c): Path(f"T_{case}_000{c}.nii.gz") for case in ("0001", "0002") for c in range(3)}
    cases = group_pairs(
        [(paths["0001", 0], paths["0001", 1]), (paths["0001", 0], paths["0001", 2]), (paths["0002", 0], paths["0002", 1])]
    )
    assert [case.name for case in select_cases(cases, names=["0002"], movings=[])] == ["0002"]
    chosen = select_cases(cases, names=[], movings=["0002"])
    assert [(case.name, len(case.pairs)) for case in chosen] == [("0001", 2)]
    with pytest.raises(InputError, match="case 0009 is not in the dataset: expected one of 0001, 0002"):
        select_cases(cases, names=["0009"], movings=[])
    with pytest.raises(InputError, match="moving channel 0007 is not in the dataset"):
        select_cases(cases, names=[], movings=["0007"])
    with pytest.raises(InputError, match="moving channel 0002 is not in the dataset: expected one of 0001"):
        select_cases(cases, names=["0002"], movings=["0002"])


def test_three_paths_make_a_pair() -> None:
    dataset = single_pair(Path("in/PSMAReg_0001_0000.nii.gz"), Path("in/b.nii.gz"), Path("out/field.npz"))
    assert dataset.task == "PSMAReg"
    assert dataset.cases[0].pairs[0].field_name == "field"
    assert single_pair(Path("a.nii"), Path("b.nii"), Path("c.nii")).task is None
    assert strip_suffix("a.b.nii.gz") == "a.b"
