"""Console scripts in forked children of this process, which share what it has imported.

Most of the time of a small merge or evaluation is the import of mergekit, lm-eval and torch. A forked child calls the
same function as the console script, with the same arguments, and finds these packages imported; the start-up hook of
this package has plugged into them in the parent, as it does in the script's own process.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from examples.common.commands import ROOT

# What the commands import only when they run.
_IMPORTED_LATE = (
    "mergekit.plan",
    "mergekit_mm.merge",
    "lm_eval.evaluator",
    "mergekit_mm.evaluation.model.mllm",
    "transformers.models.llava",
    "peft",
    "pytablewriter",
)


@functools.cache
def preload() -> None:
    """Import what the commands need. To be called in the parent, before it forks and before torch computes."""
    for name in ("mergekit-yaml", "mergekit-mm", "lm_eval"):
        entry_point(name)
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    one_thread()
    _known_tasks()
    _known_machine()
    gc.freeze()  # a child's collector does not touch, and so copy, what the parent has made


def one_thread() -> None:
    """Let torch, if it is imported, compute in one thread. To be called in every child first.

    Threads do not survive a fork. torch replaces its pool in the child at the first use, which must not be in two
    threads at once, as when transformers reads weights.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@functools.cache
def _known_tasks() -> dict[str, Any]:
    """lm-eval's own tasks by name. It reads their 14,000 files at each start, which takes longer than a small model."""
    from lm_eval.tasks import manager

    return manager.TaskIndex.build([Path(manager.__file__).parent])


@functools.cache
def _known_machine() -> str:
    """What lm-eval writes about the machine; it starts pip and other programs to find out."""
    from torch.utils import collect_env

    return collect_env.get_pretty_env_info()


def use_known() -> None:
    """Let lm-eval in this child take from the parent what is the same at every start.

    Task files in directories that `--include_path` names are still read by the child. The log of samples has no hash of
    a picture, for which lm-eval would encode each of them: a fifth of the time of a small model, and nobody reads it.
    """
    from lm_eval import utils
    from lm_eval.tasks import manager
    from torch.utils import collect_env

    build, own, machine = manager.TaskIndex.build, Path(manager.__file__).parent, _known_machine()

    def build_others(paths: Iterable[Path]) -> dict[str, Any]:
        first, *others = paths
        return {**_known_tasks(), **build(others)} if first == own else build([first, *others])

    manager.TaskIndex.build = staticmethod(build_others)
    collect_env.get_pretty_env_info = lambda: machine
    utils.convert_pil_to_hash = lambda picture: "not hashed"


@functools.cache
def entry_point(script: str) -> Callable[[], Any]:
    """The function that a console script calls."""
    (point,) = entry_points(group="console_scripts", name=script)
    return point.load()


def run(command: Sequence[str], **environment: str) -> None:
    """As `examples.common.commands.run`, in a forked child: its output is shown if it fails."""
    preload()
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os._exit(_called(command, environment, output.fileno()))
        _, status = os.waitpid(child, 0)
        if code := os.waitstatus_to_exitcode(status):
            output.seek(0)
            told = output.read().decode(errors="replace")
            raise SystemExit(f"{told}\n{' '.join(command)} failed with exit code {code}")


def _called(command: Sequence[str], environment: dict[str, str], output: int) -> int:
    """Call the function of a console script as the script does, with its output to a file. Returns the exit code."""
    code: Any = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 # until the exit
        one_thread()
        use_known()
        os.chdir(ROOT)
        os.environ.update({"OMP_NUM_THREADS": "1", **environment})
        sys.argv = list(command)
        code = entry_point(command[0])()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    return exit_code(code)


def exit_code(code: Any) -> int:
    """The exit code of a child that ends by `SystemExit(code)`; prints a message, as the interpreter does."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0
