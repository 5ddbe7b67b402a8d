"""Slow, plain restatements of the published computations, for reading and for testing: what each method computes.

Every function takes the task vectors of one weight matrix as a list of dense tensors (out, in) and returns the merged
task vector (out, in) in float64. Nothing is shared with the fast solutions in this package: there are full singular
value decompositions, autograd, torch.optim and Python loops. Where a published computation is not defined or not
stable, the restatement follows the deviation that the method's own docstring lists.

`rank` arguments stand for the true rank of the data. The published code fills what lies beyond it with arbitrary null
vectors; a caller who made the data knows the rank, and it is never estimated here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def optmerge(deltas: Sequence[Tensor], preset: str, iterations: int = 300, centered_proxy: bool = False) -> Tensor:
    """OptMerge as released: the optimiser is run. preset: `lora`, `full` or `modality`.

    centered_proxy: the proxy is taken from tau_i - mean, as in the paper's Eq. 3; the released code has tau_i there.
    """
    tau = torch.stack(list(deltas)).double()
    count, size = len(deltas), min(deltas[0].shape)
    mean = tau.mean(0)
    start = tau.sum(0) if preset == "full" else mean
    rank = int(size / 5) if preset == "modality" else int(size / count)
    targets, proxies = [], []
    for delta in tau:
        if preset == "full":
            u, s, vh = torch.linalg.svd(delta - mean, full_matrices=False)
            targets.append((u[:, :rank] * s[:rank]) @ vh[:rank] + mean)
        else:
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            targets.append((u[:, :rank] * s[:rank]) @ vh[:rank])
        _, s, vh = torch.linalg.svd(delta - mean if centered_proxy else delta, full_matrices=False)
        proxies.append(delta if preset == "modality" else s[:rank, None] * vh[:rank])
    norms = tau.square().sum((1, 2))
    live = [i for i in range(count) if norms[i] > 0]  # the released code divides 0 by 0 for an untouched matrix
    x = start.clone().requires_grad_(True)
    if preset == "full":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([x], lr=1e-5)
    else:
        optimizer = torch.optim.SGD([x], lr=5e-2 if preset == "modality" else 1e-4, momentum=0.9)
    for _ in range(iterations if live else 0):
        optimizer.zero_grad()
        terms = [((x - targets[i]) @ proxies[i].T).square().sum() / norms[i] for i in live]
        torch.stack(terms).sum().backward()
        optimizer.step()
    return x.detach()


def wudi(deltas: Sequence[Tensor], init: str = "sum", iterations: int = 300, learning_rate: float = 1e-5) -> Tensor:
    """WUDI-Merging as released: Adam on the interference loss. init: `sum`, `mean` or `zero`."""
    tau = _widened(deltas)
    x = _start(tau, init).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    for _ in range(iterations):
        optimizer.zero_grad()
        terms = [((x - t) @ t.T).square().sum() / t.square().sum() for t in tau if float(t.square().sum()) > 0]
        torch.stack(terms).sum().backward()
        optimizer.step()
    return x.detach()


def wudi_minimiser(deltas: Sequence[Tensor], init: str = "sum") -> Tensor:
    """The minimiser of WUDI's loss that is nearest to the start: (x - tau_i) L_i^T = 0 for all i, solved by pinv."""
    tau = _widened(deltas)
    start = _start(tau, init)
    live = [t for t in tau if float(t.norm()) > 0]
    proxies = [t / t.norm() for t in live]
    stacked = torch.cat(proxies)
    wanted = torch.cat([t @ proxy.T for t, proxy in zip(live, proxies, strict=True)], dim=1)
    return start + (wanted - start @ stacked.T) @ torch.linalg.pinv(stacked.T, rtol=1e-7)


def actmat(deltas: Sequence[Tensor]) -> Tensor:
    """ACTMat: the merge by covariances of activations, for which those of the task vectors' rows stand."""
    tau = _widened(deltas)
    covariance = torch.stack([t.T @ t for t in tau]).sum(0)
    return torch.stack([t @ t.T @ t for t in tau]).sum(0) @ torch.linalg.pinv(covariance, rtol=1e-11, hermitian=True)


