"""The tasks of `eval_tasks/` in stock lm-eval, on a tiny local mirror of every data set."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import shutil
import threading
import wave
from collections.abc import Mapping
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import eval_mirror
import pytest
import yaml
from eval_mirror import TASKS, Answering, right
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from PIL import Image

from mergekit_mm.evaluation.tasks import documents, omni_documents, sources

GROUPS = {
    "mllm_vqa": ["mllm_vizwiz_val", "mllm_gqa_testdev"],
    "mllm_geometry": ["mllm_mathvista_geometry", "mllm_mathvision_geometry"],
    "mllm_chart": ["mllm_chartqa"],
    "mllm_ocr": ["mllm_textvqa_val", "mllm_ocrvqa_testcore"],
    "mllm_grounding": ["mllm_refcoco_val", "mllm_refcoco_plus_val", "mllm_refcocog_val"],
}
PAPER = [leaf for leaves in GROUPS.values() for leaf in leaves]
OTHER = ["mllm_mathvista_mini", "mllm_mathvision_mini", "mllm_ocrvqa_test"]
MIXES = ("audio", "image", "video", "image_audio", "image_video", "video_audio", "video_image_audio")
OMNI = [f"mllm_{data}_{mix}" for data in ("avqa", "music_avqa") for mix in MIXES]
GROUPS |= {"mllm": PAPER, "mllm_geometry_full": OTHER[:2], "mllm_omni": [OMNI[6], OMNI[13]]}
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
MARKS = {"<image>": Image.Image, "<video>": Mapping}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    eval_mirror.write(root)
    return root


@pytest.fixture(autouse=True)
def local_data(mirror: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_EVAL_DATA", str(mirror))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", mirror / "cache")


def manager(**metadata: Any) -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)


def load(name: str, **metadata: Any) -> Any:
    return manager(**metadata).load([name])["tasks"][name]


def run(model: LM, *tasks: str, **arguments: Any) -> dict[str, Any]:
    return simple_evaluate(model, tasks=list(tasks), task_manager=manager(), log_samples=True, **arguments)


def test_every_name_is_there() -> None:
    found = manager()
    assert set(found.all_subtasks) == {*PAPER, *OTHER, *OMNI}
    assert set(found.all_groups) == set(GROUPS)
    assert set(found.all_tags) == {"mllm_avqa", "mllm_music_avqa"}


@pytest.mark.parametrize("name", [*PAPER, *OTHER, *OMNI])
def test_documents_prompts_and_media_of_every_task(name: str) -> None:
    task = load(name)
    assert task.VERSION == 2.0
    for doc in task.eval_docs:
        prompt, visuals = task.doc_to_text(doc), task.doc_to_image(doc)
        marks = re.findall(r"<(?:image|video)\d*>", prompt)
        assert len(marks) == len(visuals)
        assert all(isinstance(seen, MARKS[mark]) for mark, seen in zip(marks, visuals, strict=True))
        for picture in (each for each in visuals if isinstance(each, Image.Image)):
            assert picture.convert("RGB").size == (eval_mirror.WIDTH, eval_mirror.HEIGHT)
        for video in (each for each in visuals if isinstance(each, Mapping)):
            assert video["type"] == "video"
            assert Image.open(video["path"]).n_frames == 4
        sounds = task.doc_to_audio(doc) or []
        assert len(sounds) == prompt.count("<audio>")
        for sound in sounds:
            with wave.open(sound["path"]) as file:
                assert file.getframerate() == 16000
        assert task.process_results(doc, [right(doc)])["score"] == 1
        assert task.process_results(doc, [""])["score"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_the_plain_mean_of_its_leaves(group: str) -> None:
    model = Answering(right)
    results = run(model, group)["results"]
    assert results.keys() - {group} == set(GROUPS[group])
    for name in (group, *GROUPS[group]):
        assert results[name]["score,none"] == 1
        assert results[name]["score_stderr,none"] == 0
    for request in model.requests:
        prompt, arguments, media = request.args
        assert arguments["do_sample"] is False
        assert len(media["visual"]) == len(re.findall("<image>|<video>", prompt))
        assert len(media.get("audio", [])) == prompt.count("<audio>")


def test_a_group_weighs_tasks_equally() -> None:
    """Two of three GQA questions right and none of two in VizWiz: 1/3, where weights by size would give 2/5."""
    results = run(
        Answering(lambda doc: {"yes": "Yes.", "red": "red"}.get(doc["answer"], "") if "imageId" in doc else ""),
        "mllm_vqa",
    )
    assert results["results"]["mllm_gqa_testdev"]["score,none"] == pytest.approx(2 / 3)
    assert results["results"]["mllm_gqa_testdev"]["exact_match_strict,none"] == pytest.approx(1 / 3)
    assert results["results"]["mllm_vqa"]["score,none"] == pytest.approx(1 / 3)
    assert 0 < results["results"]["mllm_vqa"]["score_stderr,none"] < 1
    assert results["versions"]["mllm_gqa_testdev"] == 2.0
    assert results["configs"]["mllm_gqa_testdev"]["metadata"]["paper_column"] == "GQA"
    json.dumps(results["samples"], default=lambda each: f"<{type(each).__name__}>")


@pytest.mark.slow
def test_the_geometry_column_is_the_mean_of_three_accuracies() -> None:
    """Only question 1 right: geometry 1/2, algebra 0/2, problem solving 1/1, whose mean is 1/2; that of all is 1/3."""
    results = run(Answering(lambda doc: "B" if doc.get("pid") == "1" else "?"), "mllm_geometry")["results"]
    column = results["mllm_mathvista_geometry"]
    assert column["score,none"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    parts = ("geometry_reasoning", "algebraic_reasoning", "geometry_problem_solving")
    assert [column[f"{part},none"] for part in parts] == [0.5, 0, 1]
    assert column["parsed,none"] == pytest.approx(1 / 3)
    # by hand: questions 1 and 2 move the first accuracy by +-1/2 of a half each, nothing else moves
    assert column["score_stderr,none"] == pytest.approx(math.sqrt(2 * (1 / 4) ** 2 * 3 / 2) / 3)
    assert results["mllm_geometry"]["score,none"] == pytest.approx(column["score,none"] / 2)
    assert results["mllm_geometry"]["score_stderr,none"] == pytest.approx(column["score_stderr,none"] / 2)


def test_secondary_metrics_count_their_own_documents() -> None:
    chart = run(Answering(lambda doc: {"20": "20.5", "0.25": "30%"}.get(doc["answer"], "2002")), "mllm_chartqa")[
        "results"
    ]
    assert chart["mllm_chartqa"]["relaxed_human,none"] == 1
    assert chart["mllm_chartqa"]["relaxed_augmented,none"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PAPER[:2], *PAPER[4:7], OMNI[6], OMNI[13]])
def test_a_line_break_before_the_answer_costs_nothing(name: str) -> None:
    """As base models write it. What comes after the answer's line does not count either."""
    model = Answering(lambda doc: f"\n\n{right(doc)} \nThe answer is not A nor B.")
    scores = run(model, name)["results"][name]
    assert scores["score,none"] == scores.get("exact_match_strict,none", 1) == 1
    assert model.requests[0].args[1]["until"] == []


