"""The CUDA kernels compiled ahead of time, as at the image's build, are those that a process looks for."""

from pathlib import Path

import fake_cuda
import pytest
from fake_cuda import FakeCuda

from mcbo.kernels.cuda import build, compiler
from mcbo.kernels.cuda.binaries import PREBUILT, obtain
from mcbo.kernels.cuda.launch import Module

MODULES = (Module("one.cu"), Module("two.cu", (("SIDE", 9),)))
ARCHITECTURES = ["--arch", "sm_75", "--arch", "sm_90"]


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    for name in ("one", "two"):
        (tmp_path / f"{name}.cu").write_text(name)
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "MODULES", MODULES)
    monkeypatch.setenv(PREBUILT, str(tmp_path / "kernels"))
    return fake_cuda.install(monkeypatch)


def test_every_module_is_there_for_every_gpu(fake: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main([*ARCHITECTURES, "--output", str(tmp_path / "kernels")]) == 0
    assert capsys.readouterr().out.startswith("NVRTC 13.0: 2 modules for sm_75 sm_90: 0 kB in ")
    assert len(fake.compiled) == len(list((tmp_path / "kernels").iterdir())) == 4
    for module in MODULES:
        for architecture in ("sm_75", "sm_90"):
            expected = f"{architecture} binary of {Path(module.file).stem}".encode()
            assert obtain(module, architecture, cache=None) == expected
    assert len(fake.compiled) == 4


def test_an_unknown_gpu_is_an_error_unless_it_may_be_left_out(
    fake: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARCHITECTURES, "--arch", "sm_120", "--output", str(tmp_path / "kernels")]
    assert build.main(arguments) == 1
    assert "expected an NVRTC that knows sm_120, found 13.0" in capsys.readouterr().err
    fake.compiled.clear()
    assert build.main([*arguments, "--skip-unknown"]) == 0
    assert "left out, since NVRTC 13.0 does not know them: sm_120\n" in capsys.readouterr().out
    assert len(fake.compiled) == 4


def test_what_goes_wrong_is_said(fake: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.refused = {"two": "two.cu(1): error: no"}
    assert build.main(["--arch", "sm_90", "--output", str(tmp_path / "kernels")]) == 1
    assert capsys.readouterr().err == "two.cu: NVRTC 13.0 does not compile it for sm_90: two.cu(1): error: no\n"
    fake.refused = {}
    assert build.main(["--arch", "sm_90", "--output", "/dev/null/kernels"]) == 1
    assert "/dev/null/kernels" in capsys.readouterr().err
    fake.nvrtc = False
    assert build.main(["--arch", "sm_90", "--output", str(tmp_path / "kernels")]) == 1
    assert "expected NVRTC" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--output", "x"], ["--arch", "sm_90"], ["--arch", "90", "--output", "x"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(arguments)
    assert capsys.readouterr().err.startswith("usage: python -m mcbo.kernels.cuda.build")
