"""Runs of `mllm` in which something is wrong: what cannot be asked is found first, and no answer is lost."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import eval_mirror
import pytest
from eval_mirror import Answering, right
from mllm_runs import CHOICES, MLLM, evaluate, png, said, saved, task
from PIL import Image
from test_eval_tasks import load, manager

from mergekit_mm.evaluation.model.run import completed_scores
from mergekit_mm.evaluation.tasks import documents, media

TASK = "mllm_avqa_video_image_audio"


def model(**arguments: Any) -> MLLM:
    return MLLM(str(saved("qwen2_vl")), **{"dtype": "float32", "device": "cpu", **arguments})


def cut_off(kind: str = "JPEG") -> dict[str, Any]:
    data = io.BytesIO()
    Image.open(io.BytesIO(png(9, width=60, height=60)["bytes"])).save(data, kind)
    return {"bytes": data.getvalue()[: len(data.getvalue()) // 2], "path": None}


def asked(*pictures: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"prompt": "<image>what?" + "?" * n, "image": picture} for n, picture in enumerate(pictures)]


BAD = {
    "too long": (png(1, width=404, height=2), "absolute aspect ratio must be smaller than 200"),
    "cut JPEG": (cut_off(), "a picture given as bytes: image file is truncated"),
    "cut PNG": (cut_off("PNG"), "a picture given as bytes: "),
    "no picture": ({"bytes": b"<html>", "path": None}, "it is no picture that Pillow knows"),
    "nothing": ({"bytes": b"", "path": None}, "the file is empty"),
    "no file": ({"bytes": None, "path": "/nowhere/1.png"}, "/nowhere/1.png: No such file or directory"),
}


def of_ours(docs: list[dict[str, Any]], **config: Any) -> dict[str, Any]:
    return task(docs, **{"doc_to_image": media.images, "doc_to_audio": None, **config})


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_found_before_the_run(kind: str) -> None:
    picture, told = BAD[kind]
    lm = model()
    lm._generate = None  # nothing is answered
    with pytest.raises(ValueError, match=f"1 of 3 documents cannot be asked:\n  mine, document 2: .*{told}"):
        evaluate(lm, of_ours(asked(png(1), png(2), picture)))


@pytest.mark.slow
def test_bad_pictures_are_counted_as_wrong_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    docs = [{**doc, "answer": ""} for doc in asked(png(1), *(picture for picture, _ in BAD.values()))]
    score = {"process_results": lambda doc, results: {"score": 0.5}}
    for policy, mean, scored in (("wrong", 0.5, 7), ("skip", 0.5, 1)):
        config = {"metadata": {"missing": policy}, **score}
        found = evaluate(model(batch_size=2), of_ours(docs, **config))
        assert found["results"]["mine"]["score,none"] == mean
        left = found["configs"]["mine"]["metadata"]["left_out"]
        assert left == {"documents": 6, "counted": "wrong" if policy == "wrong" else "not at all"}
        assert found["config"]["requests_not_asked"] == {"mine": 6}
        assert sum("score" in sample for sample in found["samples"]["mine"]) == scored
        assert "6 of 7 documents cannot be asked" in caplog.text
    assert evaluate(model(missing="wrong"), of_ours(docs[:2], **score))["config"]["requests_not_asked"] == {"mine": 1}


def test_choices_about_a_bad_picture_are_left_out_only() -> None:
    docs = asked(png(1), cut_off())
    found = evaluate(model(missing="skip"), of_ours(docs, **{**CHOICES, "metadata": {"missing": "skip"}}))
    assert ["acc" in sample for sample in found["samples"]["mine"]] == [True, False]
    with pytest.raises(ValueError, match="mine scores likelihoods of choices, among which none is wrong for sure"):
        evaluate(model(missing="wrong"), of_ours(docs, **CHOICES))
    with pytest.raises(ValueError, match="no document of mine can be asked"):
        evaluate(model(missing="wrong"), of_ours(docs[1:]))
    with pytest.raises(ValueError, match="missing is 'skipped'; it must be one of error, skip, wrong"):
        model(missing="skipped")


@pytest.mark.slow
def test_a_cache_of_answers_does_not_mind_a_bad_picture(tmp_path: Path) -> None:
    docs = asked(png(1), cut_off())
    found = [evaluate(model(missing="wrong"), of_ours(docs), use_cache=str(tmp_path / "c")) for _ in range(2)]
    assert found[0]["results"]["mine"]["score,none"] == found[1]["results"]["mine"]["score,none"] == 0


FILTERS = [
    {"name": "searched", "filter": [{"function": "regex", "regex_pattern": "(.*)"}, {"function": "take_first"}]},
    {"name": "whole", "filter": [{"function": "take_first"}]},
]
SAID_SOMETHING = {"process_results": lambda doc, results: {"score": float(bool(results[0]))}}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["model", "task"])
@pytest.mark.parametrize(("policy", "score", "counted"), [("skip", 1.0, "not at all"), ("wrong", 0.5, "wrong")])
def test_the_policy_counts_wherever_it_is_given_and_whatever_filters_make_of_replies(
    place: str, policy: str, score: float, counted: str
) -> None:
    lm = model(missing=policy if place == "model" else "error")
    config = {"metadata": {"missing": policy}} if place == "task" else {}
    found = evaluate(lm, of_ours(asked(png(1), cut_off()), filter_list=FILTERS, **SAID_SOMETHING, **config))
    assert {name: found["results"]["mine"][f"score,{name}"] for name in ("searched", "whole")} == {
        "searched": score,
        "whole": score,
    }
    assert found["configs"]["mine"]["metadata"]["left_out"] == {"documents": 1, "counted": counted}


@pytest.mark.slow
def test_a_cache_of_answers_has_no_documents_that_were_not_asked(tmp_path: Path) -> None:
    cache, docs = str(tmp_path / "c"), asked(png(1), {"bytes": None, "path": str(tmp_path / "late.png")})

    def scored(policy: str) -> Any:
        return evaluate(model(missing=policy), of_ours(docs, **SAID_SOMETHING), use_cache=cache)["results"]["mine"]

    assert scored("skip")["score,none"] == 1
    assert scored("wrong")["score,none"] == 0.5
    with pytest.raises(ValueError, match="1 of 1 documents cannot be asked"):
        scored("error")
    (tmp_path / "late.png").write_bytes(png(2)["bytes"])
    assert scored("error")["score,none"] == 1


def test_a_task_without_any_document_that_can_be_asked_is_refused_with_a_cache_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no document of mine can be asked"):
        evaluate(model(missing="skip"), of_ours(asked(cut_off())), use_cache=str(tmp_path / "c"))


def test_scores_of_several_processes_need_not_have_the_same_metrics(caplog: pytest.LogCaptureFixture) -> None:
    """lm-eval takes the metrics of the first process, and looks for each in all others."""
    gathered = [
        {"chart": {("score", "none"): [1.0], ("human", "none"): [1.0]}},
        {"chart": {("score", "none"): [0.0], ("thoughts", "none"): [1.0]}},
    ]
    whole = completed_scores(gathered)
    assert [each["chart"]["human", "none"] for each in whole] == [[1.0], []]
    assert [each["chart"]["score", "none"] for each in whole] == [[1.0], [0.0]]
    assert "chart: not in the results" in caplog.text
    assert "thoughts" in caplog.text
    samples = [{"chart": [{"doc_id": 0}]}, {"chart": []}]
    assert completed_scores(samples) is samples


@pytest.mark.slow
def test_replies_that_are_cut_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    words = {"doc_to_image": None, "doc_to_audio": None}
    tasks = [task(asked(png(1), png(2))), task([{"prompt": "The sky is"}], "words", **words)]
    config = evaluate(model(), *tasks)["config"]
    cut = config["replies_cut_at_max_gen_toks"]
    assert cut["mine"]["of"] == 2
    assert cut["text-only tasks"]["of"] == 1
    assert (cut["mine"]["cut"] > 0) == ("mine: " in caplog.text and "replies were not finished" in caplog.text)
    endless = task(asked(png(1), png(2)), generation_kwargs={"until": [], "max_gen_toks": 2})
    assert evaluate(model(), endless)["config"]["replies_cut_at_max_gen_toks"] == {"mine": {"cut": 2, "of": 2}}
    first = said(model(), asked(png(1)), generation_kwargs={"until": [], "max_gen_toks": 2})[0]
    stopped = task(asked(png(1)), generation_kwargs={"until": [first[0]], "max_gen_toks": 2})
    assert evaluate(model(), stopped)["config"]["replies_cut_at_max_gen_toks"]["mine"]["cut"] == 0


@pytest.mark.slow
def test_answers_before_a_failure_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    docs, whole = asked(*(png(n) for n in range(4))), None
    whole = said(model(), docs)
    lm, answered = model(), []

    def failing(asked: Any, *rest: Any) -> Any:
        if len(answered) == 2:
            raise RuntimeError("CUDA out of memory")
        answered.append(asked)
        return generate(asked, *rest)

    generate, lm._generate = lm._generate, failing
    with pytest.raises(RuntimeError, match="out of memory"):
        said(lm, docs)
    assert (
        "The 2 answers so far are kept in mllm_answers_1_rank0.db: the same command with --use_cache mllm_answers_1"
        in (caplog.text)
    )
    lm, answered = model(), []
    generate = lm._generate
    lm._generate = lambda asked, *rest: (answered.append(asked), generate(asked, *rest))[1]
    found = evaluate(lm, task(docs), use_cache=str(tmp_path / "mllm_answers_1"))["samples"]["mine"]
    assert [sample["resps"][0][0] for sample in found] == whole
    assert len(answered) == 2


# ---------------------------------------------------------------------------------------------------- data sets


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    eval_mirror.write(tmp_path)
    monkeypatch.setenv("MLLM_EVAL_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.slow
def test_missing_clips_are_listed_or_left_out(mirror: Path) -> None:
    (mirror / "AVQA/video/v1.gif").unlink()
    (mirror / "AVQA/audio/v2.wav").rename(mirror / "AVQA/audio/other.wav")
    (mirror / "AVQA/video/v2.gif").rename(mirror / "AVQA/v2.gif")
    (mirror / "AVQA/audio/v1.wav").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 2 documents cannot be asked") as caught:
        load(TASK)
    for told in ("video/v1.gif", "audio/v1.wav", "video/v2.gif", "/audio/v2.wav", '"missing": "skip"'):
        assert told in str(caught.value)
    eval_mirror.film(mirror / "AVQA/video/v2.gif")
    eval_mirror.tone(mirror / "AVQA/audio/v2.wav")
    found = datasets.Dataset.to_list(load(TASK, missing="skip").eval_docs)
    assert [doc["video"]["path"] for doc in found] == [str(mirror / "AVQA/video/v2.gif")]
    from lm_eval.evaluator import simple_evaluate

    for policy, score, count in (("skip", 1, 1), ("wrong", 0.5, 2)):
        results = simple_evaluate(Answering(right), tasks=[TASK], task_manager=manager(missing=policy))
        assert results["results"][TASK]["score,none"] == score
        assert results["n-samples"][TASK]["effective"] == count
        left = results["configs"][TASK]["metadata"]["left_out"]
        assert (left["documents"], len(left["first"])) == (1, 1)


def test_picture_and_sound_of_a_question_s_video(mirror: Path) -> None:
    """As the two data sets are published: as videos."""
    import shutil

    shutil.rmtree(mirror / "AVQA/image")
    shutil.rmtree(mirror / "AVQA/audio")
    for name in (TASK, "mllm_avqa_image"):
        doc = load(name).eval_docs[0]
        picture = load(name).doc_to_image(doc)[-1]
        assert picture.convert("RGB").getpixel((10, 10)) == (0, 0, 255)  # the third of four frames
    doc = load(TASK).eval_docs[0]
    assert load(TASK).doc_to_audio(doc) == [{"path": doc["video"]["path"]}]


@pytest.mark.slow
def test_a_data_set_that_cannot_be_had_ends_in_one_line(tmp_path: Path) -> None:
    """And all of them are named, not the first one alone."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path)}
    environment.pop("MLLM_EVAL_DATA", None)
    script = str(Path(sys.executable).parent / "lm_eval")
    command = [
        script,
        "--model",
        "mllm",
        "--model_args",
        f"pretrained={saved('llava')},dtype=float32",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*command, "--tasks", "mllm_chartqa,mllm_vizwiz_val"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = done.stderr[done.stderr.rindex("Error: ") :].strip().splitlines()
    assert told[0] == "Error: The data of 2 tasks cannot be had:"
    for line, name in zip(told[1:], ("lmms-lab/ChartQA", "lmms-lab/VizWiz-VQA"), strict=True):
        assert line.startswith(f"{name} (split ")
        assert f"hf download --repo-type dataset {name} --local-dir $MLLM_EVAL_DATA/{name}" in line


def test_words_of_the_data_are_no_marks() -> None:
    rows = [{"prompt": "<image>Is it <video> or <image2>?", "answer": "a"}]
    table = datasets.Dataset.from_list([{"image": png(1)}])
    doc = documents.with_images(rows, table)["test"][0]
    assert doc["prompt"] == r"<image>Is it \<video> or \<image2>?"
