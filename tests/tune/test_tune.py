"""`mergekit-mm tune` on small checkpoints: what is in memory, what is chosen, what is said, and going on."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import end_to_end as c
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from mergekit.options import MergeOptions
from mllm_runs import MLLM, evaluate, model, saved
from task_folders import folder

from mergekit_mm.cli import main
from mergekit_mm.evaluation.model.asked_tasks import load
from mergekit_mm.plan.build import build_plan
from mergekit_mm.plan.config import read_config
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tune.candidates import Candidate, candidates, parse_variant
from mergekit_mm.tune.in_memory import InMemory
from mergekit_mm.tune.run import Settings, Tasks
from mergekit_mm.tune.run import tune as run_tune

pytestmark = pytest.mark.long

MODELS = Path(__file__).parents[2] / "examples" / "easy_vqa" / "models"
OMNI = Path(__file__).parents[2] / "examples" / "omni" / "models"
KINDS = ("color", "shape", "yesno")


@functools.cache
def recipe(method: str = "task_arithmetic") -> str:
    """The text of a config with a LLaVA of the zoo that speaks, and two models that differ from it everywhere."""

    def moved(seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        return c.altered(
            saved("llava"),
            lambda found: {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in found.items()},
        )

    models = [{"model": str(moved(seed))} for seed in (1, 2)]
    config = {"merge_method": method, "base_model": str(saved("llava")), "models": models, "out_dtype": "bfloat16"}
    return yaml.safe_dump({**config, "parameters": {"weight": 1.0}})


def written(source: str) -> Path:
    path = c.fresh("config.yaml")
    path.write_text(source)
    return path


def tune(out: Path, *options: str, source: str | None = None) -> Result:
    given = ["tune", str(written(source or recipe())), str(out), *options]
    return CliRunner().invoke(main, given)


def by_tasks(out: Path, *options: str, tasks: str = "mine_one,mine_two") -> Result:
    return tune(out, "--tasks", tasks, "--include-path", str(folder()), *options)


@functools.cache
def tuned() -> tuple[Path, Result]:
    out = c.fresh("tuned")
    options = [
        "--methods",
        "ties,tsv,robust_merge",
        "--strengths",
        "0.3,1",
        "--strengths",
        "tsv=0.5,1",
        "--limit",
        "5",
        "--seed",
        "1",
    ]
    result = by_tasks(out, *options, "--write-model", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    return out, result


def data(out: Path) -> Any:
    return json.loads((out / "tune.json").read_text())


# ------------------------------------------------------------------------------------------------ what is in memory

VQA = {"base_model": str(MODELS / "base"), "models": [{"model": str(MODELS / f"expert_{kind}")} for kind in KINDS]}
LORA = {
    **VQA,
    "models": [{"model": f"{MODELS / 'base'}+{MODELS / f'lora_{kind}'}"} for kind in KINDS],
}
DONORS = {
    "base_model": str(OMNI / "llm"),
    "models": [{"model": str(OMNI / kind)} for kind in ("image", "audio", "video")],
    "parameters": {"host": str(OMNI / "image"), "vision_tower": str(OMNI / "image")},
}
ROUTED_MODELS = [f"{OMNI / f'{kind}_aligned'}+{OMNI / f'{kind}_lora'}" for kind in ("image", "audio", "video")]
ROUTED = {
    "base_model": str(OMNI / "llm"),
    "models": [{"model": model} for model in ROUTED_MODELS],
    "parameters": {"composition": "damc", "host": ROUTED_MODELS[0], "vision_tower": ROUTED_MODELS[0]},
}
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "full": (
        VQA,
        [
            "tsv at 0.3",
            "ties at 0.3",
            "tsv at 0.7",
            "task_arithmetic at 0.7",
            "optmerge:preset=full:iterations=3 at 0.1",
        ],
    ),
    "half": ({**VQA, "out_dtype": "bfloat16"}, ["swudi at 0.3", "task_arithmetic at 0.3", "swudi at 1.0"]),
    "adapters": (LORA, ["optmerge at 0.7", "task_arithmetic at 0.3", "robust_merge at 0.3", "optmerge at 0.1"]),
    "own": (
        {**VQA, "models": [{**each, "parameters": {"own_delta": 0.1}} for each in VQA["models"]]},
        ["tsv at 0.3", "tsv at 0.7"],
    ),
    "omni": (DONORS, ["tsv at 0.3", "dare_linear at 0.3", "tsv at 1.0"]),
    "routed": (ROUTED, ["iso_c at 0.3", "task_arithmetic at 0.3", "iso_c at 0.7"]),
}


def candidate(config: dict[str, Any], label: str) -> Candidate:
    variant, strength = label.split(" at ")
    (found,) = candidates(yaml.safe_dump({"merge_method": "tsv", **config}), parse_variant(variant), [float(strength)])
    return found


@pytest.mark.parametrize(
    "case", [each if each == "adapters" else pytest.param(each, marks=pytest.mark.slow) for each in CASES]
)
def test_the_model_in_memory_is_what_mergekit_writes(case: str, tmp_path: Path) -> None:
    """Bit for bit, whichever candidate was there before."""
    config, labels = CASES[case]
    options = MergeOptions(random_seed=3)
    loads = []

    def loader(path: str) -> MLLM:
        loads.append(path)
        return model(Path(path), dtype="auto")

    memory = InMemory(tmp_path, options, Solutions(tmp_path / "solutions", case), loader)
    seen = []
    for label in labels:
        made = candidate(config, label)
        held = memory.become(made, build_plan(made.config, options, made.source)).model.state_dict()
        merged = c.merge(yaml.safe_load(made.source), "--random-seed", "3")
        expected = model(merged.out, dtype="auto").model.state_dict()
        c.assert_same_bytes(dict(held), dict(expected))
        seen.append({name: tensor.clone() for name, tensor in held.items()})
    changed = [sum(not torch.equal(one[name], two[name]) for name in one) for one, two in pairwise(seen)]
    assert min(changed) > 0
    assert len(loads) == 1
    # what the methods of this package have solved is not solved again at another strength
    own = {label.split(" at ")[0] for label in labels} - {"ties", "task_arithmetic", "dare_linear"}
    files = list((tmp_path / "solutions").iterdir())
    matrices = {"full": 21, "half": 21, "adapters": 21, "own": 2 * 21}.get(case)
    assert files
    assert matrices is None or len(files) == matrices * len(own)


@pytest.mark.slow
def test_a_solution_is_that_of_its_inputs(tmp_path: Path) -> None:
    """Another key, as for other inputs, is another solution."""
    made = candidate(VQA, "tsv at 0.3")
    options = MergeOptions(quiet=True)
    plan = build_plan(made.config, options, made.source)
    for key in ("one", "other", "one"):
        memory = InMemory(
            tmp_path / key, options, Solutions(tmp_path / "solutions", key), lambda path: model(Path(path))
        )
        memory.become(made, plan)
    assert len(list((tmp_path / "solutions").iterdir())) == 42


# ------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.slow
def test_scores_are_those_of_lm_eval() -> None:
    """Asked in parts and in memory, a candidate has the value that lm-eval gives for the merged model as a whole."""
    out = c.fresh("whole")
    result = by_tasks(out, "--methods", "tsv", "--strengths", "0.3,1", "--limit", "0", "--dtype", "auto")
    assert result.exit_code == 0, result.output
    for each in data(out)["candidates"]:
        merged = c.merge(yaml.safe_load(each["config"]))
        lm = model(merged.out, dtype="auto", batch_size=8)
        tasks = [each.task for each in load(["mine_one", "mine_two"], [folder()], {}, None, 0)]
        found = evaluate(lm, *tasks)["results"]
        assert each["sets"] == {name: pytest.approx(found[name]["acc,none"]) for name in ("mine_one", "mine_two")}
        errors = [
            found[name]["acc,none"] * (1 - found[name]["acc,none"]) / (n - 1)
            for name, n in (("mine_one", 40), ("mine_two", 12))
        ]
        assert each["stderr"] == pytest.approx(sum(errors) ** 0.5 / 2)


@pytest.mark.slow
def test_the_best_goes_on_and_is_written() -> None:
    out, _ = tuned()
    found = data(out)
    assert [(each["candidates"], each["questions"]) for each in found["rounds"]] == [(4, 5), (2, 10)]
    rounds = [each["rounds"] for each in found["candidates"]]
    assert rounds == [2, 2, 1, 1]
    last, before = found["candidates"][:2], found["candidates"][2:]
    assert last[0]["score"] >= last[1]["score"]
    assert {each["questions"] for each in last} == {20}
    assert {each["questions"] for each in before} == {10}
    best = (out / "best.yaml").read_text()
    assert yaml.safe_load(best) == yaml.safe_load(last[0]["config"])
    assert best.startswith("# Chosen: ")
    merged = c.merge(yaml.safe_load(best))
    assert (merged.out / "model.safetensors").read_bytes() == (out / "model" / "model.safetensors").read_bytes()
    assert (out / "tune.png").stat().st_size > 5000
    assert not list(out.parent.glob(".tuned.tune"))


@pytest.mark.slow
def test_what_cannot_be_said_is_said() -> None:
    out, result = tuned()
    table = (out / "tune.md").read_text()
    for text in ("Left out: robust_merge", "robust_merge is for adapters of"):
        assert text in table
        assert text in result.output
    for text in ("It is not apart by more than noise from", "It is the best of 4", "Its strength is the"):
        assert text in result.output
    assert "test questions" not in result.output
    assert "within noise of the best" in result.output
    assert "| `tsv` |" in table.replace("**", "")
    assert (out / "tune.csv").read_text().count("\n") == 5


@pytest.mark.slow
def test_test_questions_are_warned_of() -> None:
    pytest.importorskip("easy_vqa")
    out, tasks = c.fresh("test"), MODELS.parent / "tasks"
    source = yaml.safe_dump({"merge_method": "tsv", **VQA})
    options = ["--include-path", str(tasks), "--methods", "tsv", "--strengths", "1", "--limit", "3"]
    result = tune(out, "--tasks", "mllm_demo_easy_vqa_col*", *options, source=source)
    assert result.exit_code == 0, result.output
    assert "by their names these are test questions: mllm_demo_easy_vqa_color" in result.output
    assert "3 of 3 replies, of all candidates together, were not finished" in result.output
    assert "No other candidate was compared with it" in result.output


@pytest.mark.slow
def test_a_candidate_that_cannot_be_made_is_left_out() -> None:
    out, source = c.fresh("half"), recipe().replace("bfloat16", "float16")
    options = ["--tasks", "mine_two", "--include-path", str(folder()), "--methods", "tsv", "--limit", "5"]
    result = tune(out, *options, "--strengths", "0.3,1e7,1", source=source)
    assert result.exit_code == 0, result.output
    assert "[2/3] tsv at 1e+07: Left out: tsv at 1e+07: " in result.output
    assert sorted(each["strength"] for each in data(out)["candidates"]) == [0.3, 1.0]
    assert "more than float16 can hold" in (out / "tune.md").read_text()
    out = c.fresh("none")
    result = tune(out, *options, "--strengths", "1e7", source=source)
    assert result.exit_code == 1
    assert "No candidate is left:" in result.output
    assert not out.exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_result() -> None:
    told: list[str] = []

    def run(out: Path, work: Path, until: str) -> Sequence[str]:
        def tell(line: str) -> None:
            told.append(line)
            if until in line:
                raise KeyboardInterrupt

        settings = Settings([parse_variant("tsv"), parse_variant("ties")], {"": [0.3, 1.0]}, limit=5)
        measured = Tasks(["mine_one"], [folder()], {}, None)
        config = read_config(recipe(), "the recipe")
        return run_tune(config, recipe(), out, MergeOptions(quiet=True), settings, measured, work, tell)

    whole, out, work = (c.fresh(name) for name in ("whole", "interrupted", "work"))
    run(whole, c.fresh("work"), "never")
    with pytest.raises(KeyboardInterrupt):
        run(out, work, "[3/4]")
    assert not out.exists()
    solved = {file: file.stat().st_mtime_ns for file in (work / "solutions").iterdir()}
    assert solved
    told.clear()
    run(out, work, "never")
    assert [line.endswith("(kept)") for line in told if "/4]" in line] == [True, True, True, False]
    assert all(file.stat().st_mtime_ns == before for file, before in solved.items())
    assert data(out) == data(whole)


# --------------------------------------------------------------------------------------------------- without labels


def samples() -> Path:
    """Six questions for each expert of easy-vqa, without their answers."""
    easy_vqa = pytest.importorskip("easy_vqa")
    paths, rows = easy_vqa.get_train_image_paths(), list(zip(*easy_vqa.get_train_questions(), strict=True))
    lines = [
        {"expert": f"expert_{kind}", "prompt": f"<image>{row[0]}", "image": paths[row[2]]}
        for at, kind in enumerate(KINDS)
        for row in rows[at::997][:6]
    ]
    path = c.fresh("samples.jsonl")
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.slow
def test_without_labels_the_least_divergence_is_chosen() -> None:
    out, file = c.fresh("unlabelled"), samples()
    source = yaml.safe_dump({"merge_method": "tsv", **VQA})
    options = ["--methods", "tsv,task_arithmetic", "--strengths", "0.1,0.7", "--limit", "0", "--answer-tokens", "2"]
    result = tune(out, "--samples", str(file), *options, source=source)
    assert result.exit_code == 0, result.output
    found = data(out)["candidates"]
    scores = [each["score"] for each in found]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4
    assert set(found[0]["sets"]) == {str(MODELS / f"expert_{kind}") for kind in KINDS}
    best = model(c.merge(yaml.safe_load((out / "best.yaml").read_text())).out, batch_size=1)
    for kind in KINDS:
        expert = model(MODELS / f"expert_{kind}", batch_size=1)
        total, tokens = 0.0, 0
        for line in map(json.loads, file.read_text().splitlines()):
            if line["expert"] == f"expert_{kind}":
                divergence = kullback_leibler(expert, best, line)
                total, tokens = total + float(divergence.sum()), tokens + len(divergence)
        assert found[0]["sets"][str(MODELS / f"expert_{kind}")] == pytest.approx(total / tokens, rel=1e-3)


def kullback_leibler(expert: MLLM, merged: MLLM, line: dict[str, str]) -> torch.Tensor:
    """KL(expert || merged) at each token of the expert's greedy answer, in float64 over the whole vocabulary."""
    from PIL import Image

    prompt = expert.reader.read(line["prompt"], {"visual": [Image.open(line["image"])]}, "here")
    inputs = dict(expert.reader.encode([prompt], "left"))
    with torch.no_grad():
        whole = expert.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        start = inputs["input_ids"].shape[1]
        ended = (whole[0, start:] == expert.eot_token_id).nonzero()
        whole = whole[:, : start + int(ended[0]) + 1] if len(ended) else whole
        given = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        both = [lm.model(**given).logits[0, start - 1 : -1].double().log_softmax(-1) for lm in (expert, merged)]
    return (both[0].exp() * (both[0] - both[1])).sum(-1)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Say by what to choose"),
        (["--samples", "x.jsonl", "--tasks", "mine_one"], "Say by what to choose"),
        (["--samples", "x.jsonl", "--metric", "acc"], "--metric has no effect on --samples"),
        (["--tasks", "mine_one", "--answer-tokens", "3"], "--answer-tokens has no effect on --tasks"),
        pytest.param(
            ["--tasks", "mine_three"],
            "No task of lm-eval is called 'mine_three'. Did you mean mine_",
            marks=pytest.mark.slow,  # looks through lm-eval's own thousands
        ),
        (["--tasks", "mine_median"], "mine_median has no metric that is a mean over its questions"),
        (["--tasks", "mine_one", "--metric", "score"], "no metric 'score' that is a mean; it has acc"),
        (["--tasks", "mine_one", "--methods", "tvs"], "Unknown merge method 'tvs'"),
        (["--tasks", "mine_one", "--methods", "tsv", "--strengths", "ties=1"], "ties is none of the methods"),
        (["--tasks", "mine_one", "--methods", "robust_merge"], "None of the methods applies to this config"),
        (["--tasks", "mine_one", "--strengths", "a"], "'a' is not a list of numbers"),
        (["--tasks", "mine_one", "--metadata", "["], "is no JSON"),
        (["--tasks", "mine_one", "--model-args", "pretrained=x"], "The argument pretrained of the model is given by"),
    ],
)
def test_what_cannot_be_tuned_is_one_error(options: list[str], told: str) -> None:
    out = c.fresh("refused")
    given = [*options, "--include-path", str(folder())] if "--tasks" in options else options
    result = tune(out, "--methods", "tsv", *given)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert told in result.output
    assert not out.exists()
