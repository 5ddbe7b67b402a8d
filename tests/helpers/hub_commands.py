"""Runs several commands in one process, as a list of words each: the environment of the hub's library is fixed then.

Reads them as JSON from the standard input, and writes how each ended to the standard output.
"""

from __future__ import annotations

import json
import sys

from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml

import mergekit_mm.register  # noqa: F401
from mergekit_mm.cli import main as mergekit_mm_command

COMMANDS = {"mergekit-yaml": mergekit_yaml, "mergekit-mm": mergekit_mm_command}

if __name__ == "__main__":
    ended = []
    for name, *arguments in json.load(sys.stdin):
        result = CliRunner().invoke(COMMANDS[name], arguments)
        bug = None if isinstance(result.exception, SystemExit | None) else repr(result.exception)
        ended.append({"code": result.exit_code, "said": result.output, "bug": bug})
    print("\n" + json.dumps(ended))
