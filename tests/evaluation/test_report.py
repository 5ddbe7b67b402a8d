"""`mergekit-mm report` on result files that lm-eval wrote, and on copies of them with other numbers in."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import eval_mirror
import pytest
from click.testing import CliRunner, Result
from eval_mirror import TASKS, Answering, right
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from PIL import Image

from mergekit_mm.cli import main

MODEL = Path(__file__).parents[2] / "examples/easy_vqa/models/base"
LEAVES = {
    "VizWiz": "mllm_vizwiz_val",
    "GQA": "mllm_gqa_testdev",
    "MathVista": "mllm_mathvista_geometry",
    "MATH-Vision": "mllm_mathvision_geometry",
    "ChartQA": "mllm_chartqa",
    "TextVQA": "mllm_textvqa_val",
    "OCRVQA": "mllm_ocrvqa_testcore",
    "RefCOCO": "mllm_refcoco_val",
    "RefCOCO+": "mllm_refcoco_plus_val",
    "RefCOCOg": "mllm_refcocog_val",
}
# OptMerge, arXiv 2505.19892v3, Table 3 (Qwen2-VL-7B): the ten columns and the mean as printed
PAPER = {
    "org/base": (5.52, 5.39, 47.85, 23.68, 0.36, 20.22, 1.07, 45.32, 37.55, 31.26, 21.82),
    "org/expert-VQA": (41.38, 62.60, 33.71, 28.94, 66.56, 80.21, 55.33, 39.31, 32.71, 38.01, 47.88),
    "org/expert-Geometry": (35.57, 44.63, 42.50, 28.95, 14.56, 73.95, 45.96, 5.57, 2.31, 3.90, 29.79),
    "org/expert-Chart": (38.58, 24.24, 49.28, 32.89, 61.08, 79.75, 63.67, 46.28, 36.67, 34.06, 46.65),
    "org/expert-OCR": (28.38, 37.53, 31.81, 13.16, 57.40, 70.50, 64.68, 0.59, 0.46, 0.26, 30.48),
    "org/expert-Grounding": (38.60, 32.92, 36.17, 19.74, 18.08, 75.05, 48.27, 72.14, 65.33, 66.48, 47.28),
    "org/Weight-Average": (41.47, 57.33, 50.21, 34.21, 59.56, 81.09, 57.85, 80.72, 65.37, 77.68, 60.55),
    "org/Task-Arithmetic": (40.52, 62.31, 40.36, 26.31, 79.67, 81.09, 59.50, 75.96, 61.33, 75.85, 60.29),
    "org/TIES": (41.38, 59.08, 46.87, 34.21, 67.24, 81.42, 58.53, 80.63, 65.36, 77.65, 61.24),
    "org/WUDI": (37.19, 56.45, 42.96, 27.63, 67.84, 79.92, 65.56, 76.25, 60.72, 71.99, 58.65),
    "org/OptMerge": (41.61, 61.16, 48.66, 40.79, 74.08, 81.54, 60.06, 80.92, 65.90, 78.24, 63.30),
    "org/Instruct": (44.09, 62.18, 46.02, 19.73, 70.04, 78.38, 65.42, 82.89, 77.87, 75.63, 62.23),
}
ROLES = ("--base", "base", "--expert", "expert-*", "--reference", "Instruct")
TEXT_TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["yes", "no"],
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
    },
    "prose": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as `lm_eval --output_path` writes them: a small LLaVA in stock lm-eval, replies by rule, text tasks."""
    root, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("results")
    eval_mirror.write(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLM_EVAL_DATA", str(root))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        ours = TaskManager(include_path=str(TASKS), include_defaults=False)
        arguments = {"pretrained": str(MODEL), "convert_img_format": True, "max_length": 4096}
        cheap = {"limit": 1, "gen_kwargs": "max_gen_toks=2", "device": "cpu"}
        _evaluate("hf-multimodal", arguments, ["mllm_vqa"], ours, out, **cheap)
        half = Answering(lambda doc: right(doc) if len(doc["prompt"]) % 2 else "?")
        _evaluate(half, {"pretrained": "org/half"}, ["mllm"], ours, out)
        (root / "rows.json").write_text(json.dumps([{"question": f"Is it {n}?", "answer": n % 2} for n in range(8)]))
        for name, task in TEXT_TASKS.items():
            data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "rows.json")}}}
            (root / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))
        own = TaskManager(include_path=str(root), include_defaults=False)
        _evaluate("dummy", "pretrained=org/text", list(TEXT_TASKS), own, out)
    return out


