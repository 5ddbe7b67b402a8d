"""Tasks of lm-eval asked a few questions at a time, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mllm_runs import evaluate, model, saved
from task_folders import folder

import mergekit_mm.register  # noqa: F401  # where the tests run without the start-up hook
from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.asked_tasks import Questions, ask, load, model_arguments


def loaded(*names: str, metric: str | None = None, seed: int = 0, **metadata: Any) -> list[Questions]:
    return load(names, [folder()], metadata, metric, seed)


def test_values_are_those_of_the_documents_asked_for() -> None:
    lm = model(saved("llava"), batch_size=8)
    one, two = loaded("mine")
    whole = evaluate(lm, one.task)["samples"]["mine_one"]
    expected = {sample["doc_id"]: sample["acc"] for sample in whole}
    assert len(expected) == 40
    assert len(set(expected.values())) == 2
    found = ask(lm, {one: [7, 3, 31], two: []}, progress=False)
    assert found.values == {"mine_one": {at: expected[at] for at in (7, 3, 31)}, "mine_two": {}}
    assert ask(lm, {one: [], two: []}, progress=True).values == {"mine_one": {}, "mine_two": {}}
    again = ask(lm, {one: range(40)}, progress=False).values["mine_one"]
    assert again == expected
    assert len(one.task.eval_docs) == 40


def test_the_order_is_drawn_by_the_seed() -> None:
    (one,), (other,), (again,) = (loaded("mine_one", seed=seed) for seed in (0, 1, 0))
    assert sorted(one.order) == list(range(40))
    assert one.order != other.order
    assert one.order == again.order
    assert one.digest == again.digest != loaded("mine_two")[0].digest


def test_a_task_counts_once_however_it_is_named() -> None:
    assert [each.name for each in loaded("mine_t*", "mine", "mine_two")] == ["mine_two", "mine_one"]
    with pytest.raises(EvaluationError, match=r"mine_one cannot be loaded: .*no such package"):
        loaded("mine_one", missing_package="no such package")


def test_questions_that_cannot_be_asked_have_no_value() -> None:
    (one,) = loaded("mine_one", missing="skip", broken=[3])
    assert ask(model(saved("llava")), {one: [3, 4]}, progress=False).values["mine_one"].keys() == {3, 4}
    (said,) = loaded("mine_said", missing="skip", broken=[3])
    found = ask(model(saved("llava")), {said: [3, 4]}, progress=False)
    assert found.values["mine_said"][3] is None
    assert found.values["mine_said"][4] is not None
    with pytest.raises(EvaluationError, match="1 of 2 documents cannot be asked"):
        ask(model(saved("llava")), {loaded("mine_said", broken=[3])[0]: [3, 4]}, progress=False)


def test_replies_that_are_cut_are_counted_for_each_call() -> None:
    (said,), lm = loaded("mine_said"), model(saved("llava"))
    assert said.scored_by == "exact_match"
    assert not said.higher_is_better
    for _ in range(2):
        assert ask(lm, {said: [1, 2, 3]}, progress=False).cut == {"mine_said": (3, 3)}


def test_a_failure_leaves_no_file_and_the_task_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (said,), lm = loaded("mine_said"), model(saved("llava"))
    generate, asked = lm._generate, []

    def failing(*given: Any) -> Any:
        asked.append(given)
        if len(asked) == 2:
            raise RuntimeError("CUDA out of memory")
        return generate(*given)

    monkeypatch.setattr(lm, "_generate", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(lm, {said: [0, 1, 2]}, progress=False)
    assert not list(tmp_path.iterdir())
    assert len(said.task.eval_docs) == 6


def test_arguments_of_a_model_are_a_list_or_json() -> None:
    assert model_arguments("") == {}
    assert model_arguments("max_pixels=100,chat_template='none'") == {"max_pixels": 100, "chat_template": "none"}
    assert model_arguments('{"images_kwargs": {"a": 1}}') == {"images_kwargs": {"a": 1}}
    with pytest.raises(EvaluationError, match="argument dtype of the model is given"):
        model_arguments("dtype=float16")
