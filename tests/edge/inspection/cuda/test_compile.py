"""Compiling kernels and keeping what was compiled: by NVRTC or nvcc, whichever is here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge.errors import CudaError, RuntimeUnavailableError
from edge.inspection.cuda import compile as compiling
from edge.inspection.cuda.compile import choose, compile_kernels
from edge.inspection.cuda.compilers import Compiler, Nvcc, Nvrtc, compilers, nvcc_paths, nvrtc_paths

TEXT = '#include "phases.h"\n#include "more.h"\nKERNEL(probe, float* out) { ONCE out[BLOCK] = MORE; }\n'
CODE = b"\x7fELF of "
DRIVER = (13, 0)


@dataclass
class FakeCompiler:
    """Says which architecture it was asked for."""

    name: str = "fake 13.0"
    version: tuple[int, int] = (13, 0)
    architectures: frozenset[int] = frozenset({75, 86, 90})
    asked: list[int] = field(default_factory=list)

    def compile(self, path: Path, architecture: int, extra: tuple[str, ...] = ()) -> bytes:
        self.asked.append(architecture)
        return CODE + path.read_bytes()


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "probe.cu").write_text(TEXT)
    (folder / "more.h").write_text("constexpr float MORE = 1.0f;\n")
    (folder / "phases.h").write_text((compiling.KERNELS / "phases.h").read_text())
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = FakeCompiler()
    monkeypatch.setattr(compiling, "compilers", lambda: iter([made]))
    return made


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "redi-edge" / "kernels").iterdir())


@pytest.mark.parametrize("kind", [Nvrtc, Nvcc])
def test_each_compiler_makes_code_and_names_the_line_of_an_error(kind: type[Compiler], kernels: Path) -> None:
    compiler = next((found for found in compilers() if isinstance(found, kind)), None)
    if compiler is None:
        pytest.skip(f"no {kind.__name__.lower()} here")
    path = kernels / "probe.cu"
    code = compiler.compile(path, 87)
    assert code.startswith(b"\x7fELF")
    assert b"probe" in code
    assert {75, 86, 87, 90} <= compiler.architectures
    path.write_text(TEXT.replace("MORE;", "LESS;"))
    with pytest.raises(CudaError, match=r"probe\.cu does not compile for sm_87 with .*\(3\).*LESS"):
        compiler.compile(path, 87)


def test_a_compiler_is_here() -> None:
    # The development extra brings one; without it the other tests would be skipped unseen.
    assert next(compilers()).name


def test_what_is_no_compiler_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cuda"
    for path in (root / "lib64" / "libnvrtc.so.13", root / "bin" / "nvcc"):
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\necho no compiler\n")
        path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("PATH", "")
    assert str(root / "lib64" / "libnvrtc.so.13") in list(nvrtc_paths())
    assert str(root / "bin" / "nvcc") in list(nvcc_paths())
    assert all(isinstance(compiler, Nvrtc | Nvcc) for compiler in compilers())
    with pytest.raises(CudaError, match="does not say its version"):
        Nvcc(str(root / "bin" / "nvcc"))


def test_code_is_compiled_once(kernels: Path, fake: FakeCompiler, tmp_path: Path) -> None:
    for _ in range(2):
        assert compile_kernels("probe", (8, 6), DRIVER, folder=kernels) == CODE + TEXT.encode()
    assert fake.asked == [86]
    (file,) = kept(tmp_path)
    assert file.stat().st_mode & 0o022 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def test_all_that_code_is_made_of_counts(kernels: Path, fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        compile_kernels("probe", (8, 6), DRIVER, folder=kernels)
        return len(fake.asked)

    assert count() == 1
    (kernels / "more.h").write_text("constexpr float MORE = 2.0f;\n")
    assert count() == 2
    (kernels / "probe.cu").write_text(TEXT + "\n")
    assert count() == 3
    fake.name = "fake 13.1"
    assert count() == 4
    monkeypatch.setattr(compiling, "OPTIONS", (*compiling.OPTIONS, "-lineinfo"))
    assert count() == 5
    compile_kernels("probe", (9, 0), DRIVER, folder=kernels)
    assert fake.asked[-1] == 90
    assert count() == 6  # kept by now


@pytest.mark.parametrize("damage", ["torn", "changed", "foreign", "empty", "of another text"])
def test_a_damaged_file_is_compiled_anew(
    damage: str, kernels: Path, fake: FakeCompiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = compile_kernels("probe", (8, 6), DRIVER, folder=kernels)
    (file,) = kept(tmp_path)
    content = file.read_bytes()
    other = content
    if damage == "of another text":
        (kernels / "probe.cu").write_text(TEXT + "\n")
        compile_kernels("probe", (8, 6), DRIVER, folder=kernels)
        other = next(path for path in kept(tmp_path) if path != file).read_bytes()
        (kernels / "probe.cu").write_text(TEXT)
    file.write_bytes(
        {
            "torn": content[:-3],
            "changed": content[:-1] + b"?",
            "foreign": b"\x7fELF" + content,
            "empty": b"",
            "of another text": other,
        }[damage]
    )
    before = len(fake.asked)
    with caplog.at_level(logging.WARNING, "edge.kernels"):
        assert compile_kernels("probe", (8, 6), DRIVER, folder=kernels) == code
    assert len(fake.asked) == before + 1
    assert "content has changed" in caplog.text
    assert file.read_bytes() == content


def test_code_that_others_could_have_put_there_is_not_used(
    kernels: Path, fake: FakeCompiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compile_kernels("probe", (8, 6), DRIVER, folder=kernels)
    kept(tmp_path)[0].parent.chmod(0o777)
    with caplog.at_level(logging.WARNING, "edge.kernels"):
        compile_kernels("probe", (8, 6), DRIVER, folder=kernels)
    assert fake.asked == [86, 86]
    assert "may be written by others" in caplog.text


def test_without_a_cache_it_is_compiled_each_time(
    kernels: Path, fake: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "edge.kernels"):
        for _ in range(2):
            compile_kernels("probe", (8, 6), DRIVER, folder=kernels)
    assert fake.asked == [86, 86]
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("known", "capability", "driver", "chosen"),
    [
        ([((13, 0), {86, 87})], (8, 7), (13, 0), (0, 87)),
        ([((13, 4), {86, 87})], (8, 7), (13, 0), (0, 87)),  # newer, but of the driver's major version
        ([((12, 6), {86, 87})], (8, 7), (13, 0), (0, 87)),
        ([((13, 0), {87}), ((12, 6), {87})], (8, 7), (12, 6), (1, 87)),
        ([((12, 6), {86})], (8, 7), (13, 0), (0, 86)),  # code for a lower minor version runs
        ([((12, 6), {80, 86, 89, 90})], (8, 7), (13, 0), (0, 86)),
        ([((12, 6), {86}), ((13, 0), {87})], (8, 7), (13, 0), (1, 87)),
        ([((13, 0), {100, 103, 110, 120})], (12, 1), (13, 0), (0, 120)),
    ],
)
def test_which_compiler_is_chosen(
    known: list[tuple[tuple[int, int], set[int]]],
    capability: tuple[int, int],
    driver: tuple[int, int],
    chosen: tuple[int, int],
) -> None:
    among = [FakeCompiler(f"fake {i}", version, frozenset(of)) for i, (version, of) in enumerate(known)]
    compiler, architecture = choose(among, capability, driver)
    assert (compiler.name, architecture) == (f"fake {chosen[0]}", chosen[1])


@pytest.mark.parametrize(
    ("among", "match"),
    [
        ([], "neither NVRTC nor nvcc"),
        ([FakeCompiler(version=(14, 1))], "too new for the driver, which runs CUDA 13.0"),
        ([FakeCompiler(architectures=frozenset({90}))], "knows no sm_87"),
    ],
)
def test_no_compiler_will_do(among: Sequence[Compiler], match: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=match) as caught:
        choose(among, (8, 7), DRIVER)
    assert "redi-edge[gpu]" in caught.value.hint