def _evaluate(model: Any, arguments: Any, tasks: list[str], manager: TaskManager, out: Path, **options: Any) -> None:
    """What the command line does after parsing."""
    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model, model_args=arguments, tasks=tasks, task_manager=manager, evaluation_tracker=tracker, **options
    )
    tracker.save_results_aggregated(results, samples=results.pop("samples"))


@pytest.fixture(scope="module")
def template(real: Path) -> dict[str, Any]:
    """A complete run of the ten columns."""
    (path,) = (real / "org__half").glob("results_*.json")
    return json.loads(path.read_text())


def edited(template: Mapping[str, Any], name: str, scores: Mapping[str, float], stderr: float = 0.01) -> dict[str, Any]:
    """The run of another model, with these scores (fractions) in these columns and no others."""
    data = copy.deepcopy(dict(template))
    data["model_name"] = data["config"]["model_args"]["pretrained"] = name
    for header, task in LEAVES.items():
        if header in scores:
            data["results"][task] |= {"score,none": scores[header], "score_stderr,none": stderr}
        else:
            for part in ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better"):
                data[part].pop(task)
    return data


def save(folder: Path, data: Mapping[str, Any], date: str = "2026-11-20T10-00-00") -> Path:
    """Where lm-eval would put it."""
    path = folder / str(data["model_name"]).replace("/", "__") / f"results_{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def paper(template: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    for name, numbers in PAPER.items():
        scores = {header: number / 100 for header, number in zip(LEAVES, numbers, strict=False)}
        save(folder, edited(template, name, scores))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def printed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(*arguments: object) -> dict[str, dict[str, str]]:
    """The CSV by model."""
    found = csv.DictReader(io.StringIO(printed(*arguments, "--format", "csv")))
    return {row["model"]: dict(row) for row in found}


