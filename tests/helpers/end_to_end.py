"""What the end-to-end tests share: checkpoints of the zoo, merges by the stock command, and reading what is on disk.

Merges run in this process, because starting Python and importing torch takes longer than merging a toy. Run with
MERGEKIT_MM_AUTOLOAD=0 the same tests show what mergekit does without the plugin.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import inspect
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on disk; a look-up would only wait for the network

import pytest
import torch
import transformers
import yaml
import zoo
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

Tensors = dict[str, torch.Tensor]
WEIGHT = 0.3  # of each expert, in every task arithmetic

# ------------------------------------------------------------------------------------------------ checkpoints


@functools.cache
def workspace() -> Path:
    """A directory for this session's checkpoints. mergekit keeps every checkpoint it has read open, by path, for as
    long as the process lives: a path is never used twice."""
    root = Path(tempfile.mkdtemp(prefix="mergekit-mm-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def fresh(name: str = "checkpoint") -> Path:
    """A new path in the workspace, not existing yet."""
    return Path(tempfile.mkdtemp(dir=workspace())) / name


@functools.cache
def _zoo() -> Path:
    """Where the zoo is, for all processes of a run (`conftest.py`); a script outside of the suite has its own."""
    return Path(os.environ.get("MM_ZOO") or workspace())


@functools.cache
def _built(family: str) -> None:
    """Build a family, unless another process of this run has; one that is at it is waited for."""
    reason = zoo.FAMILIES[family].missing
    if reason:
        pytest.skip(reason)
    with (_zoo() / f"{family}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = _zoo() / f"{family}.built"
        if not built.exists():
            zoo.build(family, _zoo())
            built.touch()


def checkpoint(family: str, layout: str = "plain", tag: str = "base") -> Path:
    """One checkpoint of the zoo (`base` or `expert_0` ... `expert_2`), built when first asked for. Never written to."""
    _built(family)
    return _zoo() / layout / family / tag


def experts(family: str, layout: str = "plain") -> list[Path]:
    return [checkpoint(family, layout, f"expert_{i}") for i in range(zoo.N_EXPERTS)]


def every_layout() -> list[Any]:
    """(family, layout) for every family of the zoo, as pytest parameters."""
    return [
        pytest.param(f.name, layout, id=f"{f.name}-{layout}") for f in zoo.FAMILIES.values() for layout in f.layouts
    ]


def altered(source: Path, change: Callable[[Tensors], Tensors | None] | None = None, **config: Any) -> Path:
    """A copy of a checkpoint with tensors changed by `change` (in place, or returned), and config keys replaced."""
    path = fresh(source.name)
    shutil.copytree(source, path)
    if change:
        before = tensors(source)
        save_file(_own_storage(change(before) or before), path / "model.safetensors", metadata={"format": "pt"})
    if config:
        edit_json(path / "config.json", **config)
    return path


def without(source: Path, name: str) -> Path:
    return altered(source, lambda found: {k: v for k, v in found.items() if k != name})


def with_tensor(source: Path, name: str, value: torch.Tensor) -> Path:
    return altered(source, lambda found: {**found, name: value})


def _own_storage(found: Tensors) -> Tensors:
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


def sharded(source: Path, n_shards: int = 3) -> Path:
    """The same checkpoint in several files with an index."""
    path = altered(source)
    (path / "model.safetensors").unlink()
    found = tensors(source)
    parts: list[Tensors] = [{} for _ in range(n_shards)]
    for i, name in enumerate(sorted(found)):
        parts[i % n_shards][name] = found[name]
    weight_map: dict[str, str] = {}
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        save_file(_own_storage(part), path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def save_model(model: Any, name: str = "llm", vocab: int = zoo.VOCAB) -> Path:
    """Write a transformers model with a tokenizer, as `save_pretrained` does."""
    path = fresh(name)
    model.save_pretrained(path)
    zoo.tokenizer(vocab).save_pretrained(path)
    return path


def llama(seed: int, base: Path | None = None) -> Path:
    """A text-only LLaMA: of its own, or a fine-tune of `base` (0.01 of noise)."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**zoo.text("llama")))
    if base is not None:
        start = tensors(base)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(start[name] + 0.01 * torch.randn(tensor.shape))
    return save_model(model)


def tensors(path: Path) -> Tensors:
    """All tensors of a checkpoint by their names on disk; a name in two shards is an error."""
    found: Tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        part = load_file(file)
        assert not found.keys() & part.keys(), f"{file} repeats {sorted(found.keys() & part.keys())}"
        found |= part
    index = path / "model.safetensors.index.json"
    if index.exists():
        assert json.loads(index.read_text())["weight_map"].keys() == found.keys(), f"{index} is wrong"
    return found


