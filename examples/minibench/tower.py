"""The first stage of a base: its vision tower learns to tell what is drawn where, as a detector does.

This stands for the pretraining of the towers of larger models. A linear head classifies what each patch shows and
regresses the box of it; the head is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from examples.common.training import Stage, optimise
from examples.minibench.learn import pixel_values
from examples.minibench.rows import SIDE, Region

_NOTHING = 0  # the class of a patch that shows no region, as most do
_WEIGHT_OF_NOTHING = 0.2
_WEIGHT_OF_BOXES = 4.0


def patch_targets(
    pictures: Sequence[Sequence[Region]], labels: Sequence[str], patch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each patch shows, row by row: classes (pictures, patches) and boxes (pictures, patches, 4).

    A class is 0 for a patch that shows no region, else 1 + the place of its label in `labels`. A box is left, top,
    right and bottom as parts of the side, and zeros where there is none. A region with points has the patches that
    these are in. Any other has the patches whose middle is in its box, or if there are none the patch that the middle
    of its box is in. A patch of two regions shows the later one.

    Args:
        pictures: the regions of each picture.
        patch: pixels of a patch's side.
    """
    across = SIDE // patch
    classes = np.full((len(pictures), across**2), _NOTHING)
    boxes = np.zeros((len(pictures), across**2, 4), np.float32)
    middles = patch_middles(patch) * SIDE
    number = {label: at for at, label in enumerate(labels, 1)}
    for at, regions in enumerate(pictures):
        for region in regions:
            left, top, right, bottom = region.box
            points = region.points or (((left + right) // 2, (top + bottom) // 2),)
            x, y = middles[:, 0], middles[:, 1]
            inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
            if region.points or not inside.any():
                steps = np.clip(np.array(points) // patch, 0, across - 1)
                inside = np.isin(np.arange(across**2), steps[:, 1] * across + steps[:, 0])
            classes[at, inside] = number[region.label]
            boxes[at, inside] = np.array(region.box) / SIDE
    return torch.from_numpy(classes), torch.from_numpy(boxes)


def patch_middles(patch: int) -> np.ndarray:
    """The middles of the patches, row by row: (patches, 2), across and down, as parts of the side."""
    across = SIDE // patch
    down, along = np.divmod(np.arange(across**2), across)
    return ((np.stack([along, down], -1) + 0.5) / across).astype(np.float32)


def train_tower(
    tower: Any, shares: Sequence[tuple[torch.Tensor, Sequence[Sequence[Region]]]], stage: Stage, seed: int
) -> list[tuple[int, float]]:
    """Train the tower on shares of pictures, from each as many in a step. Returns the course of the loss.

    shares: pictures (n, 3, side, side) in uint8, and the regions of each. The loss is the cross entropy of the classes,
    in which patches without a region weigh less, and the mean error of the boxes of patches with one.
    """
    torch.manual_seed(seed)
    labels = sorted({region.label for _, drawn in shares for regions in drawn for region in regions})
    patch = tower.config.patch_size[0]
    targets = [patch_targets(drawn, labels, patch) for _, drawn in shares]
    head = torch.nn.Linear(tower.config.hidden_size, 1 + len(labels) + 4).to(tower.device)
    weights = torch.ones(1 + len(labels), device=tower.device)
    weights[_NOTHING] = _WEIGHT_OF_NOTHING

    def loss() -> torch.Tensor:
        drawn = [torch.randint(len(pictures), (stage.batch // len(shares),)) for pictures, _ in shares]
        seen = torch.cat([pictures[at] for (pictures, _), at in zip(shares, drawn, strict=True)])
        classes, boxes = (
            torch.cat([each[n][at] for each, at in zip(targets, drawn, strict=True)]).to(tower.device) for n in (0, 1)
        )
        told = head(tower(pixel_values=pixel_values(seen.to(tower.device))).last_hidden_state[:, 1:])
        shown = classes != _NOTHING
        wrong = cross_entropy(told[..., :-4].flatten(0, 1), classes.flatten(), weight=weights)
        return wrong + _WEIGHT_OF_BOXES * (told[..., -4:] - boxes).abs()[shown].mean()

    return optimise([*tower.parameters(), *head.parameters()], stage, f"tower {seed}", loss)
