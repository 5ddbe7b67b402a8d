"""Samples for `mergekit-mm align` from folders and from tasks of lm-eval: what they hold, and what they must not."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import end_to_end as c
import eval_mirror
import pytest
import yaml
from click.testing import CliRunner
from eval_mirror import TASKS, Answering
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from mergekit_mm.align.folders import read_folder
from mergekit_mm.align.samples import Sample, by_expert, from_media, read_samples
from mergekit_mm.align.samples import split as drawn
from mergekit_mm.align.tasks import guess, read_tasks
from mergekit_mm.cli import main
from mergekit_mm.errors import EvaluationError, MergeError
from mergekit_mm.evaluation.model.questions import questions

EASY_VQA = Path(__file__).parents[2] / "examples" / "easy_vqa"
EXPERTS = [f"models/{name}" for name in ("vqa", "geometry", "chart", "ocr", "grounding")]
PICTURE = eval_mirror.picture("red")["bytes"]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set in miniature. ChartQA has the split `val` too, with questions and answers of its own."""
    root = tmp_path_factory.mktemp("mirror")
    eval_mirror.write(root)
    changed(root, "val", "question", lambda question: f"Of the validation: {question}")
    return root


def changed(root: Path, split: str, column: str, change: Callable[[str], str]) -> None:
    """Write a split of ChartQA, whose rows are those of its test split with another value in a column."""
    folder = root / "lmms-lab/ChartQA/data"
    table = datasets.Dataset.from_parquet(str(folder / "test-00000-of-00001.parquet"), keep_in_memory=True)
    rows = [{**row, column: change(row[column])} for row in table.cast_column("image", datasets.Image(decode=False))]
    found = datasets.Dataset.from_list(rows, features=table.features)
    found.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


