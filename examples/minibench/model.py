"""The model: a small LLaVA, and a tokenizer that has the words of the prompts and spells everything else."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from examples.common import llava
from examples.common.models import chat_tokenizer, clip_config, llama_config, special_tokens
from examples.minibench.material import STEP
from examples.minibench.rows import SIDE

_FEWEST = 5  # prompts with a word that is a token of its own
_PUNCTUATION = "[?:]"  # split from words; other signs stand inside of numbers and boxes
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "°"


@dataclass(frozen=True)
class Size:
    """Widths and depths of the two halves; attention heads are 32 wide."""

    patch: int = 16
    vision_width: int = 96
    vision_layers: int = 3
    width: int = 128
    layers: int = 3
    mlp: int = 320


def make_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Tokens for the frequent words of `prompts`, for coordinates in a box, and for single characters.

    A word in lower case, or one that begins a sentence, is one token. Names and numbers are spelled, so that a model
    can say those it never saw. A coordinate is one token, which makes a box four tokens long.
    """
    counts = Counter(word for prompt in prompts for word in set(_words(prompt)))
    words = sorted(word for word, count in counts.items() if count >= _FEWEST)
    steps = [f"{STEP * at:.2f}" for at in range(round(1 / STEP) + 1)]
    boxes = [form.format(step) for form in ("[{},", "{},", "{}]") for step in steps]
    pieces = [*_CHARACTERS, *(f"##{each}" for each in _CHARACTERS), "yes", "no", *boxes, *words]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*special_tokens(["image"]), *pieces]))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_PUNCTUATION), "isolated")]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return chat_tokenizer(backend, ["image"])


def _words(prompt: str) -> Iterator[str]:
    """The words in lower case or at the beginning of a sentence; names of charts are neither."""
    begins = True
    for part in prompt.replace("\n", " . ").split():
        for word in re.split(f"({_PUNCTUATION})", part):
            if word and not re.search(r"\d", word) and (begins or word == word.lower()):
                yield word
            begins = not word or word[-1] in ".:"


def make_processor(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlavaProcessor:
    """The processor for the pictures of the material."""
    return llava.make_processor(tokenizer, SIDE, size.patch)


def make_tower(size: Size) -> CLIPVisionModel:
    """A randomly initialised vision tower; the caller seeds torch."""
    return CLIPVisionModel(clip_config(size.vision_width, size.vision_layers, SIDE, size.patch))


def make_model(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlavaForConditionalGeneration:
    """A randomly initialised model, in float32; the caller seeds torch."""
    vision = clip_config(size.vision_width, size.vision_layers, SIDE, size.patch)
    return llava.make_model(tokenizer, vision, llama_config(tokenizer, size.width, size.layers, size.mlp))
