"""Units by a process that is told no more than the config and names, as on the nodes of a cluster."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from end_to_end import altered, checkpoint, experts, merge, mergekit_yaml, with_method
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.errors import MergeError
from mergekit_mm.execution.elsewhere import Job, job_of, make
from mergekit_mm.execution.files import WeightFiles
from mergekit_mm.execution.preparing import prepared
from mergekit_mm.execution.units import smallest_units
from mergekit_mm.plan.build import build_plan, with_side_files


def begun(config: dict[str, Any], directory: Path) -> tuple[Job, WeightFiles, list[tuple[str, ...]]]:
    """A merge whose files wait for their tensors in a directory: its job, the files, and the names of its units."""
    mergekit_yaml()
    parsed, options, source = MergeConfiguration.model_validate(config), MergeOptions(), yaml.safe_dump(config)
    plan = with_side_files(build_plan(parsed, options, source), options)
    compiler, layout = prepared(plan, options)
    files = WeightFiles(directory, layout)
    files.create()
    job = job_of(parsed, source, compiler, [1.0], [directory])
    return pickle.loads(pickle.dumps(job)), files, [unit.names for unit in smallest_units(plan)]


def config(*models: Path) -> dict[str, Any]:
    return with_method("optmerge", checkpoint("llava"), models or experts("llava")[:2])


def test_it_makes_the_same(tmp_path: Path) -> None:
    job, files, units = begun(config(), tmp_path / "0")
    for names in units:
        made = make(job, names)
        assert all(files.holds(name, made.digests[f"0/{name}"]) for name in names)
    whole = merge(config()).out / "model.safetensors"
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == whole.read_bytes()


def test_it_refuses_other_inputs(tmp_path: Path) -> None:
    expert = altered(experts("llava")[0])
    job, _, units = begun(config(expert), tmp_path / "0")
    half = altered(expert, lambda found: {name: tensor.half() for name, tensor in found.items()})
    (expert / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes())
    with pytest.raises(MergeError, match=r"would not make the same: there, inputs.* is not what it is"):
        make(job, units[0])


def test_it_refuses_other_software_and_a_place_that_is_not_there(tmp_path: Path) -> None:
    job, _, units = begun(config(), tmp_path / "0")
    meant = json.loads(job.meant)
    meant["software"]["torch"] = "0.1"
    with pytest.raises(MergeError, match=r"would not make the same: there, torch \S+ is not what it is"):
        make(dataclasses.replace(job, meant=json.dumps(meant)), units[0])
    with pytest.raises(MergeError, match="has no /nowhere: the output has to be where all nodes can write"):
        make(dataclasses.replace(job, contents=("/nowhere",)), units[0])
