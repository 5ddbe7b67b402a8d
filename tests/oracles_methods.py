"""Independent float64 restatements of the spectral and WUDI-type methods, from their published definitions.

Nothing here is shared with the package. `rank` arguments cut what the published code would fill with null vectors: they
are given by the tests, which know the rank they made, never estimated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _widened(deltas: list[Tensor]) -> list[Tensor]:
    return [d.double() for d in deltas]


def _leading(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u[:, :count], s[:count], vh[:count].T


def _polar(x: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    kept = s > 1e-6 * s[:1]
    return u[:, kept] @ vh[kept]


def tsv(deltas: list[Tensor], ranks: list[int] | None = None, rank_fraction: float | None = None) -> Tensor:
    """TSV-Merging; `ranks` are the deltas' own where they are below the k of the method."""
    tau, size = _widened(deltas), min(deltas[0].shape)
    k = int(size * (1 / len(tau) if rank_fraction is None else rank_fraction))
    parts = [_leading(t, min(k, r)) for t, r in zip(tau, ranks or [size] * len(tau), strict=True)]
    u, s, v = (torch.cat(p, dim=-1) for p in zip(*parts, strict=True))
    return _polar(u) @ torch.diag(s) @ _polar(v).T


def iso_c(deltas: list[Tensor], rank: int | None = None) -> Tensor:
    """Iso-C over the leading `rank` directions of the sum."""
    u, s, v = _leading(sum(_widened(deltas)), min(deltas[0].shape) if rank is None else rank)
    return s.mean() * u @ v.T


def iso_cts(deltas: list[Tensor], common_fraction: float = 0.8, rank: int | None = None) -> Tensor:
    """Iso-CTS with `rank` directions to give away."""
    tau, count = _widened(deltas), len(deltas)
    q = min(deltas[0].shape) if rank is None else rank
    c0 = int(common_fraction * q)
    c = q - count * round((q - c0) / count)
    uc, sc, vc = _leading(sum(tau), c)
    parts = [_leading(t - uc @ uc.T @ t, int((q - c) / count)) for t in tau if t.any()] + [(uc, sc, vc)]
    u, s, v = (torch.cat(p, dim=-1) for p in zip(*parts, strict=True))
    return s.mean() * _polar(u) @ _polar(v).T


def _quadratic(tau: list[Tensor]) -> tuple[Tensor, Tensor]:
    live = [t for t in tau if float(t.square().sum()) > 0]
    a = sum(t.T @ t / t.square().sum() for t in live)
    b = sum(t @ t.T @ t / t.square().sum() for t in live)
    return a, b


def _start(tau: list[Tensor], init: str) -> Tensor:
    return sum(tau) * {"sum": 1.0, "mean": 1.0 / len(tau), "zero": 0.0}[init]


def wudi_loop(deltas: list[Tensor], init: str = "sum", iterations: int = 300, learning_rate: float = 1e-5) -> Tensor:
    """WUDI-Merging as released: autograd and torch.optim.Adam."""
    tau = _widened(deltas)
    x = _start(tau, init).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = sum(((x - t) @ t.T).square().sum() / t.square().sum() for t in tau if float(t.square().sum()) > 0)
        loss.backward()
        optimizer.step()
    return x.detach()


def wudi_minimiser(deltas: list[Tensor], init: str = "sum") -> Tensor:
    """The least-squares solution of the stacked residuals that is nearest to the start, by a pseudo-inverse."""
    tau = _widened(deltas)
    start = _start(tau, init)
    live = [t / t.norm() for t in tau if float(t.square().sum()) > 0]
    stacked = torch.cat(live)  # (x - T_i) L_i^T = 0 for all i, with L stacked
    wanted = torch.cat([t @ s.T for t, s in zip([t for t in tau if float(t.norm()) > 0], live, strict=True)], dim=1)
    return start + (wanted - start @ stacked.T) @ torch.linalg.pinv(stacked.T, rtol=1e-7)


def spectral_filter(deltas: list[Tensor], kept: int | str, filter: str, strength: float, init: str = "sum") -> Tensor:
    """SWUDI and ASWUDI as released, n x n, with the eigenvalue floor far below any real one.

    kept: K, or the name of a rank rule. strength: t of `exponential`, alpha of `tikhonov`.
    """
    tau = _widened(deltas)
    a, b = _quadratic(tau)
    lam, v = torch.linalg.eigh(a)
    lam = lam.clamp(min=1e-13 * float(lam[-1]))
    if filter == "exponential":
        f = 1 - torch.exp(-lam * strength)
    else:
        f = lam / (lam + strength) if filter == "tikhonov" else torch.ones_like(lam)
    f[: len(lam) - (rule_rank(kept, lam.flip(0), a.shape, b.shape) if isinstance(kept, str) else kept)] = 0
    f[lam <= 1e-11 * lam[-1]] = 0  # null directions: the start and B have no part in them
    start = _start(tau, init)
    return start - start @ v @ f.diag() @ v.T + b @ v @ (f / lam).diag() @ v.T


def _ceil(x: float) -> int:
    """Of a real number: rounding does not lift an integer to the next."""
    return math.ceil(x - 1e-9)


def rule_rank(rule: str, lam: Tensor, a_shape: torch.Size, shape: torch.Size) -> int:
    """ASWUDI's rank rules on all eigenvalues, descending."""
    root = lam.sqrt()
    if rule == "participation_sqrt":
        return _ceil(float(root.sum() ** 2 / lam.sum()))
    if rule == "participation":
        return _ceil(float(lam.sum() ** 2 / (lam**2).sum()))
    if rule == "stable_rank":
        return _ceil(float((lam**2).sum() / lam[0] ** 2))
    if rule == "entropy":
        p = lam / lam.sum()
        return _ceil(math.exp(-float((p * p.log()).sum())))
    if rule.startswith("cumvar_"):
        total, count = 0.0, 0
        while total < (float(rule[7:]) - 1e-9) * float(lam.sum()):
            total, count = total + float(lam[count]), count + 1
        return count
    if rule == "gavish_donoho":
        beta = min(shape) / max(shape)
        best = math.sqrt(2 * (beta + 1) + 8 * beta / ((beta + 1) + math.sqrt(beta * beta + 14 * beta + 1)))
        middle = math.sqrt(2 + math.sqrt(3)) if beta == 1 else math.sqrt((1 - beta) ** 2 + beta)
        return max(1, int((root > best / middle * root.median()).sum()))
    assert rule == "none"
    return a_shape[0]
