"""The documents of the omni tasks: AVQA and MUSIC-AVQA, with any mix of video, image and audio.

The rows come from a json or jsonl file or from a data set, in one of four forms, which differ in their keys:
ModelCompose's conversations, the official annotations of each of the two data sets, or the project's own `id, question,
choices, answer, question_type, image, audio, video`. The media lie below the folder `media`
(`$MLLM_EVAL_DATA/<media>`), at the path in the row or as `<media>/<modality>/<name>.*`. If there is no such image or
audio, the middle frame and the audio of the question's video are taken: the two data sets are published as videos.
"""

import json
import re
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import datasets

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.tasks import missing as missing_media
from mergekit_mm.evaluation.tasks import prompts
from mergekit_mm.evaluation.tasks.missing import Documents
from mergekit_mm.evaluation.tasks.options import option_letter
from mergekit_mm.evaluation.tasks.sources import DataNotFound, loader, local_path, read_table, refuse_misspelt

_MEDIA = ("video", "image", "audio")  # in the order of their placeholders in the prompt
_MEDIUM_LINE = re.compile(
    r"^(?:[\w ]+:)?\s*<(?:video|image|audio|point|pointcloud)>\s*$\n?", re.MULTILINE | re.IGNORECASE
)
_OPTION_LINE = re.compile(r"\(?\b([A-D])[).:]\s*(.+?)(?=\s*\(?\b[B-D][).:]\s|\s*$)", re.MULTILINE)
_LETTERS = tuple("ABCD")


@loader
def omni(
    *,
    source: str,
    modal: Sequence[str],
    media: str,
    file: str | None = None,
    answers: str | None = None,
    split: str = "test",
    num_frames: int = 8,
    missing: str = "error",
    sources: Mapping[str, str] | None = None,
    **others: object,
) -> Documents:
    """Documents with the media of `modal`, such as `[video, audio]`, and with a placeholder for each in the prompt.

    source, file: the rows are in `file` in the local folder `source` (`{modal}` in its name stands for the modalities
    joined by "+"), or without `file` in the data set `source`. answers: ModelCompose's file of answers, joined by `id`.
    missing: what becomes of questions with a medium that does not exist, see `evaluation.tasks.missing`.

    DataNotFound, a FileNotFoundError: the rows do not exist, or media do not exist; the message counts them.
    """
    refuse_misspelt(others)
    wanted = [medium for medium in _MEDIA if medium in modal]
    if len(wanted) != len(modal):
        raise ValueError(f"modal is {list(modal)}; it must be one or more of {', '.join(_MEDIA)}")
    if file:
        rows = _read_json(source, file.replace("{modal}", "+".join(modal)), sources)
    else:
        rows = read_table(source, split, sources=sources).to_list()
    if answers:
        known = {row["id"]: row["conversations"][-1]["value"] for row in _read_json(source, answers, sources)}
        rows = [{**row, "answer": known.get(row["id"])} for row in rows]
    folder = local_path(media, sources)[1] or Path(media)
    documents, lacking = [], []
    for row in map(_common_form, rows):
        found, lost = _media(row, wanted, folder)
        if lost:
            lacking.append(f"{row['question']!r}: {'; '.join(lost)}")
            if missing_media.check(missing) == "skip":
                continue
        prompt = prompts.omni_question(prompts.as_words(row["prompt"]), wanted)
        documents.append({**row, **found, "prompt": prompt, "num_frames": num_frames, "lacks": "; ".join(lost) or None})
    if lacking and (missing == "error" or not documents):
        raise _missing_media(lacking, len(rows))
    made = Documents(test=datasets.Dataset.from_list(documents))
    made.left_out, made.total = lacking, len(rows)
    return made


def _missing_media(lacking: Sequence[str], total: int) -> DataNotFound:
    return DataNotFound(f"{missing_media.refusal(lacking, total)}\nOr fetch the data set's media.")


def _read_json(source: str, file: str, sources: Mapping[str, str] | None) -> list[dict[str, Any]]:
    name, folder = local_path(source, sources)
    path = folder / file if folder else None
    if path is None or not path.is_file():
        raise DataNotFound(
            f"{path or file} does not exist. The omni tasks read local files: put {file} of {name} at "
            f"$MLLM_EVAL_DATA/{name}/{file}, or name another source and file in dataset_kwargs"
        )
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def _common_form(row: dict[str, Any]) -> dict[str, Any]:
    """A row of any form with the keys `prompt, question, choices, answer, question_type, image, audio, video`."""
    if "conversations" in row:
        return _from_model_compose(row)
    if "anser" in row:
        return _from_music_avqa(row)
    if "multi_choice" in row:
        return _from_avqa(row)
    choices = list(row.get("choices") or [])
    return _form(row["question"], choices, str(row["answer"]), row.get("question_type"), row)


