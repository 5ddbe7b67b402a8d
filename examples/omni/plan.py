"""Steps, batch sizes and learning rates of every stage of training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examples.common.training import Stage
from examples.omni.model import Size


@dataclass(frozen=True)
class Plan:
    """All settings that the result depends on, besides the seed. They were set by hand in two rounds."""

    llm: tuple[Stage, Stage]
    tower: Stage
    align: Stage
    donor: Stage
    lora: Stage | None  # None: no donors as LoRAs
    rank: int
    size: Size


FULL = Plan(
    llm=(Stage(1000, 64, 2e-3), Stage(700, 64, 1.5e-3)),
    tower=Stage(400, 64, 2e-3),
    align=Stage(150, 32, 3e-3),
    donor=Stage(300, 32, 4e-4),
    lora=Stage(300, 32, 1e-3),
    rank=8,
    size=Size(),
)
QUICK = replace(
    FULL,
    llm=(Stage(20, 16, 2e-3), Stage(20, 16, 2e-3)),
    tower=Stage(10, 32, 2e-3),
    align=Stage(10, 16, 3e-3),
    donor=Stage(10, 16, 3e-4),
    lora=Stage(10, 16, 1e-3),
)
