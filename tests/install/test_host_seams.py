"""Every seam into a host: a test fails here where the host no longer has what the seam relies on."""

from __future__ import annotations

import importlib
import inspect
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import mergekit.merge
import pytest
from lm_eval._cli.harness import HarnessCLI
from lm_eval.api.registry import model_registry
from lm_eval.api.task import Task
from lm_eval.tasks.manager import TaskManager
from mergekit import merge_methods
from mergekit.options import MergeOptions
from transformers import AutoConfig, AutoProcessor

from mergekit_mm._autoload import HOOKS
from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.mllm import MLLM
from mergekit_mm.hosts import lm_eval_command, lm_eval_model, lm_eval_tasks, run_merge, transformers_auto
from mergekit_mm.hosts.wrapping import wrap
from mergekit_mm.methods import catalogue
from mergekit_mm.omni.configuration import OmniConfig

TASK = """
task: one
custom_dataset: !function rows.rows
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""
ROWS = "import datasets\ndef rows(**_): return {'test': datasets.Dataset.from_list([{'text': 'a'}])}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.yaml").write_text(TASK)
    (tmp_path / "rows.py").write_text(ROWS)
    return tmp_path


@pytest.mark.parametrize("host", HOOKS)
def test_every_hook_waits_for_a_module_that_the_host_has(host: str) -> None:
    importlib.import_module(host)
    module, function = HOOKS[host].split(":")
    assert callable(getattr(importlib.import_module(module), function))


# ------------------------------------------------------------------------------------------------------- mergekit


def test_run_merge_has_the_parameters_that_are_read() -> None:
    names = list(inspect.signature(mergekit.merge.run_merge).parameters)
    assert names[:4] == ["merge_config", "out_path", "options", "config_source"]
    assert "transformers_cache" in MergeOptions.model_fields


def test_every_command_of_mergekit_that_merges_holds_the_replaced_function() -> None:
    run_merge.install()
    commands = Path(mergekit.merge.__file__).parent.glob("scripts/*.py")
    merging = [each.stem for each in commands if "import run_merge" in each.read_text()]
    assert {"run_yaml", "multimerge"} <= set(merging)
    for name in ("run_yaml", "multimerge"):
        assert importlib.import_module(f"mergekit.scripts.{name}").run_merge is mergekit.merge.run_merge
    assert mergekit.merge.run_merge.__mergekit_mm__


def test_the_registry_of_methods_is_read_and_written_by_name() -> None:
    registered = {method.spec.name: method for method in merge_methods.registered_methods()}
    for ours in catalogue():
        assert registered[ours.name] is ours.host is merge_methods.get(ours.name)


# -------------------------------------------------------------------------------------------------------- lm-eval


def test_a_task_manager_has_the_parameters_that_are_read(folder: Path) -> None:
    lm_eval_tasks.install()
    assert {"include_path", "include_defaults"} <= inspect.signature(TaskManager.__init__).parameters.keys()
    for manager in (
        TaskManager(None, str(folder), False),
        TaskManager(include_path=[folder], include_defaults=False),
        TaskManager(include_path=folder, include_defaults=False, metadata={}),
    ):
        assert manager.all_tasks == ["one"]
    assert TaskManager(include_defaults=False).all_tasks == []


def test_a_loaded_task_has_the_parts_that_are_replaced(folder: Path) -> None:
    """`evaluation.tasks.prepared_tasks.prepare` wraps two methods, and reads the metadata and the instances."""
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(["one"])
    task = loaded["tasks"]["one"]
    assert isinstance(task, Task)
    assert task.task_name == "one"
    assert task.config.metadata["version"] == 1.0
    assert task.dataset.keys() == {"test"}
    assert list(inspect.signature(Task.process_results).parameters) == ["self", "doc", "results"]
    assert list(inspect.signature(Task.apply_filters).parameters) == ["self"]
    assert task.process_results({"text": "a"}, ["a"]) == {"exact_match": 1}


def test_a_parameter_that_lm_eval_adds_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own constructor with two more parameters, one of them in the midst of the others."""
    seen: dict[str, Any] = {}

    def later(
        self: Any,
        verbosity: Any = None,
        cache: Any = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: Any = None,
        *,
        seed: int = 0,
    ) -> None:
        seen.update(cache=cache, include_path=include_path, metadata=metadata, seed=seed)

    monkeypatch.setattr(TaskManager, "__init__", later)
    lm_eval_tasks.install()
    TaskManager(None, "here", str(folder), metadata={"a": 1}, seed=3)
    ours = lm_eval_tasks.task_directory()
    assert seen == {"cache": "here", "include_path": [ours, str(folder)], "metadata": {"a": 1}, "seed": 3}
    TaskManager(include_path=[folder, "other"])
    assert seen["include_path"] == [ours, folder, "other"]
    TaskManager()
    assert seen["include_path"] == [ours]
    TaskManager(include_path=folder, include_defaults=False)
    assert seen["include_path"] == folder


def test_the_command_ends_with_the_message_of_an_error_of_the_user() -> None:
    lm_eval_command.install()

    def refuse(arguments: Namespace) -> None:
        raise arguments.error

    with pytest.raises(SystemExit, match=r"^Error: no such thing$"):
        HarnessCLI().execute(Namespace(func=refuse, error=EvaluationError("no such thing")))
    with pytest.raises(ZeroDivisionError):
        HarnessCLI().execute(Namespace(func=refuse, error=ZeroDivisionError()))


def test_the_model_is_in_the_registry() -> None:
    lm_eval_model.register()
    assert model_registry.get("mllm") is MLLM


# --------------------------------------------------------------------------------------------------- transformers


def test_the_auto_classes_know_omni_models() -> None:
    transformers_auto.register_config()
    transformers_auto.register_processor()
    assert AutoConfig.for_model(OmniConfig.model_type).__class__ is OmniConfig
    for auto in (AutoConfig, AutoProcessor):
        assert "exist_ok" in inspect.signature(auto.register).parameters


# ------------------------------------------------------------------------------------------------------- any host


def test_a_function_is_replaced_once() -> None:
    toy: Any = ModuleType("toy")
    toy.double = lambda value: 2 * value
    for _ in range(2):
        wrap(toy, "double", lambda original, value: original(value) + 1)
    assert toy.double(3) == 7
