"""InternVL in the form of its original repositories: `mllm` takes the output of a merge to scores."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import end_to_end as c
import numpy as np
import pytest
import torch
import transformers as t
import zoo
from mllm_runs import MLLM, evaluate, lively, png, said, task
from safetensors.torch import load_file, save_file
from torch.nn import functional as f

from mergekit_mm.evaluation.model import internvl
from mergekit_mm.evaluation.model.weights import Weights
from mergekit_mm.evaluation.tasks import media

SIDE, PATCH, LAYERS = 56, 14, 2
NAMED = {
    zoo.IMAGE: "<IMG_CONTEXT>",
    zoo.V_START: "<img>",
    zoo.V_END: "</img>",
    zoo.A_START: "<|im_start|>",
    zoo.A_END: "<|im_end|>",
}
CONVERSATION = """
from enum import IntEnum, auto
raise SystemExit("conversation.py was run")
register_conv_template(
    Conversation(
        name='other', system_template='x{system_message}', system_message='y', roles=('a', 'b'), sep='c',
    )
)
register_conv_template(
    Conversation(
        name='internvl2_5',
        system_template='<|im_start|>system\\n{system_message}',
        system_message='Be kind.',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>\\n',
    )
)
"""


def tokenizer() -> Any:
    before = dict(zoo.SPECIAL)
    try:
        zoo.SPECIAL.update(NAMED)
        return zoo.tokenizer()
    finally:
        zoo.SPECIAL.clear()
        zoo.SPECIAL.update(before)


@functools.cache
def native() -> Any:
    """A small InternVL of transformers."""
    config = zoo.internvl()
    config.vision_config.image_size, config.image_seq_length = [SIDE, SIDE], 4
    config.vision_config.attention_bias = True
    return lively(t.InternVLForConditionalGeneration(config)).eval()


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Its tensors as the original repositories name them, queries, keys and values in one."""
    made = {}
    vision, place = "model.vision_tower.", {"cls_token": "class_embedding", "position_embeddings": "position_embedding"}
    place |= {"patch_embeddings.projection.weight": "patch_embedding.weight"}
    place |= {"patch_embeddings.projection.bias": "patch_embedding.bias"}
    for old, new in place.items():
        made[f"vision_model.embeddings.{new}"] = state[f"{vision}embeddings.{old}"]
    for n in range(LAYERS):
        here, there = f"{vision}encoder.layer.{n}.", f"vision_model.encoder.layers.{n}."
        for kind in ("weight", "bias"):
            made[f"{there}attn.qkv.{kind}"] = torch.cat([state[f"{here}attention.{x}_proj.{kind}"] for x in "qkv"])
            parts = {"attention.projection_layer": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
            parts |= {"layernorm_before": "norm1", "layernorm_after": "norm2"}
            made |= {f"{there}{new}.{kind}": state[f"{here}{old}.{kind}"] for old, new in parts.items()}
        made |= {f"{there}ls{at}": state[f"{here}lambda_{at}"] for at in (1, 2)}
    for old, new in {"layer_norm": 0, "linear_1": 1, "linear_2": 3}.items():
        for kind in ("weight", "bias"):
            made[f"mlp1.{new}.{kind}"] = state[f"model.multi_modal_projector.{old}.{kind}"]
    language = "model.language_model."
    made |= {f"language_model.model.{k.removeprefix(language)}": v for k, v in state.items() if k.startswith(language)}
    return {**made, "language_model.lm_head.weight": state["lm_head.weight"]}


def vision_config() -> dict[str, Any]:
    own = native().config.vision_config
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": own.hidden_size,
        "intermediate_size": own.intermediate_size,
        "num_attention_heads": own.num_attention_heads,
        "num_hidden_layers": LAYERS,
        "image_size": SIDE,
        "patch_size": PATCH,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
    }


def config() -> dict[str, Any]:
    text = {**zoo.text("qwen2"), "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
    auto = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {**auto, "AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": SIDE,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "float32",
        "use_thumbnail": True,
        "llm_config": text,
        "vision_config": vision_config(),
    }


def original(tensors: dict[str, torch.Tensor] | None = None, **changed: Any) -> Path:
    path = c.fresh("internvl")
    path.mkdir()
    found = original_names(native().state_dict()) if tensors is None else tensors
    save_file({k: v.clone() for k, v in found.items()}, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**config(), **changed}))
    tokenizer().save_pretrained(path)
    (path / "conversation.py").write_text(CONVERSATION)
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py"):
        (path / name).write_text(f'raise SystemExit("{name} was run")\n')
    return path


