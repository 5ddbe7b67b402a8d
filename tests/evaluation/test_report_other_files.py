"""`mergekit-mm report` on result files of lmms-eval, of older lm-eval, and of other tools."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mergekit_mm.cli import main

# The layouts of the tools' own writers, cut down to two tasks, with invented numbers.
LMMS_EVAL = {
    "results": {
        "chartqa": {
            "alias": "chartqa",
            "relaxed_overall,none": 0.7,
            "relaxed_overall_stderr,none": 0.01,
            "relaxed_overall_stderr_clt,none": 0.011,
            "relaxed_overall_stderr_clustered,none": "N/A",
            "submission,none": [],
        },
        "refcoco_bbox_rec_val": {"alias": "refcoco", "refcoco_ACC@0.5,none": 0.8, "refcoco_ACC@0.5_stderr,none": "N/A"},
    },
    "group_subtasks": {"chartqa": [], "refcoco_bbox_rec_val": []},
    "configs": {
        "chartqa": {"task": "chartqa", "dataset_path": "lmms-lab/ChartQA", "metadata": [{"version": 0.0}]},
        "refcoco_bbox_rec_val": {"task": "refcoco_bbox_rec_val", "metadata": {"version": "Yaml"}},
    },
    "versions": {"chartqa": 0.0, "refcoco_bbox_rec_val": "Yaml"},
    "n-shot": {"chartqa": 0, "refcoco_bbox_rec_val": 0},
    "higher_is_better": {"chartqa": {"relaxed_overall": True}},
    "n-samples": {"chartqa": {"original": 2500, "effective": 100}, "refcoco_bbox_rec_val": 8811},
    "config": {"model": "qwen2_vl", "model_args": "pretrained=org/merge,max_pixels=2359296", "batch_size": "1"},
    "git_hash": "abc1234",
    "date": "20250607_143000",
    "task_hashes": {},
    "model_source": "qwen2_vl",
    "model_name": "org/merge",
    "model_name_sanitized": "org__merge",
    "chat_template": None,
}
BEFORE_0_4 = {
    "results": {
        "arc_easy": {"acc": 0.6, "acc_stderr": 0.02, "acc_norm": 0.55, "acc_norm_stderr": 0.02},
        "wikitext": {"word_perplexity": 12.5, "bits_per_byte": 0.7},
    },
    "versions": {"arc_easy": 0, "wikitext": 1},
    "config": {"model": "hf-causal", "model_args": "pretrained=org/old,dtype=float16", "num_fewshot": 0, "limit": None},
}
FIRST_0_4 = {
    "results": {
        "mmlu": {"acc,none": 0.5, "acc_stderr,none": 0.01, "alias": "mmlu"},
        "mmlu_law": {"acc,none": 0.4, "acc_stderr,none": 0.03, "alias": " - law"},
    },
    "groups": {"mmlu": {"acc,none": 0.5, "alias": "mmlu"}},
    "configs": {"mmlu_law": {"task": "mmlu_law", "num_fewshot": 0, "metadata": [{"version": 0.0}]}},
    "versions": {"mmlu": "N/A", "mmlu_law": 0.0},
    "n-shot": {"mmlu_law": 5},
    "config": {"model": "hf", "model_args": "pretrained=org/first", "batch_size": "8", "gen_kwargs": None},
    "git_hash": None,
}


def save(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def rows(*arguments: object) -> dict[str, dict[str, str]]:
    result = run(*arguments, "--format", "csv")
    assert result.exit_code == 0, result.output
    return {row["model"]: dict(row) for row in csv.DictReader(io.StringIO(result.stdout))}


def test_a_file_of_lmms_eval_is_found_and_read(tmp_path: Path) -> None:
    save(tmp_path / "org__merge/20250607_143000_results.json", LMMS_EVAL)
    (found,) = rows(tmp_path).values()
    assert found["model"] == "merge"
    assert float(found["chartqa (relaxed_overall)"]) == pytest.approx(70)
    assert float(found["chartqa (relaxed_overall) stderr"]) == pytest.approx(1)
    assert float(found["refcoco_bbox_rec_val (refcoco_ACC@0.5)"]) == pytest.approx(80)
    assert "chartqa (relaxed_overall) 100 of 2500" in run(tmp_path).stdout


def test_runs_of_lmms_eval_are_ordered_by_the_date_in_them(tmp_path: Path) -> None:
    old = {**LMMS_EVAL, "date": "20240101_000000", "results": {"chartqa": {"relaxed_overall,none": 0.1}}}
    save(tmp_path / "a/20250607_143000_results.json", LMMS_EVAL)
    save(tmp_path / "b/20240101_000000_results.json", old)  # written later
    (found,) = rows(tmp_path).values()
    assert float(found["chartqa (relaxed_overall)"]) == pytest.approx(70)
    assert "from 2 files (2024-01-01 00:00:00, 2025-06-07 14:30:00)" in run(tmp_path).stdout


def test_that_lmms_eval_made_a_number_is_told_beside_one_of_lm_eval(tmp_path: Path) -> None:
    other = {**LMMS_EVAL, "model_name": "org/other", "date": 1750000000.0, "lm_eval_version": "0.4.13"}
    save(tmp_path / "org__merge/20250607_143000_results.json", LMMS_EVAL)
    save(tmp_path / "org__other/results_2025-06-08T10-00-00.json", other)
    told = run(tmp_path).stdout
    assert "Different evaluator: lm-eval (other), lmms-eval (merge)." in told


def test_a_file_from_before_0_4_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "run/results.json", BEFORE_0_4)
    os.utime(path, (1.6e9, 1.6e9))
    for given in (tmp_path, path):
        (found,) = rows(given).values()
        assert found["model"] == "old"
        assert float(found["arc_easy (acc)"]) == pytest.approx(60)
        assert float(found["arc_easy (acc) stderr"]) == pytest.approx(2)
        assert float(found["wikitext (word_perplexity)"]) == pytest.approx(12.5)
    assert "arc_easy (acc)" in (told := run(path).stdout)
    assert "wikitext (word_perplexity): as in the files, not percent" in told


def test_a_file_of_the_first_0_4_is_read_without_its_groups(tmp_path: Path) -> None:
    (found,) = rows(save(tmp_path / "results.json", FIRST_0_4)).values()
    assert found["model"] == "first"
    assert float(found["mmlu_law (acc)"]) == pytest.approx(40)
    assert not any(column.startswith("mmlu ") for column in found)


@pytest.mark.parametrize(
    "arguments", ['{"pretrained": "org/json", "dtype": "float16"}', "pretrained=org/json", None, "x"]
)
def test_the_model_is_named_by_its_arguments(tmp_path: Path, arguments: str | None) -> None:
    config = {"model": "hf", "model_args": arguments}
    path = save(tmp_path / "results.json", {**FIRST_0_4, "config": config})
    assert list(rows(path)) == ["json" if "json" in str(arguments) else "hf"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"config_general": {}, "results": {"all": {"acc": 0.5}}}, "was written by lighteval"),
        ({"results": {"arc": {"acc": 0.5}}}, "has `results`, but neither `configs` .* nor `versions` and `config`"),
        ({"results": {"arc": 0.5}, "versions": {"arc": 0}}, "holds no result of any task"),
        ({"acc": 0.5}, "it lacks `results` or `configs`"),
        ([1], "it lacks `results` or `configs`"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: Any, told: str) -> None:
    result = run(save(tmp_path / "results_1.json", data))
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert re.search(told, result.stderr.replace("\n", " "))


def test_a_table_of_vlmevalkit_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "Qwen2-VL_ChartQA_TEST_acc.csv"
    path.write_text('"split","Overall"\n"none","70.1"\n')
    assert "the tables of VLMEvalKit are not read" in run(path).stderr


def test_other_json_files_beside_results_are_no_results(tmp_path: Path) -> None:
    save(tmp_path / "results.json", {"loss": 1.0})
    save(tmp_path / "train_results.json", {"epoch": 3})
    save(tmp_path / "org__merge/20250607_143000_results.json", LMMS_EVAL)
    assert list(rows(tmp_path)) == ["merge"]
