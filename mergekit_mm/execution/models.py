"""The models of a merge, from their plan to written weights: one, or a sweep's one for each strength."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from mergekit_mm.errors import SystemRefusal
from mergekit_mm.execution.elsewhere import Job
from mergekit_mm.execution.estimate import estimate, measured_speed, pickled_bytes, require_memory
from mergekit_mm.execution.files import INDEX, WeightFiles
from mergekit_mm.execution.journal import Journal
from mergekit_mm.execution.layout import Layout
from mergekit_mm.execution.machine import can_fork, choose_workers, cores
from mergekit_mm.execution.making import Made, Maker
from mergekit_mm.execution.prefetch import reading_ahead
from mergekit_mm.execution.progress import Progress
from mergekit_mm.execution.ray_cluster import RayCluster
from mergekit_mm.execution.settings import Settings
from mergekit_mm.execution.staging import Staging
from mergekit_mm.execution.units import Unit, batches, smallest_units, without
from mergekit_mm.execution.workers import done_by_devices, done_by_processes, done_here
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.executors import devices


def _made(maker: Maker, units: Sequence[Unit], workers: int, tell: Progress) -> Iterator[tuple[Unit, Made]]:
    """Each unit as soon as it is made on this machine."""
    if len(maker.devices) > 1:
        yield from done_by_devices(units, maker, maker.devices)
        return
    with reading_ahead(maker.compiler.plan, units) as taken:
        yield from done_by_processes(taken, maker, workers, tell) if workers > 1 else done_here(taken, maker)


def write_models(
    compiler: Compiler,
    scales: Sequence[float],
    layout: Layout,
    staging: Staging,
    journal: Journal,
    settings: Settings,
    tell: Progress,
    job: Job | None = None,
) -> dict[str, float]:
    """Write the tensors of a plan's models that are not written yet; returns what `scaling: auto` came to.

    Args:
        scales: the strength of each output, in the order of their numbers.
        layout: of every output.
        staging: gets the files. journal: of this directory, opened.
        tell: tells how it goes.
        job: the merge as it is sent to the cluster of the settings, if they name one.
    """
    plan, options = compiler.plan, compiler.options
    files = [WeightFiles(staging.content(number), layout) for number in range(len(scales))]
    groups = smallest_units(plan)
    if job is None:  # else other machines need it
        require_memory(groups)
    for each in files:
        each.create()
    claimed, scalings = _claimed(staging)
    done = _held(claimed, files, tell)
    if done:
        tell(f"continuing: {len(_complete(layout, done))} of {len(layout.places)} tensors are done")
    left = without(groups, done)
    with _cluster(job, compiler, settings) as cluster:
        count = cluster.width if cluster else workers_for(left, compiler, settings, tell)
        if left:
            tell("\n".join(estimate(plan, left, count, _computes_here(compiler), measured_speed(plan), len(scales))))
        maker = Maker(compiler, scales, files)
        nbytes = {name: place.nbytes * len(scales) for name, place in layout.written.items()}
        units = batches(left, count, nbytes, options.out_shard_size)
        bytes_done = sum(nbytes[name] for name in done)
        total, complete, size = len(layout.places), len(_complete(layout, done)), sum(nbytes.values())
        with tell.bar("Merging", total, complete, nbytes=size, bytes_done=bytes_done) as bar:
            made_of = cluster.made(units, job, tell) if cluster and job else _made(maker, units, count, tell)
            for unit, made in made_of:
                paths = {each.path_of(name) for each in files for name in unit.names}
                entry = {"tensors": made.digests, "seconds": round(made.seconds, 3)}
                journal.append(entry | ({"scalings": made.scalings} if made.scalings else {}), paths)
                claimed |= made.digests
                scalings |= made.scalings
                new = {*unit.names} - done
                done |= new
                bar.update(len(_complete(layout, done, new)), sum(nbytes[name] for name in new))
        maker.inputs.require()
    if cluster and len(held := _held(claimed, files, tell)) < len(nbytes):
        raise SystemRefusal(
            f"{len(nbytes) - len(held)} tensors are not in {staging.directory} as the cluster says that it wrote them: "
            "the output has to be on a file system that all nodes share. The same command makes them again."
        )
    return scalings


@contextmanager
def _cluster(job: Job | None, compiler: Compiler, settings: Settings) -> Iterator[RayCluster | None]:
    """The cluster that the settings name, connected, for a merge that can be sent; else None."""
    if job is None or settings.ray is None:
        yield None
        return
    with RayCluster(settings.ray, not _computes_here(compiler)) as cluster:
        yield cluster


def clear_others(staging: Staging, layout: Layout) -> None:
    """Remove what an interrupted run has put beside the weights, of which all is written again."""
    keep = {*(file.name for file in layout.files), INDEX}
    for number in range(len(staging.outputs)):
        for path in staging.content(number).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()


def _claimed(staging: Staging) -> tuple[dict[str, str], dict[str, float]]:
    """What the journal of an interrupted run says: the hash of each tensor of each output; and scalings."""
    claimed: dict[str, str] = {}
    scalings: dict[str, float] = {}
    for entry in staging.done:
        claimed |= entry.get("tensors", {})
        scalings |= entry.get("scalings", {})
    return claimed, scalings


def _held(claimed: Mapping[str, str], files: Sequence[WeightFiles], tell: Progress) -> set[str]:
    """The tensors that all outputs hold as it is claimed, by their hashes."""
    names = [name for name in files[0].layout.written if all(f"{n}/{name}" in claimed for n in range(len(files)))]
    held: set[str] = set()
    if not names:
        return held

    def holds(name: str) -> bool:
        return all(each.holds(name, claimed[f"{number}/{name}"]) for number, each in enumerate(files))

    with (
        ThreadPoolExecutor(min(4, cores())) as threads,  # hashing frees the interpreter
        tell.bar("Checking what is done", len(names)) as bar,
    ):
        for name, is_held in zip(names, threads.map(holds, names), strict=True):
            held |= {name} if is_held else set()
            bar.update(1)
    return held


def _complete(layout: Layout, done: Collection[str], among: Collection[str] | None = None) -> set[str]:
    """The tensors that are done with all their parts; of those of which something is `among`, if that is given."""
    tensors = {layout.written[name].tensor for name in (done if among is None else among)}
    return {tensor for tensor in tensors if all(name in done for name in layout.parts[tensor])}


def _computes_here(compiler: Compiler) -> bool:
    """Whether the CPU computes, and no accelerator."""
    return all(device.type == "cpu" for device in devices(compiler.options))


def workers_for(units: Sequence[Unit], compiler: Compiler, settings: Settings, tell: Progress) -> int:
    """How many of these units are made at the same time, which is told: by processes, or by accelerators."""
    if not _computes_here(compiler):
        if settings.workers and settings.workers > 1:
            tell("workers: not used, as they are processes that compute on the CPU")
        return len(devices(compiler.options))
    if not can_fork():
        return 1
    if (wanted := settings.workers or compiler.options.num_threads) is not None:
        return max(1, min(wanted, len(units)))
    count, why = choose_workers(units, pickled_bytes(compiler.plan.inputs))
    if why:
        tell(f"workers: {count} ({why})")
    return count
