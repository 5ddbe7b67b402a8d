"""A bug ends in a traceback and a request for a report; what the user can mend is one line that names the file."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from added_methods import added
from click.testing import CliRunner
from end_to_end import (
    altered,
    assert_nothing_left,
    checkpoint,
    experts,
    fresh,
    linear,
    mergekit_yaml,
    plugin,
    refused,
    run,
    save_model,
    task_arithmetic,
    with_method,
    with_tensor,
    written,
)
from forks import program
from mergekit import merge_methods
from mergekit.merge_methods import InputContract, TensorGroup, merge_method

import mergekit_mm
from mergekit_mm.commands.common import reported
from mergekit_mm.methods.apply import task_vector_method

BUG = "This is a bug of mergekit-mm or of a package that it uses"


def dividing_by_zero(task_vectors: Any) -> Any:
    return 1 / 0


def unequal_zip(task_vectors: Any) -> Any:
    return list(zip([1], [1, 2], strict=True))


def always_wrong(task_vectors: Any, limit: float = 1.0) -> Any:
    """No value of its parameters is at fault, all being its defaults."""
    raise ValueError("a slip of the pen")


@pytest.mark.parametrize(
    ("solve", "kind"), [(dividing_by_zero, ZeroDivisionError), (unequal_zip, ValueError), (always_wrong, ValueError)]
)
def test_a_bug_of_a_method_is_a_traceback_with_a_request_for_a_report(solve: Any, kind: type[Exception]) -> None:
    with added(task_vector_method(f"broken_{solve.__name__}", "Broken", "")(solve)) as name:
        outcome = run(with_method(name, checkpoint("llava"), experts("llava")))
    assert type(outcome.exception) is kind
    notes = getattr(outcome.exception, "__notes__", [])
    assert len(notes) == 1
    assert notes[0].startswith(BUG)
    assert f"mergekit-mm {mergekit_mm.__version__}, mergekit 0.1" in notes[0]
    assert_nothing_left(outcome)


def not_negative(limit: float) -> None:
    if limit < 0:
        raise ValueError("limit must not be negative")


def narrow(task_vectors: Any, limit: float = 1.0) -> Any:
    not_negative(limit)
    return task_vectors[0]


def never_run(task_vectors: Any, limit: float = 1.0) -> Any:
    raise AssertionError("a value that is refused must be refused before any matrix is solved")


@pytest.mark.parametrize(("solve", "validate"), [(narrow, None), (never_run, not_negative)])
def test_a_value_that_a_method_of_another_package_refuses_is_one_line(solve: Any, validate: Any) -> None:
    """Before any work by its `validate`; without one, on the first matrix."""
    with added(task_vector_method("narrow", "Narrow", "", validate=validate)(solve)) as name:
        config = {**with_method(name, checkpoint("llava"), experts("llava")), "parameters": {"limit": -1.0}}
        refused(config, "narrow: limit must not be negative")
        checked = plugin("check", written(config))
    assert checked.exit_code == (1 if validate else 0)
    assert ("narrow: limit must not be negative" in checked.output) == bool(validate)


def test_a_mistake_in_a_validation_is_a_traceback() -> None:
    """It refuses the defaults, as which no value of the user's is at fault."""
    with added(task_vector_method("strict", "Strict", "", validate=lambda limit: not_negative(-limit))(narrow)) as name:
        outcome = run(with_method(name, checkpoint("llava"), experts("llava")))
    assert type(outcome.exception) is ValueError
    assert_nothing_left(outcome)


def test_a_bug_in_a_method_written_for_mergekit_itself() -> None:
    @merge_method(name="host_broken", contract=InputContract(min_inputs=1))
    def broken(group: TensorGroup) -> torch.Tensor:
        raise ValueError("not what anybody asked for")

    merge_methods.register(broken)
    try:
        outcome = run({"merge_method": "host_broken", "models": [{"model": str(m)} for m in experts("llava")]})
    finally:
        del merge_methods.registry._METHODS["host_broken"]
    assert isinstance(outcome.exception, ValueError)
    assert BUG in outcome.exception.__notes__[0]
    assert_nothing_left(outcome)


@pytest.mark.slow
def test_what_is_printed_of_a_bug() -> None:
    """The traceback, and below it the one line, from an interpreter that ends by it."""
    config = written(with_method("optmerge", checkpoint("llava"), experts("llava")))
    script = (
        "import sys, mergekit_mm.register, mergekit_mm.tasks.reading as module\n"
        "from mergekit.scripts.run_yaml import main\n"
        "module.InputTasks.one = lambda *args: list(zip([1], [], strict=True))\n"
        f"main([{str(config)!r}, {str(fresh('out'))!r}])\n"
    )
    done = program([sys.executable, "-c", script])
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.count(BUG) == 1
    assert done.stderr.rindex(BUG) > done.stderr.index("zip() argument 2 is shorter")


# --------------------------------------------------------------------------------------- what the user can mend


def antipodal() -> dict[str, Any]:
    """Four vectors that cancel under equal weights, which multislerp cannot interpolate."""
    turned = []
    for index, value in ((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0)):
        unit = torch.zeros(64)
        unit[index] = value
        turned.append(with_tensor(checkpoint("llava"), "language_model.model.norm.weight", unit))
    return {**linear(*turned), "merge_method": "multislerp"}


