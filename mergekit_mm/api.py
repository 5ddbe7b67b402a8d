"""What other programs and notebooks import: look at experts, plan, run, align and share a merge; write a method.

    from mergekit_mm.api import merge, plan

    planned = plan("merge_yamls/qwen2_vl_7b_optmerge.yaml")
    print(planned)  # The text of `mergekit-mm check`, without what the merge will take.
    print(planned["model.language_model.layers.0.mlp.up_proj.weight"])  # The plan of one tensor, with its reason.
    merge("merge_yamls/qwen2_vl_7b_optmerge.yaml", "out")

These names stay; everything else in the package may move between versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from pydantic import ValidationError

from mergekit_mm.analysis.result import Analysis
from mergekit_mm.errors import MergeError, UserError
from mergekit_mm.execution.estimate import plan_in_words
from mergekit_mm.execution.settings import from_environment
from mergekit_mm.hosts.registration import register_methods
from mergekit_mm.merge import plan_merge, run_multimodal_merge
from mergekit_mm.methods.apply import TaskVectorMethod, task_vector_method
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.plan.config import read_config
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.scope import is_planned_here
from mergekit_mm.plan.tensor_plan import TensorPlan

__all__ = [
    "Analysis",
    "MergeError",
    "MergePlan",
    "TaskVector",
    "TaskVectorMethod",
    "TensorPlan",
    "UserError",
    "align",
    "check",
    "inspect",
    "merge",
    "plan",
    "push",
    "task_vector_method",
]

Config = str | Path | Mapping[str, Any]


def plan(config: Config, **options: Any) -> MergePlan:
    """The plan of a merge, after a check that it ends in a model that loads. Headers and samples of values are read.

    Args:
        config: the path of a YAML file, a YAML text of more than one line, or a mapping with its content, in which
            models may be named by `Path`s.
        options: fields of mergekit's `MergeOptions`, such as `trust_remote_code` or `unsafe_truncate_embeddings`.

    Raises:
        MergeError: the merge would be refused.
    """
    parsed, source = _read(config)
    return plan_merge(parsed, _options(options), source)


def check(config: Config, **options: Any) -> str:
    """The plan as text, as `mergekit-mm check` prints it. Arguments and errors are those of `plan`."""
    return plan_in_words(plan(config, **options), from_environment().workers)


def merge(
    config: Config, out: str | Path, *, workers: int | None = None, restart: bool = False, **options: Any
) -> Path:
    """Run a merge; `out` appears only if all of it succeeds. Returns its path. Text-only merges are left to mergekit.

    A merge that was interrupted goes on where it was. Other arguments and errors are those of `plan`; `cuda`,
    `multi_gpu`, `out_shard_size` and `quiet` are options too.

    Args:
        workers: processes that merge at the same time; None to choose by cores and memory.
        restart: begin anew, whatever an interrupted merge has left.
    """
    parsed, source = _read(config)
    if is_planned_here(parsed):
        run_multimodal_merge(parsed, str(out), _options(options), source, from_environment(workers, restart))
    else:
        run_merge(parsed, str(out), _options(options), source)
    return Path(out)


def inspect(
    config: Config,
    layers: int | None = None,
    spectra: bool | None = None,
    losses: bool | None = None,
    methods: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> Analysis:
    """What can be said of the experts before the merge, from their weights, as `mergekit-mm inspect` does.

    `print` shows it as the command does; `mergekit_mm.analysis.as_json.as_json` makes data of it.

    Args:
        config, options: as of `merge`. The config has a base model.
        layers: look at so many of each stack, evenly spaced; by default at all.
        spectra, losses: whether to find these; by default, if they cost no more than some minutes.
        methods: whose losses, each as `METHOD[:PARAMETER=VALUE]...`.
        tell: takes a line on what is left out, with its cost.

    Raises:
        MergeError: the merge would be refused, or it has no base model or no expert.
    """
    from mergekit_mm.analysis.run import Settings
    from mergekit_mm.analysis.run import inspect as run_inspect

    parsed, source = _read(config)
    settings = Settings(layers, spectra, losses, tuple(methods))
    return run_inspect(parsed, source, _options(options), settings, tell or (lambda line: None))


def align(
    config: Config,
    out: str | Path,
    samples: str | Path,
    settings: Mapping[str, Any] | None = None,
    work: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> Path:
    """Merge, and improve the merge by unlabelled samples, as `mergekit-mm align` does. Returns the path of the output.

    Args:
        config, options: as of `merge`.
        samples: a JSONL file, as the command reads it.
        settings: fields of `mergekit_mm.align.settings.Settings` by name, and `preset`.
        work: the folder for what is kept until `out` is there, which then stays; by default one beside `out`, which
            does not.
        tell: takes the lines that tell how it goes.

    Raises:
        MergeError: the merge would be refused, samples do not fit, or a model cannot be loaded. UserError: also for a
            model that does not take a sample's media.
    """
    # Local imports: they bring PEFT and lm-eval, which nothing else here needs.
    from mergekit_mm.align import run
    from mergekit_mm.align.samples import read_samples
    from mergekit_mm.align.settings import Settings

    parsed, source = _read(config)
    run.align(
        parsed,
        Path(out),
        _options(options),
        Settings.of(**(settings or {})),
        read_samples(Path(samples)),
        source,
        None if work is None else Path(work),
        tell or (lambda line: None),
    )
    return Path(out)


def push(
    out: str | Path,
    repo: str,
    *,
    public: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    report: str | Path | None = None,
    quiet: bool = False,
    tell: Callable[[str], None] | None = None,
) -> str:
    """Upload an output to the hub, as `mergekit-mm push` does; the token is the one of `huggingface_hub`.

    Args:
        out: a merged model or adapter.
        repo: `ORG/NAME`, which is made if it is not there: private, unless `public`.
        revision: the branch; one that is not there is made.
        overwrite: whether to replace what the repository holds.
        report: a folder that `mergekit-mm report --out` wrote, whose table and figure the card gets.
        quiet: show no progress.
        tell: takes the lines that tell what is done.

    Returns:
        The address of the model.

    Raises:
        MergeError: `out` is not finished, the token may not write, the repository holds something else, or the hub
            cannot be reached.
    """
    from mergekit_mm.share.destination import prepare
    from mergekit_mm.share.folder import require_finished
    from mergekit_mm.share.upload import upload

    out, report = Path(out), None if report is None else Path(report)
    require_finished(out, report)
    destination = prepare(repo, revision, public, overwrite)
    return upload(out, destination, report, quiet, tell or (lambda line: None))


def _read(config: Config) -> tuple[MergeConfiguration, str]:
    """The parsed config, and its YAML text. MergeError if it cannot be read, or is no merge config."""
    register_methods()
    if isinstance(config, Mapping):
        source, name = _as_yaml(config), "the mapping"
    elif isinstance(config, str) and "\n" in config:
        source, name = config, "the text"
    else:
        name = str(config)
        try:
            source = Path(config).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: it is no text, or no path
            raise MergeError(f"{name} cannot be read: {error}") from error
    return read_config(source, name), source


def _as_yaml(config: Mapping[str, Any]) -> str:
    try:
        return yaml.dump(dict(config), Dumper=_PathsAsText, sort_keys=False)
    except yaml.YAMLError as error:
        raise MergeError(f"the mapping is no merge config: {': '.join(map(str, error.args))}") from error


class _PathsAsText(yaml.SafeDumper):
    """Writes paths, which a mapping may name models by, as a file would have them."""


_PathsAsText.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def _options(options: Mapping[str, Any]) -> MergeOptions:
    """The options as mergekit has them. MergeError for an option that mergekit does not know."""
    if unknown := sorted(options.keys() - MergeOptions.model_fields.keys()):
        known = ", ".join(MergeOptions.model_fields)
        raise MergeError(f"Unknown option {unknown[0]!r}; those of mergekit are {known}.")
    try:
        return MergeOptions(**options)
    except ValidationError as error:
        found = error.errors()[0]
        raise MergeError(f"Option {found['loc'][0]}: {found['input']!r} will not do: {found['msg']}.") from error
