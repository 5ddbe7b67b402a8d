"""How far a model is from an expert: the divergence of their distributions at the tokens of the expert's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """An expert's greedy answer, and its distribution at each of the answer's tokens.

    ids (tokens,): the answer's tokens, the one that ends it among them. top (tokens, k): the ids of the k most probable
    tokens at each place. log_probabilities (tokens, k): theirs, in float32; what they lack of 1 is the tail. An entry
    of minus infinity belongs to the tail too, and its id counts for nothing.
    """

    ids: Tensor
    top: Tensor
    log_probabilities: Tensor

    @classmethod
    def of(cls, ids: Tensor, logits: Tensor, k: int) -> Answer:
        """From the logits (tokens, vocabulary) that predict the answer `ids`; k may be larger than the vocabulary."""
        found = logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]))
        return cls(ids.cpu(), found.indices.cpu(), found.values.cpu())

    def renumbered(self, ids: Mapping[int, int | None]) -> Answer:
        """The same with other ids: those of `ids` by the ids here, None for tokens that are to belong to the tail."""
        changed = {number: other for number, other in ids.items() if number != other}
        if not changed:
            return self
        own, top, log_probabilities = self.ids.clone(), self.top.clone(), self.log_probabilities.clone()
        for number, other in changed.items():
            own[self.ids == number] = -1 if other is None else other
            if other is None:
                log_probabilities[self.top == number] = -torch.inf
            else:
                top[self.top == number] = other
        # Each entry of the tail takes the id of another entry of its row: the model's own share of it counts once.
        best = top.gather(-1, log_probabilities.argmax(-1, keepdim=True))
        return Answer(own, torch.where(log_probabilities.isinf(), best, top), log_probabilities)


def divergence(answer: Answer, logits: Tensor) -> Tensor:
    """The sum over an answer's tokens of KL(expert || model), in nats, where all tokens of the tail count as one.

    logits (tokens, vocabulary): the model's, by which gradients flow. So merged, a tail can only lower the divergence;
    without a tail it is exact. What the expert gives to tokens that the model lacks is in the tail, and is left out
    where none of the model's own tokens are.
    """
    expert = answer.log_probabilities.to(logits.device)
    log_model = logits.float().log_softmax(-1)
    top = answer.top.to(logits.device)
    is_known = expert.isfinite()
    inside = expert.exp() * (expert.where(is_known, 0.0) - log_model.gather(-1, top))
    # Log-sums of the tokens outside: a difference of 1 and a sum close to 1 would lose all digits.
    has_tail = is_known.sum(-1) < logits.shape[-1]
    outside = log_model.scatter(-1, top, -torch.inf).where(has_tail[:, None], log_model).logsumexp(-1)
    tail = (1 - expert.exp().sum(-1)).clamp_min(0.0).where(has_tail, 0.0)
    return inside.where(is_known, 0.0).sum() + (torch.special.xlogy(tail, tail) - tail * outside).sum()
