"""The metrics of the benchmark, one function each: `(prediction, reference, **fields) -> float` in [0, 1].

A malformed prediction scores 0 and never raises; nothing a model wrote is ever run as code. Fields that a metric does
not need are ignored, so that one call can serve a table of mixed rows. Malformed *references* are the caller's error.
"""

from mergekit_mm.evaluation.tasks.boxes import box_iou_score
from mergekit_mm.evaluation.tasks.mathematics import mathvision_score, mathvista_score
from mergekit_mm.evaluation.tasks.options import avqa_score
from mergekit_mm.evaluation.tasks.short_answers import chartqa_relaxed, exact_match_nopunct, music_avqa_score, vqa_soft

__all__ = [
    "avqa_score",
    "box_iou_score",
    "chartqa_relaxed",
    "exact_match_nopunct",
    "mathvision_score",
    "mathvista_score",
    "music_avqa_score",
    "vqa_soft",
]