def spectral_filter(
    deltas: Sequence[Tensor], kept: int | str, filter: str, strength: float, init: str = "sum"
) -> Tensor:
    """SWUDI and ASWUDI as released, by the eigenvectors of the n x n matrix A, with a floor below any real eigenvalue.

    kept: SWUDI's number of directions K, or the name of one of ASWUDI's rank rules. filter: `exponential`, `tikhonov`
    or `none`; strength: its t or alpha.
    """
    tau = _widened(deltas)
    live = [t for t in tau if float(t.square().sum()) > 0]
    a = torch.stack([t.T @ t / t.square().sum() for t in live]).sum(0)
    b = torch.stack([t @ t.T @ t / t.square().sum() for t in live]).sum(0)
    eigenvalues, v = torch.linalg.eigh(a)
    eigenvalues = eigenvalues.clamp(min=1e-13 * float(eigenvalues[-1]))
    if filter == "exponential":
        f = 1 - torch.exp(-eigenvalues * strength)
    else:
        f = eigenvalues / (eigenvalues + strength) if filter == "tikhonov" else torch.ones_like(eigenvalues)
    count = adaptive_rank(kept, eigenvalues.flip(0), b.shape) if isinstance(kept, str) else kept
    f[: len(eigenvalues) - count] = 0
    f[eigenvalues <= 1e-11 * eigenvalues[-1]] = 0  # neither the start nor B has a part in the null directions
    start = _start(tau, init)
    return start - start @ v @ f.diag() @ v.T + b @ v @ (f / eigenvalues).diag() @ v.T


def adaptive_rank(rule: str, eigenvalues: Tensor, shape: Sequence[int]) -> int:
    """The number of directions that one of ASWUDI's rules keeps. eigenvalues: all those of A (in,), descending."""
    root = eigenvalues.sqrt()
    if rule == "participation_sqrt":
        return _ceil(float(root.sum() ** 2 / eigenvalues.sum()))
    if rule == "participation":
        return _ceil(float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()))
    if rule == "stable_rank":
        return _ceil(float((eigenvalues**2).sum() / eigenvalues[0] ** 2))
    if rule == "entropy":
        p = eigenvalues / eigenvalues.sum()
        return _ceil(math.exp(-float((p * p.log()).sum())))
    if rule.startswith("cumvar_"):
        total, count = 0.0, 0
        while total < (float(rule[7:]) - 1e-9) * float(eigenvalues.sum()):
            total, count = total + float(eigenvalues[count]), count + 1
        return count
    if rule == "gavish_donoho":
        beta = min(shape) / max(shape)
        best = math.sqrt(2 * (beta + 1) + 8 * beta / ((beta + 1) + math.sqrt(beta * beta + 14 * beta + 1)))
        middle = math.sqrt(2 + math.sqrt(3)) if beta == 1 else math.sqrt((1 - beta) ** 2 + beta)
        return max(1, int((root > best / middle * root.median()).sum()))
    if rule == "none":
        return len(eigenvalues)
    raise ValueError(f"no rank rule is called {rule!r}")


def tsv(deltas: Sequence[Tensor], ranks: Sequence[int] | None = None, rank_fraction: float | None = None) -> Tensor:
    """TSV-Merging. ranks: the true rank of each task vector, where it is below the number of directions kept."""
    tau, size = _widened(deltas), min(deltas[0].shape)
    k = int(size * (1 / len(tau) if rank_fraction is None else rank_fraction))
    parts = [_leading(t, min(k, r)) for t, r in zip(tau, ranks or [size] * len(tau), strict=True)]
    u, s, v = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    return _polar(u) @ torch.diag(s) @ _polar(v).T


def iso_c(deltas: Sequence[Tensor], rank: int | None = None) -> Tensor:
    """Iso-C over the `rank` leading directions of the sum."""
    total = torch.stack(_widened(deltas)).sum(0)
    u, s, v = _leading(total, min(total.shape) if rank is None else rank)
    return s.mean() * u @ v.T


def iso_cts(deltas: Sequence[Tensor], common_fraction: float = 0.8, rank: int | None = None) -> Tensor:
    """Iso-CTS: `rank` directions are shared out between the sum of the task vectors and the task vectors."""
    tau, count = _widened(deltas), len(deltas)
    total = torch.stack(tau).sum(0)
    available = min(total.shape) if rank is None else rank
    common = available - count * round((available - int(common_fraction * available)) / count)
    uc, sc, vc = _leading(total, common)
    own = [_leading(t - uc @ uc.T @ t, int((available - common) / count)) for t in tau if t.any()]
    u, s, v = (torch.cat(part, dim=-1) for part in zip(*own, (uc, sc, vc), strict=True))
    return s.mean() * _polar(u) @ _polar(v).T


