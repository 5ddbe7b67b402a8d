"""Which room of the package may import which others, and what of mergekit and lm-eval, read off the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mergekit_mm"

# Each room, and the other rooms that it may import. A module is in the room with the longest name that it starts with.
# `__version__`, which is all that the package itself holds, may be imported everywhere.
INPUTS = "checkpoints checkpoints.adapters checkpoints.side_files"
PLANS = "plan plan.omni"
EVALUATION = "evaluation.tasks evaluation.model evaluation.report"
MERGE = f"{INPUTS} {PLANS} tasks execution output methods numerics omni console errors"
ROOMS = {
    "console": "",
    "errors": "console",
    "numerics": "",
    "methods": "numerics errors",
    "omni": "",  # it is copied into checkpoints, where this package may be absent
    "checkpoints": "checkpoints.side_files numerics omni errors",
    "checkpoints.adapters": "checkpoints numerics errors",
    "checkpoints.side_files": "checkpoints errors",
    "plan": f"{INPUTS} plan.omni methods omni errors",
    "plan.omni": f"{INPUTS} plan methods omni errors",
    "tasks": f"{INPUTS} {PLANS} methods numerics errors",
    "output": f"{INPUTS} {PLANS} numerics omni errors",
    "execution": f"{INPUTS} {PLANS} tasks output methods console errors",
    "merge": MERGE,
    "merge_adapter": f"{MERGE} merge",
    "share": f"{INPUTS} {PLANS} output errors",
    "align": f"{MERGE} merge evaluation.tasks evaluation.model",
    "tune": f"{MERGE} merge align evaluation.model",
    "evaluation.tasks": "omni errors",
    "evaluation.model": "evaluation.tasks checkpoints omni errors",
    "pages": "errors",
    "analysis": f"{MERGE} merge tune pages",
    "evaluation.report": "errors pages evaluation.model",
    "hosts": f"{MERGE} merge {EVALUATION} _autoload",
    "api": f"{MERGE} merge align analysis share hosts",
    "register": "hosts",
    "_autoload": "",
    "commands": f"{MERGE} merge align tune share analysis {EVALUATION} pages hosts",
    "cli": f"{MERGE} merge merge_adapter commands api {EVALUATION} hosts register",
    "__main__": "cli",
    "": "",  # mergekit_mm/__init__.py, which every start of the interpreter imports
    "evaluation": "",  # mergekit_mm/evaluation/__init__.py
}

# What every room may import of a host: modules with what is in them, or single names. `tasks` and `evaluation.model`
# may import all of mergekit and of lm-eval.
PUBLIC: dict[str, set[str]] = {
    "mergekit": {
        "mergekit.config",
        "mergekit.options",
        "mergekit.merge_methods",
        "mergekit.merge_methods.base",
        "mergekit.parameter_resolver.resolve_parameters",
        "mergekit.common.ModelPath",
        "mergekit.common.ModelReference",
        "mergekit.common.parse_kmb",
    },
    "lm_eval": set(),
}
# Modules by which the hosts find this package, or are run by it.
DOORS = {
    "hosts": {
        "mergekit.merge",  # its `run_merge` is replaced
        "lm_eval.api.registry",  # where `mllm` is registered
        "lm_eval.tasks.manager",  # its `TaskManager` is given the task files
        "lm_eval._cli.harness",
    },
    "api": {"mergekit.merge.run_merge"},  # for merges that mergekit plans by itself
    "cli": {"mergekit.scripts.run_yaml"},  # which `mergekit-mm yaml` runs
    "checkpoints": {"mergekit.io.lazy_tensor_loader.ShardedTensorIndex"},  # finds the files that mergekit will read
}


def room_of(module: str) -> str:
    """The room of a module, by its name within the package; a module of no room is a room by itself."""
    within = [room for room in ROOMS if room and f"{module}.".startswith(f"{room}.")]
    return max(within, key=len, default=module.partition(".")[0])


def modules() -> dict[str, Path]:
    """All modules of the package by their names within it: "" is the package, "plan.omni" that of a folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """The full dotted name of everything that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = (*PACKAGE.parts[-1:], *path.relative_to(PACKAGE).parts)[: -node.level] if node.level else ()
            yield from (".".join([*package, *filter(None, [node.module]), alias.name]) for alias in node.names)


MODULES = modules()
IMPORTS = {module: set(imports(path)) for module, path in MODULES.items()}
IN_PACKAGE = sorted({room_of(module) for module in MODULES})


def reaching_in(room: str, host: str) -> list[str]:
    """What a room imports of a host, apart from what is public and from its own doors."""
    allowed = PUBLIC[host] | DOORS.get(room, set())
    found = [(m, name) for m in MODULES if room_of(m) == room for name in IMPORTS[m] if name.split(".")[0] == host]
    return sorted(f"{m}: {name}" for m, name in found if not {name, name.rpartition(".")[0]} & allowed)


def imported_rooms(module: str) -> set[str]:
    names = {name.removeprefix("mergekit_mm").lstrip(".") for name in IMPORTS[module] if name.startswith("mergekit_mm")}
    return {room_of(name) for name in names - {"__version__", ""}}


@pytest.mark.parametrize("room", IN_PACKAGE)
def test_a_room_imports_those_that_the_table_names(room: str) -> None:
    assert room in ROOMS, f"{room} is no room of the table"
    allowed = {room, *ROOMS[room].split()}
    wrong = {m: imported_rooms(m) - allowed for m in MODULES if room_of(m) == room}
    assert not {module: others for module, others in wrong.items() if others}


@pytest.mark.parametrize("room", IN_PACKAGE)
def test_tasks_alone_reach_into_mergekit(room: str) -> None:
    assert room == "tasks" or not reaching_in(room, "mergekit")


@pytest.mark.parametrize("room", IN_PACKAGE)
def test_the_evaluated_model_alone_reaches_into_lm_eval(room: str) -> None:
    assert room == "evaluation.model" or not reaching_in(room, "lm_eval")


def test_the_table_has_no_circle_but_between_parts_of_one_room() -> None:
    """Rooms can be put into an order in which each imports only those before it."""
    tops = {room: room.split(".")[0] if room.startswith(("plan", "checkpoints")) else room for room in ROOMS}
    arrows: dict[str, set[str]] = {top: set() for top in tops.values()}
    for room, allowed in ROOMS.items():
        arrows[tops[room]] |= {tops[each] for each in allowed.split()} - {tops[room]}
    while arrows:
        free = {room for room, behind in arrows.items() if not behind}
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {room: behind - free for room, behind in arrows.items() if room not in free}


def test_it_is_seen_where_a_file_imports_inside_of_a_function() -> None:
    assert "merge" in imported_rooms("hosts.run_merge")
    assert "lm_eval._cli.harness.HarnessCLI" in IMPORTS["hosts.lm_eval_command"]


def test_relative_imports_are_seen() -> None:
    assert "mergekit_mm.omni.configuration.OmniConfig" in IMPORTS["omni"]
