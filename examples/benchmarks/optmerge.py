"""How fast, how exact and how large is OptMerge here, beside the released set-up and loop, on shapes of real models?

    OMP_NUM_THREADS=1 python -m examples.benchmarks.optmerge                      # about five minutes
    OMP_NUM_THREADS=1 python -m examples.benchmarks.optmerge --shapes 1536x8960,3584x3584 --presets lora

Times are CPU seconds of one process. The released side is restated from its description, in float32, and costs hours
when run in full: its set-up is timed for one expert and multiplied, its loop extrapolated from two short runs. Truth is
this package in float64, which the tests hold to the loop run in float64; `--loop` runs the float32 loop to its end for
the first shape, for its error. Synthetic task vectors: nothing here measures the quality of a merge.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mergekit_mm.methods.optmerge import PRESETS
from mergekit_mm.numerics.descent import Descent, descend
from mergekit_mm.numerics.task_vector import TaskVector

STEPS = 300
SMALL = 1 << 20  # entries; what takes little time is measured more than once
Shape = tuple[int, int]


def cpu_seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """The fastest of `repeats` runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Flops per CPU second of a matrix product: the bound every other figure is held against."""
    x = torch.randn(1536, 1536, dtype=dtype)
    return 2 * 1536**3 / cpu_seconds(lambda: x @ x, 5)


def task_vectors(shape: Shape, count: int, spectrum: float, seed: int = 0) -> list[Tensor]:
    """Full-rank deltas (out, in) with singular values falling about as j^-spectrum and a 30% part in common."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape, generator=generator)
    deltas = []
    for _ in range(count):
        own = torch.randn(shape, generator=generator)
        if spectrum > 0:
            falling = torch.arange(1, min(shape) + 1) ** -spectrum
            own = (torch.randn(shape[0], min(shape), generator=generator) * falling) @ own[: min(shape)]
        deltas.append((own / own.std()).add_(common, alpha=0.3).mul_(1e-4))
    return deltas


def adapters(shape: Shape, count: int, rank: int) -> list[TaskVector]:
    generator = torch.Generator().manual_seed(1)
    pairs = [
        (torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator))
        for _ in range(count)
    ]
    return [TaskVector.low_rank(b * 1e-4, a) for b, a in pairs]


# --- the released computation -----------------------------------------------------------------------------------------


def released_setup(delta: Tensor, mean: Tensor, rank: int, preset: str) -> tuple[Tensor, Tensor]:
    """Proxy and target of one expert by two singular value decompositions, one of them with full bases."""
    _, s, vh = torch.linalg.svd(delta, full_matrices=True)
    u2, s2, vh2 = torch.linalg.svd(delta - mean if preset == "full" else delta, full_matrices=False)
    target = (u2[:, :rank] * s2[:rank]) @ vh2[:rank]
    if preset == "full":
        target += mean
    if preset == "modality":
        return delta, target
    proxy = torch.zeros_like(delta)  # the whole (out, in) although rank rows of it are not zero, as released
    proxy[:rank] = s[:rank, None] * vh[:rank]
    return proxy, target


