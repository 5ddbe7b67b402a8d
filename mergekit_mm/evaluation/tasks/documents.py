"""The documents of the image tasks: one function per data set, which lm-eval calls as `custom_dataset`.

A function takes the keys of the YAML's `dataset_kwargs` (`source`, `split`, `config`) and, from the metadata,
`prompt_style`, `box_unit`, `judge`, `sources` and `data_split`; other metadata is ignored. It returns
`{"test": documents}`; a document has `prompt`, `answer` (a text), `image` and the fields that its metric needs. Images
are not decoded, and questions about one image share its bytes.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import datasets

from mergekit_mm.evaluation.tasks import prompts
from mergekit_mm.evaluation.tasks.boxes import check_unit
from mergekit_mm.evaluation.tasks.judge import check as check_judge
from mergekit_mm.evaluation.tasks.options import option_letter
from mergekit_mm.evaluation.tasks.short_answers import as_list
from mergekit_mm.evaluation.tasks.sources import loader, read_table, refuse_misspelt

Rows = list[dict[str, Any]]
Documents = dict[str, datasets.Dataset]
_MARK = "<image>"  # the placeholder at the beginning of every prompt
_GEOMETRY_SUBJECTS = ("metric geometry - angle", "metric geometry - area", "metric geometry - length", "solid geometry")


def _table(given: Mapping[str, Any]) -> datasets.Dataset:
    refuse_misspelt(given.keys() - {"source", "split", "config", "images_config"})
    return read_table(**{key: given[key] for key in ("source", "split", "config", "sources") if key in given})


def _rows(table: datasets.Dataset, *columns: str) -> Rows:
    return table.select_columns(list(columns)).to_list()


def with_images(rows: Rows, table: datasets.Dataset, column: str = "image") -> Documents:
    """`rows` as documents, each of which gets its `image` whenever it is read.

    The image is in `column` of the row of `table` whose number the document has as `picture`, by default the row in the
    same place. A word such as <video> in the data is marked as a word, so that it is no placeholder.
    """
    pictures = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    numbered = [{**row, "picture": row.get("picture", at)} for at, row in enumerate(rows)]
    for row in numbered:
        mark, text = row["prompt"][: len(_MARK)], row["prompt"][len(_MARK) :]
        row["prompt"] = mark + prompts.as_words(text)
    documents = datasets.Dataset.from_list(numbered)
    return {"test": documents.with_transform(_WithImages(pictures, column))}


class _WithImages:
    """Adds `image` to a batch of documents; the last 512 images are kept, as several questions share an image."""

    def __init__(self, pictures: datasets.Dataset, column: str) -> None:
        self.fetch: Callable[[int], Any] = lru_cache(maxsize=512)(lambda at: pictures[at][column])

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [self.fetch(at) for at in batch["picture"]]}


@loader
def vqa(*, prompt_style: str = "default", **given: Any) -> Documents:
    """VizWiz and TextVQA: each question has ten answers, and the most frequent one is the `answer`."""
    table = _table(given)
    rows: Rows = []
    for row in _rows(table, "question", "answers"):
        answers = as_list(row["answers"])
        prompt = prompts.short_answer(row["question"], prompt_style)
        rows.append({"prompt": prompt, "answers": answers, "answer": Counter(answers).most_common(1)[0][0]})
    return with_images(rows, table)


@loader
def gqa(*, images_config: str, prompt_style: str = "default", **given: Any) -> Documents:
    """GQA: the questions of one config of the data set, with the images of another."""
    table, pictures = _table(given), _table({**given, "config": images_config})
    place = {name: at for at, name in enumerate(pictures["id"])}
    rows = _rows(table, "question", "answer", "imageId")
    lost = sorted({row["imageId"] for row in rows} - place.keys())
    if lost:
        raise ValueError(f"{images_config} lacks {len(lost)} pictures that the questions name, first {lost[0]}")
    documents = [
        {**row, "prompt": prompts.short_answer(row["question"], prompt_style), "picture": place[row["imageId"]]}
        for row in rows
    ]
    return with_images(documents, pictures)


@loader
def chartqa(*, prompt_style: str = "default", **given: Any) -> Documents:
    """ChartQA: `type` distinguishes questions written by people (`human_test`) from generated ones."""
    table = _table(given)
    rows = _rows(table, "type", "question", "answer")
    return with_images([{**row, "prompt": prompts.short_answer(row["question"], prompt_style)} for row in rows], table)


@loader
def ocrvqa(*, prompt_style: str = "default", **given: Any) -> Documents:
    """OCR-VQA: one question per row (VLMEvalKit's TSV), or lists of questions and answers per image."""
    table = _table(given)
    if "questions" not in table.column_names:
        asked = [(at, row["question"], row["answer"]) for at, row in enumerate(_rows(table, "question", "answer"))]
    else:
        asked = [
            (at, question, answer)
            for at, row in enumerate(_rows(table, "questions", "answers"))
            for question, answer in zip(row["questions"], row["answers"], strict=True)
        ]
    rows = [
        {"prompt": prompts.short_answer(text, prompt_style), "question": text, "answer": str(answer), "picture": at}
        for at, text, answer in asked
    ]
    return with_images(rows, table)


@loader
def mathvista(
    *, geometry: bool = False, prompt_style: str = "default", judge: Mapping[str, str] | None = None, **given: Any
) -> Documents:
    """MathVista: the prompt is the data's `query`. geometry: only the paper's three categories, which overlap."""
    check_judge(judge)
    table = _table(given)
    columns = ("pid", "query", "choices", "answer", "question_type", "answer_type", "precision", "metadata")
    rows: Rows = []
    for at, row in enumerate(_rows(table, *columns)):
        categories = _mathvista_categories(row.pop("metadata"))
        if geometry and not categories:
            continue
        row["choices"] = choices = list(row["choices"] or [])
        row["answer_option"] = option_letter(row["answer"], choices) if choices else None
        row["prompt"] = prompts.mathematics(row.pop("query"), (), prompt_style)
        rows.append({**row, "categories": categories, "judge": judge, "picture": at})
    return with_images(rows, table, "decoded_image")


def _mathvista_categories(metadata: Mapping[str, Any]) -> list[str]:
    skills = [each for each in ("geometry reasoning", "algebraic reasoning") if each in metadata["skills"]]
    task = metadata["task"] == "geometry problem solving"
    return [each.replace(" ", "_") for each in [*skills, *(["geometry problem solving"] if task else [])]]


@loader
def mathvision(
    *, geometry: bool = False, prompt_style: str = "default", judge: Mapping[str, str] | None = None, **given: Any
) -> Documents:
    """MATH-Vision: the prompt has question and options. geometry: only the paper's four subjects."""
    check_judge(judge)
    table = _table(given)
    rows: Rows = []
    for at, row in enumerate(_rows(table, "id", "question", "options", "answer", "subject")):
        if geometry and row["subject"] not in _GEOMETRY_SUBJECTS:
            continue
        options = list(row.pop("options") or [])
        prompt = prompts.mathematics(row["question"], options, prompt_style)
        rows.append({**row, "choices": options, "prompt": prompt, "judge": judge, "picture": at})
    return with_images(rows, table, "decoded_image")


@loader
def refcoco(*, prompt_style: str = "default", box_unit: str = "auto", **given: Any) -> Documents:
    """The RefCOCO family: one document per expression; `bbox` (x, y, width, height) becomes corners in `box`."""
    check_unit(box_unit)
    table = _table(given)
    rows: Rows = []
    for at, row in enumerate(_rows(table, "answer", "bbox")):
        left, top, width, height = row["bbox"]
        box = [left, top, left + width, top + height]
        for phrase in as_list(row["answer"]):
            prompt = prompts.region(phrase, prompt_style)
            document = {"prompt": prompt, "phrase": phrase, "box": box, "answer": str(box), "box_unit": box_unit}
            rows.append({**document, "picture": at})
    return with_images(rows, table)