def model(path: Path, **arguments: Any) -> MLLM:
    return MLLM(str(path), **{"dtype": "float32", "device": "cpu", **arguments})


def features(tensors: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """What the original code makes of tiles (n, 3, SIDE, SIDE), written down once more in plain torch."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return f.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return f.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    start, heads = "vision_model.embeddings.", vision_config()["num_attention_heads"]
    patch = f.conv2d(pixels, tensors[f"{start}patch_embedding.weight"], tensors[f"{start}patch_embedding.bias"], PATCH)
    x = torch.cat([tensors[f"{start}class_embedding"].expand(len(pixels), -1, -1), patch.flatten(2).mT], 1)
    x = x + tensors[f"{start}position_embedding"]
    for n in range(LAYERS):
        layer = f"vision_model.encoder.layers.{n}"
        q, k, v = linear(f"{layer}.attn.qkv", norm(f"{layer}.norm1", x, 1e-6)).unflatten(-1, (3, heads, -1)).unbind(2)
        seen = f.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + linear(f"{layer}.attn.proj", seen.transpose(1, 2).flatten(2)) * tensors[f"{layer}.ls1"]
        hidden = f.gelu(linear(f"{layer}.mlp.fc1", norm(f"{layer}.norm2", x, 1e-6)))
        x = x + linear(f"{layer}.mlp.fc2", hidden) * tensors[f"{layer}.ls2"]
    side = SIDE // PATCH
    x = x[:, 1:].reshape(len(pixels), side, side, -1)
    x = x.reshape(len(pixels), side, side // 2, -1).permute(0, 2, 1, 3).reshape(len(pixels), side // 2, side // 2, -1)
    x = x.permute(0, 2, 1, 3).reshape(len(pixels), (side // 2) ** 2, -1)
    return linear("mlp1.3", f.gelu(linear("mlp1.1", norm("mlp1.0", x, 1e-5))))


@pytest.fixture(scope="module")
def loaded() -> MLLM:
    return model(original(), batch_size=2)


def test_the_model_is_the_same(loaded: MLLM) -> None:
    ours, theirs = loaded.model.state_dict(), native().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = loaded.model.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, features(original_names(theirs), pixels), atol=2e-4, rtol=2e-4)


def test_prompt_and_tiles_are_those_of_the_original_code(loaded: MLLM) -> None:
    """The conversation of the checkpoint's own file, which is not run; tiles, and the whole picture after them."""
    doc = {"image": png(1, width=112, height=56)}
    asked = loaded.reader.read("<image>what?", {"visual": media.visuals(doc)}, "here")
    start, end = "<|im_start|>", "<|im_end|>\n"
    question = f"{start}user\n<IMG_CONTEXT>\nwhat?{end}{start}assistant\n"
    assert asked.text == f"{start}system\nBe kind.{end}{question}"
    inputs = loaded.reader.encode([asked], "left")
    assert inputs["pixel_values"].shape == (3, 3, SIDE, SIDE)  # 2 x 1 tiles, and a thumbnail
    assert int((inputs["input_ids"] == zoo.IMAGE).sum()) == 3 * 4
    shown = np.asarray(media.visuals(doc)[0].convert("RGB"), np.float32) / 255
    tile = (shown[:, :SIDE] - internvl._MEAN) / internvl._STD
    np.testing.assert_allclose(inputs["pixel_values"][0].permute(1, 2, 0), tile, atol=1e-5)
    films = {"visual": [{"type": "video", "frames": [media.visuals(doc)[0]] * 2}]}
    video = loaded.reader.encode([loaded.reader.read("<video>what?", films, "here")], "left")
    assert "Frame1: <img><IMG_CONTEXT>" in loaded.tokenizer.decode(video["input_ids"][0])
    assert loaded.apply_chat_template([{"role": "system", "content": "Hm."}, {"role": "user", "content": "hi"}]) == (
        f"{start}system\nHm.{end}{start}user\nhi{end}{start}assistant\n"
    )


def test_answers_are_those_of_the_converted_model(loaded: MLLM) -> None:
    docs = [{"prompt": "<image>what?", "image": png(n, width=56 * (n + 1))} for n in range(3)]
    answers = said(loaded, docs)
    assert len(set(answers)) == 3
    for doc, answer in zip(docs, answers, strict=True):
        inputs = loaded.reader.encode([loaded.reader.read("<image>what?", {"visual": media.visuals(doc)}, "x")], "left")
        tokens = native().generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=[zoo.EOS, zoo.A_END])
        reply = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        ends = [at for at, token in enumerate(reply) if token in (zoo.EOS, zoo.A_END)]
        assert (
            answer
            == loaded.tokenizer.decode(reply[: ends[0] if ends else None], skip_special_tokens=True).split("\n")[0]
        )


