"""The modules of a model's own code that configs name in `auto_map`, and that loading the model needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergekit_mm.checkpoints.transformers_private import get_relative_imports

CONFIGS_WITH_CODE = (
    *("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"),
    "video_preprocessor_config.json",
)


def modules_named(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The files of code that a config names, and the repositories whose code it names."""
    files: list[str] = []
    repositories: list[str] = []
    for reference in _references(config.get("auto_map")):
        repository, mark, inside = reference.rpartition("--")
        if mark:
            repositories.append(repository)
        else:
            files.append(f"{inside.rpartition('.')[0]}.py")
    return list(dict.fromkeys(files)), list(dict.fromkeys(repositories))


def _references(auto_map: Any) -> Iterator[str]:
    for value in auto_map.values() if isinstance(auto_map, Mapping) else ():
        for reference in value if isinstance(value, list) else [value]:  # a tokenizer names two classes, slow and fast
            if isinstance(reference, str) and "." in reference:
                yield reference


def imported(name: str, file: Path) -> Iterator[str]:
    """The files that a module imports relatively, by their paths below the model's directory.

    As transformers does, every such import counts as needed.
    """
    try:
        modules = get_relative_imports(file)
    except (OSError, UnicodeDecodeError):
        return
    folder = name.rpartition("/")[0]
    for module in sorted(modules):
        if not module.startswith("."):  # the module belongs to a package outside of the repository
            path = module.replace(".", "/")
            yield f"{folder}/{path}.py" if folder else f"{path}.py"
