"""Which sockets of a job are fixed and moving images."""

import json
from pathlib import Path

import pytest
from jobs import entry

from mcbo.core.errors import InputError
from mcbo.dataset.sockets import DEFAULT_OUTPUT, ROLES, Job, Sockets, parse_sockets, read_job
from mcbo.methods.presets import TASKS, task_of


def write(folder: Path, *entries: dict[str, object], suffix: str = ".mha") -> Path:
    """An ``inputs.json``, and an empty file as the image of every entry."""
    for one in entries:
        about = one.get("socket") or one["interface"]
        assert isinstance(about, dict)
        path = folder / about["relative_path"] / f"11111111-aaaa{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    inputs = folder / "inputs.json"
    inputs.write_text(json.dumps(entries))
    return inputs


def slugs(job: Job) -> list[str]:
    return [job.fixed.slug, *(moving.slug for moving in job.movings)]


@pytest.mark.parametrize(
    ("given", "found", "task"),
    [
        (["intraoperative-ultrasound", "preoperative-mri"], None, "ReMIND2Reg"),
        (["preop-t2", "preop-cet1", "ius"], ["ius", "preop-cet1", "preop-t2"], "ReMIND2Reg"),
        (["t1-contrast-enhanced-mri", "us"], ["us", "t1-contrast-enhanced-mri"], "ReMIND2Reg"),
        (
            ["fluorescence-microscopy", "electron-microscopy"],
            ["electron-microscopy", "fluorescence-microscopy"],
            "COMULIS3DCLEM",
        ),
        (["lm", "em"], ["em", "lm"], "COMULIS3DCLEM"),
        (["moving-image", "fixed-image"], ["fixed-image", "moving-image"], "ReMIND2Reg"),
        # the side that a slug names outweighs the usual one of its modality
        (["fixed-mri", "moving-ultrasound"], None, "ReMIND2Reg"),
        (["fixed-light", "moving-electron"], None, "COMULIS3DCLEM"),
    ],
)
def test_slugs_tell_roles(tmp_path: Path, given: list[str], found: list[str] | None, task: str) -> None:
    job = read_job(write(tmp_path, *map(entry, given)), Sockets())
    assert slugs(job) == (found or given)
    assert task_of(job.modalities) == task
    assert job.fixed.path == tmp_path / "images" / job.fixed.slug / "11111111-aaaa.mha"


def test_the_order_of_inputs_does_not_matter(tmp_path: Path) -> None:
    given = [entry(slug) for slug in ("t2", "us", "cet1")]
    jobs = [read_job(write(tmp_path, *order), Sockets()) for order in (given, given[::-1])]
    assert jobs[0] == jobs[1]


def test_what_lies_beside_the_images_is_not_registered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    beside = [entry("fixed-mask"), entry("moving-labels"), entry("tumor-mri", kind="Segmentation")]
    value = {
        "socket": {"slug": "moving-age", "relative_path": "age.json", "kind": "Integer", "super_kind": "Value"},
        "value": 3,
    }
    inputs = write(tmp_path, entry("fixed"), entry("moving"), *beside, entry("pet"))
    inputs.write_text(json.dumps([*json.loads(inputs.read_text()), value]))
    assert slugs(read_job(inputs, Sockets())) == ["fixed", "moving"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("socket 'pet' is not used")


def test_older_files_say_interface_instead_of_socket(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, entry("us", socket="interface"), entry("mr", socket="interface")), Sockets())
    assert slugs(job) == ["us", "mr"]


@pytest.mark.parametrize("suffix", [".mha", ".tif", ".tiff", ".nii.gz", ".nii"])
def test_images_are_found_in_any_format(tmp_path: Path, suffix: str) -> None:
    inputs = write(tmp_path, entry("em"), entry("lm"), suffix=suffix)
    (tmp_path / "images/em/.hidden.mha").touch()
    (tmp_path / "images/em/notes.txt").touch()
    assert read_job(inputs, Sockets()).fixed.path.name == f"11111111-aaaa{suffix}"


def test_an_image_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    files = [
        {"socket": {"slug": f"{side}-volume", "relative_path": f"{side}.nii.gz", "kind": "File", "super_kind": "File"}}
        for side in ("fixed", "moving")
    ]
    for side in ("fixed", "moving"):
        (tmp_path / f"{side}.nii.gz").touch()
    (tmp_path / "inputs.json").write_text(json.dumps(files))
    assert read_job(tmp_path / "inputs.json", Sockets()).fixed.path == tmp_path / "fixed.nii.gz"


