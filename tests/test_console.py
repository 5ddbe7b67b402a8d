"""One look of all commands: colours on terminals, plain text elsewhere; --quiet; the log file."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from end_to_end import altered, checkpoint, experts, fresh, merge, plugin, run, task_arithmetic, written

from mergekit_mm import console
from mergekit_mm.cli import main
from mergekit_mm.hosts.doctor import Finding

ESCAPE = "\x1b["


def config() -> dict[str, Any]:
    """A merge with notes on files that differ."""
    return task_arithmetic(checkpoint("llava"), experts("llava")[:1])


def refused() -> dict[str, Any]:
    """A merge that is refused in one line."""
    return {**config(), "merge_methods": "ties"}


def on_a_terminal(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], color=True, env=environment)


# ------------------------------------------------------------------------------------------------ colours


def test_notes_are_coloured_on_a_terminal_alone() -> None:
    recipe = written(config())
    coloured, plain = on_a_terminal("check", recipe).output, plugin("check", recipe).output
    assert click.style("note:", fg="yellow") in coloured
    assert ESCAPE not in plain
    assert click.unstyle(coloured) == plain


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_they_are_not_wanted(environment: dict[str, str]) -> None:
    assert ESCAPE not in on_a_terminal("check", written(config()), **environment).output


def test_json_is_never_coloured() -> None:
    told = on_a_terminal("check", written(config()), "--json").output
    assert ESCAPE not in told
    assert json.loads(told)["outputs"]


def test_errors_are_coloured() -> None:
    result = on_a_terminal("check", written(refused()))
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert result.output.startswith(click.style("Error:", fg="red", bold=True) + " ")
    assert len(result.output.splitlines()) == 1


def test_a_real_terminal_gets_colours_and_a_bar() -> None:
    """And a pipe gets lines."""
    code = (
        "import time; from mergekit_mm import console\n"
        "console.tell('note: x')\n"
        "with console.bar(total=2, desc='Work') as bar: bar.update(2)\n"
        "console.tell_error('this is over', ValueError())\n"
        "console.log_error('a bug', ValueError())"
    )
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # rows, columns
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], stderr=child, env=environment)
    os.close(child)
    seen = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert done.returncode == 0
    assert click.style("note:", fg="yellow") in seen
    assert "Work: 100%" in seen
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert piped.stderr == "note: x\nError: this is over\n"  # two steps of work are no long work


def test_long_work_is_told_in_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.bar(total=4, desc="Hashing", delay=0, mininterval=0) as bar:
        for _ in range(4):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines][-1] == "Hashing: 4 of 4 (100 %)"
    assert len(lines) == 5
    assert not [line for line in lines if "\r" in line]


def test_findings_of_doctor_fit_a_terminal() -> None:
    finding = Finding("note", "mergekit-yaml", "is not in this environment: " + "install it, " * 12)
    lines = finding.in_columns(100).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines).split()) == " ".join(str(finding).split())
    assert lines[0].startswith("note   mergekit-yaml ")


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("name", sorted(main.commands))  # type: ignore[attr-defined]
def test_every_command_has_the_same_options(name: str) -> None:
    known = [option for each in main.commands[name].params for option in each.opts]  # type: ignore[attr-defined]
    shared = ["--verbose", "--debug", "--log-file", *(["--quiet"] if name != "yaml" else [])]  # which mergekit has
    assert [known.count(option) for option in shared] == [1] * len(shared)


def test_the_help_of_yaml_has_its_own_options_and_mergekit_s() -> None:
    result = plugin("yaml", "--help")
    assert result.exit_code == 0
    assert all(option in result.output for option in ("--push ORG/NAME", "--log-file FILE", "--out-shard-size"))


def test_quiet_leaves_errors() -> None:
    assert plugin("check", written(config()), "--quiet").output == ""
    result = plugin("check", written(refused()), "-q")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert plugin("check", written(config()), "-q", "--json").output.startswith("{")


# ------------------------------------------------------------------------------------------------ the log file


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The path of a log file, which nobody writes to any more when the test is over."""
    yield tmp_path / "merge.log"
    for logger in (logging.getLogger(), logging.getLogger("mergekit_mm.told")):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()


def test_the_log_file_has_what_is_told_and_the_traceback(log: Path) -> None:
    recipe = written(refused())
    told = plugin("check", recipe, "--log-file", log).output
    assert told == plugin("check", recipe).output
    text = log.read_text()
    assert told.strip().removeprefix("Error: ") in text
    assert "Traceback (most recent call last)" in text
    size = log.stat().st_size
    plugin("check", recipe)
    assert log.stat().st_size == size  # the next command has not asked for it
    plugin("check", recipe, "--log-file", log)
    assert log.stat().st_size > size  # it is appended to


def test_the_log_file_of_a_quiet_command_is_complete(log: Path) -> None:
    out = fresh("out")
    adapter = plugin("lora", written(config()), out, "--rank", "1", "--quiet", "--log-file", log)
    assert adapter.exit_code == 0
    assert "in the layout of" not in adapter.output
    assert "in the layout of" in log.read_text()


def test_the_environment_names_the_log_file_of_the_stock_command(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(console.LOG_FILE, str(log))
    outcome = merge(config())
    noted = [line for line in outcome.console.splitlines() if "note:" in line]
    assert noted
    assert all(line in log.read_text() for line in noted)
    failed = run(refused())
    assert "Traceback" not in failed.console
    assert "Traceback" in log.read_text()


def test_a_log_file_that_cannot_be_written_is_one_line() -> None:
    result = plugin("check", written(config()), "--log-file", fresh("missing") / "merge.log")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "The log file cannot be written: No such file or directory" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_bug_is_in_the_log_file(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_mm.plan.inspection.describe_model", lambda *_args, **_options: 1 / 0)
    result = plugin("inspect", altered(checkpoint("llava")), "--log-file", log)
    assert isinstance(result.exception, ZeroDivisionError)
    assert "ZeroDivisionError" in log.read_text()


def test_a_fork_that_is_killed_does_not_hold_the_bars_of_others() -> None:
    with console.bar(total=1) as before:
        child = os.fork()
        if child == 0:
            with before.get_lock():
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert before.get_lock().acquire(timeout=10)
        before.get_lock().release()
        child = os.fork()
        if child == 0:
            os._exit(not before.get_lock().acquire(timeout=10))
        assert os.waitpid(child, 0)[1] == 0
    with before.get_lock():  # as its monitoring thread may, at the time of a fork
        child = os.fork()
        if child == 0:
            os._exit(not another_thread(lambda: before.get_lock().acquire(timeout=10)))
    assert os.waitpid(child, 0)[1] == 0


def another_thread(function: Callable[[], bool]) -> bool:
    """What a function returns in a thread of its own: a lock can be taken twice by one thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