@pytest.mark.parametrize(
    ("choices", "answer", "reply", "score", "first_char"),
    [
        (["a dog", "rain"], "rain", "B", 1, 1),  # the data may give the option's text
        (["a dog", "rain"], "rain", "(B)", 1, 0),
        ([], "B", "(B)", 1, 0),  # or have the options in the question alone
    ],
)
def test_the_two_rules_of_avqa(choices: list[str], answer: str, reply: str, score: float, first_char: float) -> None:
    task = load("mllm_avqa_video")
    doc = {**task.eval_docs[0], "choices": choices, "answer": answer, "question_type": None}
    assert task.process_results(doc, [reply]) == {"score": score, "first_char": first_char}


def test_official_music_avqa(tmp_path: Path) -> None:
    data = {"source": "GeWu-Lab/MUSIC-AVQA", "file": "data/json/avqa-test.json", "media": "MUSIC-AVQA"}
    mine = {"include": str(TASKS / "omni/mllm_music_avqa_video.yaml"), "task": "official", "dataset_kwargs": data}
    (tmp_path / "official.yaml").write_text(yaml.safe_dump(mine))
    found = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(Answering(lambda doc: "2"), tasks=["official"], task_manager=found)
    scores = results["results"]["official"]
    kinds = ("audio_visual_counting", "audio_visual", "audio", "visual_location")
    assert [scores[f"{kind},none"] for kind in kinds] == [1, 1, 0, 0]
    asked = [sample["doc"]["question"] for sample in results["samples"]["official"]]
    assert asked == ["How many cello sound?", "Is the a louder than the b?", "What is on the left?"]


@pytest.mark.parametrize(
    ("name", "style", "expected"),
    [
        ("mllm_chartqa", "internvl", "<image>How high?\nAnswer the question using a single word or phrase."),
        (
            "mllm_chartqa",
            "qwen2_vl",
            "<image>How high?\nPlease try to answer the question with short words or phrases if possible.",
        ),
        ("mllm_mathvision_mini", "default", "<image>What angle?\nChoices:\n(A) 30\n(B) 60"),
        ("mllm_refcoco_val", "internvl", f"<image>{REGION}<ref>red box</ref>"),
        ("mllm_refcoco_val", "default", f"<image>{REGION}red box"),
    ],
)
def test_prompts_follow_the_model_s_family(name: str, style: str, expected: str) -> None:
    task = load(name, prompt_style=style)
    assert task.doc_to_text(task.eval_docs[0]) == expected