def test_the_user_can_say_which_is_which(tmp_path: Path) -> None:
    sockets = parse_sockets('{"scan-a": "Fixed", "scan-b": "cet1", "old-t2": "none", "warp": "displacement"}')
    assert sockets.output == "warp"
    job = read_job(write(tmp_path, entry("old-t2"), entry("scan-b"), entry("scan-a"), entry("new-t2")), sockets)
    assert slugs(job) == ["scan-a", "scan-b", "new-t2"]
    assert job.modalities == {"ceT1", "T2"}
    assert parse_sockets(None).output == DEFAULT_OUTPUT


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "expected JSON such as"),
        ("[]", "expected JSON such as"),
        ('{"a": 1}', "expected JSON such as"),
        (
            '{"a": "top"}',
            "expected for 'a' one of fixed, moving, ultrasound, ceT1, T2, MRI, EM, LM, displacement, none, got 'top'",
        ),
        ('{"../a": "fixed"}', "expected slugs of letters, digits and hyphens, got '../a'"),
        ('{"a": "displacement", "b": "displacement"}', "expected one socket as displacement, got a, b"),
    ],
)
def test_wrong_roles_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=r"^--sockets or MCBO_SOCKETS: ") as error:
        parse_sockets(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["us"], "found 'us' (fixed); say which is which with --sockets"),
        (["t1", "t2"], "found 't1' (moving), 't2' (moving)"),
        (["us", "em", "mri"], "found 'us' (fixed), 'em' (fixed), 'mri' (moving)"),
        (["image-1", "image-2"], "found 'image-1' (no role), 'image-2' (no role)"),
        (["fixed-to-moving", "mri"], "found 'fixed-to-moving' (no role), 'mri' (moving)"),
        ([], "found none"),
    ],
)
def test_unclear_roles_are_refused(tmp_path: Path, given: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read_job(write(tmp_path, *map(entry, given)), Sockets())
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "expected a list of"),
        ("[3]", "but [0] is missing or of another kind"),
        ('[{"value": 1}]', "but [0]['socket'] is missing"),
        ('[{"socket": {"slug": "a"}}]', "['relative_path'] is missing"),
        ('[{"socket": {"slug": "../a", "relative_path": "x"}}]', "['slug'] is missing or of another kind"),
        ("[", "expected the inputs of a job"),
        ("[" * 60 + "]" * 60, "at most 50 levels"),
    ],
)
def test_what_is_no_list_of_sockets_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(InputError, match=r"inputs\.json") as error:
        read_job(tmp_path / "inputs.json", Sockets())
    assert sentence in str(error.value)


def test_broken_sockets_are_named(tmp_path: Path) -> None:
    good, outside = entry("moving"), tmp_path / "outside"
    outside.mkdir()
    (outside / "a.mha").touch()
    cases: dict[str, object] = {
        "images/none": "there is no",
        "images/empty": "found none",
        "images/two": "found 'a.mha', 'b.mha'",
        "../outside": "inside the dataset's folder",
        "images/link": "inside the dataset's folder",
        "images/file-link": "inside the dataset's folder",
    }
    job = tmp_path / "job"
    write(job, good)
    for name in ("empty", "two", "file-link"):
        (job / "images" / name).mkdir()
    for name in ("a", "b"):
        (job / f"images/two/{name}.mha").touch()
    (job / "images/link").symlink_to(outside)
    (job / "images/file-link/a.mha").symlink_to(outside / "a.mha")
    for path, sentence in cases.items():
        bad = {"socket": {"slug": "fixed", "relative_path": path, "super_kind": "Image"}}
        (job / "inputs.json").write_text(json.dumps([bad, good]))
        with pytest.raises(InputError, match=r"^socket 'fixed': ") as error:
            read_job(job / "inputs.json", Sockets())
        assert str(sentence) in str(error.value), path
    (job / "inputs.json").write_text(json.dumps([bad, good]))
    assert read_job(job / "inputs.json", Sockets(), trust_paths=True).fixed.path.name == "a.mha"


def test_a_socket_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 'us' twice"):
        read_job(write(tmp_path, entry("us"), entry("us"), entry("mri")), Sockets())


def test_modalities_belong_to_tasks() -> None:
    known = [modality for task in TASKS.values() for modality in task.modalities]
    assert sorted(known) == sorted(role.name for role in ROLES if role.is_modality)
    with pytest.raises(InputError, match=r"found LM, ultrasound: choose a task with --task"):
        task_of(["ultrasound", "LM"])
