"""`process_results` of the tasks: one document and the reply to it give the metrics, `score` always among them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_mm.evaluation import boxes, judge, mathematics, metrics, options
from mergekit_mm.evaluation.media import open_picture
from mergekit_mm.evaluation.short_answers import as_list

Doc = Mapping[str, Any]
Scores = dict[str, float]
_MODALITIES = ("audio_visual", "audio", "visual")


def _first_line(reply: str) -> str:
    """The first line with words in it: a base model often breaks the line before it answers, and goes on after it.

    Not done by `until: ["\\n"]`, which would cut such a reply down to nothing.
    """
    return reply.strip().partition("\n")[0]


def begins(doc: Doc, results: Sequence[str]) -> Scores:
    """The demo tasks: the reply begins with the words of the answer."""
    words = doc["answer"].split()
    return {"score": float(results[0].split()[: len(words)] == words)}


def vqa(doc: Doc, results: Sequence[str]) -> Scores:
    """VizWiz and TextVQA."""
    return {"score": metrics.vqa_soft(_first_line(results[0]), doc["answers"])}


def short(doc: Doc, results: Sequence[str]) -> Scores:
    """GQA and OCR-VQA; `exact_match_strict` minds punctuation (upstream VLMEvalKit)."""
    references, reply = as_list(doc["answer"]), _first_line(results[0])
    strict = reply.strip().lower() in [each.strip().lower() for each in references]
    return {"score": metrics.exact_match_nopunct(reply, references), "exact_match_strict": float(strict)}


def chartqa(doc: Doc, results: Sequence[str]) -> Scores:
    """ChartQA, and the same over questions by people or generated ones."""
    score = metrics.chartqa_relaxed(_first_line(results[0]), doc["answer"])
    return {"score": score, "relaxed_human" if doc["type"] == "human_test" else "relaxed_augmented": score}


def mathvista(doc: Doc, results: Sequence[str]) -> Scores:
    """MathVista; `strict` as VLMEvalKit without a judge, `parsed`: the rules could read an answer from the reply."""
    fields = {key: doc[key] for key in ("choices", "question_type", "answer_type", "answer_option", "precision")}
    parsed = mathematics.mathvista_answer(results[0], **fields) is not None
    reply = results[0] if parsed else _judged(doc, results[0])
    return {
        "score": metrics.mathvista_score(reply, doc["answer"], **fields),
        "strict": mathematics.mathvista_strict(results[0], doc["answer"], **fields),
        "parsed": float(parsed),
    }


def _judged(doc: Doc, reply: str) -> str:
    return judge.extract(doc["prompt"], reply, doc["judge"]) if doc["judge"] else reply


def mathvista_geometry(doc: Doc, results: Sequence[str]) -> Scores:
    """The paper's column: `score` is the mean of the accuracies of three categories, which may share a question."""
    scores = mathvista(doc, results)
    score = CategoryScore(scores["score"], doc["categories"])
    return {**scores, "score": score, "score_stderr": score, **dict.fromkeys(doc["categories"], scores["score"])}


def mathvision(doc: Doc, results: Sequence[str]) -> Scores:
    """MATH-Vision; `parsed`: the reply names an option (always 1 for open questions with any reply).

    As in the paper's evaluation, a judge sees every reply to an open question that does not equal the reference.
    """
    read = options.read_option(results[0], doc["choices"]) if doc["choices"] else results[0].strip()
    score = metrics.mathvision_score(results[0], doc["answer"], choices=doc["choices"])
    if not read or not (score or doc["choices"]):
        score = metrics.mathvision_score(_judged(doc, results[0]), doc["answer"], choices=doc["choices"])
    return {"score": score, "parsed": float(bool(read))}


def refcoco(doc: Doc, results: Sequence[str]) -> Scores:
    """RefCOCO family: accuracy at IoU 0.5, mean IoU, and the share of replies with a box."""
    width, height = open_picture(doc["image"]).size  # of the file: no pixel is read
    sizes = {"image_width": width, "image_height": height, "box_unit": doc["box_unit"]}
    return {
        "score": metrics.box_iou_score(results[0], doc["box"], **sizes),
        "iou": boxes.box_iou(results[0], doc["box"], **sizes),
        "parsed": float(boxes.read_box(results[0]) is not None),
    }


def avqa(doc: Doc, results: Sequence[str]) -> Scores:
    """AVQA, and the same over its kind of question; `first_char` is the rule of the paper's script."""
    choices = doc["choices"] or [""] * 4  # options known to the question's text only are named by letter
    score = metrics.avqa_score(_first_line(results[0]), doc["answer"], choices=choices)
    first_char = metrics.avqa_score(results[0], options.option_letter(doc["answer"], choices))
    return {"score": score, "first_char": first_char, **({doc["question_type"]: score} if doc["question_type"] else {})}


def music_avqa(doc: Doc, results: Sequence[str]) -> Scores:
    """MUSIC-AVQA; and the same over its kind of question, and over its modality, where the data tell them."""
    score = metrics.music_avqa_score(_first_line(results[0]), doc["answer"])
    kind = doc["question_type"]
    if not kind:
        return {"score": score}
    modality = next((each for each in _MODALITIES if kind.startswith(each)), kind)
    return {"score": score, kind: score, modality: score}


class CategoryScore(float):
    """The score of one document, and the categories it counts in."""

    categories: tuple[str, ...]

    def __new__(cls, score: float, categories: Sequence[str] = ()) -> "CategoryScore":  # a default: pickle needs it
        made = super().__new__(cls, score)
        made.categories = tuple(categories)
        return made


def _by_category(scores: Sequence[CategoryScore]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for score in scores:
        for category in score.categories:
            groups.setdefault(category, []).append(float(score))
    return groups


def mean_of_categories(scores: Sequence[CategoryScore]) -> float:
    """Aggregation: the plain mean of the categories' accuracies."""
    groups = _by_category(scores)
    return sum(sum(group) / len(group) for group in groups.values()) / len(groups)


def mean_of_categories_stderr(scores: Sequence[CategoryScore]) -> float:
    """Aggregation: the standard error of `mean_of_categories`.

    lm-eval knows none for an aggregation of ours and would write "N/A" here, and for every group above. It is the root
    of the summed squares of each document's influence on the mean; with one category that is the usual s / sqrt(n).
    """
    groups, n = _by_category(scores), len(scores)
    if n < 2:
        return math.nan
    influence = (
        sum((score - sum(groups[each]) / len(groups[each])) / len(groups[each]) for each in score.categories)
        for score in scores
    )
    return math.sqrt(sum(each * each for each in influence) * n / (n - 1)) / len(groups)