@pytest.mark.parametrize(
    ("name", "metadata", "told"),
    [
        ("mllm_chartqa", {"prompt_style": "llama"}, "prompt_style is 'llama'"),
        ("mllm_chartqa", {"promptstyle": "internvl"}, "metadata 'promptstyle' is no option .*: 'prompt_style' is"),
        ("mllm_avqa_video", {"numframes": 2, "prompt_style": "x"}, "metadata 'numframes' is no option"),
        ("mllm_refcoco_val", {"box_unit": "px"}, "box_unit is 'px'"),
        ("mllm_mathvista_mini", {"judge": "gpt"}, "judge is 'gpt'; it must be {\"url\""),
    ],
)
def test_a_wrong_option_is_named_before_the_run(name: str, metadata: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load(name, **metadata)


def test_braces_and_latex_of_the_data_reach_the_prompt() -> None:
    prompts = [load("mllm_mathvision_mini").doc_to_text(doc) for doc in load("mllm_mathvision_mini").eval_docs]
    assert prompts[1] == "<image>Is {x} $\\sqrt{2}$?"
    assert prompts[2] == "<image>\nChoices:\n(A) picture 2\n(B) x"


def test_the_box_unit_is_chosen_by_metadata() -> None:
    task = load("mllm_refcoco_val", box_unit="pixel")
    doc = task.eval_docs[0]
    assert task.process_results(doc, ["[8, 4, 40, 24]"]) == {"score": 1, "iou": 1, "parsed": 1}
    assert task.process_results(doc, ["[8, 4, 40, 14]"]) == {"score": 1, "iou": 0.5, "parsed": 1}
    assert task.process_results(doc, ["over there"]) == {"score": 0, "iou": 0, "parsed": 0}


def test_questions_about_one_picture_share_its_bytes(mirror: Path) -> None:
    first, second, third = load("mllm_refcoco_val").eval_docs
    assert first["image"]["bytes"] is second["image"]["bytes"] is not third["image"]["bytes"]
    gqa = load("mllm_gqa_testdev").eval_docs
    assert gqa[0]["image"]["bytes"] == eval_mirror.picture("blue")["bytes"]
    assert gqa[1]["image"]["bytes"] == eval_mirror.picture("red")["bytes"]


def test_the_source_can_be_replaced(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By metadata (for a whole group), or by other `dataset_kwargs`; a path needs no MLLM_EVAL_DATA."""
    monkeypatch.delenv("MLLM_EVAL_DATA")
    chart = mirror / "lmms-lab/ChartQA"
    assert len(load("mllm_chartqa", sources={"lmms-lab/ChartQA": str(chart)}).eval_docs) == 3
    rows = datasets.Dataset.from_parquet(str(chart / "data/test-00000-of-00001.parquet"), cache_dir=str(tmp_path))
    rows.select([0]).to_parquet(str(tmp_path / "one.parquet"))
    data = {"source": str(tmp_path / "one.parquet"), "split": "test"}
    mine = {"include": str(TASKS / "chart/mllm_chartqa.yaml"), "task": "my_chartqa", "dataset_kwargs": data}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    task = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["my_chartqa"])["tasks"]["my_chartqa"]
    assert len(task.eval_docs) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "mllm_chartqa",
            "lmms-lab/ChartQA does not exist. Fill it by: hf download --repo-type dataset lmms-lab/ChartQA",
        ),
        ("mllm_ocrvqa_testcore", "OCRVQA_TESTCORE.tsv does not exist.*curl.*or run the task mllm_ocrvqa_test"),
        ("mllm_avqa_video", "avqa-test_mm_video.json does not exist. The omni tasks read local files"),
    ],
)
def test_missing_data_are_named_with_the_remedy(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLLM_EVAL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=words):
        load(name)


def test_the_downloads_of_the_readme_suffice(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the ten columns: only the files that its commands name, as `hf download --include` picks them."""
    commands = re.findall(r'^get (\S+) "(\S+)"', (TASKS / "README.md").read_text(), re.MULTILINE)
    for source, pattern in commands:
        for file in (mirror / source).rglob("*.parquet"):
            if fnmatch(file.relative_to(mirror / source).as_posix(), pattern):
                copied = tmp_path / file.relative_to(mirror)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copied)
    shutil.copy(mirror / "OCRVQA_TESTCORE.tsv", tmp_path)
    monkeypatch.setenv("MLLM_EVAL_DATA", str(tmp_path))
    assert all(len(load(name).eval_docs) for name in PAPER)


def test_a_split_is_not_another_that_starts_like_it(mirror: Path) -> None:
    assert len(sources.read_table("AI4Math/MathVista", "test")) == 1
    with pytest.raises(FileNotFoundError, match="no parquet file of split tes"):
        sources.read_table("AI4Math/MathVista", "tes")


def test_half_a_download_is_no_split(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"x": [1]})
    rows.to_parquet(tmp_path / "data/val-00000-of-00002.parquet")
    with pytest.raises(FileNotFoundError, match="has 1 of the 2 files of split val"):
        sources.read_table(str(tmp_path), "val")
    rows.to_parquet(tmp_path / "data/val-00001-of-00002.parquet")
    assert len(sources.read_table(str(tmp_path), "val")) == 2
    rows.to_parquet(tmp_path / "val.parquet")
    with pytest.raises(ValueError, match="has split val more than once"):
        sources.read_table(str(tmp_path), "val")


