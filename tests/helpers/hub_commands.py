"""Runs several commands in one process, as a list of words each: the environment of the hub's library is fixed then.

A command's first words may set variables of its own, as in `HF_TOKEN=... mergekit-mm push`. Reads commands as JSON from
the standard input, and writes how each ended to the standard output.
"""

from __future__ import annotations

import itertools
import json
import sys

from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml

import mergekit_mm.register  # noqa: F401
from mergekit_mm.cli import main as mergekit_mm_command

COMMANDS = {"mergekit-yaml": mergekit_yaml, "mergekit-mm": mergekit_mm_command}

if __name__ == "__main__":
    ended = []
    for words in json.load(sys.stdin):
        own = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: word not in COMMANDS, words))
        name, *arguments = words[len(own) :]
        result = CliRunner().invoke(COMMANDS[name], arguments, env=own)
        bug = None if isinstance(result.exception, SystemExit | None) else repr(result.exception)
        ended.append({"code": result.exit_code, "said": result.output, "printed": result.stdout, "bug": bug})
    print("\n" + json.dumps(ended))