def side_files(path: Path) -> dict[str, bytes]:
    """Everything of a checkpoint but its weights and what a merge writes anew."""
    own = {"config.json", "README.md", "mergekit_config.yml", "model.safetensors.index.json"}
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name not in own and f.suffix != ".safetensors"}


# ----------------------------------------------------------------------------------------------------- merges


def mergekit_yaml() -> Any:
    """The stock command. The start-up hook plugs in on import; without it (PYTHONPATH only) `register` does."""
    from mergekit.merge_methods import registered_methods
    from mergekit.scripts.run_yaml import main

    if os.environ.get("MERGEKIT_MM_AUTOLOAD") != "0" and "optmerge" not in {m.spec.name for m in registered_methods()}:
        import mergekit_mm.register  # noqa: F401
    return main


@dataclass(frozen=True)
class Outcome:
    """A run of `mergekit-yaml`: where it should have written, how it ended, and all that it said."""

    out: Path
    exit_code: int
    said: str  # console, log and warnings
    exception: BaseException | None
    console: str

    def __str__(self) -> str:
        return f"exit code {self.exit_code}\n{self.said[-6000:]}"

    @property
    def error(self) -> str:
        """What a failed run told its user."""
        assert self.exit_code != 0, f"this merge should have failed: {self}"
        return f"{self.console}\n{self.exception or ''}"

    @property
    def tensors(self) -> Tensors:
        return tensors(self.out)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def written(config: Mapping[str, Any] | str) -> Path:
    """A merge config, or its text, in a file."""
    path = fresh("config.yaml")
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False))
    return path


def run(config: Mapping[str, Any], *flags: str, out: Path | None = None) -> Outcome:
    """`mergekit-yaml config.yaml out/`, whatever comes of it."""
    main = mergekit_yaml()
    out, recipe = out or fresh("merged"), written(config)
    lines, root = _Lines(), logging.getLogger()
    before = root.level
    root.addHandler(lines)
    root.setLevel(min(before, logging.INFO))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = CliRunner().invoke(main, [str(recipe), str(out), *flags])
    finally:
        root.removeHandler(lines)
        root.setLevel(before)
    told = [result.output, *lines.lines, *(str(w.message) for w in caught), str(result.exception or "")]
    return Outcome(out, result.exit_code, "\n".join(told), result.exception, result.output)


def merge(config: Mapping[str, Any], *flags: str, out: Path | None = None) -> Outcome:
    """`run`, which has to end well."""
    outcome = run(config, *flags, out=out)
    if outcome.exit_code:
        raise AssertionError(f"merge failed: {outcome}") from outcome.exception
    return outcome


def refused(config: Mapping[str, Any], *named: str, flags: tuple[str, ...] = ()) -> Outcome:
    """`run`, which has to end in one message naming all of `named`, and leave nothing."""
    outcome = run(config, *flags)
    assert isinstance(outcome.exception, SystemExit), f"a traceback: {outcome.exception!r}"
    unnamed = [each for each in named if each not in outcome.error]
    assert not unnamed, f"the error does not name {unnamed}: {outcome.error}"
    assert "Traceback" not in outcome.console
    assert_nothing_left(outcome)
    return outcome


def plugin(*arguments: object) -> Result:
    """`mergekit-mm` with these arguments, whatever comes of it."""
    from mergekit_mm.cli import main

    return CliRunner().invoke(main, [str(each) for each in arguments])


def command(name: str, config: Mapping[str, Any], *flags: str) -> tuple[Path, Result]:
    """`mergekit-mm <name> config.yaml out/`, and where out is."""
    out = fresh("out")
    return out, plugin(name, written(config), out, *flags)


def checked(config: Mapping[str, Any]) -> str:
    """What `mergekit-mm check` says of a merge that would be done."""
    result = plugin("check", written(config))
    assert result.exit_code == 0, result.output
    return result.output


def notes(said: str, part: str) -> list[str]:
    """The notes of a report that hold some words."""
    return [line for line in said.splitlines() if line.lstrip().startswith("note:") and part in line]