def tokens_of_nobody() -> dict[str, Any]:
    base, expert = checkpoint("llava"), experts("llava")[0]
    source = {"kind": "model_token", "model": str(expert), "token": "<not there>"}
    section = {"source": "base", "tokens": {"<new>": {"source": source}}}
    return {**task_arithmetic(base, [expert]), "tokenizer": section}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (antipodal, "multislerp cannot merge"),
        (tokens_of_nobody, "has no token '<not there>'"),
        (
            lambda: {**with_method("della", checkpoint("llava"), experts("llava")), "parameters": {"density": 0.05}},
            "epsilon",
        ),
        (lambda: {**linear(*experts("llava")), "chat_template": "nonsense"}, "chat_template: Invalid chat template"),
    ],
)
def test_what_mergekit_refuses_is_one_line(config: Any, told: str) -> None:
    recipe = config()
    for entry in recipe["models"]:
        entry.setdefault("parameters", {}).setdefault("weight", 1.0)
    refused(recipe, told)


def test_what_lies_between_the_values_of_a_gradient() -> None:
    """Both ends are whole numbers, but on a layer in between the gradient is none."""
    config = zoo.FAMILIES["gemma4"].config()
    config.text_config.hidden_size_per_layer_input = config.text_config.num_kv_shared_layers = 0
    base = save_model(transformers.Gemma4ForConditionalGeneration(config))
    expert = altered(base, lambda found: {k: v + 0.01 if v.is_floating_point() else v for k, v in found.items()})
    recipe = with_method("optmerge", base, [expert])
    refused({**recipe, "parameters": {"iterations": [0, 4]}}, "optmerge: a gradient of", "which will not do")


def test_slices_of_unlike_lengths_are_named() -> None:
    base, expert = checkpoint("llava"), experts("llava")[0]
    sources = [{"model": str(base), "layer_range": [0, 2]}, {"model": str(expert), "layer_range": [0, 1]}]
    config = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1.0}}
    refused(config, f"[0, 2] of {base}, [0, 1] of {expert}", "same number of layers")


def test_a_tokenizer_that_cannot_be_loaded_is_named() -> None:
    broken = altered(checkpoint("llava"))
    (broken / "tokenizer.json").write_text('{"version": "1.0"}')
    refused(
        {**task_arithmetic(broken, experts("llava")), "chat_template": "chatml"}, f"{broken}/tokenizer.json: damaged"
    )
    told = f"The tokenizer of {broken} cannot be loaded"
    refused({**task_arithmetic(broken, experts("llava")), "tokenizer": {"source": "base"}}, told)


@pytest.mark.parametrize("flags", [(), ("--no-safe-serialization",), ("--async-write",)])
def test_a_file_that_cannot_be_written_to_its_end_is_named(flags: tuple[str, ...]) -> None:
    """As on a full disk: the system takes no file of more than a few bytes."""
    config, limits = task_arithmetic(checkpoint("llava"), experts("llava")), resource.getrlimit(resource.RLIMIT_FSIZE)
    mergekit_yaml()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        outcome = run(config, "--quiet", *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(outcome.exception, SystemExit), repr(outcome.exception)
    assert outcome.console.startswith("Error: File too large: ")
    assert "model.safetensors" in outcome.console
    assert_nothing_left(outcome)


def test_an_output_path_that_no_file_system_takes() -> None:
    config = written(task_arithmetic(checkpoint("llava"), experts("llava")))
    long, below_a_file = fresh("y" * 300), fresh("file") / "out"
    below_a_file.parent.write_text("a file")
    for out, told in ((long, "File name too long"), (below_a_file, "is a file")):
        result = CliRunner().invoke(mergekit_yaml(), [str(config), str(out), "--quiet"])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert told in result.output


# ------------------------------------------------------------------------------------------- --verbose and --debug


COMMANDS = ["check", "doctor", "inspect", "lora", "report", "sweep"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_same_two_options(command: str) -> None:
    told = plugin(command, "--help").output
    assert "-v, --verbose" in told
    assert "--debug" in told


def test_debug_shows_the_traceback_of_a_refusal_and_its_cause() -> None:
    level = logging.getLogger().level
    damaged = altered(checkpoint("llava"))
    (damaged / "config.json").write_text("{")
    plain = plugin("inspect", damaged)
    assert plain.exit_code == 1
    assert "Traceback" not in plain.output
    detailed = plugin("inspect", damaged, "--debug")
    assert detailed.exit_code == 1
    assert logging.getLogger().level == level, "the next command of this process tells no more than it is asked"
    assert "JSONDecodeError" in detailed.output
    assert "direct cause" in detailed.output
    assert detailed.output.rstrip().endswith(plain.output.rstrip()), "the one line stands last"


@pytest.mark.parametrize(("verbosity", "levels"), [(0, "warning"), (1, "warning info"), (2, "warning info debug")])
def test_verbose_is_the_level_of_information(verbosity: int, levels: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = logging.getLogger("a.module")
    with reported(verbosity, None):
        module.debug("debug")
        module.info("info")
        module.warning("warning")
    shown = capsys.readouterr().err.splitlines()
    assert {line.rpartition(" ")[2] for line in shown} == set(levels.split())
    assert shown[-1] == "warning: warning"


@pytest.mark.slow
def test_the_stock_command_shows_it_at_vv() -> None:
    damaged = altered(checkpoint("llava"))
    (damaged / "config.json").write_text("{")
    script = Path(sys.executable).with_name("mergekit-yaml")
    command = [script, written(task_arithmetic(damaged, experts("llava"))), fresh("out"), "-vv"]
    done = program(command)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert BUG not in done.stderr
