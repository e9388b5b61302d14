"""Inputs by URL, against servers on loopback: S3 by moto, and a web server that misbehaves as it is told."""

import functools
import json
import os
import pickle
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers import write_dataset, write_nifti
from hypothesis import given
from hypothesis import strategies as st

import process
from mcbo.core.errors import InputError
from mcbo.dataset import fetch, remote
from mcbo.dataset.fetch import explain
from mcbo.dataset.folders import RemoteFolder
from mcbo.dataset.remote import fetched, locate, open_url
from mcbo.io.nifti_header import read_header
from mcbo.io.source import Source, is_url, shown_url
from mcbo.studies.phantom import make_phantom

SHAPE = (14, 12, 17)
SECRETS = ("AKIASECRETKEY", "tOpSeCrEt", "s3cr3tsignature")
PRESET = ("--device", "cpu", "--preset", "mcbo2024")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case with both moving modalities."""
    folder = tmp_path_factory.mktemp("data")
    phantom = make_phantom(SHAPE, seed=1)
    for channel, image in enumerate((phantom.fixed, phantom.cet1, phantom.t2)):
        write_nifti(folder / "imagesTr" / f"ReMIND2Reg_0098_000{channel}.nii.gz", image[0, 0].numpy().astype(np.int16))
    names = [f"ReMIND2Reg_0098_000{channel}.nii.gz" for channel in range(3)]
    write_dataset(folder, [(names[0], names[1]), (names[0], names[2])])
    return folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of these tests alone, no waiting, connections anew, and temporary files where they can be counted."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(fetch, "PAUSE_S", 0.0)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture(scope="module")
def s3(data: Path) -> Iterator[str]:
    """The address of an S3 server whose bucket ``archive`` has the data below ``study``."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        system = fsspec.filesystem("s3", endpoint_url=address, key="k", secret="k", skip_instance_cache=True)  # noqa: S106
        system.mkdir("archive")
        for file in data.rglob("*.*"):
            system.pipe_file(f"archive/study/{file.relative_to(data)}", file.read_bytes())
        yield address
    finally:
        server.stop()