def test_a_merge_goes_to_scores() -> None:
    """The recipe's layout, merged by the stock command and evaluated as it lies there."""
    base = original()
    generator = torch.Generator().manual_seed(5)
    moved = {
        k: v + 0.05 * torch.randn(v.shape, generator=generator)
        for k, v in load_file(base / "model.safetensors").items()
    }
    outcome = c.merge(c.linear(original(moved)))
    lm = model(outcome.out)
    expected = native().state_dict()
    assert not torch.equal(lm.model.state_dict()["lm_head.weight"], expected["lm_head.weight"])
    torch.testing.assert_close(lm.model.lm_head.weight.data, moved["language_model.lm_head.weight"])
    results = evaluate(lm, task([{"prompt": "<image>what?", "image": png(1)}, {"prompt": "no picture"}]))
    assert results["results"]["mine"]["score,none"] in (0, 0.5, 1)
    assert results["config"]["processor"] == "InternVLProcessor"


def test_a_loaded_model_takes_other_weights_by_their_original_names() -> None:
    generator = torch.Generator().manual_seed(5)
    found = load_file(original() / "model.safetensors")
    other = {name: value + torch.randn(value.shape, generator=generator) for name, value in found.items()}
    lm, expected = model(original()), model(original(other)).model.state_dict()
    weights = Weights(lm)
    assert all(weights.put(name, tensor) for name, tensor in other.items())
    assert not weights.put("vision_model.gone", torch.zeros(1))
    c.assert_same_bytes(dict(lm.model.state_dict()), dict(expected))


def test_internlm2_is_a_llama() -> None:
    """Queries, keys and values of a group of heads are stored together."""
    torch.manual_seed(0)
    text = {**zoo.text("llama"), "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    made = internvl.config_of({**config(), "llm_config": text})
    assert made.text_config.model_type == "llama"
    heads, groups = made.text_config.num_attention_heads, made.text_config.num_key_value_heads
    size, width = made.text_config.head_dim, made.text_config.hidden_size
    rows = {
        "q": torch.randn(heads, size, width),
        "k": torch.randn(groups, size, width),
        "v": torch.randn(groups, size, width),
    }
    fused = []
    for group in range(groups):
        of_group = heads // groups
        fused += [*rows["q"][group * of_group : (group + 1) * of_group], rows["k"][group], rows["v"][group]]
    layer = "language_model.model.layers.0."
    given = {
        f"{layer}attention.wqkv.weight": torch.cat(fused),
        f"{layer}attention.wo.weight": torch.ones(1),
        f"{layer}feed_forward.w2.weight": torch.ones(2),
        f"{layer}ffn_norm.weight": torch.ones(3),
        "language_model.model.tok_embeddings.weight": torch.ones(4),
        "language_model.output.weight": torch.ones(5),
    }
    found = internvl.converted(iter(given.items()), made)
    layer = "model.language_model.layers.0."
    for name, expected in rows.items():
        torch.testing.assert_close(found.pop(f"{layer}self_attn.{name}_proj.weight"), expected.flatten(0, 1))
    assert {name: len(tensor) for name, tensor in found.items()} == {
        f"{layer}self_attn.o_proj.weight": 1,
        f"{layer}mlp.down_proj.weight": 2,
        f"{layer}post_attention_layernorm.weight": 3,
        "model.language_model.embed_tokens.weight": 4,
        "lm_head.weight": 5,
    }


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ps_version": "v1"}, "ps_version='v1': transformers has only ps_version='v2'"),
        ({"llm_config": {"architectures": ["Other"], "model_type": "other"}}, "no language model 'other'"),
        ({"vision_config": {**vision_config(), "qk_normalization": True}}, "missing_keys.*q_norm"),
    ],
)
def test_what_transformers_does_not_have_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model(original(**changed))


def test_a_tokenizer_without_the_tokens_of_pictures_is_refused() -> None:
    path = original()
    zoo.tokenizer().save_pretrained(path)
    with pytest.raises(ValueError, match="its tokenizer has no <img>"):
        model(path)
