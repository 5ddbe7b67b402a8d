"""The documents of this example's tasks, which lm-eval finds by `--include_path examples/omni/tasks`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from pyarrow import parquet

from mergekit_mm.evaluation.tasks.sources import DataNotFound, loader, local_path

_NAMES = {"image": "image", "audio": "sound", "video": "video"}  # the models' words for the modalities


@loader
def omni(
    *,
    source: str,
    split: str,
    shown: Sequence[str] | None = None,
    sources: Mapping[str, str] | None = None,
    **_: object,
) -> dict[str, datasets.Dataset]:
    """The questions in <source>/<split>.parquet, which this example's run.py writes.

    A row has `question`, `answer`, `media` (the modalities in the order in which they are shown) and the media
    themselves. shown: the modalities that the model takes, by default all; the media of other modalities are left out
    of the same questions.

    DataNotFound: the file does not exist.
    """
    folder = local_path(source, sources)[1]
    file = (folder or Path(source)) / f"{split}.parquet"
    if not file.is_file():
        raise DataNotFound(
            f"{file} does not exist. `python -m examples.omni.run` writes it to out/omni/questions/{source}; "
            "MLLM_EVAL_DATA=out/omni/questions leads there"
        )
    documents = []
    for row in parquet.read_table(file).to_pylist():  # load_dataset would keep a copy in its cache
        media = [medium for medium in row["media"] if shown is None or medium in shown]
        prompt = "".join(f"{_NAMES[medium]}:<{medium}>" for medium in media) + row["question"]
        found = {medium: row[medium] if medium in media else None for medium in _NAMES}
        if found["video"]:
            found["video"] = {"path": None, "frames": found["video"]}
        documents.append({"prompt": prompt, "answer": row["answer"], **found})
    return {"test": datasets.Dataset.from_list(documents)}
