"""Units made by processes that share no memory with the one that hands them out, as on the nodes of a cluster.

Such a process is told the config and the names of a unit's tensors. It plans the merge by itself, checks that its plan,
its software and its inputs are those of the merge, and writes into the same files, on a file system that all share.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.errors import MergeError
from mergekit_mm.execution.files import WeightFiles
from mergekit_mm.execution.journal import sync_files
from mergekit_mm.execution.key import digest_of, inputs_digest, software
from mergekit_mm.execution.making import Made, Maker
from mergekit_mm.execution.preparing import prepared
from mergekit_mm.execution.units import Takes, Unit
from mergekit_mm.execution.workers import one_thread
from mergekit_mm.plan.as_json import digest
from mergekit_mm.plan.build import build_plan, with_side_files
from mergekit_mm.tasks.compile import Compiler

_PLUG = "mergekit_mm.register"  # makes the methods known; by its name, as it is above this room


@dataclass(frozen=True)
class Job:
    """A merge, in values that can be sent anywhere.

    config, options: in YAML and JSON. source: the config's own text. scales: the strength of each output. contents: the
    directory of each output in the staging directory. place: the working directory, for relative paths. meant: what
    has to be equal, in JSON.
    """

    config: str
    options: str
    source: str
    scales: tuple[float, ...]
    is_sweep: bool
    contents: tuple[str, ...]
    place: str
    meant: str


def job_of(
    config: MergeConfiguration,
    source: str,
    compiler: Compiler,
    scales: Sequence[float],
    contents: Sequence[Path],
) -> Job:
    """The job of a merge that is prepared here. config, source: as they were before the plan was made."""
    return Job(
        config.to_yaml(),
        compiler.options.model_dump_json(),
        source,
        tuple(scales),
        compiler.sweep,
        tuple(str(path.resolve()) for path in contents),
        str(Path.cwd()),
        json.dumps(_meant(compiler)),
    )


def make(job: Job, names: tuple[str, ...]) -> Made:
    """Make a unit, and wait until it is on the disk.

    Raises:
        MergeError: as for the merge; or this process would not make the same.
    """
    with one_thread():
        maker = _maker(job)
        made = maker(Unit(names, Takes()))
        sync_files({files.path_of(name) for files in maker.files for name in names})
    return made


@functools.lru_cache(maxsize=1)  # a process makes many units of one merge
def _maker(job: Job) -> Maker:
    importlib.import_module(_PLUG)
    if Path(job.place).is_dir():
        os.chdir(job.place)
    for path in job.contents:
        if not Path(path).is_dir():
            raise MergeError(f"{socket.gethostname()} has no {path}: the output has to be where all nodes can write.")
    config = MergeConfiguration.model_validate(yaml.safe_load(job.config))
    options = MergeOptions.model_validate_json(job.options)
    plan = with_side_files(build_plan(config, options, job.source), options)
    compiler, layout = prepared(plan, options, job.is_sweep)
    _require_same(json.loads(job.meant), json.loads(json.dumps(_meant(compiler))))
    return Maker(compiler, job.scales, [WeightFiles(Path(path), layout) for path in job.contents])


def _meant(compiler: Compiler) -> dict[str, Any]:
    """What the bytes of a merge depend on, by names for messages."""
    vocabulary = compiler.new_vocabulary
    return {
        "software": software(compiler.plan),
        "inputs": inputs_digest(compiler.plan),
        "vocabulary": vocabulary and digest_of(vocabulary.tokenizer),
        "plan": digest(compiler.plan),
    }


def _require_same(meant: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    wrong = [name for name in meant if meant[name] != found[name]]
    if "software" in wrong:
        versions = [f"{name} {found['software'].get(name)}" for name in meant["software"]]
        wrong = [v for v, name in zip(versions, meant["software"], strict=True) if meant["software"][name] not in v]
    if wrong:
        raise MergeError(
            f"{socket.gethostname()} would not make the same: there, {', '.join(wrong)} is not what it is where the "
            "merge was started. All nodes need the same versions and the same inputs."
        )
