"""Documents of the demo tasks, for the small models that this project trains (`examples/`)."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from pyarrow import parquet

from mergekit_mm.evaluation.tasks.sources import DataNotFound, loader, local_path

_SHAPES = ("circle", "rectangle", "triangle")
_YES_NO = ("yes", "no")
_NAMES = {"image": "image", "audio": "sound", "video": "video"}  # as the models of examples/omni know them


def easy_vqa(
    *, kind: str, split: str = "test", images: Sequence[int] | None = None, **_: object
) -> dict[str, datasets.Dataset]:
    """The questions of the package `easy-vqa` of one `kind`: `color`, `shape` or `yesno`.

    `split` is the package's, `test` or `train`, `images` the first image and the one after the last: the example keeps
    some of those for training to choose settings on. The order is random, and always the same, so that `--limit` takes
    a sample. ImportError: the package is not there.
    """
    try:
        import easy_vqa as package
    except ImportError as error:
        raise ImportError("the demo's questions are in a package: pip install easy-vqa") from error
    read = package.get_test_questions if split == "test" else package.get_train_questions
    paths = package.get_test_image_paths() if split == "test" else package.get_train_image_paths()
    first, end = images or (0, len(paths))
    rows = [row for row in zip(*read(), strict=True) if _kind(row[1]) == kind and first <= row[2] < end]
    random.Random(f"0 {kind}").shuffle(rows)
    documents = [
        {"prompt": f"<image>{text}", "answer": answer, "image": {"path": paths[number], "bytes": None}}
        for text, answer, number in rows
    ]
    return {"test": datasets.Dataset.from_list(documents)}


@loader
def omni(
    *,
    source: str,
    split: str,
    shown: Sequence[str] | None = None,
    sources: Mapping[str, str] | None = None,
    **_: object,
) -> dict[str, datasets.Dataset]:
    """The questions that examples/omni writes: `question`, `answer`, `media` in their order, and each of these.

    `shown`: the media that the model takes (default: all); it is asked the same questions without the others.
    """
    folder = local_path(source, sources)[1]
    file = (folder or Path(source)) / f"{split}.parquet"
    if not file.is_file():
        raise DataNotFound(
            f"{file} does not exist. `python examples/omni/run.py` writes it to out/omni/questions/{source}; "
            "MLLM_EVAL_DATA=out/omni/questions leads there"
        )
    documents = []
    for row in parquet.read_table(file).to_pylist():  # datasets would keep a copy in its cache
        media = [medium for medium in row["media"] if shown is None or medium in shown]
        prompt = "".join(f"{_NAMES[medium]}:<{medium}>" for medium in media) + row["question"]
        found = {medium: row[medium] if medium in media else None for medium in _NAMES}
        if found["video"]:
            found["video"] = {"path": None, "frames": found["video"]}
        documents.append({"prompt": prompt, "answer": row["answer"], **found})
    return {"test": datasets.Dataset.from_list(documents)}


def _kind(answer: str) -> str:
    if answer in _YES_NO:
        return "yesno"
    return "shape" if answer in _SHAPES else "color"