@pytest.fixture(autouse=True)
def local_data(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_EVAL_DATA", str(mirror))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def manager(*folders: Path, **metadata: Any) -> TaskManager:
    return TaskManager(include_path=[str(TASKS), *folders], include_defaults=False, metadata=metadata)


def read(
    *names: str, split: str | None = None, count: int = 16, seed: int = 0, told: list[str] | None = None, **options: Any
) -> list[Sample]:
    """Samples from tasks, each named as on the command line."""
    named = [(name.rpartition("=")[0] or None, name.rpartition("=")[2]) for name in names]
    metadata = {**options, **({} if split is None else {"data_split": split})}
    lines: list[str] = [] if told is None else told
    find = functools.partial(questions, manager(**metadata), split=split)
    return read_tasks(find, named, EXPERTS, count, seed, lines.append)


# ------------------------------------------------------------------------------------------------ tasks of lm-eval


@pytest.mark.parametrize(
    "name",
    [
        "mllm_avqa_video_image_audio",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mllm_chartqa", "mllm_refcoco_val")),
    ],
)
def test_a_task_gives_the_prompts_and_media_that_lm_eval_asks_the_model(name: str) -> None:
    model = Answering(lambda doc: "")
    simple_evaluate(model, tasks=[name], task_manager=manager(), bootstrap_iters=0, log_samples=False)
    asked = [from_media("", one.args[0], "", "", lambda media=one.args[2]: media) for one in model.requests]
    found = read(f"vqa={name}")
    assert len(asked) > 1
    assert {(one.prompt, one.digest) for one in found} == {(one.prompt, one.digest) for one in asked}
    for one in found:
        shown, kinds = one.media(), ("<image>", "<video>", "<audio>")
        assert sum(map(one.prompt.count, kinds)) == len(shown["visual"]) + len(shown["audio"])


def test_answers_change_nothing(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read("mllm_chart")
    other = tmp_path / "mirror"
    shutil.copytree(mirror / "lmms-lab/ChartQA", other / "lmms-lab/ChartQA")
    changed(other, "test", "answer", lambda answer: "a leaked label")
    monkeypatch.setenv("MLLM_EVAL_DATA", str(other))
    after = read("mllm_chart")
    assert [one.digest for one in before] == [one.digest for one in after]
    assert not any("leaked" in f"{one} {one.media()}" for one in after)


def test_experts_are_named_or_told_by_names_and_what_is_taken_is_told() -> None:
    told: list[str] = []
    found = read("mllm_chart", "models/vqa=mllm_textvqa_val", "ocr=mllm_ocrvqa_test", told=told)
    assert {one.expert for one in found} == {"models/chart", "models/vqa", "models/ocr"}
    assert told == [
        "mllm_chartqa, split test (which it is scored on): 3 of 3 documents for models/chart, as their names tell",
        "mllm_textvqa_val, split validation (which it is scored on): 2 of 2 documents for models/vqa",
        "mllm_ocrvqa_test, split test (which it is scored on): 3 of 3 documents for models/ocr",
    ]


@pytest.mark.slow
def test_another_split_than_that_of_the_task() -> None:
    told: list[str] = []
    found = read("mllm_chart", split="val", told=told)
    assert all(one.prompt.startswith("<image>Of the validation: ") for one in found)
    assert told == ["mllm_chartqa, split val: 3 of 3 documents for models/chart, as their names tell"]
    assert {one.where for one in found} == {f"mllm_chartqa, document {at} of val" for at in range(3)}
    assert [one.where for one in read("mllm_chart", data_split="val")] == [one.where for one in found]
    model = Answering(lambda doc: "")
    simple_evaluate(model, tasks=["mllm_chart"], task_manager=manager(data_split="val"), bootstrap_iters=0)
    assert {one.args[0] for one in model.requests} == {one.prompt for one in found}


@pytest.mark.parametrize(("split", "warned"), [(None, True), ("test", True), ("val", False)])
def test_a_split_that_models_are_scored_on_is_warned_of(
    split: str | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    read("mllm_chart", split=split)
    assert ("a score on them tells nothing" in caplog.text) == warned


def test_the_prompt_is_that_of_the_model_family() -> None:
    assert all("short words or phrases" in one.prompt for one in read("mllm_chart", prompt_style="qwen2_vl"))


def test_documents_are_drawn_by_the_seed() -> None:
    by_seed = [[one.where for one in read("mllm_grounding", count=1, seed=seed)] for seed in range(8)]
    assert by_seed[0] == [one.where for one in read("mllm_grounding", count=1, seed=0)]
    assert len(set(map(tuple, by_seed))) > 1
    assert all(len(one) == 3 for one in by_seed)  # one of each of the three tasks


def test_the_split_tells_where_its_samples_came_from(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps({"expert": "chart", "prompt": "What is a chart?"}))
    found = [*read("chart=mllm_chart", split="val"), *read_samples(tmp_path / "samples.jsonl")]
    own = drawn(by_expert(found, EXPERTS[2:3]), 4, 0)["models/chart"]
    assert own.sources == f"1 from {tmp_path / 'samples.jsonl'}; 3 from mllm_chartqa, split val"
    assert own.places[found[3].digest] == f"{tmp_path / 'samples.jsonl'}, line 1"
    assert len(own.places) == 4


def test_a_picture_and_a_prompt_have_one_digest_wherever_they_are(tmp_path: Path) -> None:
    """So that a sample of a file is known again among those of a benchmark."""
    found = read("mllm_chart")
    for at, one in enumerate(found):
        (visual,) = one.media()["visual"]
        (tmp_path / f"{at}.png").write_bytes(visual.fp.getvalue())
    lines = [json.dumps({"prompt": one.prompt, "image": f"{at}.png"}) for at, one in enumerate(found)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    assert [one.digest for one in read_samples(tmp_path / "samples.jsonl", "chart")] == [one.digest for one in found]


@pytest.fixture
def text_task(tmp_path: Path) -> Path:
    """A folder with a text-only task in lm-eval's own form: two examples before each question, three splits."""
    files = {}
    for split in ("train", "validation", "test"):
        rows = [{"question": f"{split} {at} <image>", "answer": f"secret {at}"} for at in range(4)]
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "text_chart",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": 2,
        "output_type": "generate_until",
        "description": "Answer. ",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"]},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "text.yaml").write_text(yaml.safe_dump(task))
    return tmp_path / "tasks"


def test_a_task_of_text_alone_is_asked_without_its_examples(text_task: Path, caplog: pytest.LogCaptureFixture) -> None:
    find = functools.partial(questions, manager(text_task), split="validation")
    found = read_tasks(find, [(None, "text_chart")], EXPERTS, 3, 0, lambda line: None)
    assert len(found) == 3
    for one in found:
        assert one.prompt.startswith("Answer. validation ")
        assert one.prompt.endswith(r" \<image>")  # a word, as lm-eval gives this task no media
        assert "secret" not in one.prompt
        assert not any(one.media().values())
        assert one.until == ("\n",)
    assert "asked without its 2 examples" in caplog.text
    with pytest.raises(EvaluationError, match="text_chart has no split 'dev'; its data have test, train, validation"):
        questions(manager(text_task), "text_chart", "dev")


@pytest.mark.parametrize(
    ("names", "expert"),
    [
        (("mllm_ocr", "mllm_textvqa_val"), "models/ocr"),
        (("mllm_chart", "mllm_chartqa"), "models/chart"),
        (("chartqa",), "models/chart"),
        (("mllm", "mllm_ocrvqa_test"), "models/ocr"),
        (("geo",), "models/geometry"),
    ],
)
def test_names_tell_the_expert(names: tuple[str, ...], expert: str) -> None:
    assert guess(names, EXPERTS) == expert


def test_words_that_all_experts_share_tell_nothing() -> None:
    experts = [f"someone/Qwen2-VL-7B-{name}" for name in ("VQA", "OCR")]
    assert guess(("qwen2_ocr",), experts) == experts[1]
    assert guess(("anything",), experts[:1]) == experts[0]
    for name in ("mllm_gqa_testdev", "ocr_and_vqa", "qwen2_7b"):
        with pytest.raises(MergeError, match=f"which expert the task {name} is for.*Qwen2-VL-7B-VQA"):
            guess((name,), experts)


@pytest.mark.parametrize(
    ("name", "split", "told"),
    [
        ("mllm_chrat", None, r"No task of lm-eval is called 'mllm_chrat'. Did you mean mllm_chart"),
        ("nobody=mllm_chart", None, r"'nobody' is none of the experts"),
        ("mllm_gqa_testdev", None, r"--samples-from EXPERT=mllm_gqa_testdev"),
        ("mllm_chart", "train", r"no parquet file of split train"),
        ("ocr=mllm_ocrvqa_testcore", "train", r"OCRVQA_TESTCORE.tsv is one file without splits"),
        ("vqa=mllm_avqa_image", "train", r"avqa-test_mm_\{modal\}.json is one file without splits"),
    ],
)
def test_tasks_that_cannot_be_had(name: str, split: str | None, told: str) -> None:
    with pytest.raises((MergeError, EvaluationError), match=told):
        read(name, split=split)


def test_an_unreadable_picture_is_told_with_its_document(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mirror/lmms-lab/ChartQA/data"
    folder.mkdir(parents=True)
    row = {"type": "human_test", "question": "?", "answer": "1", "image": {"bytes": PICTURE[:40], "path": None}}
    features = {"image": datasets.Image(), **dict.fromkeys(("type", "question", "answer"), datasets.Value("string"))}
    found = datasets.Dataset.from_list([row], features=datasets.Features(features))
    found.to_parquet(str(folder / "test-00000-of-00001.parquet"))
    with pytest.raises(MergeError, match="mllm_chartqa, document 0 of test: its image cannot be read"):
        read("mllm_chart", sources={"lmms-lab/ChartQA": str(folder.parent)})


# ---------------------------------------------------------------------------------------------------- the command


def recipe() -> Path:
    """A merge of the trained experts of the example, by their names."""
    config = {
        "merge_method": "tsv",
        "base_model": str(EASY_VQA / "models/base"),
        "models": [{"model": str(EASY_VQA / f"models/expert_{kind}")} for kind in ("color", "shape", "yesno")],
        "parameters": {"scaling": 0.7},
        "out_dtype": "float32",
    }
    path = c.fresh("config.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_merge_is_aligned_by_tasks_and_its_card_says_so() -> None:
    """The tasks are found as lm-eval finds them, and each is for the expert of its name."""
    pytest.importorskip("easy_vqa")
    out = c.fresh("aligned")
    given = ["align", str(recipe()), str(out), "--samples-from", "mllm_demo_easy_vqa", "--per-expert", "8"]
    given += ["--include-path", str(EASY_VQA / "tasks"), "--metadata", '{"split": "train"}']
    given += ["--steps", "2", "--answer-tokens", "2", "--per-step", "6"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    card, report = (out / "README.md").read_text(), json.loads((out / "align/report.json").read_text())
    for kind in ("color", "shape", "yesno"):
        expert, task = f"{EASY_VQA}/models/expert_{kind}", f"mllm_demo_easy_vqa_{kind}"
        assert f"{task}, split train: 8 of " in result.output
        assert f"- {expert}: 8 from {task}, split train\n" in card
        places = report["from"][expert]
        assert all(place.startswith(f"{task}, document ") for place in places.values())
        assert {*report["samples"][expert]["trained"], *report["samples"][expert]["held_back"]} == places.keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "Name samples: --samples for files and folders"),
        (("--samples-from", "mllm_chart"), "--samples-from needs --per-expert"),
        (("--samples", "x.jsonl", "--split", "val"), "are for --samples-from"),
        (("--samples-from", "mllm_chart", "--metadata", "{"), "is no JSON"),
        (("--samples-from", "mllm_chart", "--metadata", "3"), "is no JSON object"),
        (("--samples", "gone.jsonl"), "gone.jsonl cannot be read"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(main, ["align", str(recipe()), str(c.fresh()), *options])
    assert result.exit_code in (1, 2)
    assert told in " ".join(result.output.split())
    assert "Traceback" not in result.output


# -------------------------------------------------------------------------------------------------------- folders


def beside(folder: Path) -> None:
    """Samples as pairs of files: of a picture, a sound, a video, and of a text alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.PNG").write_bytes(PICTURE)
    eval_mirror.tone(folder / "b.wav")
    eval_mirror.film(folder / "film.gif")
    (folder / "film.gif").rename(folder / "c.webm")
    for name, prompt in (
        ("a", "<image>What is shown?\n"),
        ("b", "What is heard?"),
        ("c", "What moves?"),
        ("d", "Why?"),
    ):
        (folder / f"{name}.txt").write_text(prompt)


def by_metadata(folder: Path) -> None:
    """Samples as a data set of Hugging Face has them, with labels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").write_bytes(PICTURE)
    eval_mirror.tone(folder / "sub/b.wav")
    lines = [
        {"file_name": "a.png", "prompt": "<image>What is shown?", "label": "a secret", "text": "the secret's caption"},
        {"file_name": "sub/b.wav", "prompt": "What is heard?", "answer": "a secret"},
        {"file_names": ["a.png", "a.png"], "prompt": "<image>Is <image> the same?"},
        {"prompt": "Why?"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def kinds(sample: Sample) -> tuple[int, int]:
    return len(sample.media()["visual"]), len(sample.media()["audio"])


def test_media_with_prompts_beside_them(tmp_path: Path) -> None:
    beside(tmp_path)
    found = read_folder(tmp_path, "vqa")
    assert [one.prompt for one in found] == ["<image>What is shown?", "What is heard?", "What moves?", "Why?"]
    assert [kinds(one) for one in found] == [(1, 0), (0, 1), (1, 0), (0, 0)]
    assert found[2].media()["visual"][0]["type"] == "video"
    assert len({one.digest for one in found}) == 4


def test_a_data_set_of_hugging_face_without_its_labels(tmp_path: Path) -> None:
    by_metadata(tmp_path / "data")
    found = read_folder(tmp_path / "data", "vqa")
    assert [kinds(one) for one in found] == [(1, 0), (0, 1), (2, 0), (0, 0)]
    assert not any("secret" in f"{one} {one.media()}" for one in found)
    beside(tmp_path / "same")
    assert [one.digest for one in read_folder(tmp_path / "same", "vqa")][:2] == [one.digest for one in found][:2]


def test_the_layout_is_that_of_the_library_datasets(tmp_path: Path) -> None:
    for at in range(2):
        (tmp_path / f"{at}.png").write_bytes(eval_mirror.picture(("red", "blue")[at])["bytes"])
    lines = [{"file_name": f"{at}.png", "prompt": f"Which is {at}?", "label": at} for at in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train")
    found = read_folder(tmp_path, "vqa")
    assert loaded["prompt"] == [one.prompt for one in found]
    for picture, one in zip(loaded["image"], found, strict=True):
        assert picture.tobytes() == one.media()["visual"][0].tobytes()


def test_a_folder_for_each_expert(tmp_path: Path) -> None:
    beside(tmp_path / "vqa")
    by_metadata(tmp_path / "chart")
    found = by_expert(read_folder(tmp_path), ["models/vqa", "models/chart"])
    assert {name: len(own) for name, own in found.items()} == {"models/vqa": 4, "models/chart": 4}


def spoil(folder: Path, name: str, content: bytes | None) -> None:
    beside(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", None, "a.PNG has no prompt"),
        ("a.txt", b" \n", "a.txt: the prompt is empty"),
        ("a.txt", b"\xff", "a.txt is no text"),
        ("a.jpg", PICTURE, "several media of one kind: a.PNG, a.jpg"),
        ("notes.md", b"", "notes.md is neither a prompt"),
        ("a.PNG", PICTURE[:60], "a.txt: its image cannot be read"),
        ("b.wav", b"RIFF", "b.txt: its audio cannot be read"),
        ("c.webm", b"no video", "c.txt: its video cannot be read"),
        ("metadata.jsonl", b"{}", 'line 1 has no text "prompt"'),
        ("metadata.jsonl", b"{", "line 1 is no JSON"),
        ("metadata.jsonl", b'{"text": "a caption", "file_name": "a.PNG"}', r"it has text, file_name"),
        ("metadata.jsonl", b'{"prompt": "?", "file_name": "z.png"}', "z.png does not exist"),
        ("metadata.jsonl", b'{"prompt": "?", "file_name": "a.txt"}', "no ending of an image"),
        ("metadata.jsonl", b'{"prompt": "?", "file_names": ["b.wav", "e.wav"]}', "at most one audio"),
        ("metadata.jsonl", b'{"prompt": "?", "file_name": 3}', "3 is no name of a file"),
        ("metadata.jsonl", b"\n", "has no samples"),
    ],
)
def test_a_folder_that_is_wrong(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    spoil(tmp_path, name, content)
    with pytest.raises(MergeError, match=told):
        drawn({"vqa": read_folder(tmp_path, "vqa")}, None, 0)


def test_a_folder_without_experts_is_told_how_to_name_one(tmp_path: Path) -> None:
    beside(tmp_path)
    with pytest.raises(MergeError, match="--samples EXPERT="):
        read_folder(tmp_path)