@dataclass
class Web:
    """What a web server does with each path, and which it was asked for."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def serve(self, folder: Path) -> None:
        self.files = {f"/{file.relative_to(folder)}": file.read_bytes() for file in folder.rglob("*.*")}


class Handler(BaseHTTPRequestHandler):
    web: Web

    def do_HEAD(self) -> None:
        self.answer(b"", self.begin())

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        self.answer(self.begin(), None)

    def begin(self) -> bytes:
        return self.web.files.get(self.path.partition("?")[0], b"")

    def answer(self, body: bytes, head: bytes | None) -> None:
        path, content = self.path.partition("?")[0], body if head is None else head
        faults = self.web.faults.get(path, [])
        fault = "" if not faults else faults[0] if head is not None or len(faults) == 1 else faults.pop(0)
        if path not in self.web.files or fault.isdecimal():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "silent":
            self.server.shutting_down.wait(5)  # type: ignore[attr-defined]
            return
        self.send_response(200)
        if fault != "no size":
            self.send_header("Content-Length", str(len(content) + 1000 * (fault == "long" and head is None)))
        self.end_headers()
        if head is not None:
            return
        self.wfile.write(body[: len(body) // 2] if fault == "cut off" else body)
        if fault == "long":
            self.wfile.write(b"x" * 1000)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def web() -> Iterator[Web]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.shutting_down = threading.Event()  # type: ignore[attr-defined]
    Handler.web = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield Handler.web
    server.shutting_down.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str) -> int:
    return process.main([*arguments, *PRESET])


def without_times(report: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(report.read_text())["cases"]["0098"]
    return {key: value for key, value in content.items() if key not in ("seconds", "stages", "inputs", "spans_s", "waited_s")}


def test_s3_gives_what_files_give_and_leaves_nothing(
    data: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    here, there = tmp_path / "here", tmp_path / "there"
    assert run(str(data / "ReMIND2Reg_dataset.json"), "--output", str(here)) == 0
    assert run("s3://archive/study/ReMIND2Reg_dataset.json", "--output", str(there)) == 0
    assert without_times(here / "report.json") == without_times(there / "report.json")  # with the digests of the displacements
    inputs = [json.loads((folder / "report.json").read_text())["cases"]["0098"]["inputs"] for folder in (here, there)]
    assert list(inputs[0].values()) == list(inputs[1].values())
    assert list(inputs[1]) == [f"s3://archive/study/imagesTr/ReMIND2Reg_0098_000{channel}.nii.gz" for channel in range(3)]
    capsys.readouterr()
    assert run("--input", "s3://archive/study", "--output", str(there)) == 0
    said = capsys.readouterr()
    assert "case 0098: done before with the same input and config, skipped" in said.out
    assert not list((tmp_path / "tmp").glob("mcbo-*"))
    assert not any(secret in said.out + said.err + (there / "report.json").read_text() for secret in SECRETS)


def test_an_image_that_cannot_be_had_is_stood_in_for_with_the_header_of_the_other(data: Path, web: Web, tmp_path: Path) -> None:
    web.serve(data)
    del web.files["/imagesTr/ReMIND2Reg_0098_0001.nii.gz"]
    url = f"{web.address}/ReMIND2Reg_dataset.json"
    assert run(url, "--output", str(tmp_path / "out"), "--on-failure", "zero") == 2
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]["0098"]
    assert report["placeholder"] == {"disp_0098_0000_0098_0001": "zero"}
    assert report["inputs"][f"{web.address}/imagesTr/ReMIND2Reg_0098_0001.nii.gz"] is None
    assert "no such bucket, folder or object" in report["failed"]["disp_0098_0000_0098_0001"]


@pytest.mark.parametrize("where", ["s3://archive/study/imagesTr", "s3://archive/study/imagesTr/"])
def test_a_bucket_with_images_alone(s3: str, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    dataset = open_url(where, split="val")
    assert dataset.task == "ReMIND2Reg"
    (case,) = dataset.cases
    assert [str(pair.moving) for pair in case.pairs] == [
        f"s3://archive/study/imagesTr/ReMIND2Reg_0098_000{channel}.nii.gz" for channel in (1, 2)
    ]


def test_three_paths_of_which_two_are_signed_urls(data: Path, web: Web, tmp_path: Path) -> None:
    web.serve(data)
    urls = [f"{web.address}/imagesTr/ReMIND2Reg_0098_000{channel}.nii.gz?X-Sig={SECRETS[2]}%2F1" for channel in (0, 1)]
    assert run(*urls, str(tmp_path / "field.nii.gz")) == 0
    report = (tmp_path / "field.report.json").read_text()
    assert shown_url(urls[0]) in report
    assert SECRETS[2] not in report
    assert any(path.endswith(f"?X-Sig={SECRETS[2]}%2F1") for path in web.asked)  # as it was signed


def test_a_broken_off_download_is_tried_again_and_never_taken_for_whole(
    data: Path, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.serve(data)
    moving = "/imagesTr/ReMIND2Reg_0098_0001.nii.gz"
    json_url = f"{web.address}/ReMIND2Reg_dataset.json"
    web.faults = {moving: ["cut off", "503", "ok"]}
    assert run(json_url, "--output", str(tmp_path / "again")) == 0
    assert web.asked.count(moving) >= 2
    web.faults = {moving: ["cut off"]}
    assert run(json_url, "--output", str(tmp_path / "never")) == 2
    said = capsys.readouterr().err
    assert (
        f"disp_0098_0000_0098_0001 is not written: {web.address}{moving}: expected a NIfTI image, but: the connection" in said
    )
    assert "broke off, after 3 attempts" in said
    assert (tmp_path / "never/disp_0098_0000_0098_0002.nii.gz").exists()
    assert not list((tmp_path / "tmp").glob("mcbo-*"))


FIXED, MOVING = "ReMIND2Reg_0098_0000.nii.gz", "ReMIND2Reg_0098_0001.nii.gz"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("404", "there is no such bucket, folder or object"),
        ("403", "access is denied: expected credentials that allow it: a signed URL"),
        ("500", "the server answered with status 500, after 3 attempts"),
        ("418", "the server answered with status 418"),
        ("silent", "no answer within"),
        ("no size", "the server does not report its size"),
        ("long", "more than the announced 4 bytes arrived, after 3 attempts"),
    ],
)
def test_each_fault_of_a_server_has_its_sentence(
    web: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fault: str, sentence: str
) -> None:
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.2)
    web.files, web.faults = {"/a/x.json": b"{  }"}, {"/a/x.json": [fault]}
    url = web.address.replace("//", f"//user:{SECRETS[1]}@") + f"/a/x.json?sig={SECRETS[2]}"
    assert run(url, "--output", str(tmp_path / "out")) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"ERROR: {web.address}/a/x.json: expected a dataset JSON, but: {sentence}")
    assert not any(secret in said.out + said.err for secret in SECRETS)
    assert not list((tmp_path / "tmp").glob("mcbo-*"))


@pytest.mark.parametrize(
    ("url", "environment", "sentence"),
    [
        ("s3://absent/x.json", {}, "expected a dataset JSON, but: there is no such bucket, folder or object"),
        ("s3://archive/absent.json", {}, "expected a dataset JSON, but: there is no such bucket, folder or object"),
        ("s3://archive/absent", {}, "expected a folder with a dataset, but: there is no such bucket, folder or object"),
        ("s3://archive/study/x.json", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found: set"),
        ("s3://archive/x.json", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the server cannot be reached"),
    ],
)
def test_each_fault_of_s3_has_its_sentence(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    environment: dict[str, str],
    sentence: str,
) -> None:
    for name, value in {"AWS_ENDPOINT_URL": s3, **environment}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert run(url, "--output", str(tmp_path / "out")) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"ERROR: {url}: ")
    assert sentence in line
    assert not any(secret in said.out + said.err for secret in SECRETS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ftp://host/x.json"], "ftp://host/x.json: expected a path, or a URL that begins with one of s3://, gs://, https://"),
        (["s3:///x.json"], "s3:///x.json: expected a path, or a URL that begins with one of"),
        (["https://[::1/x.json"], "https://…: expected a path, or a URL"),
        (["s3://a/x::file:///etc/passwd"], "expected a path, or a URL that begins with one of"),
        (["https://127.0.0.1:9/folder"], "expected the URL of a dataset JSON, since a web server does not list folders"),
        (["https://127.0.0.1:9/x.json"], "the server cannot be reached"),
        (["x.json", "--output", "s3://bucket/out"], "--output: expected a local or mounted folder, got the URL"),
        (["a.nii", "b.nii", "s3://bucket/f.nii.gz"], "the output file: expected a local or mounted folder, got the URL"),
    ],
)
def test_what_cannot_be_meant(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--output", str(tmp_path / "out"), *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.nii", f"https://user:{SECRETS[1]}@host/b.nii?sig={SECRETS[2]}"],
        ["--demo", f"https://user:{SECRETS[1]}@host/b.nii?sig={SECRETS[2]}"],
        ["x.json", "--output", f"https://user:{SECRETS[1]}@host/out?sig={SECRETS[2]}"],
        ["--input", f"https:/user:{SECRETS[1]}@host/x.json?sig={SECRETS[2]}"],
    ],
)
def test_what_cannot_be_meant_is_told_without_secrets(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("--output", str(tmp_path / "out"), *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "host/" in line
    assert not any(secret in line for secret in SECRETS)


def test_a_certificate_that_is_not_trusted_is_not_called_an_absent_server() -> None:
    error = ConnectionError()
    error.__cause__ = ssl.SSLCertVerificationError()
    reason = explain(error, "https://host/x.json")
    assert "certificate is not trusted" in str(reason)
    assert not reason.transient


def test_without_the_extra_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(InputError, match=r"expected the package s3fs to read s3://.*pip install '\.\[remote\]'"):
        locate("s3://bucket/x.nii.gz")


def test_an_object_that_is_too_large_is_not_downloaded(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = {"/x.json": b" " * 2000}
    monkeypatch.setattr(remote, "MAX_JSON_BYTES", 1999)
    with pytest.raises(InputError, match="it has 2000 bytes, more than the limit of 1999"):
        open_url(f"{web.address}/x.json", split="val")
    assert web.asked == []
    monkeypatch.setattr(remote, "MAX_JSON_BYTES", 2000)
    monkeypatch.setattr(fetch, "free_disk_bytes", lambda _: 1500)
    with pytest.raises(InputError, match="it has 2 kB, but 2 kB are free for temporary files"):
        open_url(f"{web.address}/x.json", split="val")


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "../x_0001_0000.nii.gz", "a/../../b", "s3://other/x", "file:///etc/passwd", "a\n", ".."]
)
@pytest.mark.parametrize("url", ["s3://bucket/folder", "https://host/folder"])
def test_no_entry_leads_out_of_the_folder(text: str, url: str) -> None:
    with pytest.raises(InputError, match="expected"):
        RemoteFolder(url).join(text, "x.json: registration_val[0]['fixed']")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40), st.booleans())
def test_whatever_an_entry_says_it_stays_below(text: str, is_web: bool) -> None:
    root = "https://host/a" if is_web else "s3://bucket/a"
    try:
        path = RemoteFolder(root).join(text, "here")
    except InputError:
        return
    assert path.url == root or path.url.startswith(f"{root}/")
    assert "/../" not in f"{path.url}/"
    if is_web:
        assert not set(path.url.removeprefix(root)) & set("?#")
        assert "%2e" not in path.url.lower()


def test_a_trusted_folder_may_lead_to_others_of_its_bucket() -> None:
    folder = RemoteFolder("s3://bucket/a/b", trusted=True)
    assert folder.join("../c/x.nii", "here").url == "s3://bucket/a/c/x.nii"
    assert folder.join("../../../../x.nii", "here").url == "s3://bucket/x.nii"
    with pytest.raises(InputError):
        folder.join("/etc/passwd", "here")


def test_a_source_is_its_url_to_people_and_its_copy_to_the_system(tmp_path: Path) -> None:
    absent = Source("https://user:pw@host:1/a/x_0001_0000.nii.gz?sig=1", problem="it is away")
    assert str(absent) == f"{absent}" == repr(absent) == "https://host:1/a/x_0001_0000.nii.gz"
    assert absent.name == "x_0001_0000.nii.gz"
    assert not absent.is_file()
    assert not os.path.exists(absent)  # noqa: PTH110 (as it is asked for what is gone)
    for use in (os.fspath, Path, os.stat, read_header):
        with pytest.raises((OSError, InputError), match="it is away"):
            use(absent)
    assert absent.absolute() is absent
    (tmp_path / "0").write_bytes(b"abc")
    present = Source("s3://bucket/x.nii.gz", local=tmp_path / "0")
    assert (str(present), present.name, Path(present).read_bytes(), present.is_file()) == (
        "s3://bucket/x.nii.gz",
        "x.nii.gz",
        b"abc",
        True,
    )
    assert os.fspath(present) == str(tmp_path / "0")
    for source in (absent, present):
        again = pickle.loads(pickle.dumps(source))  # noqa: S301 (as it travels to a worker)
        assert (again.url, again.local, again.problem) == (source.url, source.local, source.problem)
        assert again == source


def test_a_case_without_remote_images_is_left_as_it_is(data: Path) -> None:
    from mcbo.dataset.learn2reg import open_input

    (case,) = open_input(data, split="val").cases
    with fetched(case, case.pairs) as here:
        assert here is case


def test_only_what_is_wanted_is_fetched(data: Path, web: Web) -> None:
    web.serve(data)
    (case,) = open_url(f"{web.address}/ReMIND2Reg_dataset.json", split="val").cases
    with fetched(case, case.pairs[1:]) as here:
        assert [path.is_file() for path in (here.fixed, *(pair.moving for pair in here.pairs))] == [True, False, True]
        assert here.pairs[0].fixed == here.fixed
    assert web.asked == [
        f"/{name}" for name in ("ReMIND2Reg_dataset.json", f"imagesTr/{FIXED}", "imagesTr/" + MOVING[:-8] + "2.nii.gz")
    ]


def test_without_room_for_temporary_files_a_sentence(data: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.serve(data)
    url = f"{web.address}/ReMIND2Reg_dataset.json"
    (case,) = open_url(url, split="val").cases
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/absent")
    with (
        fetched(case, case.pairs) as here,
        pytest.raises(InputError, match=r"no temporary folder can be created for it \(TMPDIR\)"),
    ):
        read_header(here.fixed)
    with pytest.raises(InputError, match=r"no temporary folder can be created for it \(TMPDIR\)"):
        open_url(url, split="val")


def test_memory_for_short(data: Path) -> None:
    system = fsspec.filesystem("memory")
    try:
        for file in data.rglob("*.*"):
            system.pipe_file(f"/archive/{file.relative_to(data)}", file.read_bytes())
        (case,) = open_url("memory://archive/ReMIND2Reg_dataset.json", split="val").cases
        with fetched(case, case.pairs) as here:
            assert Path(here.fixed).read_bytes() == (data / f"imagesTr/{FIXED}").read_bytes()
        assert not here.fixed.is_file()
    finally:
        system.rm("/archive", recursive=True)


def test_a_name_with_two_colons_is_that_name_and_a_scheme_has_any_case() -> None:
    """fsspec would take ``other::archive/…`` for a chain of file systems, and read an object that nobody named."""
    system = fsspec.filesystem("memory")
    pairs = [{"fixed": "other::archive/T_0001_0000.nii.gz", "moving": "other::archive/T_0001_0001.nii.gz"}]
    try:
        system.pipe_file("/archive/T_dataset.json", json.dumps({"name": "T", "registration_val": pairs}).encode())
        system.pipe_file("/archive/other", b"an object that nobody named")
        (case,) = open_url("MEMORY://archive/T_dataset.json", split="val").cases
        with fetched(case, case.pairs) as here, pytest.raises(OSError, match="there is no such bucket, folder or object"):
            Path(here.fixed)
        assert (
            fetch._open_system("s3://archive/other::archive/T_0001_0000.nii.gz")[1]
            == "archive/other::archive/T_0001_0000.nii.gz"
        )
    finally:
        system.rm("/archive", recursive=True)


@pytest.mark.parametrize(
    ("text", "answer"), [("s3://a", True), ("s3:/a", True), ("/a/b", False), ("a:b", False), ("./s3:/a", False)]
)
def test_what_is_a_url(text: str, answer: bool) -> None:
    assert is_url(text) == answer