def dc_merge(
    deltas: Sequence[Tensor], smooth: bool = True, density: float = 0.1, ranks: Sequence[int] | None = None
) -> Tensor:
    """DC-Merge. ranks: the true rank of each task vector, where it is below the number of directions kept."""
    tau, size = _widened(deltas), min(deltas[0].shape)
    k = size // len(tau)
    parts = [_leading(t, min(k, r)) for t, r in zip(tau, ranks or [size] * len(tau), strict=True)]
    p, q = (_polar(torch.cat([part[side] for part in parts], dim=1)) for side in (0, 2))
    trimmed = []
    for u, s, v in parts:
        m = p.T @ u @ torch.diag(s.mean().expand(len(s)) if smooth else s) @ v.T @ q
        largest = m.abs().flatten().sort(descending=True).values[: max(1, int(density * m.numel() + 1e-9))]
        trimmed.append(torch.where((m.abs() > (1 - 1e-5) * largest[-1]) & (m.abs() > 1e-5 * largest[0]), m, 0.0))
    merged, start = torch.zeros_like(trimmed[0]), 0
    for part in parts:
        stop = start + len(part[1])
        for row in range(start, stop):
            for column in range(start, stop):
                entries = [float(m[row, column]) for m in trimmed]
                agreeing = [x for x in entries if x * sum(entries) > 0]
                merged[row, column] = sum(agreeing) / max(1, len(agreeing))
        start = stop
    return p @ merged @ q.T


def robust_merge(pairs: Sequence[tuple[Tensor, Tensor]], density: float = 0.2) -> Tensor:
    """RobustMerge of the factors B (out, r) and A (r, in) of adapters of one rank."""
    merged_a, weighted = torch.zeros_like(pairs[0][1].double()), torch.zeros_like(pairs[0][0].double())
    total = torch.zeros(len(merged_a), len(merged_a), dtype=torch.float64)
    for b, a in ((b.double(), a.double()) for b, a in pairs):
        kept_a, kept_b = (
            torch.where(x.abs() >= x.abs().flatten().sort(descending=True).values[int(density * x.numel()) - 1], x, 0.0)
            for x in (a, b)
        )
        lost = [
            float(row.abs().sum()) / float(kept.abs().sum() or math.nan) for row, kept in zip(a, kept_a, strict=True)
        ]
        largest = max(s for s in lost if s == s)
        lost = [largest if s != s else s for s in lost]
        s = torch.diag(torch.tensor([max(s, sorted(lost)[int(0.8 * len(lost))]) for s in lost], dtype=torch.float64))
        merged_a, weighted, total = merged_a + kept_a, weighted + kept_b @ s, total + s
    return 2 * weighted @ torch.linalg.inv(total) @ (2 * merged_a)


def calibrated(merged: Tensor, deltas: Sequence[Tensor], alpha: float | None = None, rank: int | None = None) -> Tensor:
    """SVC's re-scaling of the singular values of a merged delta (out, in). rank: the true rank of `merged`."""
    tau, size = _widened(deltas), min(merged.shape)
    u, s, v = _leading(merged.double(), size if rank is None else rank)
    least = 1 / len(tau) if alpha is None else alpha
    for r in range(len(s)):
        own = s[r] * v[:, r]
        shares = [
            float(u[:, r] @ t @ own / (u[:, r] @ t).square().sum()) for t in tau if float((u[:, r] @ t).norm()) > 1e-9
        ]
        s[r] *= len(shares) / sum(max(least, share) for share in shares) if shares else 1.0
    return (u * s) @ v.T


def _widened(deltas: Sequence[Tensor]) -> list[Tensor]:
    return [delta.double() for delta in deltas]


def _start(tau: Sequence[Tensor], init: str) -> Tensor:
    return torch.stack(list(tau)).sum(0) * {"sum": 1.0, "mean": 1.0 / len(tau), "zero": 0.0}[init]


def _leading(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets: U (out, count), S (count,), V (in, count)."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u[:, :count], s[:count], vh[:count].T


def _polar(x: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; directions that x lacks are left at zero."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    kept = s > 1e-6 * s[:1]
    return u[:, kept] @ vh[kept]


def _ceil(x: float) -> int:
    """The ceiling of a computed number: rounding does not lift an integer to the next one."""
    return math.ceil(x - 1e-9)