def released_loop(deltas: Tensor, proxies: Tensor, targets: Tensor, preset: str, steps: int) -> Tensor:
    """Autograd and torch.optim over m x m products per expert. All (experts, out, in)."""
    x = torch.nn.Parameter(deltas.sum(0) if preset == "full" else deltas.mean(0))
    constants = PRESETS[preset]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam([x], lr=constants.learning_rate)
        if constants.optimizer == "adam"
        else torch.optim.SGD([x], lr=constants.learning_rate, momentum=constants.momentum)
    )
    norms = torch.norm(deltas.reshape(len(deltas), -1), dim=-1).square()
    for _ in range(steps):
        inner = (x.unsqueeze(0) - targets) @ proxies.transpose(1, 2)
        loss = (inner.square() / norms[:, None, None]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach()


def published_swudi(deltas: list[Tensor], adaptive: bool = False) -> Tensor:
    """The closed form that the same authors published later; adaptive: SWUDI-A."""
    weights = [1.0 / delta.square().sum() for delta in deltas]
    hessian = sum(w * (delta.T @ delta) for w, delta in zip(weights, deltas, strict=True))
    target = sum(w * (delta @ (delta.T @ delta)) for w, delta in zip(weights, deltas, strict=True))
    assert isinstance(hessian, Tensor)
    assert isinstance(target, Tensor)
    values, vectors = torch.linalg.eigh(hessian)
    values = values.clamp_min(1e-8)
    kept = float(values.sqrt().sum() ** 2 / values.sum()) if adaptive else 0.65 * len(values)
    share = torch.ones_like(values) if adaptive else 1 - torch.exp(-300.0 * values)
    share[: len(values) - int(kept + 0.999)] = 0
    start = torch.stack(deltas).sum(0)
    return start + ((target @ vectors) * (share / values) - (start @ vectors) * share) @ vectors.T


def released(deltas: list[Tensor], preset: str, run_to_end: bool) -> tuple[float, float, Tensor | None]:
    """CPU seconds of the set-up of all experts and of one step; the merged delta if asked to run to the end."""
    stacked = torch.stack(deltas)
    mean = stacked.mean(0)
    rank = PRESETS[preset].rank(mean.shape, len(deltas))
    start = time.process_time()
    proxy, target = released_setup(deltas[0], mean, rank, preset)
    setup = (time.process_time() - start) * len(deltas)
    proxies, targets = proxy.expand_as(stacked), target.expand_as(stacked)
    if run_to_end:
        parts = [released_setup(delta, mean, rank, preset) for delta in deltas]
        proxies, targets = torch.stack([p for p, _ in parts]), torch.stack([t for _, t in parts])
    else:
        proxies, targets = proxies.contiguous(), targets.contiguous()
    released_loop(stacked, proxies, targets, preset, 1)
    more, repeats = (9, 3) if mean.numel() < SMALL else (2, 1)
    short = cpu_seconds(lambda: released_loop(stacked, proxies, targets, preset, 1), repeats)
    long = cpu_seconds(lambda: released_loop(stacked, proxies, targets, preset, 1 + more), repeats)
    end = released_loop(stacked, proxies, targets, preset, STEPS) if run_to_end else None
    return setup, (long - short) / more, end


# --- this package -----------------------------------------------------------------------------------------------------


def ours(vectors: list[TaskVector], settings: Descent) -> float:
    """CPU seconds of one matrix, dense result included; an Adam loop is extrapolated as the released one is."""

    def run(iterations: int) -> None:
        descend(vectors, replace(settings, iterations=iterations)).dense(torch.float32)

    if settings.optimizer == "sgd":
        return cpu_seconds(lambda: run(settings.iterations), 3 if math.prod(vectors[0].shape) < SMALL else 1)
    short, long = cpu_seconds(lambda: run(5)), cpu_seconds(lambda: run(20))
    return short + (long - short) / 15 * (settings.iterations - 5)


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def product_seconds(shape: Shape, count: int, preset: str, single: float, double: float) -> float:
    """CPU seconds of the matrix products that a route cannot do without, at the rates of a product in float32 and 64.

    A symmetric product counts half. Eigenpairs come on top, and for `full` the set-up.
    """
    out, columns = shape
    m, n = max(shape), min(shape)
    kept = PRESETS[preset].rank(shape, count)
    if preset == "full":  # a step is one product with A, or two with its rows
        return STEPS * 2.0 * out * columns * min(columns, 2 * kept * count) / single
    grams = count * m * n * n
    if preset == "lora":
        rows = kept * count
        return (grams + m * rows * rows + 2.0 * m * n * rows * 3) / single  # R R^T; rows, slope, step
    if out >= columns:
        targets = count * 2.0 * kept * (2 * m * n + n * n)
        return (grams + targets + 6.0 * m * n * n) / double  # x_0 A and twice the eigenvectors
    rows = count * out  # the filter is a polynomial in R R^T, of degree 10 at least for an error of 1e-7
    products = columns * rows * rows + 2.0 * out * columns * rows * 2 + 10 * 2.0 * out * rows * rows
    return grams / double + products / single


def peak_extra_mib(shape: Shape, preset: str, count: int) -> float:
    """Peak memory beyond the inputs, in a process of its own."""
    arguments = [sys.executable, "-m", "examples.benchmarks.optmerge", "--memory-of", f"{shape[0]}x{shape[1]}"]
    arguments += ["--presets", preset, "--experts", str(count)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return float(done.stdout)


def report_memory(shape: Shape, preset: str, count: int) -> None:
    descend(
        [TaskVector.of(torch.randn(300, 300)) for _ in range(2)], replace(PRESETS[preset], iterations=1)
    )  # libraries
    base = torch.randn(shape)
    vectors = [TaskVector.between(base + d, base) for d in (torch.randn(shape) for _ in range(count))]
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    before = status_mib("VmRSS")
    descend(vectors, replace(PRESETS[preset], iterations=3 if preset == "full" else STEPS))
    print(status_mib("VmHWM") - before)


def status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


# --- tables -----------------------------------------------------------------------------------------------------------


def row(shape: Shape, preset: str, options: argparse.Namespace, rates: tuple[float, float], first: bool) -> str:
    settings = PRESETS[preset]
    deltas = task_vectors(shape, options.experts, options.spectrum)
    vectors = [TaskVector.of(d) for d in deltas]
    mine = ours(vectors, settings)
    run_to_end = options.loop and first
    setup, step, end = released(deltas, preset, run_to_end)
    theirs = setup + STEPS * step
    error = theirs_error = "-"
    if run_to_end or (options.truth and settings.optimizer == "sgd"):
        truth = descend([TaskVector.of(d.double()) for d in deltas], settings).dense(torch.float64)
        error = f"{relative_error(descend(vectors, settings).dense(torch.float32), truth):.1e}"
        theirs_error = f"{relative_error(end, truth):.1e}" if end is not None else "-"
    loop_bound = 4.0 * options.experts * shape[0] ** 2 * shape[1] / rates[0]
    bound = product_seconds(shape, options.experts, preset, *rates)
    closed = f"{cpu_seconds(lambda: published_swudi(deltas, adaptive=True)):.2f}" if preset == "lora" else "-"
    memory = peak_extra_mib(shape, preset, options.experts)
    inputs = (options.experts + 1) * shape[0] * shape[1] * 4 / 2**20
    cells = [
        f"{shape[0]}x{shape[1]}",
        preset,
        f"{setup:.1f} + {STEPS} x {step:.2f}",
        f"{loop_bound:.2f}",
        f"{theirs:.0f}",
    ]
    cells += [closed, f"{mine:.2f}", f"{bound:.2f}", f"**{theirs / mine:.0f}x**", error, theirs_error]
    cells.append(f"{memory:.0f} / {inputs:.0f} = {memory / inputs:.1f}")
    return "| " + " | ".join(cells) + " |"


def adapter_row(shape: Shape, options: argparse.Namespace, rank: int) -> str:
    factored = adapters(shape, options.experts, rank)
    mine = ours(factored, PRESETS["lora"])
    stays = cpu_seconds(lambda: descend(factored, PRESETS["lora"]), 3)
    double = [TaskVector.low_rank(t.left.double(), t.right.double()) for t in factored if t.right is not None]
    truth = descend(double, PRESETS["lora"]).dense(torch.float64)
    error = relative_error(descend(factored, PRESETS["lora"]).dense(torch.float32), truth)
    return f"| {shape[0]}x{shape[1]} | {rank} | {stays:.4f} | {mine:.4f} | {error:.1e} |"


def parse(text: str) -> Shape:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="896x896,896x4864,4864x896", help="out x in, comma separated")
    parser.add_argument("--presets", default="lora", help="of lora, full, modality, comma separated")
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--spectrum", type=float, default=0.3, help="singular values fall about as j^-this")
    parser.add_argument("--ranks", default="16", help="ranks of the adapter table, comma separated")
    parser.add_argument("--loop", action="store_true", help="run the released loop to its end for the first shape")
    parser.add_argument("--no-truth", dest="truth", action="store_false", help="skip errors against float64")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return report_memory(parse(options.memory_of), options.presets, options.experts)
    shapes = [parse(s) for s in options.shapes.split(",")]
    rates = gemm_rate(), gemm_rate(torch.float64)
    speeds = " and ".join(f"{rate / 1e9:.0f}" for rate in rates)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), GEMM {speeds} GFLOP/s in float32 and float64"
    )
    print(f"{options.experts} experts, singular values falling as j^-{options.spectrum}\n")
    print(
        "| shape | preset | released: set-up + loop, s | GEMM bound of its step, s | released, s | SWUDI-A, s ", end=""
    )
    print("| ours, s | GEMM bound of ours, s | ratio | our error | loop's error | extra / inputs, MiB |")
    print("|" + "---|" * 12)
    for preset in options.presets.split(","):
        for shape in shapes:
            print(row(shape, preset, options, rates, shape == shapes[0]), flush=True)
    print("\n| adapters | rank | factors out, s | dense out, s | error |\n|" + "---|" * 5, flush=True)
    for shape in shapes:
        for rank in options.ranks.split(","):
            print(adapter_row(shape, options, int(rank)), flush=True)


if __name__ == "__main__":
    main()
