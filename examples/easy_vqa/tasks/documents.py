"""The documents of this example's tasks, which lm-eval finds by `--include_path examples/easy_vqa/tasks`."""

import random
from collections.abc import Sequence

import datasets

_SHAPES = ("circle", "rectangle", "triangle")
_YES_NO = ("yes", "no")


def easy_vqa(
    *, kind: str, split: str = "test", images: Sequence[int] | None = None, **_: object
) -> dict[str, datasets.Dataset]:
    """The questions of the package `easy-vqa` of one `kind`: `color`, `shape` or `yesno`.

    split: the package's, `test` or `train`. images: the number of the first image and that of the one after the last;
    the example keeps the questions about some training images to choose settings on. The order is random, and always
    the same, so that `--limit` takes a sample.

    ImportError: the package is not installed.
    """
    try:
        import easy_vqa as package
    except ImportError as error:
        raise ImportError("the questions are in a package: pip install easy-vqa") from error
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


def _kind(answer: str) -> str:
    if answer in _YES_NO:
        return "yesno"
    return "shape" if answer in _SHAPES else "color"