def linear(*models: Path, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    return {"merge_method": "linear", "models": entries, **more}


def task_arithmetic(base: Path, others: Iterable[Path], weight: float = WEIGHT, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": weight}} for model in others]
    return {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries, "dtype": "float32", **more}


def with_method(method: str, base: Path, others: Iterable[Path], **more: Any) -> dict[str, Any]:
    """Any method with a base, at its defaults but for the weights and densities that mergekit insists on."""
    per_model = {"linear": {"weight": 1.0}, "task_arithmetic": {"weight": WEIGHT}}
    per_model["ties"] = {"weight": WEIGHT, "density": 0.6}
    entries: list[dict[str, Any]] = [{"model": str(model)} for model in others]
    if method == "linear":
        entries.append({"model": str(base)})  # which has a weight as well, there
    for entry in entries:
        if method in per_model:
            entry["parameters"] = per_model[method]
    return {"merge_method": method, "base_model": str(base), "models": entries, "dtype": "float32", **more}


def merge_in_memory(inputs: list[torch.Tensor], method: str, parameters: dict[str, Any], name: str) -> torch.Tensor:
    """One tensor merged by mergekit's own API; the last of the inputs is the base's."""
    mergekit_yaml()  # the plugin's methods are registered with it
    from mergekit.merge_methods import merge_tensors

    return merge_tensors(inputs, method, base_index=len(inputs) - 1, parameters=parameters, name=name)


# ----------------------------------------------------------------------------------------------------- oracle


def sum_of_deltas(base: Tensors, others: Iterable[Tensors], weight: float = WEIGHT) -> Tensors:
    """base + sum(weight x (expert - base)) in float64; equal values (infinite ones too) have no delta."""
    others = list(others)
    expected = {}
    for name, value in base.items():
        if value.is_floating_point():
            total = value.double()
            for other in others:
                total = total + torch.where(other[name] == value, 0.0, weight * (other[name].double() - value.double()))
            expected[name] = total
        else:
            expected[name] = value
    return expected


def mean(others: Iterable[Tensors]) -> Tensors:
    others = list(others)
    return {name: torch.stack([other[name].double() for other in others]).mean(0) for name in others[0]}


def assert_same_bytes(got: Tensors, expected: Tensors) -> None:
    """Same names, dtypes, shapes and bits."""
    assert_names(got, expected)
    wrong = [
        f"{name}: {got[name].dtype} {tuple(got[name].shape)} for {value.dtype} {tuple(value.shape)}"
        for name, value in expected.items()
        if got[name].dtype != value.dtype or got[name].shape != value.shape or _bits(got[name]) != _bits(value)
    ]
    assert not wrong, f"{len(wrong)} of {len(expected)} tensors differ: {wrong[:8]}"


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_names(got: Iterable[str], expected: Iterable[str]) -> None:
    lost, new = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    assert not lost + new, f"{len(lost)} tensors lost {lost[:8]}, {len(new)} new {new[:8]}"


def assert_close(got: Tensors, expected: Tensors, tolerance: float = 1e-5) -> None:
    """Same names, and the same values within `tolerance`; equal infinities are equal."""
    assert_names(got, expected)
    wrong = []
    for name, value in expected.items():
        assert got[name].shape == value.shape, f"{name}: {tuple(got[name].shape)} for {tuple(value.shape)}"
        if not torch.allclose(got[name].double(), value.double(), rtol=0, atol=tolerance):
            worst = (got[name].double() - value.double()).abs().max().item()
            wrong.append(f"{name} (off by {worst:.2g})")
    assert not wrong, f"{len(wrong)} of {len(expected)} tensors are wrong: {wrong[:8]}"


def assert_nothing_left(outcome: Outcome) -> None:
    """A failed merge leaves no directory that looks like a model, and nothing beside it."""
    left = sorted(path.name for path in outcome.out.rglob("*")) if outcome.out.exists() else []
    assert not [name for name in left if name == "config.json" or name.endswith((".safetensors", ".bin"))], left
    beside = {path.name for path in outcome.out.parent.iterdir()} - {outcome.out.name}
    assert not beside, f"left beside the output: {sorted(beside)}"


# ---------------------------------------------------------------------------------------------------- loading


def load(path: Path, cls: str) -> Any:
    """A model as transformers loads it, which must find every tensor it wants and want every tensor it finds."""
    model_class = getattr(transformers, cls)
    if cls == "Qwen2_5OmniForConditionalGeneration":  # transformers itself fails with output_loading_info here
        model: Any = model_class.from_pretrained(path)
    else:
        model, report = model_class.from_pretrained(path, output_loading_info=True)
        problems = {what: sorted(map(str, names))[:6] for what, names in report.items() if names}
        assert not problems, f"{path.name} does not load cleanly: {problems}"
    return model.eval()


def text_inputs(model: Any, family: str) -> dict[str, Any]:
    """A prompt without media; for a model that cannot do without an image, its media."""
    forward = inspect.signature(model.forward).parameters
    needed = [name for name, p in forward.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    media = zoo.FAMILIES[family].media
    return media() if needed and media else zoo.prompt(20, 30, 40, 50)


@torch.no_grad()
def logits(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    answering = getattr(model, "thinker", model)  # the full Qwen-Omni models speak through several models
    return answering(**inputs).logits
