"""Python programs in forks of the test's process, which spares them the imports of torch, transformers and lm-eval.

For tests of what a program prints, returns and writes. What is decided when Python starts or when a package is imported
(the start-up hook, the hub's settings, the seed of hashes) takes a process of its own.
"""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.common import forked

_one_at_a_time = threading.Lock()  # A fork copies this thread alone: no other may hold anything just then.


def program(
    command: list[Any], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run(command, capture_output=True, text=True)` returns.

    command: this Python with `-c`, `-m` or a file, or a console script of this environment; and its arguments. Such
    commands that it runs by `subprocess.run` are forked in turn.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = _wait_for(words, out.fileno(), err.fileno(), env, cwd)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(words, code, *said)


def _wait_for(
    words: list[str], out: int, err: int, env: Mapping[str, str] | None, cwd: str | os.PathLike[str] | None
) -> int:
    with _one_at_a_time:
        if _is_lm_eval(words):
            forked.preload()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os._exit(_child(words, out, err, env, cwd))
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _is_lm_eval(words: list[str]) -> bool:
    return any(Path(word).name == "lm_eval" for word in words[:3])


def _child(
    words: list[str], out: int, err: int, env: Mapping[str, str] | None, cwd: str | os.PathLike[str] | None
) -> int:
    """Run a program as an interpreter of its own would. Returns the exit code."""
    global _one_at_a_time
    code: Any = None
    try:
        _one_at_a_time = threading.Lock()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 # until the exit
        logging.getLogger().handlers.clear()  # pytest's
        logging.getLogger().setLevel(logging.WARNING)
        warnings.resetwarnings()  # pytest's, too
        forked.one_thread()
        if _is_lm_eval(words):
            forked.use_known()
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        os.chdir(cwd or ".")
        subprocess.run = _run
        _interpret(words)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    return forked.exit_code(code)


def _interpret(words: list[str]) -> None:
    first, *rest = words[1:] if words[0] == sys.executable else words
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


_real_run = subprocess.run


def _run(command: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` in a program: other Python programs are forks, too; the rest is as ever.

    `-c` takes a process of its own: that is how `mergekit-mm doctor` asks what a fresh interpreter is like.
    """
    ours = isinstance(command, list) and (
        (str(command[0]) == sys.executable and command[1] != "-c")
        or (command[0] != sys.executable and Path(str(command[0])).parent == Path(sys.executable).parent)
    )
    if not ours:
        return _real_run(command, **options)
    together = options.get("stderr") == subprocess.STDOUT
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        errors = out if together else err
        code = _wait_for(words, out.fileno(), errors.fileno(), options.get("env"), options.get("cwd"))
        out.seek(0)
        err.seek(0)
        said = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    done = subprocess.CompletedProcess(words, code, said[0], None if together else said[1])
    if options.get("check"):
        done.check_returncode()
    return done
