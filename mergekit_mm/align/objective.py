"""How far a model is from an expert: the divergence of their distributions at the tokens of the expert's answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """An expert's greedy answer, and its distribution at each of the answer's tokens.

    ids (tokens,): the answer's tokens, the one that ends it among them. top (tokens, k): the ids of the k most probable
    tokens at each place. log_probabilities (tokens, k): theirs, in float32; what they lack of 1 is the tail.
    """

    ids: Tensor
    top: Tensor
    log_probabilities: Tensor

    @classmethod
    def of(cls, ids: Tensor, logits: Tensor, k: int) -> Answer:
        """From the logits (tokens, vocabulary) that predict the answer `ids`; k may be larger than the vocabulary."""
        found = logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]))
        return cls(ids.cpu(), found.indices.cpu(), found.values.cpu())


def divergence(answer: Answer, logits: Tensor) -> Tensor:
    """The sum over an answer's tokens of KL(expert || model), in nats, where all tokens of the tail count as one.

    logits (tokens, vocabulary): the model's, by which gradients flow. So merged, a tail can only lower the divergence;
    without a tail it is exact.
    """
    expert = answer.log_probabilities.to(logits.device)
    log_model = logits.float().log_softmax(-1)
    top = answer.top.to(logits.device)
    inside = expert.exp() * (expert - log_model.gather(-1, top))
    if expert.shape[-1] == logits.shape[-1]:
        return inside.sum()
    # Log-sums of the tokens outside: a difference of 1 and a sum close to 1 would lose all digits.
    outside = log_model.scatter(-1, top, -torch.inf).logsumexp(-1)
    tail = (1 - expert.exp().sum(-1)).clamp_min(0.0)
    return inside.sum() + (torch.special.xlogy(tail, tail) - tail * outside).sum()
