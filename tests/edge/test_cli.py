"""How every command ends: in a real process, as its console script starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from edge.cli import command, progress, require_extra
from edge.errors import UsageError

START = "import sys; from edge.commands.bundle import main; sys.exit(main())"


def start(*arguments: object, code: str = START, **settings: object) -> subprocess.Popen[str]:
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "surrogateescape"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **{**defaults, **settings})  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_is_an_error_in_one_line(bundle_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("show", "--json", bundle_path, stdout=full)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert err.splitlines() == ["error: cannot write the output: No space left on device", "  next: free space"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_is_full_changes_nothing(bundle_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("verify", bundle_path.with_name("missing.plan"), stderr=full)
        assert process.wait(60) == 3


@pytest.mark.parametrize("arguments", [("--help",), ("show", "--json", "PLAN"), ("show", "PLAN")])
def test_a_reader_that_has_gone_ends_a_command_quietly(arguments: tuple[str, ...], bundle_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*(str(bundle_path) if word == "PLAN" else word for word in arguments), stdout=writer)
    os.close(writer)
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (0, "")


def test_names_that_are_no_text_are_printed_escaped(bundle_path: Path) -> None:
    odd = bundle_path.rename(bundle_path.with_name(os.fsdecode(b"caf\xe9 [red] :x:.plan")))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for action in ("verify", "show"):
        process = start(action, odd, env=environment)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert "caf\\udce9 [red] :x:.plan" in out.replace("\n", "")
    process = start("show", "--json", odd)
    assert json.loads(process.communicate(timeout=60)[0])["path"] == str(odd)
    process = start("show", odd.with_name(odd.name + "s"))
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 3
    assert "caf\\udce9 [red] :x:.plans" in err


def test_ctrl_c_while_the_modules_load_is_one_word() -> None:
    code = "import edge.commands, _thread; _thread.interrupt_main(); import edge.commands.bundle"
    process = start(code=code)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == -signal.SIGINT


def test_a_bug_is_one_line_even_where_its_details_cannot_be_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @command
    def main(argv: object = None) -> int:
        raise ZeroDivisionError(os.fsdecode(b"of [caf\xe9]"))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main([]) == 70
    (saved,) = tmp_path.iterdir()
    assert "ZeroDivisionError: of [caf\\udce9]" in saved.read_text()
    assert str(saved) in capsys.readouterr().err

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert main([]) == 70
    err = capsys.readouterr().err
    assert err.startswith("internal error: ZeroDivisionError: of [caf")
    assert "cannot be saved" in err
    assert "Traceback" not in err


def test_a_missing_extra_is_named_with_the_way_to_get_it() -> None:
    require_extra("train", "json", "sys")
    with pytest.raises(UsageError, match="no_such_module_1, no_such_module_2") as caught:
        require_extra("train", "json", "no_such_module_1", "no_such_module_2")
    assert caught.value.hint == "pip install 'redi-edge[train]'"


def test_a_bar_that_vanishes_leaves_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(transient=True) as bar:
        bar.advance(bar.add_task("reading", total=1, note=""))
    assert capsys.readouterr().err == ""


def test_a_progress_bar_needs_no_note() -> None:
    """In a terminal, too, where it is drawn."""
    code = """
        from edge import cli
        cli.console._force_terminal = True
        with cli.progress() as bar:
            list(bar.track([1, 2], description="looking"))
            bar.add_task("counting", total=1, note="half done")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "looking" in done.stderr
    assert "half done" in done.stderr
