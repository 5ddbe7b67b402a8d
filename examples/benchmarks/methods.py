"""Every merge method of this package on one matrix: time, error and memory, beside the published computation.

    OMP_NUM_THREADS=1 python -m examples.benchmarks.methods                                 # some minutes
    OMP_NUM_THREADS=1 python -m examples.benchmarks.methods --shapes 896x896,3584x3584 --experts 3,8 --methods tsv swudi

Times are CPU seconds of one process. The published side is restated from its description, in float32: singular value
decompositions for TSV, SVC, Iso and DC-Merge, a pseudo-inverse of in x in for ACTMat (`wudi equal`), an
eigendecomposition of that size for SWUDI, an autograd loop for WUDI, extrapolated from a few steps. RobustMerge is
measured on adapters alone. Truth is this package in float64, which the tests hold to independent restatements.
Synthetic task vectors: nothing here measures the quality of a merge. OptMerge has a table of its own: optmerge.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.benchmarks import optmerge
from examples.benchmarks.optmerge import (
    adapters,
    cpu_seconds,
    gemm_rate,
    parse,
    published_swudi,
    relative_error,
    status_mib,
    task_vectors,
)
from mergekit_mm.methods import method_named
from mergekit_mm.numerics.task_vector import TaskVector

STEPS = 300
SETTINGS: dict[str, dict[str, Any]] = {
    "tsv": {},
    "tsv svc": {"svc": True},
    "iso_c": {},
    "iso_cts": {},
    "dc_merge": {},
    "robust_merge": {},
    "swudi": {},
    "aswudi": {},
    "wudi exact": {"solver": "exact"},
    "wudi equal": {"solver": "exact", "weights": "equal"},
    "wudi": {},
    "optmerge": {},
    "optmerge modality": {"preset": "modality"},
}


# --- the published computations, restated ----------------------------------------------------------------------------


def thin_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u, s, vh


def polar(x: Tensor) -> Tensor:
    u, _, vh = thin_svd(x)
    return u @ vh


def published_tsv(deltas: list[Tensor]) -> Tensor:
    rank = min(deltas[0].shape) // len(deltas)
    parts = [thin_svd(delta) for delta in deltas]
    left = polar(torch.cat([u[:, :rank] for u, _, _ in parts], dim=1))
    right = polar(torch.cat([vh[:rank] for _, _, vh in parts]))
    return (left * torch.cat([s[:rank] for _, s, _ in parts])) @ right


def published_iso_c(deltas: list[Tensor]) -> Tensor:
    u, s, vh = thin_svd(torch.stack(deltas).sum(0))
    return s.mean() * (u @ vh)


def published_iso_cts(deltas: list[Tensor]) -> Tensor:
    count, size = len(deltas), min(deltas[0].shape)
    common = size - count * round((size - int(0.8 * size)) / count)
    each = (size - common) // count
    u, s, vh = thin_svd(torch.stack(deltas).sum(0))
    u, s, vh = u[:, :common], s[:common], vh[:common]
    parts = [thin_svd(delta - u @ (u.T @ delta)) for delta in deltas]
    left = polar(torch.cat([*(p[0][:, :each] for p in parts), u], dim=1))
    right = polar(torch.cat([*(p[2][:each] for p in parts), vh]))
    return torch.cat([*(p[1][:each] for p in parts), s]).mean() * (left @ right)


def published_tsv_svc(deltas: list[Tensor]) -> Tensor:
    u, s, vh = thin_svd(published_tsv(deltas))
    merged = s[:, None] * vh
    shares = torch.stack([(merged * own).sum(1) / own.square().sum(1) for own in (u.T @ delta for delta in deltas)])
    return (u * (s / shares.clamp_min(1 / len(deltas)).mean(0))) @ vh


def published_dc_merge(deltas: list[Tensor]) -> Tensor:
    rank = min(deltas[0].shape) // len(deltas)
    parts = [thin_svd(delta) for delta in deltas]
    left = polar(torch.cat([u[:, :rank] for u, _, _ in parts], dim=1))
    right = polar(torch.cat([vh[:rank] for _, _, vh in parts]))
    cores = torch.stack([s[:rank].mean() * (left.T @ u[:, :rank]) @ (vh[:rank] @ right.T) for u, s, vh in parts])
    smallest = cores.abs().flatten(1).topk(cores[0].numel() // 10, dim=1).values[:, -1]
    cores = torch.where(cores.abs() >= smallest[:, None, None], cores, 0)
    agreeing = torch.where(cores * cores.sum(0) > 0, cores, 0)
    merged = agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)
    return left @ (merged * torch.block_diag(*[torch.ones(rank, rank)] * len(deltas))) @ right


def published_actmat(deltas: list[Tensor]) -> Tensor:
    covariance = torch.stack([delta.T @ delta for delta in deltas]).sum(0)
    return torch.stack([delta @ (delta.T @ delta) for delta in deltas]).sum(0) @ torch.linalg.pinv(covariance)


def published_wudi_seconds(deltas: list[Tensor]) -> float:
    x = torch.nn.Parameter(torch.stack(deltas).sum(0))
    optimizer = torch.optim.Adam([x], lr=1e-5)
    norms = [delta.square().sum() for delta in deltas]

    def step() -> None:
        loss = sum(((x - d) @ d.T).square().sum() / n for d, n in zip(deltas, norms, strict=True))
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    return STEPS * cpu_seconds(step, 2)


PUBLISHED: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "tsv": published_tsv,
    "tsv svc": published_tsv_svc,
    "iso_c": published_iso_c,
    "iso_cts": published_iso_cts,
    "dc_merge": published_dc_merge,
    "wudi equal": published_actmat,
    "swudi": published_swudi,
    "aswudi": lambda deltas: published_swudi(deltas, adaptive=True),
}


# --- this package -----------------------------------------------------------------------------------------------------


def solved(name: str, vectors: list[TaskVector], **more: Any) -> Tensor:
    merged = method_named(name.split()[0]).solve(vectors, **SETTINGS[name], **more)
    return merged.dense(torch.promote_types(vectors[0].left.dtype, torch.float32))


def seconds(name: str, vectors: list[TaskVector]) -> tuple[float, Tensor | None]:
    """CPU seconds with the dense result; the Adam loop is extrapolated as the published one is, and has no result."""
    if name != "wudi":
        start = time.process_time()
        merged = solved(name, vectors)
        return time.process_time() - start, merged
    short = cpu_seconds(lambda: solved(name, vectors, iterations=5))
    long = cpu_seconds(lambda: solved(name, vectors, iterations=20))
    return short + (long - short) / 15 * (STEPS - 5), None


def product_seconds(name: str, shape: tuple[int, int], count: int, rates: tuple[float, float]) -> float:
    """CPU seconds of the products that a method's route cannot do without, at GEMM speed: a floor, not an estimate.

    Symmetric Gram products count half. rates: flops per second in float32 (Adam's steps) and float64 (all else).
    """
    small, large = min(shape), max(shape)
    single, double = rates
    if name == "wudi":
        return STEPS * 2.0 * shape[0] * shape[1] ** 2 / single
    grams = {"iso_c": 1, "iso_cts": 1 + count, "tsv": count, "dc_merge": count, "tsv svc": 3 * count + 5}
    if name in grams:
        return (grams[name] * large * small**2 + 2.0 * large * small**2) / double
    if name.startswith("optmerge"):
        return optmerge.product_seconds(shape, count, SETTINGS[name].get("preset", "lora"), single, double)
    rows = min(count * shape[0], shape[1])  # what the Hessian of the WUDI family is made of
    if shape[0] < shape[1]:
        return (shape[1] * rows**2 + 2.0 * shape[0] * rows**2 + 2.0 * shape[0] * shape[1] * rows) / double
    return (3 * count + 4) * shape[0] * shape[1] ** 2 / double


def doubled(vectors: list[TaskVector]) -> list[TaskVector]:
    return [
        TaskVector.of(t.left.double()) if t.right is None else TaskVector.low_rank(t.left.double(), t.right.double())
        for t in vectors
    ]


def peak_extra_mib(name: str, shape: tuple[int, int], count: int) -> float:
    """Peak memory beyond the inputs, in a process of its own."""
    arguments = ["--memory-of", f"{shape[0]}x{shape[1]}", "--methods", name, "--experts", str(count)]
    command = [sys.executable, "-m", "examples.benchmarks.methods", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_memory(name: str, shape: tuple[int, int], count: int) -> None:
    few = {"iterations": 2} if name == "wudi" else {}
    solved(name, [TaskVector.of(torch.randn(300, 280)) for _ in range(2)], **few)  # loads the libraries
    base = torch.randn(shape)
    vectors = [TaskVector.between(base + delta, base) for delta in (torch.randn(shape) for _ in range(count))]
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    before = status_mib("VmRSS")
    solved(name, vectors, **few)
    print(status_mib("VmHWM") - before)


def row(name: str, shape: tuple[int, int], count: int, options: argparse.Namespace, rates: tuple[float, float]) -> str:
    cells = [f"{shape[0]}x{shape[1]}", str(count), name]
    cells += ["-"] * 6 if name == "robust_merge" else dense_cells(name, shape, count, options, rates)
    for rank in map(int, options.ranks.split(",")):
        factored = adapters(shape, count, rank)
        if name == "wudi":
            cells.append("as dense")
            continue
        spent, merged = seconds(name, factored)
        assert merged is not None
        cells.append(f"{spent:.3f}, {relative_error(merged, solved(name, doubled(factored))):.0e}")
    return "| " + " | ".join(cells) + " |"


def dense_cells(
    name: str, shape: tuple[int, int], count: int, options: argparse.Namespace, rates: tuple[float, float]
) -> list[str]:
    """Times, ratio, error and memory of a merge of whole matrices."""
    deltas = task_vectors(shape, count, options.spectrum)
    vectors = [TaskVector.of(delta) for delta in deltas]
    mine, merged = seconds(name, vectors)
    theirs = published_wudi_seconds(deltas) if name == "wudi" else None
    if name in PUBLISHED:
        theirs = cpu_seconds(lambda: PUBLISHED[name](deltas))
    error = "-"
    if merged is not None:
        error = f"{relative_error(merged, solved(name, doubled(vectors))):.1e}"
    inputs = (count + 1) * shape[0] * shape[1] * 4 / 2**20
    return [
        f"{theirs:.2f}" if theirs else "-",
        f"{mine:.2f}",
        f"{product_seconds(name, shape, count, rates):.2f}",
        f"**{theirs / mine:.1f}x**" if theirs else "-",
        error,
        f"{peak_extra_mib(name, shape, count) / inputs:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="896x896,896x4864,4864x896,1536x1536", help="out x in, comma separated")
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--experts", default="5", help="how many, comma separated")
    parser.add_argument("--ranks", default="8,64", help="ranks of the adapters, comma separated")
    parser.add_argument("--spectrum", type=float, default=0.7, help="singular values fall about as j^-this")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return report_memory(options.methods[0], parse(options.memory_of), int(options.experts))
    rates = gemm_rate(), gemm_rate(torch.float64)
    speeds = " and ".join(f"{rate / 1e9:.0f}" for rate in rates)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), GEMM {speeds} GFLOP/s in float32 and float64"
    )
    print(f"singular values falling as j^-{options.spectrum}\n")
    head = [
        "shape",
        "experts",
        "method",
        "published, s",
        "ours, s",
        "GEMM floor, s",
        "ratio",
        "our error",
        "extra memory / inputs",
    ]
    head += [f"rank-{rank} adapters: s, error" for rank in options.ranks.split(",")]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for shape in options.shapes.split(","):
        for count in map(int, options.experts.split(",")):
            for name in options.methods:
                print(row(name, parse(shape), count, options, rates), flush=True)


if __name__ == "__main__":
    main()
