"""The data sets of the tasks: on the Hub, in a local mirror in `MLLM_EVAL_DATA`, or in a file or folder on disk."""

import base64
import csv
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.errors import HfHubHTTPError

from mergekit_mm.errors import EvaluationError

HUB_ERRORS = HfHubHTTPError.__bases__  # OSError, and the error of the HTTP library that huggingface_hub uses
_SHARD = re.compile(r"-\d{5}-of-(\d{5})(?:-[0-9a-f]+)?$")

_OPTIONS = (  # of the tasks, by --metadata
    *("prompt_style", "box_unit", "judge", "sources", "num_frames", "missing"),
    "data_split",
)


class DataNotFound(EvaluationError, FileNotFoundError):
    """A data set, or a part of one, cannot be found or downloaded."""


_gathered: ContextVar[list[EvaluationError] | None] = ContextVar("_gathered", default=None)


@contextmanager
def gathered() -> Iterator[None]:
    """While open, a loader without its data does not stop the others; one error at the end names all such data sets."""
    token = _gathered.set([])
    try:
        yield
        errors = _gathered.get()
    finally:
        _gathered.reset(token)
    texts = list(dict.fromkeys(str(error) for error in errors or ()))
    if len(texts) == 1 and errors:
        raise errors[0]
    if texts:
        raise DataNotFound("\n".join([f"The data of {len(texts)} tasks cannot be had:", *texts]))


