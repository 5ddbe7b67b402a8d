"""Completion on Tab: the lines of the document, and what the shells then get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mergekit_mm
from mergekit_mm.cli import main

DOCUMENT = (Path(__file__).parents[2] / "docs/installing.md").read_text()
LINES = re.findall(r"(_MERGEKIT_MM_COMPLETE)=(\w+)_source mergekit-mm", DOCUMENT)


def called(**environment: str) -> Result:
    """The command without a word, under the name by which the shells know it."""
    return CliRunner().invoke(main, [], prog_name="mergekit-mm", env=environment)


def test_the_shells_that_are_documented() -> None:
    assert [shell for _, shell in LINES] == ["bash", "zsh", "fish"]


@pytest.mark.parametrize(("variable", "shell"), LINES)
def test_the_line_for_a_shell_defines_the_completion(variable: str, shell: str) -> None:
    result = called(**{variable: f"{shell}_source"})
    assert result.exit_code == 0
    assert "complete" in result.output
    assert f"{variable}={shell}_complete" in result.output


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("mergekit-mm ", {"check", "push", "yaml"}),
        ("mergekit-mm in", {"inspect"}),
        ("mergekit-mm lora --rank", {"--rank", "--rank-mode"}),
        ("mergekit-mm lora --dtype b", {"bfloat16"}),
    ],
)
def test_what_is_completed(words: str, completed: set[str]) -> None:
    told = called(
        _MERGEKIT_MM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1)
    ).output
    found = {line.partition(",")[2] for line in told.splitlines()}
    assert completed <= found
    assert words.endswith(" ") or completed == found


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"mergekit-mm, version {mergekit_mm.__version__}\n"
