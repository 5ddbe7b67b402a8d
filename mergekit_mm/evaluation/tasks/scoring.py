"""`process_results` and aggregations of the tasks. The metrics of a document always include `score`, in [0, 1]."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_mm.evaluation.tasks import boxes, judge, mathematics, metrics, options
from mergekit_mm.evaluation.tasks.grounding import upright_truth
from mergekit_mm.evaluation.tasks.replies import answer_part, has_thoughts
from mergekit_mm.evaluation.tasks.short_answers import as_list, short_answer

Doc = Mapping[str, Any]
Scores = dict[str, float]
_MODALITIES = ("audio_visual", "audio", "visual")


def _with_thoughts(reply: str, scores: Scores) -> Scores:
    """`scores`, with `thoughts` if the reply has thoughts, which were removed; the results count such replies."""
    return {**scores, "thoughts": 1.0} if has_thoughts(reply) else scores


def count(marks: Sequence[float]) -> float:
    """Aggregation: the number of documents with the metric."""
    return math.fsum(marks)


def vqa(doc: Doc, results: Sequence[str]) -> Scores:
    """VizWiz and TextVQA: `score` is the VQA soft accuracy."""
    return _with_thoughts(results[0], {"score": metrics.vqa_soft(short_answer(results[0]), doc["answers"])})


def short(doc: Doc, results: Sequence[str]) -> Scores:
    """GQA and OCR-VQA: `score` ignores punctuation, `exact_match_strict`, VLMEvalKit's rule, does not."""
    references, reply = as_list(doc["answer"]), short_answer(results[0])
    strict = reply.strip().lower() in [each.strip().lower() for each in references]
    scores = {"score": metrics.exact_match_nopunct(reply, references), "exact_match_strict": float(strict)}
    return _with_thoughts(results[0], scores)


def chartqa(doc: Doc, results: Sequence[str]) -> Scores:
    """ChartQA: `score`, and the same as `relaxed_human` or `relaxed_augmented`, by the question's origin."""
    score = metrics.chartqa_relaxed(short_answer(results[0]), doc["answer"])
    part = "relaxed_human" if doc["type"] == "human_test" else "relaxed_augmented"
    return _with_thoughts(results[0], {"score": score, part: score})


def mathvista(doc: Doc, results: Sequence[str]) -> Scores:
    """MathVista: `strict` is VLMEvalKit's score without a judge, `parsed` whether the rules could read an answer.

    As in the paper's evaluation, a judge sees every reply that is more than the answer itself.
    """
    fields = {key: doc[key] for key in ("choices", "question_type", "answer_type", "answer_option", "precision")}
    scores = {
        "score": metrics.mathvista_score(_judged(doc, results[0], **fields), doc["answer"], **fields),
        "strict": mathematics.mathvista_strict(results[0], doc["answer"], **fields),
        "parsed": float(mathematics.mathvista_answer(results[0], **fields) is not None),
    }
    return _with_thoughts(results[0], scores)


def _judged(doc: Doc, reply: str, **fields: Any) -> str:
    """The answer that the judge extracts; the reply if there is no judge, if it needs none, or if it finds nothing."""
    said = answer_part(reply)
    if not doc["judge"] or not said.strip() or mathematics.is_bare(said, **fields):
        return reply
    return judge.extract(doc["prompt"], said, doc["judge"]) or reply


def mathvista_geometry(doc: Doc, results: Sequence[str]) -> Scores:
    """The paper's column: `score` is the mean of the accuracies of three categories, which share some questions."""
    scores = mathvista(doc, results)
    score = CategoryScore(scores["score"], doc["categories"])
    return {**scores, "score": score, "score_stderr": score, **dict.fromkeys(doc["categories"], scores["score"])}


def mathvision(doc: Doc, results: Sequence[str]) -> Scores:
    """MATH-Vision: `parsed` is whether the reply names an option, or, for open questions, is not empty.

    As in the paper's evaluation, a judge sees every reply that is more than the answer itself.
    """
    choices, reply = doc["choices"], results[0]
    read = options.read_option(reply, choices) if choices else answer_part(reply).strip()
    score = metrics.mathvision_score(_judged(doc, reply, choices=choices), doc["answer"], choices=choices)
    return _with_thoughts(reply, {"score": score, "parsed": float(bool(read))})


def refcoco(doc: Doc, results: Sequence[str]) -> Scores:
    """The RefCOCO family: `score` is 1 at an intersection over union of 0.5, `parsed` whether the reply has a box."""
    box, width, height = upright_truth(doc)
    shown = next(iter(getattr(results[0], "pictures", ())), None)  # the model `mllm` reports it
    fields = {"image_width": width, "image_height": height, "box_unit": doc["box_unit"], "shown": shown}
    fields["family"] = getattr(results[0], "family", None)
    scores = {
        "score": metrics.box_iou_score(results[0], box, **fields),
        "iou": boxes.box_iou(results[0], box, **fields),
        "parsed": float(boxes.read_box(answer_part(results[0])) is not None),
    }
    return _with_thoughts(results[0], scores)


def avqa(doc: Doc, results: Sequence[str]) -> Scores:
    """AVQA: `score`, the same number under the kind of question, and `first_char` by the rule of the paper's script."""
    choices = doc["choices"] or [""] * 4  # without a list of options, a reply can name them by letter only
    score = metrics.avqa_score(results[0], doc["answer"], choices=choices)
    first_char = metrics.avqa_score(results[0], options.option_letter(doc["answer"], choices))
    kind = {doc["question_type"]: score} if doc["question_type"] else {}
    return _with_thoughts(results[0], {"score": score, "first_char": first_char, **kind})


def music_avqa(doc: Doc, results: Sequence[str]) -> Scores:
    """MUSIC-AVQA: `score`, and the same number under the question's kind and modality if the data have them."""
    score = metrics.music_avqa_score(short_answer(results[0]), doc["answer"])
    parts = (
        [kind, next((each for each in _MODALITIES if kind.startswith(each)), kind)]
        if (kind := doc["question_type"])
        else []
    )
    return _with_thoughts(results[0], {"score": score, **dict.fromkeys(parts, score)})


class CategoryScore(float):
    """The score of one document, with the categories of which it is a part."""

    categories: tuple[str, ...]

    def __new__(cls, score: float, categories: Sequence[str] = ()) -> "CategoryScore":  # the default is for pickle
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

    lm-eval has no standard error for an aggregation of a task's own, and would write "N/A" here and for every group
    above. It is the root of the summed squares of each document's influence on the mean, times sqrt(n / (n - 1)) for n
    documents; with one category it is the usual s / sqrt(n).
    """
    groups, n = _by_category(scores), len(scores)
    if n < 2:
        return math.nan
    influence = (
        sum((score - sum(groups[each]) / len(groups[each])) / len(groups[each]) for each in score.categories)
        for score in scores
    )
    return math.sqrt(sum(each * each for each in influence) * n / (n - 1)) / len(groups)
