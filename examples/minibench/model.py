"""The model: a small InternVL, and a tokenizer that has the words of the prompts and spells everything else."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedTokenizerFast,
)

from examples.common.models import CHAT_TEMPLATE, HEAD, chat_tokenizer, llama_config, special_ids, special_tokens
from examples.minibench.material import STEP
from examples.minibench.rows import SIDE

SHRINK = 2  # patches in each direction that become one token
# Special tokens of InternVL, by the names that its processor has for them. `<image>` stands for each token of an image.
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "video_token": "<video>",
}
_FEWEST = 5  # prompts with a word that is a token of its own
_PUNCTUATION = "[?:]"  # split from words; other signs stand inside of numbers and boxes
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "°"


@dataclass(frozen=True)
class Size:
    """Widths and layers of the tower and of the language model; heads are 32 wide. patch: pixels of its side."""

    patch: int = 16
    vision_width: int = 128
    vision_layers: int = 3
    width: int = 128
    layers: int = 3
    mlp: int = 320

    @property
    def image_tokens(self) -> int:
        """How many tokens a picture is to the language model: each has the features of `SHRINK` x `SHRINK` patches."""
        return (SIDE // self.patch // SHRINK) ** 2


def make_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Tokens for the frequent words of `prompts`, for coordinates in a box, and for single characters.

    A word in lower case, or one that begins a sentence, is one token, which includes names of things. Words in capitals
    and numbers are spelled, so that a model can say those it never saw. A coordinate is one token, which makes a box
    four tokens long.
    """
    counts = Counter(word for prompt in prompts for word in set(_words(prompt)))
    words = sorted(word for word, count in counts.items() if count >= _FEWEST)
    steps = [f"{STEP * at:.2f}" for at in range(round(1 / STEP) + 1)]
    boxes = [form.format(step) for form in ("[{},", "{},", "{}]") for step in steps]
    pieces = [*_CHARACTERS, *(f"##{each}" for each in _CHARACTERS), "yes", "no", *boxes, *words]
    vocabulary = {
        token: number
        for number, token in enumerate(dict.fromkeys([*special_tokens(["image"]), *_TOKENS.values(), *pieces]))
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_PUNCTUATION), "isolated")]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return chat_tokenizer(backend, ["image"], _TOKENS)


def _words(prompt: str) -> Iterator[str]:
    """The words in lower case or at the beginning of a sentence."""
    begins = True
    for part in prompt.replace("\n", " . ").split():
        for word in re.split(f"({_PUNCTUATION})", part):
            if word and not re.search(r"\d", word) and (begins or word == word.lower()):
                yield word
            begins = not word or word[-1] in ".:"


def make_processor(tokenizer: PreTrainedTokenizerFast, size: Size) -> InternVLProcessor:
    """The processor for the pictures of the material, which are one tile each."""
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    edges = {"height": SIDE, "width": SIDE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=edges, crop_to_patches=False, **normal),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=edges, **normal),
        image_seq_length=size.image_tokens,
        chat_template=CHAT_TEMPLATE,
    )


def make_tower(size: Size) -> InternVLVisionModel:
    """A randomly initialised vision tower; the caller seeds torch."""
    return InternVLVisionModel(_vision_config(size))


def _vision_config(size: Size) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=2 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_width // HEAD,
        image_size=SIDE,
        patch_size=size.patch,
        attention_bias=True,
        layer_scale_init_value=1.0,  # the default of 0.1 is for towers that are many layers deep
    )


def make_model(tokenizer: PreTrainedTokenizerFast, size: Size) -> InternVLForConditionalGeneration:
    """A randomly initialised model, in float32; the caller seeds torch."""
    text = llama_config(tokenizer, size.width, size.layers, size.mlp)
    config = InternVLConfig(
        vision_config=_vision_config(size),
        text_config=text,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=size.image_tokens,
        downsample_ratio=1 / SHRINK,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )
    return InternVLForConditionalGeneration(config)
