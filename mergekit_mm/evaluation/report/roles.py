"""Which model is the base, which are experts, merges or references; and short names for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from mergekit_mm.evaluation.report.results import Evaluated, ReportError


class Role(str, Enum):
    """What a model is in the comparison, in the order of the table."""

    BASE = "base"
    EXPERT = "expert"
    MERGE = "merge"
    REFERENCE = "reference"  # neither an input nor a merge: mixture training, an instruct model
    UNKNOWN = ""  # no roles were given


@dataclass(frozen=True, eq=False)
class Participant:
    """A model of the table."""

    model: Evaluated
    label: str
    role: Role = Role.UNKNOWN


def participants(
    models: Sequence[Evaluated],
    base: str | None,
    experts: Sequence[str],
    references: Sequence[str],
) -> tuple[list[Participant], list[str]]:
    """All models with labels and roles, ordered by role, and notes on where the roles come from.

    base, experts and references name models by label, full name, file, last part of the name, or a pattern (`*`, `?`,
    `[...]`). If any role is given, all other models are merges. If none is, the roles come from the
    `mergekit_config.yml` beside merged checkpoints on disk; without such a file no model has a role.

    ReportError: a name fits no model, several models where one is meant, or a model that has another role already.
    """
    found = [Participant(model, label) for model, label in zip(models, _short_names(models), strict=True)]
    if not (base or experts or references):
        return _roles_of_configs(found)

    given: dict[Participant, Participant] = {}
    wanted = [(pattern, Role.EXPERT) for pattern in experts] + [(pattern, Role.REFERENCE) for pattern in references]
    for pattern, role in [*([(base, Role.BASE)] if base else []), *wanted]:
        for each in [_one(found, pattern)] if role is Role.BASE else _matching(found, pattern):
            if each in given and given[each].role is not role:
                raise ReportError(f"{each.label} is both {given[each].role.value} and {role.value} ({pattern})")
            given.setdefault(each, replace(each, role=role))
    ordered = [*given.values(), *(replace(each, role=Role.MERGE) for each in found if each not in given)]
    return _by_role(ordered), []


def _by_role(found: Sequence[Participant]) -> list[Participant]:
    return sorted(found, key=lambda each: list(Role).index(each.role))


def _matching(found: Sequence[Participant], pattern: str) -> list[Participant]:
    """All models that `pattern` names: exactly, else by the last part of their name, else as a pattern."""
    wanted = pattern.rstrip("/")

    def is_called(each: Participant) -> bool:
        return wanted in (each.label, each.model.name, *(str(run.path) for run in each.model.runs))

    def ends_so(each: Participant) -> bool:
        return each.model.name.split("/")[-1] == wanted

    def fits(each: Participant) -> bool:
        return fnmatchcase(each.label, wanted) or fnmatchcase(each.model.name, wanted)

    for test in (is_called, ends_so, fits):
        if hits := [each for each in found if test(each)]:
            return hits
    raise ReportError(f"no model is called {pattern!r}; found: {_listed(found)}")


def _one(found: Sequence[Participant], pattern: str) -> Participant:
    hits = _matching(found, pattern)
    if len(hits) > 1:
        raise ReportError(f"{pattern!r} names several models: {_listed(hits)}")
    return hits[0]


def _listed(found: Sequence[Participant]) -> str:
    return ", ".join(
        each.label if each.label == each.model.name else f"{each.label} ({each.model.name})" for each in found
    )


def _short_names(models: Sequence[Evaluated]) -> list[str]:
    """The shortest end of each name, in whole parts, that no other model has.

    Adapters of one name are told apart by the models that they are on.
    """
    names = [model.name for model in models]
    ends = {name: ["/".join(name.split("/")[-n:]) for n in range(1, name.count("/") + 2)] for name in names}
    taken = Counter(end for name in ends for end in ends[name])
    short = {name: next((end for end in ends[name] if taken[end] == 1), name) for name in ends}
    return [
        " on ".join([short[model.name], *model.beneath]) if names.count(model.name) > 1 else short[model.name]
        for model in models
    ]


def _roles_of_configs(found: list[Participant]) -> tuple[list[Participant], list[str]]:
    """Roles by the configs that mergekit leaves beside merged checkpoints; models in no config are references."""
    recipes = {each: Path(each.model.name) / "mergekit_config.yml" for each in found}
    merges = {each: _recipe(path) for each, path in recipes.items() if path.is_file()}
    inputs = [each for each in found if each not in merges and _among(each, _values(list(merges.values()), "model"))]
    bases = [
        each for each in found if each not in merges and _among(each, _values(list(merges.values()), "base_model"))
    ]
    if not inputs and not bases:
        return found, []
    if len(bases) > 1:
        return found, [f"no roles: the merges have different bases ({_listed(bases)}); say which by --base"]

    def role(each: Participant) -> Role:
        if each in merges:
            return Role.MERGE
        return Role.BASE if each in bases else Role.EXPERT if each in inputs else Role.REFERENCE

    note = f"Roles: from mergekit_config.yml of {', '.join(each.label for each in merges)}."
    return _by_role([replace(each, role=role(each)) for each in found]), [note]


def _recipe(path: Path) -> Any:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} tells no roles, it is no YAML; give them by --base and --expert") from error


def _values(tree: Any, key: str) -> Iterator[str]:
    """Every text under `key` at any depth of a config."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name == key and isinstance(value, str):
            yield value
        else:
            yield from _values(value, key)


def _among(each: Participant, inputs: Iterator[str]) -> bool:
    """Whether the model is one of `inputs`; a model `base+adapter` was evaluated under the name of the adapter."""
    wanted = {reference.split("+")[-1].rstrip("/") for reference in inputs}
    path = Path(each.model.name)
    return each.model.name in wanted or (path.exists() and any(_same(path, Path(other)) for other in wanted))


def _same(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)
