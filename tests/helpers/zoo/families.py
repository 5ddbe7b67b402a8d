"""The register of families: what the zoo has to know of each to build its checkpoints."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import transformers as t

from zoo.inputs import Inputs


@dataclass(frozen=True)
class Family:
    """One family: `config()` makes its tiny config, `media()` inputs with an image or a sound in them."""

    name: str
    cls: str
    config: Callable[[], t.PretrainedConfig]
    layouts: tuple[str, ...]
    media: Callable[[], Inputs] | None
    needs: tuple[str, ...]
    published_prefix: str  # published inside a larger model, under this prefix (hub layout)
    infinite: bool  # keeps the infinite buffers the class starts with

    @property
    def missing(self) -> str:
        """Why this family cannot be built here; empty when it can."""
        absent = [module for module in self.needs if importlib.util.find_spec(module) is None]
        if absent:
            return f"needs {', '.join(absent)}"
        return "" if hasattr(t, self.cls) else f"this transformers has no {self.cls}"


FAMILIES: dict[str, Family] = {}
Maker = Callable[[], t.PretrainedConfig]


def family(
    cls: str,
    layouts: str = "plain",
    media: Callable[[], Inputs] | None = None,
    needs: tuple[str, ...] = (),
    published_prefix: str = "",
    infinite: bool = False,
) -> Callable[[Maker], Maker]:
    """Enter the decorated config maker into the zoo under its own name."""

    def enter(make: Maker) -> Maker:
        name = make.__name__
        FAMILIES[name] = Family(name, cls, make, tuple(layouts.split()), media, needs, published_prefix, infinite)
        return make

    return enter
