"""InternVL in the form of its original repositories (`internvl_chat`): with code of its own, and without a processor.

transformers has the same model as `InternVLForConditionalGeneration`. Config, weights and processor are brought into
that form in memory, by the rules of transformers' own conversion script; no code of the checkpoint is run. The weights
are split and renamed and nothing else, so that the model is the same. Images are cut into the same tiles, but resized
by torchvision instead of Pillow, which makes some pixels differ by one in 255.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError

from mergekit_mm.checkpoints.disk import read_headers
from mergekit_mm.errors import EvaluationError

MODEL_TYPE = "internvl_chat"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # the statistics of ImageNet's three channels
_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
# The defaults of the original `InternVisionConfig`, for keys that a config does not have.
_VISION = {
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "num_hidden_layers": 48,
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": False,
    "qk_normalization": True,
}
_RENAMED = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}  # InternVL's key -> transformers' key
_LANGUAGE = {"InternLM2ForCausalLM": "llama"}  # architectures that transformers has under another name
_NAMES = [
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.(q|k)_norm\.", r".attention.\1_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.(lm_head|output)\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.tok_embeddings\.", ".embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
]
# The conversation of InternVL2.5, for a checkpoint without `conversation.py`.
_SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_CONVERSATION = {
    "system_template": "<|im_start|>system\n{system_message}",
    "system_message": _SYSTEM,
    "roles": ("<|im_start|>user\n", "<|im_start|>assistant\n"),
    "sep": "<|im_end|>\n",
}


def original_config(pretrained: str, **where: Any) -> dict[str, Any] | None:
    """The config of a checkpoint in the original form; None for any other. where: `revision` and `subfolder`."""
    config, _ = transformers.PretrainedConfig.get_config_dict(pretrained, **where)
    return config if config.get("model_type") == MODEL_TYPE else None


def config_of(original: Mapping[str, Any], image_token_id: int | None = None) -> Any:
    """transformers' config of the model. EvaluationError: transformers does not have this variant."""
    vision = {**_VISION, **original["vision_config"]}
    for key, only in {"ps_version": "v2", "use_thumbnail": True}.items():
        if original.get(key, only) != only:
            raise EvaluationError(f"InternVL with {key}={original[key]!r}: transformers has only {key}={only!r}")
    text = {k: v for k, v in dict(original["llm_config"]).items() if k not in ("auto_map", "_name_or_path")}
    architecture = (text.get("architectures") or ["?"])[0]
    kind = _LANGUAGE.get(architecture, text.pop("model_type", None))
    if architecture in _LANGUAGE:
        text.pop("model_type", None)
        text["attention_bias"] = text.pop("bias", False)
        text.pop("architectures")
    try:
        text_config = transformers.AutoConfig.for_model(kind, **text)
    except ValueError as error:
        raise EvaluationError(f"InternVL on {architecture}: transformers has no language model {kind!r}") from error
    side = int(original.get("force_image_size") or vision["image_size"])
    ratio = float(original.get("downsample_ratio", 0.5))
    more = {} if image_token_id is None else {"image_token_id": image_token_id}
    known = {key for key in _VISION if key not in _RENAMED} | {"initializer_range", "attention_dropout"}
    seen = {_RENAMED.get(key, key): value for key, value in vision.items() if key in {*known, *_RENAMED}}
    return transformers.InternVLConfig(
        vision_config={**seen, "use_absolute_position_embeddings": True, "use_mean_pooling": True},
        text_config=text_config,
        downsample_ratio=ratio,
        image_seq_length=int((side // vision["patch_size"]) ** 2 * ratio**2),
        vision_feature_layer=int(original.get("select_layer", -1)),
        tie_word_embeddings=bool(original.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        architectures=["InternVLForConditionalGeneration"],
        dtype=original.get("dtype") or original.get("torch_dtype"),
        **more,
    )


def converted(tensors: Iterator[tuple[str, torch.Tensor]], config: Any) -> dict[str, torch.Tensor]:
    """The tensors under their names in transformers, as the model has them in memory, with fused ones split."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        if name.endswith("rotary_emb.inv_freq"):  # a constant, which transformers computes
            continue
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                made[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows
        elif ".attention.wqkv." in name:
            for part, rows in zip("qkv", _by_head(tensor, config.text_config), strict=True):
                made[name.replace(".attention.wqkv.", f".self_attn.{part}_proj.")] = rows
        else:
            made[name] = tensor
    return made


def _by_head(fused: torch.Tensor, text: Any) -> list[torch.Tensor]:
    """The queries, keys and values of InternLM2, which are fused by head of keys: its queries, its keys, its values."""
    groups, heads = text.num_key_value_heads, text.num_attention_heads // text.num_key_value_heads
    rows = fused.unflatten(0, (groups, heads + 2, -1))
    return [part.flatten(0, 2) for part in rows.split([heads, 1, 1], dim=1)]


class Loader:
    """Loads a checkpoint in the original form; stands in for one of transformers' auto classes."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def from_pretrained(
        self,
        pretrained: str,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: Any = "auto",
        trust_remote_code: bool | None = None,
        gguf_file: str | None = None,
        **options: Any,
    ) -> Any:
        """The model. options: those of transformers' method. EvaluationError: the weights do not fit the config."""
        config = self._config
        state = converted(_read(_folder(pretrained, {"revision": revision, "subfolder": subfolder})), config)
        if "lm_head.weight" not in state:
            config.tie_word_embeddings = True
        if dtype == "auto":
            dtype = config.dtype or next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        given = {key: value for key, value in options.items() if value is not None}
        model, report = transformers.InternVLForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, dtype=dtype, **given
        )
        wrong = {key: sorted(map(str, names))[:3] for key, names in report.items() if names}
        if wrong:
            raise EvaluationError(f"{pretrained} is not an InternVL as its config describes it: {wrong}")
        model.name_or_path = pretrained
        return model


def _folder(pretrained: str, where: Mapping[str, Any]) -> Path:
    """The directory with the weights, which are downloaded from the hub if need be."""
    if Path(pretrained).is_dir():
        return Path(pretrained) / (where.get("subfolder") or "")
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    patterns = ["*.safetensors", "*.json"]
    return Path(
        huggingface_hub.snapshot_download(
            pretrained, revision=where.get("revision"), allow_patterns=patterns, local_files_only=offline
        )
    )


def _read(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in sorted({tensor.file for tensor in read_headers(folder).values()}):
        if not file.endswith(".safetensors"):
            yield from torch.load(folder / file, map_location="cpu", weights_only=True, mmap=True).items()
            continue
        with safe_open(str(folder / file), framework="pt") as shard:
            for name in shard.keys():
                yield name, shard.get_tensor(name)


def processor_of(pretrained: str, original: Mapping[str, Any], where: Mapping[str, Any], trust: bool | None) -> Any:
    """The processor: tokenizer, tiles, chat template. EvaluationError: the tokenizer lacks the tokens for images."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained, trust_remote_code=trust, **where)
    for role, token in _TOKENS.items():
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == tokenizer.unk_token_id:
            raise EvaluationError(f"{pretrained}: its tokenizer has no {token}, which stands for images in InternVL")
        setattr(tokenizer, role, token)
        setattr(tokenizer, f"{role}_id", token_id)
    tokenizer.video_token = "<video>"  # the processor replaces this text by the frames before it is tokenized
    config = config_of(original)
    side = int(original.get("force_image_size") or config.vision_config.image_size[0])
    common = {"size": {"height": side, "width": side}, "image_mean": _MEAN, "image_std": _STD}
    images = transformers.GotOcr2ImageProcessor(
        **common,
        crop_to_patches=bool(original.get("dynamic_image_size", True)),
        min_patches=int(original.get("min_dynamic_patch", 1)),
        max_patches=int(original.get("max_dynamic_patch", 12)),
    )
    conversation = _conversation(pretrained, original, where)
    processor = transformers.InternVLProcessor(
        images,
        tokenizer,
        transformers.InternVLVideoProcessor(**common),
        image_seq_length=config.image_seq_length,
        chat_template=_template(conversation),
    )
    tokenizer.chat_template = processor.chat_template
    return processor


def reply_ends(processor: Any, conversation_end: str = "<|im_end|>") -> list[int]:
    """The ids of the tokens that end a reply: the end of the text, and that of a turn of the conversation."""
    tokenizer = processor.tokenizer
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(conversation_end)]
    return [each for each in dict.fromkeys(ids) if each is not None and each != tokenizer.unk_token_id]


def _conversation(pretrained: str, original: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, Any]:
    """The conversation that the config's `template` names, read from `conversation.py`, which is not run."""
    file = _file(pretrained, "conversation.py", where)
    if file is None:
        return _CONVERSATION
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Conversation"):
            continue
        found = {each.arg: _literal(each.value) for each in call.keywords if each.arg}
        if found.get("name") == original.get("template") and found.get("sep") and found.get("roles"):
            return {**_CONVERSATION, "system_message": "", **{k: v for k, v in found.items() if v is not None}}
    return _CONVERSATION


def _file(pretrained: str, name: str, where: Mapping[str, Any]) -> Path | None:
    """A file of the checkpoint, downloaded from the hub if need be; None if there is none."""
    if Path(pretrained).is_dir():
        file = Path(pretrained) / (where.get("subfolder") or "") / name
        return file if file.is_file() else None
    given = {key: value for key, value in where.items() if value}
    try:
        return Path(huggingface_hub.hf_hub_download(pretrained, name, **given))
    except EntryNotFoundError:  # a local one too, where the hub cannot be reached
        return None


def _literal(node: ast.expr) -> Any:
    """The value of a literal; None for any other expression, such as SeparatorStyle.MPT."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


# The chat template: each turn begins with its role and ends with `sep`; an image is followed by a line break.
_TEMPLATE = Template("""\
{%- if messages[0]['role'] != 'system' -%}{{ $before + $message + $after + $sep }}{%- endif -%}
{%- for m in messages -%}
{{ {'system': $before, 'assistant': $assistant}.get(m['role'], $user) }}
{%- if m['content'] is string -%}{{ m['content'] }}
{%- else -%}{%- for p in m['content'] -%}
{{ p['text'] if p['type'] == 'text' else {'image': $image, 'video': $video}[p['type']] }}
{%- endfor -%}{%- endif -%}
{{ ($after if m['role'] == 'system' else '') + $sep }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ $assistant }}{%- endif -%}""")


def _template(conversation: Mapping[str, Any]) -> str:
    """The chat template (Jinja) of a conversation."""
    user, assistant = conversation["roles"]
    before, _, after = conversation["system_template"].partition("{system_message}")
    words = {"user": user, "assistant": assistant, "sep": conversation["sep"], "before": before, "after": after}
    words |= {"message": conversation["system_message"], "image": "<IMG_CONTEXT>\n", "video": "<video>\n"}
    return _TEMPLATE.substitute({key: json.dumps(text, ensure_ascii=False) for key, text in words.items()})
