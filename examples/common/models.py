"""The parts of which the examples' small models are made: a chat format, a word tokenizer, configs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

HEAD = 32  # width of an attention head
LONGEST = 256  # tokens
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{% endfor %}"
    "{% endif %}{{ '</s>' if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt else '' }}"
)


def make_tokenizer(texts: Iterable[str], placeholders: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of `texts`, and any other word as `<unk>`.

    placeholders: modalities, for each of which there is a placeholder token (`<image>` for `image`).
    """
    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    numbers = {word: number for number, word in enumerate([*special_tokens(placeholders), *words])}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = splitter
    return chat_tokenizer(backend, placeholders)


def special_tokens(placeholders: Sequence[str]) -> list[str]:
    """The tokens that every vocabulary begins with."""
    return ["<pad>", "<s>", "</s>", "<unk>", *(f"<{each}>" for each in placeholders), "<user>", "<assistant>"]


def chat_tokenizer(
    backend: Tokenizer, placeholders: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of the library `tokenizers`, whose vocabulary has the special tokens, with the chat template.

    more: special tokens beside those of `special_tokens`, by the names that a processor knows them by.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            **{f"{each}_token": f"<{each}>" for each in (*placeholders, "user", "assistant")},
            **(more or {}),
        },
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=LONGEST,
        chat_template=CHAT_TEMPLATE,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids of padding, beginning and end, as configs name them."""
    return {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


def llama_config(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, mlp: int) -> LlamaConfig:
    """The language model: `layers` of `width`, with an MLP of width `mlp`; the head is not tied to the embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )


def clip_config(width: int, layers: int, side: int, patch: int) -> CLIPVisionConfig:
    """The vision tower, for images of `side` x `side` pixels in patches of `patch` x `patch`."""
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        projection_dim=width,
        image_size=side,
        patch_size=patch,
    )
