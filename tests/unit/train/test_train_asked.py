"""What a user asks for is done as asked, or refused in one line: identity, warm starts, chats, and single settings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from train_support import train_here

from alpaca_ray.errors import DataError, ModelError, OutputError, SettingsError
from alpaca_ray.prompts import ALPACA_LORA, STANFORD, PromptTemplate, load_template
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.testing.tiny import make_tiny_model
from alpaca_ray.train import arguments, identity, restart
from alpaca_ray.train.asked import asked
from alpaca_ray.train.chats import ChatText
from alpaca_ray.train.data import split
from alpaca_ray.train.encode import IGNORE_INDEX, Sample, _labelled, encode
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.saved import given_yaml

RECORDS = read_records("seeds")[:20]


def parse(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, list(flags), description="test")


def identify(*flags: str, begun_from: Path | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings = parse(*flags)
    parts = split(RECORDS, settings.val_set_size, seed=settings.seed)
    plan = make_plan(settings, has_gpus=False)
    template = load_template(settings.prompt_template)
    return identity.identity(settings, plan, template, parts, "m", restart.origin(begun_from)), parts[1]


CHANGES = {
    "learning_rate": "--learning_rate: 0.0005 there, 0.02 now",
    "optim": "--optim: adamw_torch there, adafactor now",
    "lr_scheduler_type": "--lr_scheduler_type: cosine there, linear now",
    "weight_decay": "--weight_decay: 0.0 there, 0.1 now",
    "warmup_ratio": "--warmup_ratio: 0.03 there, 0.5 now",
    "warmup_steps": "--warmup_steps: 0 there, 3.0 now; --warmup_ratio: 0.03 there, None now",
    "group_by_length": "--group_by_length: False there, True now",
    "data_seed": "--data_seed: None there, 7 now",
    "max_grad_norm": "--max_grad_norm: 1.0 there, 0.3 now",
    "label_smoothing_factor": "--label_smoothing_factor: 0.0 there, 0.1 now",
    "neftune_noise_alpha": "--neftune_noise_alpha: None there, 5 now",
    "adam_beta2": "--adam_beta2: 0.999 there, 0.95 now",
    "fsdp": "--fsdp: False there, True now",
    "bf16": "(precision: bf16 there, fp32 now)",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_the_steps_may_not_change_unnoticed(name: str, tmp_path: Path) -> None:
    made, heldout = identify()
    identity.write(tmp_path, made)
    assert identity.check_same_run(tmp_path, made, heldout) is None
    value = {"fsdp": "full_shard", "bf16": "false"}.get(name) or CHANGES[name].rpartition(", ")[2].split()[0]
    value = {"warmup_steps": "3", "group_by_length": "true"}.get(name, value)
    with pytest.raises(OutputError) as caught:
        identity.check_same_run(tmp_path, *identify(f"--{name}", value))
    assert CHANGES[name] in str(caught.value)
    # A folder of before these were recorded is judged by what it has.
    assert {
        *identity._later(parse(), make_plan(parse(), has_gpus=False)),
        identity.ORIGIN,
    } == identity._NOT_ALWAYS_RECORDED
    of_old = {key: kept for key, kept in made.items() if key not in identity._NOT_ALWAYS_RECORDED}
    assert {"model", "seed", "batch_size", "data_path"} <= of_old.keys()
    identity.write(tmp_path, of_old)
    identity.check_same_run(tmp_path, *identify(f"--{name}", value))


def test_a_default_given_by_name_is_no_change(tmp_path: Path) -> None:
    made, heldout = identify("--seed", "7")
    identity.write(tmp_path, made)
    defaults = ["--data_seed", "7", "--max_grad_norm", "1.0", "--adam_epsilon", "1e-8", "--learning_rate", "5e-4"]
    identity.check_same_run(tmp_path, identify("--seed", "7", *defaults, "--fsdp", "")[0], heldout)


def checkpoint(folder: Path, content: str = "weights") -> Path:
    """A folder that counts as a whole checkpoint."""
    from alpaca_ray.train import whole

    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_text(content)
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    whole.write_list(folder)
    return folder


def test_a_run_that_began_from_a_checkpoint_is_resumed_from_it_until_it_has_one_of_its_own(tmp_path: Path) -> None:
    begin = checkpoint(tmp_path / "begin")
    folder = tmp_path / "out"
    folder.mkdir()
    made, heldout = identify(begun_from=begin)
    identity.write(folder, made)
    origin = {"path": str(begin), "digest": made[identity.ORIGIN]["digest"]}
    assert identity.check_same_run(folder, made, heldout) == origin
    with pytest.raises(OutputError, match=f"give --resume_from_checkpoint {begin} too"):
        identity.check_same_run(folder, *identify())
    moved = shutil.copytree(begin, tmp_path / "moved")
    assert identity.check_same_run(folder, *identify(begun_from=moved)) == origin
    with pytest.raises(OutputError, match=f"--resume_from_checkpoint: {begin} .* there, {tmp_path / 'other'} "):
        identity.check_same_run(folder, *identify(begun_from=checkpoint(tmp_path / "other", "others")))
    checkpoint(folder / "checkpoint-3")
    assert identity.check_same_run(folder, *identify()) == origin
    identity.write(folder, identify()[0])  # a run that began from nothing
    with pytest.raises(OutputError, match="--resume_from_checkpoint: None there"):
        identity.check_same_run(folder, made, heldout)


def test_the_digest_of_an_adapter_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_text("a")
    before = restart.origin(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert restart.origin(tmp_path) == before
    (tmp_path / "adapter_model.safetensors").write_text("b")
    assert restart.origin(tmp_path) != before
    assert restart.origin(None) is None


def test_of_a_large_file_both_ends_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "_READ_WHOLE", 8)
    monkeypatch.setattr(restart, "_READ_PART", 2)
    found = []
    for content in ("abcdefghij", "abcdefghiX", "Xbcdefghij", "abcdefghijk", "abcdXfghij"):
        (tmp_path / "adapter_model.safetensors").write_text(content)
        found.append((restart.origin(tmp_path) or {})["digest"])
    assert len(set(found)) == 4
    assert found[-1] == found[0]  # only the ends: it is not read as a whole


def test_the_newest_checkpoint_of_the_folder_itself_means_resume(tmp_path: Path) -> None:
    for step in (1, 12):
        checkpoint(tmp_path / f"checkpoint-{step}")
    flags = ["--output_dir", str(tmp_path), "--resume_from_checkpoint"]
    found = restart.with_own_checkpoint(parse(*flags, str(tmp_path / "checkpoint-12")))
    assert (found.resume, found.resume_from_checkpoint) == (True, None)
    with pytest.raises(SettingsError, match="is not the newest checkpoint of --output_dir, which is checkpoint-12"):
        restart.with_own_checkpoint(parse(*flags, str(tmp_path / "checkpoint-1")))
    elsewhere = parse(*flags[:1], str(tmp_path / "new"), *flags[2:], str(tmp_path / "checkpoint-1"))
    assert restart.with_own_checkpoint(elsewhere) is elsewhere
    clearing = parse(*flags, str(tmp_path / "checkpoint-12"), "--overwrite")
    assert restart.with_own_checkpoint(clearing) is clearing


def test_a_start_that_is_gone_matters_only_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    settings = parse("--resume", "--resume_from_checkpoint", "gone", "--output_dir", str(tmp_path))
    with pytest.raises(SettingsError, match="Checkpoint gone not found"):
        restart.restart_point(settings)
    checkpoint(tmp_path / "checkpoint-3")
    assert restart.restart_point(settings) is None


def test_the_saved_settings_say_where_the_run_began() -> None:
    settings = parse("--model", "m", "--resume", "--resume_from_checkpoint", "there")
    assert "resume_from_checkpoint" not in yaml.safe_load(given_yaml(settings))
    kept = yaml.safe_load(given_yaml(settings, begun_from={"path": "/a/there", "digest": "d"}))
    assert kept["resume_from_checkpoint"] == "/a/there"
    assert "resume" not in kept


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that, as Llama 2's, puts a word start before each text and behind each special token."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("asked") / "model"))
    found.backend_tokenizer.normalizer = normalizers.Prepend("▁")
    return found


PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As Qwen3's: the last answer gets a thought, earlier ones do not.
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content | trim }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = [("user", "Hello there"), ("assistant", "Hi, you"), ("user", "Bye now"), ("assistant", "See you")]


def chat(*turns: tuple[str, str], **further: Any) -> dict[str, Any]:
    return {"id": "talk", "messages": [{"role": role, "content": text} for role, text in turns], **further}


def encoded(tokenizer: Any, template: str | None, *turns: tuple[str, str], **options: Any) -> Sample:
    tokenizer.chat_template = template
    try:
        return encode([chat(*turns)], tokenizer, STANFORD, **{"max_length": 512, **options})[0]
    finally:
        tokenizer.chat_template = None


def learnt(tokenizer: Any, sample: Sample) -> str:
    return str(tokenizer.decode([label for label in sample["labels"] if label != IGNORE_INDEX]))


def test_a_chat_is_tokenised_as_the_one_text_that_a_server_tokenises(tokenizer: Any) -> None:
    sample = encoded(tokenizer, PLAIN, *TURNS)
    text = "".join(f"[{role}]{words};" for role, words in TURNS)
    whole = tokenizer(text, add_special_tokens=False)
    assert sample["input_ids"] == whole["input_ids"]
    assert learnt(tokenizer, sample) == "Hi, you;See you;"
    pieces = tokenizer(text[: text.index("Hi")], add_special_tokens=False)["input_ids"]
    again = tokenizer("Hi, you;", add_special_tokens=False)["input_ids"]
    assert [*pieces, *again] != whole["input_ids"][: len(pieces) + len(again)]  # why it matters


def test_a_template_that_adds_to_the_last_answer_alone_works_over_several_turns(tokenizer: Any) -> None:
    sample = encoded(tokenizer, THINKING, *TURNS)
    assert learnt(tokenizer, sample).replace("▁", "") == "Hi, you</s><think></think>See you</s>"
    rewriting = "{% for m in messages %}{{ m.content | upper if not loop.last else m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"record 'talk' .*: the tokenizer's chat template rewrites earlier turns"):
        encoded(tokenizer, rewriting, *TURNS)


def test_a_tokenizer_without_character_positions_takes_the_pieces(tokenizer: Any, monkeypatch: Any) -> None:
    fast = encoded(tokenizer, THINKING, *TURNS)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    slow = encoded(tokenizer, THINKING, *TURNS)
    assert learnt(tokenizer, slow).replace("▁", "") == learnt(tokenizer, fast).replace("▁", "")
    assert len(slow["input_ids"]) > len(fast["input_ids"])


@pytest.mark.parametrize(
    "options",
    [{}, {"add_eos": False}, {"train_on_inputs": True}, {"max_length": 60, "may_be_empty": True}],
    ids=str,
)
def test_without_a_chat_template_a_chat_of_one_turn_is_an_instruction(tokenizer: Any, options: dict[str, Any]) -> None:
    sample = encoded(tokenizer, None, ("system", "Be kind."), *TURNS[:2], TURNS[2], **options)
    record = {"instruction": "Be kind.\nHello there", "output": "Hi, you"}
    assert sample == encode([record], tokenizer, STANFORD, **{"max_length": 512, **options})[0]


def test_a_token_over_the_end_of_the_prompt_is_masked_as_in_an_instruction(tokenizer: Any) -> None:
    bare = PromptTemplate("", "{instruction}{input}", "{instruction}")
    sample = encode([chat(("user", "Say: th"), ("assistant", "e end"))], tokenizer, bare, max_length=99)[0]
    assert sample == encode([{"instruction": "Say: th", "output": "e end"}], tokenizer, bare, max_length=99)[0]
    assert learnt(tokenizer, sample) == " end</s>"


def test_a_token_of_no_character_belongs_to_what_begins_there() -> None:
    class Positions:
        is_fast = True

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            spans = [(0, 0), (0, 2), (2, 2), (2, 4), (4, 4), (4, 5)]
            return {"input_ids": list(range(6)), "offset_mapping": spans}

    ids, known = _labelled(Positions(), ChatText("abcde", [(2, 4)]), add_special_tokens=False)
    assert ids == list(range(6))
    assert known == [False, False, True, True, False, False]


def test_without_a_chat_template_turns_follow_each_other_in_the_prompt_template(tokenizer: Any) -> None:
    sample = encoded(tokenizer, None, *TURNS)
    text = STANFORD.format({"instruction": "Hello there"}) + "Hi, you</s>"
    text += STANFORD.format({"instruction": "Bye now"}) + "See you"
    assert sample["input_ids"] == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert learnt(tokenizer, sample) == "Hi, you</s>See you</s>"
    cut = encoded(tokenizer, None, *TURNS, max_length=len(sample["input_ids"]) - 1)
    assert cut["input_ids"] == sample["input_ids"][:-1]
    assert encoded(tokenizer, None, *TURNS, add_eos=False)["input_ids"] == sample["input_ids"][:-1]
    for turns in (TURNS[1:], TURNS[:1], [TURNS[0], *TURNS], [*TURNS, TURNS[1]]):
        with pytest.raises(DataError, match=r"record 'talk' .*is a chat in which user and assistant do not"):
            encoded(tokenizer, None, *turns)
    assert ALPACA_LORA.format({"instruction": "x"}).endswith("\n")  # any prompt template will do
    other = encode([chat(*TURNS)], tokenizer, ALPACA_LORA, max_length=512)[0]
    assert learnt(tokenizer, other).replace("▁", "") == "Hi, you</s>See you</s>"


@pytest.mark.parametrize("dialect", ["--base_model", "--model_name_or_path", "--model"])
def test_a_warm_up_given_as_a_share_is_taken(dialect: str) -> None:
    def warmup(*flags: str) -> float:
        settings = parse(dialect, "m", *flags)
        plan = make_plan(settings, has_gpus=False)
        found: float = arguments.translate(settings, plan, "", has_validation=True)["warmup_steps"]
        return found

    assert warmup("--warmup_ratio", "0.1") == 0.1
    assert warmup("--warmup_steps", "7") == 7
    assert warmup("--warmup_ratio", "0.1", "--warmup_steps", "7") == 7
    assert warmup() == {"--base_model": 100, "--model_name_or_path": 0, "--model": 0.03}[dialect]


@pytest.mark.parametrize(
    ("flags", "accepted"),
    [
        (["--logging_nan_inf_filter", "True"], ["--logging_nan_inf_filter", "False"]),
        (["--metric_for_best_model", "accuracy"], ["--metric_for_best_model", "eval_loss"]),
        (["--greater_is_better", "True"], ["--greater_is_better", "False"]),
    ],
)
def test_what_would_contradict_the_program_is_refused(flags: list[str], accepted: list[str]) -> None:
    with pytest.raises(SettingsError, match=f"{flags[0]} is not taken here: "):
        parse(*flags)
    settings = parse(*accepted)
    arguments.check(arguments.translate(settings, make_plan(settings, has_gpus=False), "", has_validation=True))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--use_liger_kernel"], "--use_liger_kernel: the package liger_kernel is not installed"),
        (["--optim", "galore_adamw", "--optim_target_modules", "attn"], "--optim galore_adamw: "),
    ],
)
def test_a_package_that_lacks_is_named_before_anything_starts(flags: list[str], part: str) -> None:
    settings = parse(*flags)
    with pytest.raises(SettingsError, match=part):
        arguments.check(arguments.translate(settings, make_plan(settings, has_gpus=False), "", has_validation=True))


def test_what_a_library_refuses_is_an_error_of_the_settings() -> None:
    def make(error: Exception) -> None:
        raise error

    assert asked(lambda value, other: value + other, 1, other=2) == 3
    with pytest.raises(SettingsError, match=r"^this model cannot be trained as asked: X has no Y$"):
        asked(make, ValueError("X has no\n  Y"))
    with pytest.raises(SettingsError, match="No module"):
        asked(make, ImportError("No module named 'x'"))
    own = ModelError("ours")
    with pytest.raises(ModelError) as caught:
        asked(make, own)
    assert caught.value is own
    with pytest.raises(ZeroDivisionError):
        asked(make, ZeroDivisionError())


def test_the_names_of_layers_that_fsdp_wraps_may_be_written_with_blanks() -> None:
    settings = parse("--fsdp", "full_shard", "--fsdp_transformer_layer_cls_to_wrap", "A, B ,")
    translated = arguments.translate(settings, make_plan(settings, has_gpus=False), "", has_validation=False)
    assert translated["fsdp_config"]["transformer_layer_cls_to_wrap"] == ["A", "B"]


def test_hybrid_sharding_says_what_it_becomes() -> None:
    def warnings(fsdp: str) -> list[str]:
        return make_plan(parse("--fsdp", fsdp, "--num_workers", "2"), has_gpus=False).warnings

    assert warnings("full_shard auto_wrap") == []
    assert [line.partition(":")[0] for line in warnings("hybrid_shard auto_wrap")] == [
        "--fsdp hybrid_shard runs as full_shard does"
    ]
    assert warnings("hybrid_shard_zero2")[0].startswith("--fsdp hybrid_shard_zero2 runs as shard_grad_op does")


def test_a_dropout_just_below_1_is_no_division_by_zero(tiny_llama: Path, tmp_path: Path) -> None:
    import math

    found = train_here(tiny_llama, tmp_path, "--lora_dropout", "0.99999999")
    assert all(math.isfinite(loss) for loss in found.losses)


def test_variables_for_ray_train_are_set_for_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from alpaca_ray.train.launch import environment

    monkeypatch.setenv("ALPACA_TEST_SET", "before")
    with environment({"ALPACA_TEST_SET": "now", "ALPACA_TEST_NEW": "now"}):
        assert (os.environ["ALPACA_TEST_SET"], os.environ["ALPACA_TEST_NEW"]) == ("before", "now")
    assert os.environ["ALPACA_TEST_SET"] == "before"
    assert "ALPACA_TEST_NEW" not in os.environ


def test_an_identity_is_json(tmp_path: Path) -> None:
    made, _ = identify(begun_from=checkpoint(tmp_path / "begin"))
    assert json.loads(json.dumps(made)) == made