def loader(load: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that lm-eval calls as `custom_dataset`.

    `gathered` collects its missing data. The option `data_split` names the split that is read in the place of the one
    that the task's file names; the documents are then there under both names, `test` and that of the split.

    EvaluationError: the data are one file, which has no splits.
    """

    @wraps(load)
    def loaded(*, data_split: str | None = None, **given: Any) -> Any:
        if data_split is not None:
            _require_splits(data_split, given)
            given["split"] = data_split
        try:
            found = load(**given)
        except DataNotFound as error:
            errors = _gathered.get()
            if errors is None:
                raise
            errors.append(error)
            stand_in = {"prompt": "", "answer": "", "image": None}  # lm-eval goes on to the next task with it
            found = {"test": datasets.Dataset.from_list([stand_in])}
        if data_split is not None:
            found[data_split] = found["test"]
        return found

    return loaded


def _require_splits(data_split: str, given: Mapping[str, Any]) -> None:
    name, path = local_path(given["source"], given.get("sources"))
    if file := given.get("file") or (name if name.endswith(".tsv") or (path is not None and path.is_file()) else None):
        raise EvaluationError(f"{file} is one file without splits, so no split {data_split!r} can be read from it.")


def refuse_misspelt(names: Iterable[str]) -> None:
    """ValueError: a name is nearly that of an option. lm-eval hands over all metadata, and nobody else would notice."""
    for name in names:
        near = get_close_matches(name, _OPTIONS, n=1, cutoff=0.85)
        if near and name not in _OPTIONS:
            raise ValueError(f"metadata {name!r} is no option of the tasks: {near[0]!r} is")


def local_path(source: str, sources: Mapping[str, str] | None = None) -> tuple[str, Path | None]:
    """The name of a source after renaming, and its path on disk; the path is None for a source on the Hub.

    sources: new names of sources (`--metadata '{"sources": {"lmms-lab/ChartQA": "me/ChartQA"}}'`). A name that is an
    existing path is this path. For any other name the path is `$MLLM_EVAL_DATA/<source>` if the variable is set,
    whether or not such a path exists.
    """
    source = (sources or {}).get(source, source)
    if Path(source).expanduser().exists():
        return source, Path(source).expanduser()
    mirror = os.environ.get("MLLM_EVAL_DATA")
    return source, Path(mirror).expanduser() / source if mirror else None


def read_table(
    source: str, split: str, config: str | None = None, sources: Mapping[str, str] | None = None
) -> datasets.Dataset:
    """One split of a data set.

    A local folder is laid out as on the Hub: parquet files whose names start with the split, in a folder of the name
    `config` or with names that start with it, if there is a config. A local file may be parquet or a TSV of VLMEvalKit.

    DataNotFound, a FileNotFoundError: the message names the folder, and the command that fills it.
    """
    name, path = local_path(source, sources)
    if path is None:
        if name.endswith(".tsv"):
            raise DataNotFound(f"{name} is no data set of the Hub. {_advice(name)}")
        return _from_hub(name, config, split)
    if not path.exists():
        raise DataNotFound(f"{path} does not exist. {_advice(name)}")
    if path.suffix == ".tsv":
        return datasets.Dataset.from_list(list(read_tsv(path)))
    files = [path] if path.is_file() else _split_files(path, split, config, name)
    if not files:
        where = f"config {config}, " if config else ""
        raise DataNotFound(f"{path} has no parquet file of {where}split {split}. {_advice(name)}")
    return datasets.load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)


def _from_hub(name: str, config: str | None, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, config, split=split)
    except (*HUB_ERRORS, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        told = f"{name} (split {split}) cannot be had from the hub: {reason}"
        raise DataNotFound(
            f"{told.rstrip('.')}. From a local mirror: MLLM_EVAL_DATA names a folder. {_advice(name)}"
        ) from None


def _split_files(folder: Path, split: str, config: str | None, source: str) -> list[Path]:
    """The files of a split; an empty list if there are none.

    DataNotFound: some of its shards are missing, as after an interrupted download. ValueError: the folder has the split
    more than once.
    """
    files = sorted(folder.rglob("*.parquet"))
    if config:
        files = [file for file in files if config in file.relative_to(folder).parts or _starts(file, config)]
    files = [file for file in files if _starts(file, split)]
    sets: dict[str, list[Path]] = {}
    for file in files:
        sets.setdefault(str(file.parent / _SHARD.sub("", file.stem)), []).append(file)
    if len(sets) > 1:
        raise ValueError(f"{folder} has split {split} more than once: {', '.join(sorted(sets))}. Keep one of them")
    if (shard := _SHARD.search(files[0].stem) if files else None) and len(files) != int(shard[1]):
        raise DataNotFound(
            f"{files[0].parent} has {len(files)} of the {int(shard[1])} files of split {split}. {_advice(source)}"
        )
    return files


def _starts(file: Path, name: str) -> bool:
    """Whether a file belongs to a split: `test-00000-of-00001.parquet` to `test`, but not `testmini.parquet`."""
    return file.stem.startswith(name) and file.stem[len(name) : len(name) + 1] in ("", "-", "_", ".")


def _advice(source: str) -> str:
    root = "$MLLM_EVAL_DATA"
    if source.endswith(".tsv"):
        url = f"https://opencompass.openxlab.space/utils/VLMEval/{Path(source).name}"
        advice = f"MLLM_EVAL_DATA must name a folder that holds it: curl -o {root}/{Path(source).name} {url}"
        return advice + (" ; or run the task mllm_ocrvqa_test instead" if "OCRVQA" in source else "")
    return f"Fill it by: hf download --repo-type dataset {source} --local-dir {root}/{source}"


def read_tsv(path: Path) -> Iterable[dict[str, Any]]:
    """The rows of a TSV of VLMEvalKit, with all columns as texts and `image` as bytes.

    An image is written in base64, or as the `index` of another row that has the image.

    ValueError: the image of a row is missing; the message names the row.
    """
    csv.field_size_limit(sys.maxsize)  # one field holds a whole image
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    encoded = {row["index"]: row["image"] for row in rows}
    for row in rows:
        text = row["image"]
        # VLMEvalKit's own test: an image is longer than an index.
        text = encoded.get(text, "") if len(text) <= 64 else text
        if len(text) <= 64:
            raise ValueError(f"{path}: row {row['index']} has no picture: {row['image']!r} is not the index of one")
        yield {**row, "image": {"bytes": base64.b64decode(text), "path": None}}