def refusal(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert not result.stdout
    return result.stderr


def different(*arguments: object) -> list[str]:
    """The notes on what was not measured alike."""
    return [line for line in printed(*arguments).splitlines() if line.startswith("Different")]


def without_intervals(text: str) -> str:
    return re.sub(r" ± \d+\.\d", "", text)


@pytest.mark.slow
def test_the_paper_s_table(paper: Path) -> None:
    found = rows(paper, *ROLES)
    headers = [header for header in next(iter(found.values())) if header in LEAVES]
    assert headers == list(LEAVES)
    assert [row["role"] for row in found.values()] == ["base"] + ["expert"] * 5 + ["merge"] * 5 + ["reference"]
    for name, numbers in PAPER.items():
        row = found[name.removeprefix("org/")]
        assert [float(row[header]) for header in LEAVES] == pytest.approx(numbers[:10])
        assert float(row["mean"]) == pytest.approx(numbers[10], abs=0.0051)
    best = found["OptMerge"]
    assert float(best["gain over base"]) == pytest.approx(63.30 - 21.82, abs=0.011)
    assert float(best["gain over best expert"]) == pytest.approx(63.30 - 47.88, abs=0.011)
    tops = [max(numbers[at] for name, numbers in PAPER.items() if "expert" in name) for at in range(10)]
    ratios = [score / top for score, top in zip(PAPER["org/OptMerge"], tops, strict=False)]
    assert float(best["normalised"]) == pytest.approx(100 * fmean(ratios))
    assert found["base"]["gain over base"] == found["base"]["gain over best expert"] == ""


def test_text_and_markdown(paper: Path) -> None:
    text = printed(paper, *ROLES).splitlines()
    head = text[0].split()
    assert head == ["role", "model", *LEAVES, "mean", "vs", "base", "vs", "expert", "normalised"]
    numbers = "41.6* 61.2 48.7 40.8* 74.1 81.5* 60.1 80.9* 65.9* 78.2* 63.3* +41.5 +15.4 105.8"
    assert f"merge OptMerge {numbers}" in [" ".join(without_intervals(line).split()) for line in text]
    assert "vs expert: mean minus that of expert-VQA, the expert with the best mean." in text
    assert [line for line in text if line.startswith("Normalised")] == [
        "Normalised: mean over the columns of the score divided by that of the column's expert: "
        "expert-VQA (VizWiz, GQA, ChartQA, TextVQA); expert-Chart (MathVista, MATH-Vision); expert-OCR (OCRVQA); "
        "expert-Grounding (RefCOCO, RefCOCO+, RefCOCOg)."
    ]
    table = [line for line in printed(paper, *ROLES, "--format", "markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    (best,) = (line for line in table if "OptMerge" in line)
    assert best.startswith("| merge | OptMerge | **41.6 ± 2.0** | 61.2 ± 2.0 | 48.7 ± 2.0 |")
    assert best.endswith("| **63.3 ± 0.6** | +41.5 | +15.4 | 105.8 |")
    assert "**" not in table[2] + table[-1]


def test_the_mean_is_the_group_s_of_lm_eval(real: Path, template: Mapping[str, Any]) -> None:
    """Groups are no columns; the mean and its standard error are those lm-eval computes for `mllm`."""
    row = rows(real / "org__half")["half"]
    assert [header for header in row if "mllm" in header] == []
    group = template["groups"]["mllm"]
    assert 0 < group["score,none"] < 1
    assert float(row["mean"]) == pytest.approx(100 * group["score,none"])
    assert float(row["mean stderr"]) == pytest.approx(100 * group["score_stderr,none"])


def test_a_limited_run_of_stock_lm_eval(real: Path) -> None:
    (file,) = (real / str(MODEL).replace("/", "__")).glob("results_*.json")
    text = printed(file)
    assert text.split()[:4] == ["model", "VizWiz", "GQA", "mean"]  # no roles, no gains
    assert "Only a part of the samples was evaluated: VizWiz 1 of 2, GQA 1 of 3." in text
    assert len(different(file)) == 0
    assert set(different(file, real / "org__half", "--tasks", "VizWiz,GQA")) == {
        "Different lm-eval model: hf-multimodal (base), Answering (half).",
        "Different dtype: bfloat16 (base), not set (half).",
        "Different model argument convert_img_format: true (base), not set (half).",
        "Different model argument max_length: 4096 (base), not set (half).",
        "Different generation_kwargs.max_gen_toks: 2 (base), 32 (half).",
        "Different samples: 1 of 2 (base), 2 of 2 (half), in VizWiz.",
        "Different samples: 1 of 3 (base), 3 of 3 (half), in GQA.",
    }


def test_models_without_some_columns(template: Mapping[str, Any], tmp_path: Path) -> None:
    save(tmp_path, edited(template, "org/a", {"VizWiz": 0.3, "GQA": 0.5, "ChartQA": 0.1}))
    save(tmp_path, edited(template, "org/b", {"VizWiz": 0.4, "GQA": 0.6}))
    text = without_intervals(printed(tmp_path))
    assert [line.split() for line in text.splitlines()[2:4]] == [
        ["a", "30.0", "50.0", "10.0", "40.0"],
        ["b", "40.0", "60.0", "-", "50.0"],
    ]
    assert "Mean: plain mean of VizWiz, GQA; some models lack ChartQA." in text
    assert "No result of ChartQA: b." in text
    save(tmp_path, edited(template, "org/c", {"RefCOCO": 0.4}))
    assert "No mean: there is no column in percent that every model has." in printed(tmp_path)


def test_a_score_that_is_no_number_is_missing(template: Mapping[str, Any], tmp_path: Path) -> None:
    save(tmp_path, edited(template, "org/a", {"VizWiz": 0.3, "GQA": 0.5}))
    save(tmp_path, edited(template, "org/b", {"VizWiz": 0.4, "GQA": math.nan}))
    assert "No finite number of GQA: b." in printed(tmp_path)


def _metadata(data: dict[str, Any], **values: Any) -> None:
    data["configs"]["mllm_gqa_testdev"]["metadata"] |= values


def test_measured_alike_no_note(paper: Path) -> None:
    assert different(paper, *ROLES) == []


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (lambda data: data.update(lm_eval_version="0.4.9"), "lm-eval: 0.4.9 (b), {lm_eval_version} (a)"),
        (lambda data: data.update(transformers_version="5.0.0"), "transformers: 5.0.0 (b), {transformers_version} (a)"),
        (lambda data: data.update(system_instruction="Be brief."), "system instruction: not set (a), Be brief. (b)"),
        (lambda data: data["config"].update(model_dtype="torch.float16"), "dtype: not set (a), float16 (b)"),
        (
            lambda data: data["config"]["model_args"].update(max_pixels=99),
            "model argument max_pixels: not set (a), 99 (b)",
        ),
        (lambda data: data["config"].update(chat_template="{{ x }}"), "chat template: not set (a), {{{{ x }}}} (b)"),
        (
            lambda data: data["config"].update(generation_config={"repetition_penalty": 1.05, "top_k": 1}),
            "generation config repetition_penalty: not set (a), 1.05 (b)",
        ),
        (lambda data: _metadata(data, version=3.0), "task version: 2.0 (a), 3.0 (b), in GQA"),
        (lambda data: _metadata(data, prompt_style="internvl"), "prompt_style: not set (a), internvl (b), in GQA"),
        (
            lambda data: data["n-samples"].update(mllm_gqa_testdev={"original": 3, "effective": 1}),
            "samples: 3 of 3 (a), 1 of 3 (b), in GQA",
        ),
        (lambda data: data["n-shot"].update(mllm_gqa_testdev=2), "few-shot examples: 0 (a), 2 (b), in GQA"),
        (
            lambda data: data["configs"]["mllm_gqa_testdev"]["dataset_kwargs"].update(split="val"),
            "dataset_kwargs.split: testdev (a), val (b), in GQA",
        ),
        (lambda data: data["configs"]["mllm_gqa_testdev"].update(process_results="def short(doc):\n    pass\n"), None),
        (lambda data: _metadata(data, config_source="/elsewhere/x.yaml"), ""),
        (lambda data: data["config"].update(batch_size="8", device="cuda:1"), ""),
    ],
)
def test_what_was_not_measured_alike_is_told(
    edit: Any, note: str | None, template: Mapping[str, Any], tmp_path: Path
) -> None:
    scores = {"VizWiz": 0.3, "GQA": 0.5}
    save(tmp_path, edited(template, "org/a", scores))
    data = edited(template, "org/b", scores)
    edit(data)
    save(tmp_path, data)
    told = different(tmp_path)
    if note is None:  # code is told by its hash
        assert re.fullmatch(r"Different process_results: sha256 \w{8} \(a\), sha256 \w{8} \(b\), in GQA\.", told[0])
        assert len(told) == 1
    else:
        ordered = {each.removeprefix("Different ") for each in told}
        swapped = re.sub(r": (.+) \(b\), (.+) \(a\)", r": \2 (a), \1 (b)", note)
        assert ordered == ({swapped.format(**template) + "."} if note else set())


def test_most_models_are_the_others(template: Mapping[str, Any], tmp_path: Path) -> None:
    for name in "abcdef":
        data = edited(template, f"org/{name}", {"GQA": 0.5})
        data["lm_eval_version"] = "0.4.9" if name == "c" else "0.4.13"
        save(tmp_path, data)
    assert different(tmp_path) == ["Different lm-eval: 0.4.9 (c), 0.4.13 (the others)."]


def test_files_of_one_model(template: Mapping[str, Any], tmp_path: Path) -> None:
    """Different tasks are united, of the same the newest counts, wherever and in whatever order the files lie."""
    old = edited(template, "org/a", {"VizWiz": 0.3, "GQA": 0.5})
    new = edited(template, "org/a", {"GQA": 0.7, "ChartQA": 0.9})
    new["date"] = old["date"] + 3600
    files = [save(tmp_path / "z", old), save(tmp_path / "a", new)]
    for order in (files, files[::-1], [tmp_path], [tmp_path, files[0], tmp_path / "z" / ".." / "a"]):
        text = without_intervals(printed(*order))
        assert text.splitlines()[2].split() == ["a", "30.0", "70.0", "90.0", "63.3"]
        assert re.search(r"a: from 2 files \(\S+ \S+, \S+ \S+\); of GQA, which several have, the newest counts\.", text)


def test_a_path_is_one_model_however_written_and_an_adapter_one_with_each_base(
    template: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/merged").mkdir(parents=True)
    for name, column in (("out/merged", "GQA"), (f"{tmp_path}/out/merged/", "VizWiz")):
        save(tmp_path / "results", edited(template, name, {column: 0.5}), column)
    assert [(row["GQA"], row["VizWiz"]) for row in rows("results").values()] == [("50", "50")]
    for base in ("one", "two"):
        data = edited(template, "lora", {"GQA": 0.5})
        data["config"]["model_args"] = {"pretrained": base, "peft": "lora"}
        save(Path("adapters"), data, base)
    assert list(rows("adapters")) == ["lora on one", "lora on two"]
    assert rows("adapters", "--expert", "lora on two")["lora on two"]["role"] == "expert"


def test_revisions_of_a_model_are_models(template: Mapping[str, Any], tmp_path: Path) -> None:
    for date, revision in (("1", "main"), ("2", "v2")):
        data = edited(template, "org/a", {"GQA": 0.5})
        data["config"]["model_revision"] = revision
        save(tmp_path, data, date)
    assert list(rows(tmp_path)) == ["a", "a@v2"]


def test_text_tasks(real: Path, tmp_path: Path) -> None:
    """The first metric where there is no `score`; a perplexity is no percentage, and low ones are good."""
    (file,) = (real / "org__text").glob("results_*.json")
    (row,) = rows(file).values()
    assert list(row)[3:7:2] == ["choice (acc)", "prose (word_perplexity)"]
    assert float(row["prose (word_perplexity)"]) > 1
    assert row["mean"] == row["choice (acc)"]
    assert "choice (acc_norm)" in printed(file, "--metric", "acc_norm")
    data = json.loads(file.read_text())
    for name, perplexity in (("a", 9.0), ("b", 7.0), ("base", 5.0)):
        data["model_name"] = name
        data["results"]["prose"]["word_perplexity,none"] = perplexity
        save(tmp_path, data)
    lines = [" ".join(line.split()) for line in printed(tmp_path, "--base", "base", "--tasks", "prose").splitlines()]
    assert {"base base 5.0", "merge a 9.0", "merge b 7.0*"} <= set(lines)
    assert "prose (word_perplexity): as in the files, not percent, and no part of the mean." in lines


def test_columns_can_be_chosen(paper: Path) -> None:
    def headers(*arguments: str) -> list[str]:
        return [name for name in next(iter(rows(paper, *arguments).values())) if name.split(" ")[0] in LEAVES][::2]

    assert headers("--tasks", "mllm_refcoco*") == ["RefCOCO", "RefCOCO+", "RefCOCOg"]
    assert headers("--tasks", "chartqa,mllm_vizwiz_val") == ["VizWiz", "ChartQA"]
    assert headers("--tasks", "mllm") == list(LEAVES)
    assert headers("--metric", "iou") == ["RefCOCO (iou)", "RefCOCO+ (iou)", "RefCOCOg (iou)"]


def test_tasks_of_one_heading_are_told_apart(template: Mapping[str, Any], tmp_path: Path) -> None:
    """As the mixes of media of AVQA are."""
    data = edited(template, "org/a", {"VizWiz": 0.3, "GQA": 0.5, "ChartQA": 0.1})
    data["configs"]["mllm_vizwiz_val"]["metadata"]["paper_column"] = "GQA"
    assert printed(save(tmp_path, data)).split()[:4] == ["model", "mllm_vizwiz_val", "mllm_gqa_testdev", "ChartQA"]


def test_roles_from_the_merges_own_configs(template: Mapping[str, Any], tmp_path: Path) -> None:
    """`mergekit_config.yml` beside a merged checkpoint names base and experts; an adapter is named as base+adapter."""
    models = tmp_path / "models"
    for name in ("base", "one", "lora", "merged", "other"):
        (models / name).mkdir(parents=True)
        save(tmp_path / "results", edited(template, str(models / name), {"GQA": 0.5}))
    recipe = f"base_model: {models}/base\nmodels:\n- model: {models}/one/\n- model: {models}/base+{models}/lora\n"
    (models / "merged/mergekit_config.yml").write_text(f"merge_method: ties\n{recipe}")
    found = rows(tmp_path / "results")
    assert {name: row["role"] for name, row in found.items()} == {
        "base": "base",
        "one": "expert",
        "lora": "expert",
        "merged": "merge",
        "other": "reference",
    }
    assert "Roles: from mergekit_config.yml of merged." in printed(tmp_path / "results")
    (models / "other/mergekit_config.yml").write_text(recipe.replace(f"{models}/base\n", f"{models}/one\n", 1))
    assert "no roles: the merges have different bases" in printed(tmp_path / "results")
    (models / "other/mergekit_config.yml").write_text("{")
    assert "other/mergekit_config.yml tells no roles, it is no YAML" in refusal(tmp_path / "results")
    assert rows(tmp_path / "results", "--base", "base")["one"]["role"] == "merge"


def test_names_are_as_short_as_they_can_be(template: Mapping[str, Any], tmp_path: Path) -> None:
    for name in ("x/run/checkpoint-1", "y/run/checkpoint-1", "hub/base"):
        save(tmp_path, edited(template, name, {"GQA": 0.5}))
    assert list(rows(tmp_path)) == ["base", "x/run/checkpoint-1", "y/run/checkpoint-1"]
    assert [row["role"] for row in rows(tmp_path, "--base", "hub/base").values()] == ["base", "merge", "merge"]


def test_signs_of_markdown_in_a_name_are_escaped(template: Mapping[str, Any], tmp_path: Path) -> None:
    save(tmp_path, edited(template, "one|two*", {"GQA": 0.5}))
    assert "| one\\|two\\* |" in printed(tmp_path, "--format", "markdown")


def test_a_name_goes_before_a_pattern(template: Mapping[str, Any], tmp_path: Path) -> None:
    for name in ("hub/run[1]", "hub/run1", "hub/m", "m"):
        save(tmp_path, edited(template, name, {"GQA": 0.5}))
    assert rows(tmp_path, "--base", "run[1]")["run[1]"]["role"] == "base"
    roles = {name: row["role"] for name, row in rows(tmp_path, "--base", "m", "--expert", "hub/*").items()}
    assert roles == {"m": "base", "hub/m": "expert", "run1": "expert", "run[1]": "expert"}


def test_refusals(real: Path, paper: Path, tmp_path: Path) -> None:
    assert "no model is called 'none'; found: " in (told := refusal(paper, "--base", "none"))
    assert "OptMerge (org/OptMerge)" in told
    assert "'expert-*' names several models: expert-Chart" in refusal(paper, "--base", "expert-*")
    assert "base is both base and expert" in refusal(paper, "--base", "base", "--expert", "*base")
    assert "no column, task or group is called 'gqb'; found: VizWiz," in refusal(paper, "--tasks", "gqb")
    assert "no task has the metric 'f1'; found: score, " in refusal(paper, "--metric", "f1")
    (tmp_path / "scores.json").write_text("{}")
    assert "no results_*.json there, as written by lm_eval --output_path; found: scores.json" in refusal(tmp_path)
    assert "it lacks `results` or `configs`" in refusal(tmp_path / "scores.json")
    (tmp_path / "samples_x.jsonl").write_text("{}\n{}\n")
    assert "no JSON; samples_*.jsonl hold single replies" in refusal(tmp_path / "samples_x.jsonl")
    (tmp_path / "results_1.json").write_text('{"results": {}, "configs": {}}')
    assert "holds no result of any task" in refusal(tmp_path)
    assert run(tmp_path / "nowhere").exit_code == 2


def test_files_of_a_report(
    paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "a/b"
    text = printed(paper, *ROLES, "--out", out)
    assert text == printed(paper, *ROLES)
    assert (out / "report.md").read_text() == printed(paper, *ROLES, "--format", "markdown")
    assert (out / "report.csv").read_text() == printed(paper, *ROLES, "--format", "csv")
    with Image.open(out / "report.png") as figure:
        pixels = figure.convert("RGB")
    assert pixels.width > pixels.height > 400
    colours = {colour for _, colour in pixels.getcolors(maxcolors=1 << 24)}
    assert {(0, 0, 0), (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0xCC, 0x79, 0xA7)} <= colours  # one for each role
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    without = tmp_path / "c"
    with caplog.at_level("WARNING"):
        assert printed(paper, "--out", without) == printed(paper)
    assert "pip install 'mergekit-mm[plots]'" in caplog.text
    assert sorted(path.name for path in without.iterdir()) == ["report.csv", "report.md"]


def test_csv_goes_with_its_notes_on_stderr(paper: Path) -> None:
    result = run(paper, *ROLES, "--format", "csv")
    assert len(result.stdout.splitlines()) == 1 + len(PAPER)
    assert "Normalised: mean over the columns" in result.stderr


fractions = st.integers(1, 999).map(lambda n: n / 1000)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scores=st.lists(st.lists(fractions, min_size=3, max_size=3), min_size=5, max_size=5),
    order=st.permutations(range(6)),
)
def test_the_numbers_fit_each_other(
    scores: Sequence[Sequence[float]],
    order: Sequence[int],
    template: Mapping[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Any three columns of a base, two experts, two merges, and a merge that equals the best expert everywhere."""
    folder = tmp_path_factory.mktemp("any")
    headers = ("VizWiz", "ChartQA", "RefCOCO")
    best = [max(one, two) for one, two in zip(scores[1], scores[2], strict=True)]
    names = ("base", "expert-1", "expert-2", "m1", "m2", "ideal")
    files = [
        save(folder, edited(template, name, dict(zip(headers, numbers, strict=True))))
        for name, numbers in zip(names, [*scores, best], strict=True)
    ]
    roles = ("--base", "base", "--expert", "expert-*")
    found = rows(*files, *roles)
    assert rows(*(files[at] for at in order), *roles) == found
    means = {name: float(row["mean"]) for name, row in found.items()}
    for name, numbers in zip(names, [*scores, best], strict=True):
        assert means[name] == pytest.approx(100 * fmean(numbers))
        if name != "base":
            assert float(found[name]["gain over base"]) == pytest.approx(means[name] - means["base"], abs=1e-6)
        assert float(found[name]["normalised"]) <= 100 + 1e-6 or "expert" not in name
    for name in names[3:]:
        top = max(means["expert-1"], means["expert-2"])
        assert float(found[name]["gain over best expert"]) == pytest.approx(means[name] - top, abs=1e-6)
    assert float(found["ideal"]["normalised"]) == pytest.approx(100)
    assert float(found["ideal"]["gain over best expert"]) >= -1e-6
