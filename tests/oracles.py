"""Independent float64 restatements of published algorithms, written from their definitions and as slow as they come.

Nothing here is shared with the package: full SVDs, autograd, torch.optim, one Python loop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def optmerge_loop(deltas: list[Tensor], preset: str, iterations: int = 300, centered_proxy: bool = False) -> Tensor:
    """The merged delta of OptMerge as released: the optimiser is run. deltas (out, in) each, widened to float64.

    centered_proxy: the proxy as the paper's Eq. 3 has it, from the centered delta; the released code does not.
    """
    tau = torch.stack(deltas).double()
    count, size = len(deltas), min(deltas[0].shape)
    mean = tau.mean(0)
    start = tau.sum(0) if preset == "full" else mean
    rank = int(size / 5) if preset == "modality" else int(size / count)
    targets, proxies = [], []
    for delta in tau:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        kept = (u[:, :rank] * s[:rank]) @ vh[:rank]
        if preset == "full":
            uc, sc, vc = torch.linalg.svd(delta - mean, full_matrices=False)
            targets.append((uc[:, :rank] * sc[:rank]) @ vc[:rank] + mean)
        else:
            targets.append(kept)
        if centered_proxy:
            _, s, vh = torch.linalg.svd(delta - mean, full_matrices=False)
        proxies.append(delta if preset == "modality" else s[:rank, None] * vh[:rank])
    norms = tau.square().sum((1, 2))
    live = [i for i in range(count) if norms[i] > 0]  # the released code divides 0 by 0 here
    x = start.clone().requires_grad_(True)
    if preset == "full":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([x], lr=1e-5)
    else:
        optimizer = torch.optim.SGD([x], lr=5e-2 if preset == "modality" else 1e-4, momentum=0.9)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = sum(((x - targets[i]) @ proxies[i].T).square().sum() / norms[i] for i in live)
        if isinstance(loss, Tensor):
            loss.backward()
        optimizer.step()
    return x.detach()
