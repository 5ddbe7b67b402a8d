"""What models of the zoo are given: prompts with placeholder tokens, and pixel values or mel spectrograms for them."""

from __future__ import annotations

from typing import Any

import torch

from zoo.configs import AUDIO, BOS, IMAGE, V_END, V_START

Inputs = dict[str, Any]


def prompt(*tokens: int) -> Inputs:
    return {"input_ids": torch.tensor([[BOS, 11, *tokens, 12, 13, 14]])}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def image(n_tokens: int, *shape: int, **more: Any) -> Inputs:
    """A prompt with `n_tokens` image placeholders, and pixel values of `shape`."""
    return {**prompt(*[IMAGE] * n_tokens), "pixel_values": noise(*(shape or (1, 3, 28, 28))), **more}


def qwen_image(patch: int = 14, frames: int = 2) -> Inputs:
    """One image of 4 x 4 patches, merged 2 x 2 into four tokens."""
    ids = prompt(V_START, *[IMAGE] * 4, V_END)
    kinds = torch.where(ids["input_ids"] == IMAGE, 1, 0)  # what the processor says each token is: 1 = image
    return {
        **ids,
        "mm_token_type_ids": kinds,
        "pixel_values": noise(16, 3 * frames * patch * patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def mel(n_tokens: int, frames: int, mask: str = "") -> Inputs:
    """A prompt with `n_tokens` audio placeholders, and a mel spectrogram of 16 bins."""
    inputs = {**prompt(*[AUDIO] * n_tokens), "input_features": noise(1, 16, frames)}
    return {**inputs, mask: torch.ones(1, frames, dtype=torch.long)} if mask else inputs