def test_a_tsv_row_without_a_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("index\timage\tquestion\tanswer\n0\t7\tWho?\tme\n")
    with pytest.raises(ValueError, match="row 0 has no picture: '7'"):
        list(sources.read_tsv(tmp_path / "x.tsv"))


def test_official_avqa_and_own_rows(mirror: Path, tmp_path: Path) -> None:
    official = {"id": 1, "video_name": "v1", "question_text": "What?", "multi_choice": ["a dog", "rain"], "answer": 1}
    frames = [eval_mirror.picture("red"), eval_mirror.picture("blue")]
    sound = io.BytesIO((mirror / "AVQA/audio/v1.wav").read_bytes()).getvalue()
    own = {"id": "x", "question": "Why?", "choices": [], "answer": "yes", "question_type": None}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**official, "question_type": "Come From"}) + "\n")
    datasets.Dataset.from_list([{**own, "audio": {"bytes": sound}, "video": frames}]).to_parquet(
        str(tmp_path / "test.parquet")
    )
    given = {"source": str(tmp_path), "media": "AVQA", "modal": ["video", "audio"]}
    first = omni_documents.omni(**given, file="rows.jsonl")["test"][0]
    assert first["prompt"].startswith("Video: <video>\nAudio: <audio>\nWhat?\n(A) a dog\n(B) rain\nAnswer with")
    assert (first["answer"], first["question_type"], first["video"]["path"]) == (
        "B",
        "come_from",
        str(mirror / "AVQA/video/v1.gif"),
    )
    (tmp_path / "rows.json").write_text(json.dumps([{**own, "choices": ["a", "b"], "answer": 1}]))
    with pytest.raises(ValueError, match="'1' is neither one of the options"):
        omni_documents.omni(**given, file="rows.json")
    second = omni_documents.omni(**given)["test"][0]
    assert [each["bytes"] for each in second["video"]["frames"]] == [frame["bytes"] for frame in frames]
    assert second["audio"]["bytes"] == sound


def test_no_yaml_is_overlooked_and_python_names_no_data_set() -> None:
    code = " ".join(
        node.value
        for path in Path(documents.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value  # no docstrings
    )
    for path in TASKS.rglob("*.yaml"):
        assert path.stem.startswith("_") or path.stem in {*PAPER, *OTHER, *OMNI, "mllm"}
        for source in re.findall(r"source: ([\w./-]+)", path.read_text()):
            assert source not in code


UNDERSTOOD = {"the second one": "B", "three quarters": "3/4"}


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that understands two replies, and answers the others with something malformed."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        said = body["messages"][0]["content"].rpartition("\n")[2]
        found = {"choices": [{"message": {"content": UNDERSTOOD[said]}}]} if said in UNDERSTOOD else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_sees_only_what_the_rules_cannot_read() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        judge = {"url": f"http://127.0.0.1:{server.server_port}/v1", "model": "small"}
        task = load("mllm_mathvista_mini", judge=judge)
        doc = task.eval_docs[0]
        assert task.process_results(doc, ["B"])["score"] == 1
        assert server.asked == []
        assert task.process_results(doc, ["the second one"]) == {"score": 1, "strict": 0, "parsed": 0}
        assert task.process_results(doc, ["the other one"])["score"] == 0
        assert [each["model"] for each in server.asked] == ["small"] * 4  # 3 tries
        vision = load("mllm_mathvision_mini", judge=judge)
        choice, free = list(vision.eval_docs)[:2]
        assert vision.process_results(choice, ["A"]) == {"score": 0, "parsed": 1}
        assert vision.process_results(free, ["0.75"]) == {"score": 1, "parsed": 1}
        assert len(server.asked) == 4
        assert vision.process_results(choice, ["the second one"]) == {"score": 1, "parsed": 0}
        assert vision.process_results(free, ["three quarters"]) == {"score": 1, "parsed": 1}
        server.shutdown()
    assert task.process_results(doc, ["the second one"])["score"] == 0  # nobody listens any more
    assert task.config.metadata["judge"] == judge
