"""Files beside the weights: which come along, which stay behind, and what is said of those that an output lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from end_to_end import (
    altered,
    checked,
    checkpoint,
    edit_json,
    experts,
    linear,
    merge,
    notes,
    plugin,
    refused,
    run,
    task_arithmetic,
    written,
)
from peft_adapters import adapted, plus
from processors import with_processor
from remote_code import PYTHON_FILES, remote_code_checkpoint
from safetensors.torch import save_file

from mergekit_mm.checkpoints.side_files.inventory import take_inventory

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
READ_BY_A_MODEL = (
    "assets/voices/default.wav",
    "token2wav/campplus.onnx",
    "token2wav/flow.pt",
    "whisper-large-v3/config.json",
    "whisper-large-v3/model.safetensors",
    "vision-lora/adapter_config.json",
    "vision-lora/adapter_model.safetensors",
    "speech_tokenizer/model.safetensors",
    "1_Pooling/config.json",
    "2_Dense/pytorch_model.bin",
    "package/sub/module.py",
    "optimizer.py",
    "scheduler_config.json",
)
LEFT_BY_TRAINING = (
    "checkpoint-500/model.safetensors",
    "global_step100/mp_rank_00_model_states.pt",
    "runs/Nov01/events.out.tfevents.1",
    "wandb/run/config.yaml",
    "logs/train.log",
    "__pycache__/modeling.pyc",
    ".git/HEAD",
    ".cache/huggingface/x",
    "ema/model.safetensors",
    "last/optimizer.pt",
    "last/config.json",
    "last/weights.safetensors",
    "original/consolidated.00.pth",
    "onnx/model.onnx",
    "gguf_files/model.gguf",
    "openvino/openvino_model.xml",
    "package/__pycache__/module.pyc",
    "assets/.DS_Store",
    "optimizer.bin",
    "scheduler.pt",
    "zero_to_fp32.py",
    "latest",
    "trainer_state.json",
    "trainer_log.jsonl",
    "all_results.json",
    "rng_state_1.pth",
    "pytorch_model_ema.bin",
    "__0_0.distcp",
    "dl_state_dict.bin",
    "scaler_0.pt",
)


def with_files(source: Path, *names: str, content: bytes = b"{}") -> Path:
    path = altered(source)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def not_used(said: str) -> list[str]:
    """The lines of the last block of a report, on what of the inputs is not used."""
    return said.rstrip().rpartition("Not used:\n")[2].splitlines()


# ------------------------------------------------------------------------------------------------- what comes along


def test_folders_that_a_model_reads_come_along_and_leftovers_do_not() -> None:
    base = with_files(checkpoint("phi4_multimodal"), *READ_BY_A_MODEL, *LEFT_BY_TRAINING)
    edit_json(base / "whisper-large-v3" / "config.json", model_type="whisper")
    outcome = merge(task_arithmetic(base, experts("phi4_multimodal")[:1]))
    held = {path.relative_to(outcome.out).as_posix() for path in outcome.out.rglob("*") if path.is_file()}
    assert set(READ_BY_A_MODEL) <= held
    assert not set(LEFT_BY_TRAINING) & held
    assert (outcome.out / "token2wav" / "flow.pt").read_bytes() == b"{}"
    for said in (outcome.console, checked(task_arithmetic(base, experts("phi4_multimodal")[:1]))):
        (note,) = notes(said, "Folders of")
        folders = {name.partition("/")[0] for name in READ_BY_A_MODEL if "/" in name}
        assert all(f"{folder}/ (" in note for folder in folders), note


@pytest.mark.slow
def test_what_is_neither_copied_nor_a_leftover_is_named() -> None:
    base = with_files(checkpoint("llava"), "vae.safetensors", "again/config.json", "merged/mergekit_config.yml")
    edit_json(base / "again" / "config.json", model_type="llava")
    (base / "lost.json").symlink_to(base / "nowhere")
    config = linear(base)
    outcome = merge(config)
    for said in (outcome.console, checked(config), checked(task_arithmetic(checkpoint("llava"), [base]))):
        told = not_used(said)
        for name in ("vae.safetensors (", "again/ (another", "merged/ (the output", "lost.json (a link to nothing)"):
            assert said.count(name) == said.count("Not used:"), f"{name} is told twice: {said}"
            assert [line for line in told if name in line and line.startswith(f"  {base}: ")], told
    assert not {"vae.safetensors", "again", "merged", "lost.json"} & {path.name for path in outcome.out.iterdir()}
    told = plugin("inspect", base).output
    assert f"not used: {base}: vae.safetensors" in told
    assert told.count("again/") == told.count("vae.safetensors") == 1
    assert "chat_template.jinja" in told


def test_what_is_copied_is_not_called_unused() -> None:
    """Also where it holds tensors, or is named as what a training leaves behind."""
    base, expert = checkpoint("llava"), experts("llava")[0]
    names = ("voices.pt", "speakers.npz", "scheduler_config.json", "optimizer.py")
    both = [with_files(path, *names[1:]) for path in (base, expert)]
    for path in both:
        torch.save({"chelsie": torch.ones(3)}, path / "voices.pt")
    outcome = merge(task_arithmetic(both[0], both[1:]))
    assert {*names} <= {path.name for path in outcome.out.iterdir()}
    assert outcome.console.rstrip().endswith("Every tensor of every input is used.")
    told = plugin("inspect", both[0]).output
    assert "not used" not in told
    assert all(told.count(name) == 1 for name in names)


@pytest.mark.parametrize("source", ["", " ", "EMPTY"])
def test_a_source_of_files_has_to_be_a_model(source: str, tmp_path: Path) -> None:
    """An empty name is the working directory, whose files nobody wants in the output."""
    (tmp_path / "notes.json").write_text("{}")
    wanted = str(tmp_path) if source == "EMPTY" else source
    config = task_arithmetic(checkpoint("llava"), experts("llava")[:1], parameters={"processor_source": wanted})
    refused(config, "parameter processor_source: ")
    assert plugin("check", written(config)).exit_code == 1


def test_a_model_with_its_own_adapter_goes_by_its_name() -> None:
    both = with_files(experts("llava")[0])
    for file in adapted("llava", 1)[0].glob("adapter*"):
        shutil.copy(file, both)
    shutil.copytree(adapted("llava", 1)[0], both / "checkpoint-10")
    said = checked(task_arithmetic(checkpoint("llava"), [both]))
    assert f"  with {both}\n" in said
    assert f"`parameters: {{processor_source: {both}}}`" in said
    assert f"{both}+" not in said
    assert not_used(said) == [f"  {both}: the adapter in checkpoint-10/"]


@pytest.mark.slow
def test_what_an_expert_has_beyond_the_output_is_told_once() -> None:
    base, expert = checkpoint("llava"), with_files(experts("llava")[0], "speakers.npz", "assets/voice.pt")
    torch.save({"chelsie": torch.ones(3)}, expert / "voices.pt")
    config = task_arithmetic(base, [expert])
    for said in (checked(config), merge(config, "--quiet").said + checked(config)):
        (line,) = not_used(said)
        assert line.startswith(f"  {expert}: voices.pt (1 tensors: chelsie); assets/, speakers.npz (")
        assert said.count("voices.pt") == said.count("assets/") == said.count("speakers.npz") == 1


def test_what_many_inputs_have_alike_is_one_line() -> None:
    many = [with_files(path, "extra.json") for path in experts("llava")]
    said = checked(task_arithmetic(checkpoint("llava"), many, parameters={"vision_tower": "base"}))
    towers, files = not_used(said)
    assert "tensors of vision_tower" in towers
    assert "extra.json" in files
    assert all(str(path) in line for path in many for line in (towers, files))


def test_links_are_copied_as_files_and_circles_end(tmp_path: Path) -> None:
    """As in the cache of the hub, where every file is a link to a blob."""
    base = with_files(checkpoint("llava"))
    blob, folder = tmp_path / "blob", tmp_path / "outside"
    blob.write_bytes(b"voice")
    folder.mkdir()
    (folder / "more.bin").symlink_to(blob)
    (base / "assets").mkdir()
    (base / "assets" / "voice.pt").symlink_to(blob)
    (base / "assets" / "deeper").symlink_to(folder)
    (base / "assets" / "up").symlink_to(base)
    (base / "assets" / "self").symlink_to(base / "assets")
    out = merge(linear(base)).out
    files = {path.relative_to(out / "assets").as_posix(): path for path in (out / "assets").rglob("*")}
    assert files.keys() == {"voice.pt", "deeper", "deeper/more.bin"}
    assert not any(path.is_symlink() for path in files.values())
    assert files["deeper/more.bin"].read_bytes() == b"voice"


@pytest.mark.slow
def test_an_input_inside_the_base_is_no_folder_of_it() -> None:
    base = with_files(checkpoint("llava"))
    shutil.copytree(experts("llava")[0], base / "tuned")
    config = task_arithmetic(base, [base / "tuned"])
    outcome = merge(config)
    assert not (outcome.out / "tuned").exists()
    assert outcome.console.rstrip().endswith("Every tensor of every input is used.")
    (base / "all").mkdir()
    (base / "tuned").rename(base / "all" / "tuned")
    config = task_arithmetic(base, [base / "all" / "tuned"])
    assert not (merge(config).out / "all").exists()
    assert not_used(checked(config)) == [f"  {base}: all/ (holds an input of the merge)"]


def test_the_disk_check_counts_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A speech tokenizer may be larger than what is left after the weights."""
    base = with_files(checkpoint("llava"), "speech_tokenizer/model.safetensors")
    with (base / "speech_tokenizer" / "model.safetensors").open("wb") as file:
        file.truncate(10**7)
    config = linear(base)
    assert ", 10 MB in" in checked(config)
    usage = shutil.disk_usage(base)._replace(free=9 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    outcome = run(config)
    assert outcome.exit_code == 1
    assert "0.009 GB free" in outcome.error


def test_no_copy_tokenizer_keeps_its_meaning() -> None:
    base = with_files(checkpoint("llava"), "assets/voice.pt", "speech_tokenizer/model.safetensors")
    out = merge(linear(base), "--no-copy-tokenizer").out
    assert not list(out.glob("tokenizer*"))
    assert (out / "assets" / "voice.pt").exists()
    assert (out / "speech_tokenizer" / "model.safetensors").exists()
    assert (out / "preprocessor_config.json").exists()


# ------------------------------------------------------------------------------------------- what an output lacks


def without_processor(source: Path) -> Path:
    path = altered(source)
    for name in PROCESSOR_FILES:
        (path / name).unlink()
    return path


def test_a_missing_processor_is_taken_from_inputs_that_agree() -> None:
    donor = experts("qwen2_5_vl")[1]
    bare, twin = without_processor(checkpoint("qwen2_5_vl")), altered(donor)
    config = linear(bare, donor, twin)
    outcome = merge(config)
    for name in PROCESSOR_FILES:
        assert (outcome.out / name).read_bytes() == (donor / name).read_bytes()
    for said in (outcome.console, checked(config)):
        (note,) = notes(said, "has no processor")
        assert str(bare) in note
        assert str(donor) in note


def test_processors_that_differ_are_not_taken() -> None:
    bare = without_processor(checkpoint("qwen2_5_vl"))
    config = linear(bare, *experts("qwen2_5_vl")[:2])
    (note,) = notes(checked(config), "has no processor")
    assert "processor_source" in note
    assert all(str(path) in note for path in (bare, *experts("qwen2_5_vl")[:2]))
    assert not any((merge(config).out / name).exists() for name in PROCESSOR_FILES)


def test_a_missing_part_of_a_processor() -> None:
    """processor_config.json is there, but nothing has the settings of the image processor that it needs."""
    bare, donor = altered(checkpoint("llava")), altered(experts("llava")[0])
    (bare / "preprocessor_config.json").unlink()
    (bare / "video_preprocessor_config.json").unlink()
    settings = {"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30}}}
    (donor / "preprocessor_config.json").unlink()
    (donor / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor", **settings}))
    outcome = merge(linear(bare, donor))
    assert (
        json.loads((outcome.out / "processor_config.json").read_text())["image_processor"]["size"]["shortest_edge"]
        == 30
    )
    assert notes(outcome.console, "settings of its image processor")
    (note,) = notes(checked(linear(bare)), "image processor")
    assert "No input has" in note


def test_no_input_with_a_processor_is_told() -> None:
    bare = without_processor(checkpoint("llava"))
    assert notes(checked(linear(bare)), "No input has a processor")


def test_a_missing_tokenizer_is_taken_with_its_stop_tokens() -> None:
    base, expert = altered(checkpoint("llava")), altered(experts("llava")[0])
    for pattern in ("tokenizer*", "vocab.*"):
        for file in base.glob(pattern):
            file.unlink()
    edit_json(expert / "generation_config.json", eos_token_id=[2, 7])
    outcome = merge(task_arithmetic(base, [expert]))
    assert (outcome.out / "tokenizer.json").read_bytes() == (expert / "tokenizer.json").read_bytes()
    assert notes(outcome.console, f"{base} has no tokenizer; that of {expert} was taken")
    generation = json.loads((outcome.out / "generation_config.json").read_text())
    assert generation == {"max_new_tokens": 7, "eos_token_id": [2, 7]}


def test_missing_code_is_taken_with_what_it_imports() -> None:
    base, expert = remote_code_checkpoint("base"), remote_code_checkpoint("expert_0")
    (expert / "modeling_internvl_chat.py").write_text("from .conversation import get\nfrom .lost import x\n")
    for name in PYTHON_FILES:
        (base / name).unlink()
    config = linear(base, expert)
    outcome = merge(config)
    for name in PYTHON_FILES:
        assert (outcome.out / name).read_bytes() == (expert / name).read_bytes()
    for said in (outcome.console, checked(config)):
        assert all(notes(said, name) for name in PYTHON_FILES)
        (note,) = notes(said, "lost.py")
        assert "No input has" in note
        assert "cannot be loaded" in note


def test_code_that_differs_is_not_taken() -> None:
    base = remote_code_checkpoint("base")
    (base / "modeling_internvl_chat.py").unlink()
    others = [remote_code_checkpoint(f"expert_{i}") for i in range(2)]
    config = linear(base, *others)
    (note,) = notes(checked(config), "lacks modeling_internvl_chat.py")
    assert "processor_source" in note
    assert not (merge(config).out / "modeling_internvl_chat.py").exists()


def test_code_of_the_config_comes_from_the_base_whatever_the_source() -> None:
    base, expert = remote_code_checkpoint("base"), remote_code_checkpoint("expert_0")
    (expert / "modeling_internvl_chat.py").unlink()
    out = merge({**linear(base, expert), "parameters": {"processor_source": str(expert)}}).out
    assert (out / "modeling_internvl_chat.py").read_bytes() == (base / "modeling_internvl_chat.py").read_bytes()
    assert (out / "conversation.py").read_bytes() == (expert / "conversation.py").read_bytes()


def test_code_of_another_repository_is_told() -> None:
    base = remote_code_checkpoint("base")
    edit_json(base / "config.json", auto_map={"AutoModel": "someone/model--modeling_x.X"})
    (note,) = notes(checked(linear(base)), "someone/model")
    assert "config.json" in note


def test_an_adapters_own_files_are_a_source() -> None:
    """Trainers save tokenizer and processor beside an adapter."""
    base = without_processor(checkpoint("llava"))
    adapter, _ = adapted("llava", 1, base)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    for name in (*PROCESSOR_FILES, "chat_template.jinja"):
        shutil.copy(experts("llava")[0] / name, adapter / name)
    config = task_arithmetic(base, [plus(base, adapter)])
    assert (merge(config).out / PROCESSOR_FILES[0]).read_bytes() == (adapter / PROCESSOR_FILES[0]).read_bytes()
    chosen = merge({**config, "parameters": {"processor_source": str(plus(base, adapter))}}).out
    assert (chosen / "chat_template.jinja").read_bytes() == (adapter / "chat_template.jinja").read_bytes()


def test_the_file_that_the_full_qwen_omni_insists_on() -> None:
    base = altered(checkpoint("qwen2_5_omni"))
    (base / "spk_dict.pt").unlink()
    expert = experts("qwen2_5_omni")[0]
    outcome = merge(linear(base, expert))
    assert (outcome.out / "spk_dict.pt").read_bytes() == (expert / "spk_dict.pt").read_bytes()


def test_the_processor_of_a_donor_is_taken_from_another_of_its_architecture() -> None:
    """An omni model has each donor's processor; what else a donor has beside its weights is named."""
    host, again, guest = (altered(with_processor(family)) for family in ("llava", "llava", "qwen2_audio_llama"))
    for name in PROCESSOR_FILES:
        (host / name).unlink(missing_ok=True)
    (host / "assets").mkdir()
    (host / "assets" / "voice.pt").write_bytes(b"{}")
    edit_json(again / "generation_config.json", eos_token_id=[2, 7])
    edit_json(host / "generation_config.json", eos_token_id=2)
    config = task_arithmetic(host, [again, guest])
    outcome = merge(config)
    for said in (outcome.console, checked(config)):
        (note,) = notes(said, "has no processor")
        assert f"that of {again} was taken" in note
        assert f"  {host}: assets/ (" in said.split("Not used:")[1]
        (note,) = notes(said, "Stop tokens")
        assert "[2, 7], not 2" in note
    own = json.loads((outcome.out / "processors" / "host" / "processor_config.json").read_text())
    assert own["image_processor"] == json.loads((again / "processor_config.json").read_text())["image_processor"]
    assert (outcome.out / "generation_config.json").read_bytes() == (host / "generation_config.json").read_bytes()


# ---------------------------------------------------------------------------------------------- what is compared


def test_copied_weights_that_experts_have_otherwise_are_named() -> None:
    """Nothing merges the weights in a folder, so an expert's are lost."""
    base, expert = (with_files(path, "2_Dense/config.json") for path in (checkpoint("llava"), experts("llava")[0]))
    for path, value in ((base, 0.0), (expert, 1.0)):
        save_file({"linear.weight": torch.full((4, 4), value)}, path / "2_Dense" / "model.safetensors")
        (path / "modeling_extra.py").write_text(f"# {value}")
    (expert / "projector").mkdir()
    (expert / "projector" / "extra.pt").write_text("more")
    said = checked(task_arithmetic(base, [expert]))
    (note,) = notes(said, "copied and not merged")
    assert "2_Dense/model.safetensors" in note
    assert "config.json" not in note
    assert notes(said, "modeling_extra.py")
    assert f"  {expert}: projector/ (" in said.split("Not used:")[1]


def test_processor_settings_are_compared_by_what_they_do(tmp_path: Path) -> None:
    base, same, other = (altered(path) for path in (checkpoint("qwen2_5_vl"), *experts("qwen2_5_vl")[:2]))
    for path in (base, same, other):
        (path / "processor_config.json").unlink()
        (path / "video_preprocessor_config.json").unlink()
    image = {"image_processor_type": "Qwen2VLImageProcessor", "image_mean": [0.5, 0.5, 0.5], "patch_size": 14}
    old = {**image, "min_pixels": 3136, "max_pixels": 12845056, "processor_class": "Qwen2_5_VLProcessor"}
    new = {**image, "image_processor_type": "Qwen2VLImageProcessorFast", "transformers_version": "5"}
    new["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    for path, settings in ((base, old), (same, new), (other, {**old, "max_pixels": 1003520})):
        (path / "preprocessor_config.json").write_text(json.dumps(settings))
    said = checked(task_arithmetic(base, [same, other]))
    (note,) = notes(said, "Processor settings")
    assert "max_pixels 1003520 (12845056)" in note
    assert str(other) in note
    assert str(same) not in note
    assert "image_mean" not in note


def test_an_inventory_of_a_directory() -> None:
    base = with_files(checkpoint("llava"), "assets/voice.pt", content=b"1234")
    found = take_inventory(base, {"model.safetensors"})
    assert found.folders == {"assets": 4}
    assert found.uncopied == {}
    assert "config.json" not in found.files
