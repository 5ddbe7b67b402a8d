"""`mergekit-mm align`: what experts say to their samples, and a merge that learns to say it too."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import end_to_end as c
import pytest
import torch
import yaml
from alignments import EASY_VQA, EXPERT, KINDS, align, aligned, easy_vqa_merge, mean, report, samples
from mergekit.options import MergeOptions
from mllm_runs import png, saved
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from mergekit_mm.align.answers import Asking, Expert, Kept
from mergekit_mm.align.coefficients import Basis, CoefficientWay
from mergekit_mm.align.inputs import batches, encode, load, with_answer
from mergekit_mm.align.objective import Answer, divergence
from mergekit_mm.align.run import Settings
from mergekit_mm.align.run import align as run_alignment
from mergekit_mm.align.samples import by_expert, from_media, read_samples, split
from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.likelihood import logits_of_answers
from mergekit_mm.plan.config import read_config

pytestmark = pytest.mark.long

TRAINED = ("--steps", "10", "--check", "10", "--rate", "0.003", "--per-step", "24")


@functools.cache
def trained() -> Path:
    """An adapter on the merge of the trained experts."""
    return aligned(easy_vqa_merge(), samples(), *TRAINED)


# -------------------------------------------------------------------------------------------------- the objective


def test_the_divergence_is_that_of_kullback_and_leibler() -> None:
    torch.manual_seed(0)
    expert_logits, logits = torch.randn(5, 11), torch.randn(5, 11)
    found = divergence(Answer.of(torch.arange(5), expert_logits, 11), logits)
    log_expert, log_model = expert_logits.double().log_softmax(-1), logits.double().log_softmax(-1)
    expected = (log_expert.exp() * (log_expert - log_model)).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_a_tail_lowers_the_divergence_and_never_below_zero(k: int) -> None:
    torch.manual_seed(k)
    expert_logits, logits = torch.randn(5, 11), torch.randn(5, 11, requires_grad=True)
    whole = divergence(Answer.of(torch.arange(5), expert_logits, 11), logits)
    part = divergence(Answer.of(torch.arange(5), expert_logits, k), logits)
    assert 0 < part <= whole + 1e-5  # a tail of one token is exact
    equal = divergence(Answer.of(torch.arange(5), expert_logits, k), expert_logits)
    torch.testing.assert_close(equal, torch.zeros(()), rtol=0, atol=1e-5)
    part.backward()
    assert torch.isfinite(logits.grad).all()


def test_samples_in_a_batch_are_read_as_each_by_itself(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png(1)["bytes"])
    prompts = ("<image>a b", "hello", "what is this <image> here?", "<image>one two three", "no picture", "<image>?")
    lines = [{"expert": "a", "prompt": one, **({"image": "picture.png"} if "<" in one else {})} for one in prompts]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lm = load(str(saved("llava")), None, "float32", "cpu")
    answers = [torch.arange(5, 6 + at % 3) for at in range(6)]
    read = read_samples(tmp_path / "samples.jsonl")
    made = [with_answer(one, ids) for one, ids in zip(encode(lm, read), answers, strict=True)]
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for indices, inputs in batches(made, 4):
            assert len(indices) > 1
            found = logits_of_answers(lm.model, inputs, [answers[at].tolist() for at in indices])
            seen |= dict(zip(indices, found, strict=True))
        for at, (one, ids) in enumerate(zip(made, answers, strict=True)):
            (alone,) = logits_of_answers(lm.model, one, [ids.tolist()])
            torch.testing.assert_close(seen[at], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_answer_ends_where_its_task_ends_it(tmp_path: Path) -> None:
    expert = Expert("color", EASY_VQA / "expert_color", None, (EASY_VQA / "expert_color" / "model.safetensors",))
    kept = Kept(tmp_path, Asking(tokens=8, top=4, dtype="float32", device="cpu"))
    (one, *_) = read_samples(samples())
    tokenizer = AutoTokenizer.from_pretrained(expert.model)

    def answered(until: tuple[str, ...]) -> list[int]:
        asked = [from_media(one.expert, one.prompt, "", "", one.open, until)]
        kept.ask(expert, asked, lambda line: None)
        (answer,) = kept.read(expert, asked, tokenizer)
        assert len(answer.log_probabilities) == len(answer.ids)
        return answer.ids.tolist()

    whole = answered(())
    assert len(whole) > 1
    first = tokenizer.decode(whole[:1])
    assert answered((first,)) == whole[:1]
    assert answered(("never said",)) == whole


# ------------------------------------------------------------------------------------------------------ the output


def test_the_merge_comes_closer_to_its_experts() -> None:
    found = report(trained())
    first, best = found["history"][0], next(h for h in found["history"] if h["step"] == found["best"])
    assert found["best"] > 0
    assert mean(best) < mean(first)


@pytest.mark.slow
def test_the_model_is_the_merge_with_the_adapter_that_lies_beside_it() -> None:
    start = c.merge(yaml.safe_load((trained() / "mergekit_config.yml").read_text()))
    model = AutoModelForImageTextToText.from_pretrained(start.out, dtype=torch.float32)
    whole = PeftModel.from_pretrained(model, trained() / "align").merge_and_unload()
    expected, changed = whole.state_dict(), 0
    found = AutoModelForImageTextToText.from_pretrained(trained(), dtype=torch.float32).state_dict()
    before = AutoModelForImageTextToText.from_pretrained(start.out, dtype=torch.float32).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
        changed += not torch.equal(found[name], before[name])
    assert changed == sum("language_model" in n and ("_proj" in n) for n in expected)


def test_the_card_has_the_divergence_and_the_report_the_samples() -> None:
    card = (trained() / "README.md").read_text()
    assert "## Alignment" in card
    assert f"\n# {trained().name}\n" in card
    assert f"| {EXPERT} | 12 | 4 |" in card
    used = report(trained())["samples"][EXPERT]
    digests = {one.digest for one in read_samples(samples()) if one.expert == "expert_color"}
    assert {*used["trained"], *used["held_back"]} == digests


@pytest.mark.slow
def test_what_is_worse_on_the_samples_held_back_is_not_taken() -> None:
    out, result = align(easy_vqa_merge(), samples(), *TRAINED, "--rate", "1000")
    assert "the start is kept" in result.output
    assert report(out)["best"] == 0
    start = c.merge(easy_vqa_merge())
    assert c.tensors(out).keys() == start.tensors.keys()
    assert all(torch.equal(tensor, start.tensors[name]) for name, tensor in c.tensors(out).items())


@pytest.mark.slow
def test_what_may_be_chance_is_not_taken() -> None:
    found = report(trained())
    first, best = found["history"][0], next(h for h in found["history"] if h["step"] == found["best"])
    fell, error = found["fell"]
    assert fell == pytest.approx(mean(first) - mean(best))
    assert fell > 0
    assert error > 0
    out, result = align(easy_vqa_merge(), samples(), *TRAINED, "--gate", str(2 * fell / error))
    assert "which may be chance (more samples tell more): the start is kept" in result.output
    assert report(out)["best"] == 0
    start = c.merge(easy_vqa_merge())
    assert all(torch.equal(tensor, start.tensors[name]) for name, tensor in c.tensors(out).items())


@pytest.mark.slow
def test_an_interrupted_alignment_goes_on_to_the_same_bytes() -> None:
    told: list[str] = []

    def run(out: Path, work: Path, until: str) -> None:
        def tell(line: str) -> None:
            told.append(line)
            if line.startswith(until):
                raise KeyboardInterrupt

        source, read = yaml.safe_dump(easy_vqa_merge()), read_samples(samples())
        settings = Settings(steps=12, check=4, answer_tokens=2, per_step=36, gate=0.0)
        config = read_config(source, "the recipe")
        run_alignment(config, out, MergeOptions(quiet=True), settings, read, source, work, tell)

    whole, out, work = (c.fresh(name) for name in ("whole", "interrupted", "work"))
    run(whole, c.fresh("work"), "never")
    assert report(whole)["best"] > 4, "after the interruption"
    with pytest.raises(KeyboardInterrupt):
        run(out, work, "step 8")
    assert not out.exists()
    told.clear()
    run(out, work, "never")
    assert "going on from step 4" in told
    assert not any(line.startswith(("asking", "merging")) for line in told)
    for name in ("model.safetensors", "align/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["adapter", "coefficients"])
def test_nothing_is_asked_of_an_expert_without_samples(way: str, tmp_path: Path) -> None:
    """The samples of the others decide alone."""
    lines = [line for line in samples().read_text().splitlines() if "expert_color" not in line]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    some = tmp_path / "some.jsonl"
    _, refused = align(easy_vqa_merge(), some, "--way", way)
    assert f"There are no samples for {EXPERT}" in refused.output
    assert "--partial" in refused.output
    out = aligned(easy_vqa_merge(), some, "--way", way, "--partial")
    found = report(out)
    assert {Path(name).name for name in found["samples"]} == {"expert_shape", "expert_yesno"}
    assert all(set(step["divergence"]) == set(found["samples"]) for step in found["history"])


# --------------------------------------------------------------------------------------------------- coefficients


def gradient_of(loss: Any, at: torch.Tensor) -> torch.Tensor:
    """The derivative of a function of float64 by central differences."""
    found = torch.zeros_like(at)
    for place in range(at.numel()):
        step = torch.zeros_like(at).reshape(-1).index_fill_(0, torch.tensor([place]), 1e-3).reshape(at.shape)
        found.reshape(-1)[place] = (loss(at + step) - loss(at - step)) / 2e-3
    return found


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("factored", [False, True])
def test_the_derivative_by_a_coefficient_is_the_product_with_its_direction(
    tmp_path: Path, factored: bool, merged: bool
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 4, bias=False)
    base, x = torch.randn(4, 5), torch.randn(3, 5)
    stored = {"base": base}
    for number in range(3):
        if factored:
            stored |= {f"{number}.left": torch.randn(4, 2), f"{number}.right": torch.randn(2, 5)}
        else:
            stored[str(number)] = torch.randn(4, 5)
    save_file(stored, tmp_path / "basis.safetensors")
    basis = Basis(tmp_path / "basis.safetensors", 3)
    way = CoefficientWay(SimpleNamespace(model=layer, device="cpu"), {"weight": basis}, merged)
    way.apply()
    for _ in range(2):  # gradients of several batches add up
        layer(x).pow(2).sum().backward()
    dense = [stored[f"{n}.left"] @ stored[f"{n}.right"] if factored else stored[str(n)] for n in range(3)]

    def loss(c: torch.Tensor) -> torch.Tensor:
        shares = c[0] if merged else c[0].sigmoid()  # of an expert alone, a coefficient is between 0 and 1
        weight = base.double() + sum(share * each.double() for share, each in zip(shares, dense, strict=True))
        return 2 * (x.double() @ weight.T).pow(2).sum()

    (trained,) = way.parameters
    expected = gradient_of(loss, trained.detach().double())
    torch.testing.assert_close(trained.grad.double(), expected, rtol=1e-4, atol=1e-3)
    assert layer.weight.grad is None


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["expert", "lora"])
def test_mergekit_makes_the_model_with_coefficients_from_its_config(experts: str) -> None:
    config, read = easy_vqa_merge(), samples()
    if experts == "lora":
        config["models"] = [{"model": f"{EASY_VQA / 'base'}+{EASY_VQA / f'lora_{kind}'}"} for kind in KINDS]
        text, read = samples().read_text().replace("expert_", "lora_"), c.fresh("samples.jsonl")
        read.write_text(text)
    out = aligned(config, read, *TRAINED, "--way", "coefficients", "--rate", "0.01")
    assert report(out)["best"] > 0
    again = c.merge(yaml.safe_load((out / "mergekit_config.yml").read_text()))
    assert (again.out / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    start = c.merge(config)
    changed = sum(not torch.equal(tensor, start.tensors[name]) for name, tensor in again.tensors.items())
    assert changed == 21  # the matrices of the decoder


def test_coefficients_need_a_method_that_can_have_them() -> None:
    config = easy_vqa_merge("task_arithmetic", parameters={"weight": 0.3})
    _, result = align(config, samples(), "--way", "coefficients")
    assert "task_arithmetic has no `own_delta`" in result.output


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "is no JSON"),
        ('{"expert": "a"}', 'write an object with a text "prompt"'),
        ('{"expert": "a", "prompt": "?", "picture": "x"}', "unknown key 'picture'"),
        ('{"expert": "a", "prompt": "?", "image": "gone.png"}', "gone.png does not exist"),
        ('{"prompt": "?"}', "the name of an expert"),
        ('{"expert": "a", "prompt": "?", "image": 3}', "3 is no path"),
    ],
)
def test_a_line_that_is_no_sample_is_told_with_its_number(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"expert": "a", "prompt": "fine"}\n' + line)
    with pytest.raises(MergeError, match=r"line 2") as error:
        read_samples(path)
    assert told in str(error.value)


def test_experts_are_named_by_the_last_part_of_their_path(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"expert": "ocr", "prompt": "1"}\n{"expert": "base+lora/chart", "prompt": "2"}')
    found = by_expert(read_samples(path), ["models/ocr", "base+lora/chart"])
    assert [[one.prompt for one in own] for own in found.values()] == [["1"], ["2"]]
    with pytest.raises(MergeError, match="'ocr' could be models/ocr or other/ocr"):
        by_expert(read_samples(path), ["models/ocr", "other/ocr"])
    with pytest.raises(MergeError, match="'ocr' is none of the experts"):
        by_expert(read_samples(path), ["base+lora/chart"])
    with pytest.raises(MergeError, match="There are no samples for third"):
        by_expert(read_samples(path), ["models/ocr", "base+lora/chart", "third"])
    assert list(by_expert(read_samples(path), ["third", "models/ocr", "base+lora/chart"], partial=True)) == list(found)


def test_a_quarter_is_held_back_and_the_order_of_lines_changes_nothing(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": str(at)}) for at in range(20)]
    paths = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for path, order in zip(paths, (lines, lines[::-1]), strict=True):
        path.write_text("\n".join(order))
    one, other = (split({"a": read_samples(path, "a")}, 16, 0)["a"] for path in paths)
    assert (len(one.trained), len(one.held_back)) == (12, 4)
    assert [s.digest for s in (*one.trained, *one.held_back)] == [s.digest for s in (*other.trained, *other.held_back)]
    with pytest.raises(MergeError, match="a has 20 samples, but 21 are needed"):
        split({"a": read_samples(paths[0], "a")}, 21, 0)


def test_an_expert_with_too_few_samples_is_told_before_anything_is_merged() -> None:
    out, result = align(easy_vqa_merge(), samples(), "--per-expert", "40")
    assert result.exit_code == 1
    assert "has 16 samples, but 40 are needed" in result.output
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
