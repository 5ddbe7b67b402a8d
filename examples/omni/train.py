"""Train the models of this example from scratch: a text LLM and three donors that grow from it.

    python -m examples.omni.train --out out/omni_models        # all, about 15 minutes of one core
    python -m examples.omni.train --out out/quick --quick      # the same steps in about a minute, to see that they run

Stages: (1) the text LLM learns to answer questions about one thing or two that are told in words; (2) the towers for
sound and video learn to name what is in them, the image tower is that of the easy-VQA example; (3) each donor's
projector is trained on questions about its one modality, everything else frozen; (4) projector and language model
together, gently: this is the donor; or a LoRA of the language model alone, which is its second form. Half of a donor's
questions are also about something of another modality that is told in words: no donor ever sees, or hears, two
modalities. Losses are on the answers alone. A model found in --out is not made again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from examples.common.models import make_tokenizer
from examples.common.training import Stage, missing_models, save, with_lora
from examples.omni.facts import MODALITIES, words
from examples.omni.media import pools
from examples.omni.model import make_donor, make_llm, make_processor
from examples.omni.plan import FULL, QUICK, Plan
from examples.omni.scores import load_llm, score, score_llm, table
from examples.omni.training import features, inputs_of, train_donor, train_llm, train_tower

MODELS = ("llm", *MODALITIES)


def make(modality: str, out: Path, plan: Plan, seed: int) -> None:
    """Stages 2 to 4 for one donor: itself, and `<name>_aligned` after stage 3 with `<name>_lora` on top of it.

    The second form is left out if the plan has no `lora`.
    """
    torch.manual_seed(seed)
    llm, tokenizer = load_llm(out / "llm")
    processor = make_processor(modality, tokenizer)
    donor = make_donor(modality, processor, llm, plan.size)
    inputs = inputs_of(pools("train")[modality], processor, "train")
    if modality != "image":
        train_tower(donor, modality, inputs, plan.tower, seed)
    if modality == "video":  # its images would go another way, which is not trained
        donor.model.image_tower.load_state_dict(donor.model.video_tower.state_dict())
    seen = features(donor, modality, inputs)
    donor.requires_grad_(False)
    donor.model.multi_modal_projector.requires_grad_(True)
    train_donor(donor, processor, modality, seen, plan.align, f"{seed} {modality} projector")
    aligned = {name: tensor.clone() for name, tensor in donor.state_dict().items()}
    for part in (donor.model.language_model, donor.lm_head):
        part.requires_grad_(True)
    train_donor(donor, processor, modality, seen, plan.donor, f"{seed} {modality} donor")
    save(donor, out / modality, processor)
    if plan.lora is not None:
        donor.to(torch.float32).load_state_dict(aligned)
        form = (plan.lora, plan.rank)
        make_lora(donor, processor, modality, seen, form, f"{seed} {modality} lora", out)


def make_lora(
    donor: Any, processor: Any, modality: str, seen: Any, form: tuple[Stage, int], seed: str, out: Path
) -> None:
    """Stage 4 with an adapter in the language model's place; the projector stays as it is. form: stage and rank."""
    save(donor, out / f"{modality}_aligned", processor)
    donor.to(torch.float32).name_or_path = str(out / f"{modality}_aligned")
    stage, rank = form
    adapted = with_lora(donor, rank)
    train_donor(adapted.base_model.model, processor, modality, seen, stage, seed)
    save(adapted, out / f"{modality}_lora")


def train(out: Path, names: Sequence[str], plan: Plan, seed: int) -> None:
    """Make the named models in `out`, skipping those that exist."""
    for name in missing_models(out, [name for name in MODELS if name == "llm" or name in names]):
        if name == "llm":
            torch.manual_seed(seed)
            tokenizer = make_tokenizer(words())
            llm = make_llm(tokenizer, plan.size)
            train_llm(llm, tokenizer, plan.llm, seed)
            save(llm, out / name, tokenizer)
        else:
            make(name, out, plan, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the models")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="make these (and the LLM) only")
    parser.add_argument("--quick", action="store_true", help="too few steps to learn much, in about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300, help="validation questions of each sort for the final scores")
    arguments = parser.parse_args()
    train(arguments.out, arguments.only, QUICK if arguments.quick else FULL, arguments.seed)
    llm = load_llm(arguments.out / "llm")
    results = {"text LLM, told in words": score_llm(*llm, "validation", arguments.count, words=True)}
    for name in arguments.only:
        if name != "llm":
            results[f"{name} donor"] = score(arguments.out / name, "validation", arguments.count)
    print(f"\nvalidation questions, {arguments.count} of each sort\n{table(results)}")


if __name__ == "__main__":
    main()
