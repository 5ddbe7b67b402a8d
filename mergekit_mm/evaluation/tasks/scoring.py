"""`process_results` of the tasks: one document and the reply to it give the metrics, `score` always among them."""

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
    """`scores`, and `thoughts` if some were taken off the reply: the results tell of how many replies."""
    return {**scores, "thoughts": 1.0} if has_thoughts(reply) else scores


def count(marks: Sequence[float]) -> float:
    """Aggregation: how many documents have the mark."""
    return math.fsum(marks)


def vqa(doc: Doc, results: Sequence[str]) -> Scores:
    """VizWiz and TextVQA."""
    return _with_thoughts(results[0], {"score": metrics.vqa_soft(short_answer(results[0]), doc["answers"])})


def short(doc: Doc, results: Sequence[str]) -> Scores:
    """GQA and OCR-VQA; `exact_match_strict` minds punctuation (upstream VLMEvalKit)."""
    references, reply = as_list(doc["answer"]), short_answer(results[0])
    strict = reply.strip().lower() in [each.strip().lower() for each in references]
    scores = {"score": metrics.exact_match_nopunct(reply, references), "exact_match_strict": float(strict)}
    return _with_thoughts(results[0], scores)


def chartqa(doc: Doc, results: Sequence[str]) -> Scores:
    """ChartQA, and the same over questions by people or generated ones."""
    score = metrics.chartqa_relaxed(short_answer(results[0]), doc["answer"])
    part = "relaxed_human" if doc["type"] == "human_test" else "relaxed_augmented"
    return _with_thoughts(results[0], {"score": score, part: score})


def mathvista(doc: Doc, results: Sequence[str]) -> Scores:
    """MathVista; `strict` as VLMEvalKit without a judge, `parsed`: the rules could read an answer from the reply.

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
    """What the judge, if there is one, extracts from a reply that needs reading; the reply where it says nothing."""
    said = answer_part(reply)
    if not doc["judge"] or not said.strip() or mathematics.is_bare(said, **fields):
        return reply
    return judge.extract(doc["prompt"], said, doc["judge"]) or reply


def mathvista_geometry(doc: Doc, results: Sequence[str]) -> Scores:
    """The paper's column: `score` is the mean of the accuracies of three categories, which may share a question."""
    scores = mathvista(doc, results)
    score = CategoryScore(scores["score"], doc["categories"])
    return {**scores, "score": score, "score_stderr": score, **dict.fromkeys(doc["categories"], scores["score"])}


def mathvision(doc: Doc, results: Sequence[str]) -> Scores:
    """MATH-Vision; `parsed`: the reply names an option (always 1 for open questions with any reply).

    As in the paper's evaluation, a judge sees every reply that is more than the answer itself.
    """
    choices, reply = doc["choices"], results[0]
    read = options.read_option(reply, choices) if choices else answer_part(reply).strip()
    score = metrics.mathvision_score(_judged(doc, reply, choices=choices), doc["answer"], choices=choices)
    return _with_thoughts(reply, {"score": score, "parsed": float(bool(read))})


def refcoco(doc: Doc, results: Sequence[str]) -> Scores:
    """RefCOCO family: accuracy at IoU 0.5, mean IoU, and the share of replies with a box."""
    box, width, height = upright_truth(doc)
    shown = next(iter(getattr(results[0], "pictures", ())), None)  # told by the model `mllm`
    fields = {"image_width": width, "image_height": height, "box_unit": doc["box_unit"], "shown": shown}
    fields["family"] = getattr(results[0], "family", None)
    scores = {
        "score": metrics.box_iou_score(results[0], box, **fields),
        "iou": boxes.box_iou(results[0], box, **fields),
        "parsed": float(boxes.read_box(answer_part(results[0])) is not None),
    }
    return _with_thoughts(results[0], scores)


def avqa(doc: Doc, results: Sequence[str]) -> Scores:
    """AVQA, and the same over its kind of question; `first_char` is the rule of the paper's script."""
    choices = doc["choices"] or [""] * 4  # options known to the question's text only are named by letter
    score = metrics.avqa_score(results[0], doc["answer"], choices=choices)
    first_char = metrics.avqa_score(results[0], options.option_letter(doc["answer"], choices))
    kind = {doc["question_type"]: score} if doc["question_type"] else {}
    return _with_thoughts(results[0], {"score": score, "first_char": first_char, **kind})


def music_avqa(doc: Doc, results: Sequence[str]) -> Scores:
    """MUSIC-AVQA; and the same over its kind of question, and over its modality, where the data tell them."""
    score = metrics.music_avqa_score(short_answer(results[0]), doc["answer"])
    parts = (
        [kind, next((each for each in _MODALITIES if kind.startswith(each)), kind)]
        if (kind := doc["question_type"])
        else []
    )
    return _with_thoughts(results[0], {"score": score, **dict.fromkeys(parts, score)})


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
