"""A tiny `MLLM_EVAL_DATA`: every data set of the benchmark in its own schema, with our pictures, tones and questions.

`write(root)` lays the files out as `hf download --local-dir` does. Nothing is taken from the data sets themselves.
`Answering` is a model for them, and `right` what it may reply.
"""

import base64
import io
import json
import math
import struct
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from lm_eval.api.model import LM
from PIL import Image as Pictures
from PIL import ImageDraw

TASKS = Path(__file__).parents[2] / "eval_tasks"
TEXTS = List(Value("string"))
WIDTH, HEIGHT = 80, 40


def picture(colour: str, mode: str = "RGB") -> dict[str, Any]:
    """A PNG, stored as the Hub stores pictures: a rectangle on white."""
    canvas = Pictures.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(canvas).rectangle((8, 4, 40, 24), fill=colour)
    data = io.BytesIO()
    canvas.convert(mode).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": f"{colour}.png"}


def tone(path: Path, hertz: float = 440.0) -> None:
    """A tenth of a second of a sine, 16 kHz, 16 bit, one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        samples = (int(12000 * math.sin(math.tau * hertz * at / 16000)) for at in range(1600))
        file.writeframes(b"".join(struct.pack("<h", each) for each in samples))


def film(path: Path) -> None:
    """Four frames as an animated GIF: a video that needs no encoder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Pictures.open(io.BytesIO(picture(each)["bytes"])) for each in ("red", "green", "blue", "black")]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def _parquet(path: Path, rows: list[dict[str, Any]], **features: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    declared = {name: features.get(name, Value("string")) for name in rows[0]}
    Dataset.from_list(rows, features=Features(declared)).to_parquet(str(path))


def _vqa(root: Path) -> None:
    unanswerable = {"question": "What is it?", "answers": ["unanswerable"] * 7 + ["rectangle"] * 3}
    plain = {"question": "What colour is it?", "answers": ["red"] * 6 + ["dark red"] * 4}
    rows = [{"question_id": str(at), "image": picture("red"), **each} for at, each in enumerate((plain, unanswerable))]
    features = {"answers": TEXTS, "image": Image()}
    _parquet(root / "lmms-lab/VizWiz-VQA/data/val-00000-of-00001.parquet", rows, **features)
    _parquet(root / "lmms-lab/VizWiz-VQA/data/test-00000-of-00001.parquet", rows[:1], **features)
    _parquet(root / "lmms-lab/textvqa/data/validation-00000-of-00001.parquet", rows, **features)


def _gqa(root: Path) -> None:
    questions = [
        {"id": "1", "imageId": "n2", "question": "Is it blue?", "answer": "yes", "fullAnswer": "Yes, it is."},
        {"id": "2", "imageId": "n1", "question": "Which colour?", "answer": "red", "fullAnswer": "It is red."},
        {"id": "3", "imageId": "n2", "question": "Is it red?", "answer": "no", "fullAnswer": "No."},
    ]
    pictures = [{"id": "n1", "image": picture("red")}, {"id": "n2", "image": picture("blue")}]
    folder = root / "lmms-lab/GQA"
    _parquet(folder / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", questions)
    _parquet(folder / "testdev_balanced_images/testdev-00000-of-00001.parquet", pictures, image=Image())


def _chartqa(root: Path) -> None:
    rows = [
        {"type": "human_test", "question": "How high?", "answer": "20", "image": picture("red")},
        {"type": "human_test", "question": "Which year?", "answer": "[2001, 2002]", "image": picture("red", "P")},
        {"type": "augmented_test", "question": "What share?", "answer": "0.25", "image": picture("red")},
    ]
    _parquet(root / "lmms-lab/ChartQA/data/test-00000-of-00001.parquet", rows, image=Image())


def _ocrvqa(root: Path) -> None:
    rows = [
        {"image": picture("red"), "questions": ["Title?", "Genre?"], "answers": ["C Primer", "Travel"], "title": "x"},
        {"image": picture("blue"), "questions": ["Who wrote it?"], "answers": ["A. Person"], "title": "y"},
    ]
    path = root / "howard-hou/OCR-VQA/data/test-00000-of-00001.parquet"
    _parquet(path, rows, image=Image(), questions=TEXTS, answers=TEXTS)
    encoded = base64.b64encode(picture("green")["bytes"]).decode()
    lines = ["index\timage\tquestion\tanswer", f"0\t{encoded}\tTitle?\tC Primer", "1\t0\tGenre?\tTravel"]
    (root / "OCRVQA_TESTCORE.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mathvista(root: Path) -> None:
    shown = {"unit": None, "image": "images/1.jpg"}
    rows = [
        _mathvista_row("1", "5", ["3", "5"], "text", None, ["geometry reasoning"], "geometry problem solving"),
        _mathvista_row("2", "7", None, "integer", None, ["geometry reasoning", "algebraic reasoning"], "figure QA"),
        _mathvista_row("3", "1.25", None, "float", 2.0, ["algebraic reasoning"], "textbook QA"),
        _mathvista_row("4", "[1, 2]", None, "list", None, ["statistical reasoning"], "figure QA"),
    ]
    modes = ("RGB", "RGBA", "P", "RGB")
    rows = [{**row, **shown, "decoded_image": picture("red", mode)} for row, mode in zip(rows, modes, strict=True)]
    features = {"choices": TEXTS, "precision": Value("float64"), "decoded_image": Image()}
    features["metadata"] = {"skills": TEXTS, "task": Value("string"), "language": Value("string")}
    for split, part in (("testmini", rows), ("test", rows[:1])):
        _parquet(root / f"AI4Math/MathVista/data/{split}-00000-of-00001-725687bf7a18d64b.parquet", part, **features)


def _mathvista_row(
    pid: str, answer: str, choices: list[str] | None, kind: str, precision: float | None, skills: list[str], task: str
) -> dict[str, Any]:
    listed = "\nChoices:\n" + "\n".join(
        f"({letter}) {text}" for letter, text in zip("ABC", choices or [], strict=False)
    )
    return {
        "pid": pid,
        "query": f"Hint: Please answer the question.\nQuestion: What is {pid}?{listed if choices else ''}",
        "question": f"What is {pid}?",
        "choices": choices,
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": kind,
        "precision": precision,
        "metadata": {"skills": skills, "task": task, "language": "english"},
    }


def _mathvision(root: Path) -> None:
    angle, algebra = "metric geometry - angle", "algebra"
    rows = [
        {"id": "1", "question": "<image1> What angle?", "options": ["30", "60"], "answer": "B", "subject": angle},
        {
            "id": "2",
            "question": "Is {x} $\\sqrt{2}$?",
            "options": [],
            "answer": "3/4",
            "subject": "solid geometry",
        },
        {"id": "3", "question": "<image1>", "options": ["<image2>", "x"], "answer": "A", "subject": algebra},
    ]
    rows = [{**row, "image": "images/1.jpg", "decoded_image": picture("red")} for row in rows]
    features = {"options": TEXTS, "decoded_image": Image()}
    _parquet(root / "MathLLMs/MathVision/data/testmini-00000-of-00001.parquet", rows, **features)


def _refcoco(root: Path) -> None:
    asked = "Describe the region."
    rows = [
        {"image": picture("red"), "question": asked, "answer": ["red box", "the box"], "bbox": [8.0, 4.0, 32.0, 20.0]},
        {"image": picture("blue"), "question": asked, "answer": ["blue"], "bbox": [0.0, 0.0, 80.0, 40.0]},
    ]
    features = {"image": Image(), "answer": TEXTS, "bbox": List(Value("float32"))}
    for name in ("RefCOCO", "RefCOCOplus", "RefCOCOg"):
        _parquet(root / f"lmms-lab/{name}/data/val-00000-of-00001.parquet", rows, **features)
        _parquet(root / f"lmms-lab/{name}/data/testA-00000-of-00001.parquet", rows[:1], **features)


def _media(folder: Path, names: list[str]) -> None:
    for name in names:
        film(folder / f"video/{name}.gif")
        tone(folder / f"audio/{name}.wav")
        (folder / "image").mkdir(exist_ok=True)
        (folder / f"image/{name}.png").write_bytes(picture("green")["bytes"])


def _model_compose(root: Path, data: str, folder: str, questions: list[tuple[str, str, str]]) -> None:
    """ModelCompose's conversations of (name of the media, question, answer): one file a mix, and the answers."""
    _media(root / folder, [name for name, _, _ in questions])
    names = {"video": "video/{}.gif", "image": "image/{}.png", "audio": "/elsewhere/audio/{}.wav"}
    kinds = {"image": "vision"}
    path = root / "Adu2021/ModelCompose/test"
    path.mkdir(parents=True, exist_ok=True)
    for modal in ("audio", "image", "video", "image+audio", "image+video", "video+audio", "video+image+audio"):
        media = modal.split("+")
        marks = "".join(f"{medium.capitalize()}: <{medium}>\n" for medium in media)
        rows = []
        for name, text, _ in questions:
            said = [{"from": "human", "value": marks + text}, {"from": "gpt", "value": None}]
            inputs = {kinds.get(medium, medium): [names[medium].format(name)] for medium in media}
            rows.append({"id": name, "conversations": said, "modal_inputs": {"point": [], **inputs}})
        (path / f"{data}-test_mm_{modal}.json").write_text(json.dumps(rows))
    answers = [{"id": name, "conversations": [{"from": "gpt", "value": answer}]} for name, _, answer in questions]
    (path / f"{data}-test_mm_answer.json").write_text(json.dumps(answers))


def _avqa(root: Path) -> None:
    asked = "What is heard?\nA. a dog\nB. a sine\nC. rain\nD. a horn\nAnswer with the letter."
    _model_compose(root, "avqa", "AVQA", [("v1", asked, "B"), ("v2", asked, "D")])


def _music_avqa(root: Path) -> None:
    """ModelCompose's files and the official annotation."""
    _model_compose(root, "music-avqa", "MUSIC-AVQA", [("m1", "How many?", "two"), ("m2", "Which?", "acoustic_guitar")])
    kinds = [["Audio-Visual", "Counting"], ["Audio", "Comparative"], ["Visual", "Location"]]
    asked = [
        ("How many <Object> sound?", ["cello"], "two"),
        ("Is the <Object> louder than the <Object>?", ["a", "b"], "yes"),
    ]
    asked.append(("What is on the left?", [], "acoustic_guitar"))
    rows = [
        {
            "video_id": "m1",
            "question_id": at,
            "type": json.dumps(kind),
            "question_content": question,
            "templ_values": json.dumps(values),
            "question_deleted": 0,
            "anser": answer,
        }
        for at, (kind, (question, values, answer)) in enumerate(zip(kinds, asked, strict=True))
    ]
    path = root / "GeWu-Lab/MUSIC-AVQA/data/json/avqa-test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))


def write(root: Path) -> None:
    """Fill `root` with all data sets."""
    for fill in (_vqa, _gqa, _chartqa, _ocrvqa, _mathvista, _mathvision, _refcoco, _avqa, _music_avqa):
        fill(root)


class Answering(LM):
    """A model whose reply to a document is given by a function; it keeps what it was asked."""

    MULTIMODAL = True

    def __init__(self, reply: Callable[[Mapping[str, Any]], str]) -> None:
        super().__init__()
        self.reply = reply
        self.requests: list[Any] = []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.requests += requests
        return [self.reply(request.doc) for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def right(doc: Mapping[str, Any]) -> str:
    if "box" not in doc:
        return "2002" if doc["answer"] == "[2001, 2002]" else str(doc["answer"])
    sizes = (WIDTH, HEIGHT) * 2
    return "<box>[{}, {}, {}, {}]</box>".format(
        *(round(1000 * at / size) for at, size in zip(doc["box"], sizes, strict=True))
    )