def _form(
    question: str, choices: Sequence[str], answer: str, question_type: str | None, media: Mapping[str, Any]
) -> dict[str, Any]:
    if choices:
        option_letter(answer, choices)  # an answer that is no option is an error now, not after the run
        listed = "\n".join(f"({letter}) {text}" for letter, text in zip(ascii_uppercase, choices, strict=False))
        prompt = f"{question}\n{listed}\nAnswer with the option's letter from the given choices directly."
    else:
        prompt = f"{question}\nAnswer the question using a single word or phrase."
    kind = re.sub(r"[\s-]+", "_", question_type.lower()) if question_type else None  # e.g. audio_visual_counting
    found: dict[str, Any] = {
        "prompt": prompt,
        "question": question,
        "choices": list(choices),
        "answer": answer,
        "question_type": kind,
    }
    return {**found, **{medium: media.get(medium) for medium in _MEDIA}}


def _from_model_compose(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt is the data's own, options included; only the placeholders of the media are written anew."""
    said = {turn["from"]: turn["value"] for turn in row["conversations"]}
    question = _MEDIUM_LINE.sub("", said["human"]).strip()
    options = dict(_OPTION_LINE.findall(question))
    choices = [options[letter].strip() for letter in _LETTERS] if tuple(sorted(options)) == _LETTERS else []
    inputs = {{"vision": "image"}.get(kind, kind): (paths or [None])[0] for kind, paths in row["modal_inputs"].items()}
    answer = row.get("answer") or said.get("gpt")
    if not answer:
        raise ValueError(f"question {row['id']} has no answer: name the file of answers by dataset_kwargs answers")
    return {**_form(question, choices, answer.strip(), row.get("question_type"), inputs), "prompt": question}


def _from_music_avqa(row: Mapping[str, Any]) -> dict[str, Any]:
    values = iter(json.loads(row["templ_values"]))
    question = re.sub(r"<\w+>", lambda mark: str(next(values, mark[0])), row["question_content"])
    return _form(question, [], row["anser"], " ".join(json.loads(row["type"])), dict.fromkeys(_MEDIA, row["video_id"]))


def _from_avqa(row: Mapping[str, Any]) -> dict[str, Any]:
    answer, media = ascii_uppercase[int(row["answer"])], dict.fromkeys(_MEDIA, row["video_name"])
    return _form(row["question_text"], row["multi_choice"], answer, row["question_type"], media)


def _media(row: Mapping[str, Any], wanted: Sequence[str], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The media of a row as `media.visuals` and `media.sounds` take them, by modality, and the files that are missing.

    Bytes and frames in the row are taken as they are.
    """
    found: dict[str, Any] = dict.fromkeys(_MEDIA)
    lost: list[str] = []
    for medium in wanted:
        if row[medium] is None and (medium == "video" or row["video"] is None):
            raise EvaluationError(f"the question {row['question']!r} has no {medium}")
        stored = None if row[medium] is None else _stored(row[medium], medium, folder)
        if stored is None and medium != "video":
            stored = _from_video(row["video"] or row[medium], medium, folder)
        if stored is None:
            lost.append(f"neither {folder / medium} nor {folder} has a file {_name(row[medium] or row['video'])}")
        found[medium] = stored or _form_of(medium, {"path": str(folder / medium / _name(row[medium] or row["video"]))})
    return found, lost


def _stored(given: Any, medium: str, folder: Path) -> dict[str, Any] | None:
    """A medium of a row in the form of its modality, or None if its file does not exist."""
    frames = given.get("frames") if isinstance(given, Mapping) else given if isinstance(given, list) else None
    if frames is not None:
        files = [_file(frame, folder / medium) for frame in frames]
        asked = dict(given) if isinstance(given, Mapping) else {}
        return None if None in files else _form_of("video", {**asked, "frames": files})
    file = _file(given, folder / medium)
    return None if file is None else _form_of(medium, file)


def _from_video(given: Any, medium: str, folder: Path) -> dict[str, Any] | None:
    """The middle frame, or the audio, of a video that is a file; of a list of frames the middle frame. Else None."""
    named = [given] if isinstance(given, list) or "frames" in given else [given, Path(_name(given)).stem]
    stored = next((found for each in named if (found := _stored(each, "video", folder))), None)
    if stored is None or stored["bytes"]:
        return None
    if stored["frames"]:
        frames = stored["frames"]
        return _form_of("image", frames[len(frames) // 2]) if medium == "image" else None
    return _form_of(medium, {"path": stored["path"], "middle_of_video": True})


def _form_of(medium: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The medium with the same keys in all documents, as a data set needs them."""
    keys = {
        "video": ("path", "bytes", "frames", "fps", "timestamps", "num_frames", "max_frames"),
        "image": ("path", "bytes", "middle_of_video"),
        "audio": ("path", "bytes"),
    }
    return {key: given.get(key) for key in keys[medium]}


def _name(given: Any) -> str:
    return str(given.get("path") if isinstance(given, Mapping) else given)


def _file(given: str | Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The bytes in the row, or the path of an existing file below the media folder, whose ending the row may omit."""
    if isinstance(given, Mapping) and given.get("bytes"):
        return {"bytes": given["bytes"], "path": None}
    name = _name(given)
    for path in (folder.parent / name, folder / name, folder / Path(name).name):
        if path.is_file():
            return {"bytes": None, "path": str(path)}
    named = sorted(folder.glob(f"{escape(name.lstrip('/'))}.*"))
    return {"bytes": None, "path": str(named[0])} if named else None
