"""What a run keeps whatever happens: whole checkpoints, the files of others, one line for what cannot be kept."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_train_checkpoints import trainer_of
from torch.distributed.checkpoint.api import CheckpointException

from alpaca_ray import storage
from alpaca_ray.errors import DataError, OutputError, SettingsError, TrainingError
from alpaca_ray.full_disk import naming_full_disk
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import background, checkpoints, claim, finish, loop, progress, publish, reading, whole
from alpaca_ray.train.callbacks import Reporter
from alpaca_ray.train.restart import restart_point


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def run_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    trainer_of(folder, tiny_llama).train()
    return folder


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


# Whole checkpoints


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "adapter_model.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, empty])
def test_a_broken_checkpoint_is_passed_over_with_a_warning(folder: Path, listed: bool, name: str, damage: Any) -> None:
    if not listed:
        for step in (2, 4):
            (folder / f"checkpoint-{step}" / whole.LIST_FILE).unlink()
    said: list[str] = []
    assert publish.resume_point(folder, said.append) == folder / "checkpoint-4"
    assert said == []
    damage(folder / "checkpoint-4" / name)
    assert publish.newest_checkpoint(folder) == folder / "checkpoint-2"
    assert publish.resume_point(folder, said.append) == folder / "checkpoint-2"
    assert len(said) == 1
    assert said[0].startswith(f"warning: passing over {folder / 'checkpoint-4'}: {name} ")


def test_without_a_whole_checkpoint_a_resume_is_refused(folder: Path) -> None:
    assert publish.resume_point(folder / "nowhere") is None
    (folder / "checkpoint-2" / "rng_state.pth").unlink()
    empty(folder / "checkpoint-4" / whole.LIST_FILE)
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole .*checkpoint\.json cannot be read; .*rng_state"):
        publish.resume_point(folder)


def test_a_checkpoint_that_is_named_must_be_whole(folder: Path) -> None:
    flags = ["--resume_from_checkpoint", str(folder / "checkpoint-4")]
    settings = parse_settings(TrainSettings, flags, description="test")
    assert restart_point(settings) == folder / "checkpoint-4"
    cut(folder / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(SettingsError, match=r"checkpoint-4: is not whole: optimizer\.pt has \d+ bytes, not \d+"):
        restart_point(settings)


def test_checkpoints_of_others_are_judged_by_what_a_resume_needs(tmp_path: Path) -> None:
    def made(name: str, *files: str) -> Path:
        for file in ("trainer_state.json", *files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"global_step": 4}')
        return tmp_path / name

    ours = made("sharded", "sharded/.metadata", "sharded/__0_0.distcp", "scheduler.pt", "adapter_model.safetensors")
    assert whole.fault(ours) is None
    (ours / "sharded" / ".metadata").unlink()
    assert whole.fault(ours) == "a part of sharded is missing"

    parts = [f"{name}_0/{file}" for name in ("pytorch_model_fsdp", "optimizer") for file in (".metadata", "a.distcp")]
    theirs = made("fsdp", *parts, "scheduler.pt")
    assert whole.fault(theirs) is None
    shutil.rmtree(theirs / "optimizer_0")
    assert whole.fault(theirs) == "a part of optimizer_0 is missing"

    zero = made("zero", "latest", "global_step4/mp_rank_00_model_states.pt")
    (zero / "latest").write_text("global_step4")
    assert whole.fault(zero) == "global_step4 holds no state of the optimiser"
    torch.save({}, zero / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert whole.fault(zero) is None
    cut(zero / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert "cut off" in str(whole.fault(zero))

    index = made("index", "scheduler.pt", "optimizer.bin", "model.safetensors.index.json", "pytorch_model-1.bin")
    (index / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin", "b": "c.bin"}}')
    assert whole.fault(index) == "c.bin is missing"
    (index / "c.bin").write_text("x")
    assert whole.fault(index) is None
    assert whole.fault(made("empty")) == "it holds no weights"


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors"])
def test_a_checkpoint_that_cannot_be_read_ends_the_run_in_one_line(folder: Path, tiny_llama: Path, name: str) -> None:
    path = folder / "checkpoint-4" / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(TrainingError) as caught:
        trainer_of(folder, tiny_llama, max_steps=6).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert str(caught.value).startswith(f"{folder / 'checkpoint-4'}: cannot be read: ")
    assert "\n" not in str(caught.value)


def test_a_model_whose_files_have_other_names_is_resumed_with_all_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    trained, fresh = MixtralForCausalLM(config), MixtralForCausalLM(config)
    accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model)
    _, write = checkpoints._weights(SimpleNamespace(model=trained, accelerator=accelerator))
    write(tmp_path)
    result = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    reading.check_loaded(fresh, *result)
    assert all(torch.equal(weight, fresh.state_dict()[name]) for name, weight in trained.state_dict().items())

    trained.save_pretrained(tmp_path / "theirs")
    result = fresh.load_state_dict(load_file(tmp_path / "theirs" / "model.safetensors"), strict=False)
    with pytest.raises(TrainingError, match=r"it lacks model\.layers\.0\.mlp"):
        reading.check_loaded(fresh, *result)


def test_a_tied_weight_needs_to_be_there_once(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.lm_head.weight = model.model.embed_tokens.weight
    reading.check_loaded(model, ["lm_head.weight"], [])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with pytest.raises(TrainingError, match="it lacks lm_head"):
        reading.check_loaded(model, ["lm_head.weight"], [])
    with pytest.raises(TrainingError, match="holds other"):
        reading.check_loaded(model, [], ["other"])


def test_a_run_that_passed_over_a_broken_checkpoint_rotates_that_one_away_first(tmp_path: Path) -> None:
    for step in (10, 15, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    background.rotate(tmp_path, 2, written="checkpoint-15")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-15"]
    (tmp_path / "checkpoint-20").mkdir()
    background.rotate(tmp_path, 1, written="checkpoint-15")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-15"]


def test_the_newest_checkpoint_stays_beside_the_best_under_a_limit_of_one(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        tiny_llama,
        save_total_limit=1,
        eval_steps=2,
        metric_for_best_model="loss",
        greater_is_better=True,  # so the first one stays the best
    )
    trainer.eval_dataset = trainer.train_dataset
    trainer.args.eval_strategy, trainer.args.load_best_model_at_end = trainer.args.save_strategy, True
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert trainer.args.save_total_limit == 1


def test_a_moved_run_finds_its_best_checkpoint_and_a_lost_one_is_told(folder: Path) -> None:
    path = folder / "checkpoint-4" / "trainer_state.json"
    content = json.loads(path.read_text()) | {"best_model_checkpoint": "/was/there/checkpoint-2"}
    path.write_text(json.dumps(content))
    state = SimpleNamespace(best_model_checkpoint=None)
    reading.repoint_best(state, path.parent, folder, True)
    assert state.best_model_checkpoint == str(folder / "checkpoint-2")
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    reading.repoint_best(state, path.parent, folder, False)
    assert state.best_model_checkpoint is None
    with pytest.raises(TrainingError, match=r"best checkpoint so far, checkpoint-2, is not in .*put it back"):
        reading.repoint_best(state, path.parent, folder, True)


def test_a_checkpoint_of_fsdp_needs_fsdp_and_no_other_takes_it(folder: Path) -> None:
    checkpoint = folder / "checkpoint-4"
    whole.check_fsdp(checkpoint, fsdp=False)
    with pytest.raises(SettingsError, match="written without FSDP: leave --fsdp out"):
        whole.check_fsdp(checkpoint, fsdp=True)
    (checkpoint / whole.SHARDED_FOLDER).mkdir()
    whole.check_fsdp(checkpoint, fsdp=True)
    with pytest.raises(SettingsError, match="written under FSDP: give --fsdp"):
        whole.check_fsdp(checkpoint, fsdp=False)


def test_checkpoints_without_the_optimisers_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--save_only_model is not taken here: such checkpoints cannot be resumed"):
        parse_settings(TrainSettings, ["--save_only_model", "true"], description="test")


# A folder that another run has taken over, and one that a run never got under way in


def test_a_run_that_lost_its_folder_stops_and_deletes_nothing_in_it(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()  # of the other run
    trainer = trainer_of(tmp_path, tiny_llama, save_total_limit=1, max_steps=400)
    trainer.still_ours = lambda: False
    reported: list[Path] = []
    trainer.on_checkpoint = reported.append
    with pytest.raises(OutputError, match="another run has taken this folder over: checkpoint-2 was not written"):
        trainer.train()
    assert reported == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def fail_before_the_first_step(folder: Path, copy: Path | None = None, **flags: bool) -> None:
    with claim.claimed(folder, **{"resume": False, "overwrite": False, **flags}, examine=lambda: None):
        progress.append(folder, {"step": 1, "stopped": "the loss is not finite"})
        (folder / progress.TRACKER_FOLDER / "tensorboard").mkdir(parents=True, exist_ok=True)
        progress.append(folder, {"step": 1, "epoch": 0.1, "worker": 0, "ids": []}, progress.SAMPLES_FILE)
        if copy:
            shutil.copytree(folder, copy)  # what lies there if the process is killed here
        raise TrainingError("the loss is not finite")


def test_what_a_run_wrote_before_its_first_step_goes_with_it(tmp_path: Path) -> None:
    fresh, killed = tmp_path / "fresh", tmp_path / "killed"
    with pytest.raises(TrainingError):
        fail_before_the_first_step(fresh, killed)
    assert not fresh.exists()
    with claim.claimed(killed, resume=False, overwrite=False, examine=lambda: None):
        assert not (killed / progress.METRICS_FILE).exists()
        claim.settle(killed)
    assert list(killed.iterdir()) == []


def test_what_was_there_before_the_first_step_stays(tmp_path: Path) -> None:
    (tmp_path / progress.TRACKER_FOLDER).mkdir()
    (tmp_path / claim.IDENTITY_FILE).write_text('{"batch_size": 6}')
    (tmp_path / "notes.txt").write_text("mine")
    copy = tmp_path.with_name("copy")
    with pytest.raises(TrainingError):
        fail_before_the_first_step(tmp_path, copy, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"trackers", claim.IDENTITY_FILE, "notes.txt"}
    assert not (copy / claim.IDENTITY_FILE).exists()
    assert (claim.kept_in(copy) / claim.IDENTITY_FILE).read_text() == '{"batch_size": 6}'
    assert claim.kept_in(tmp_path) == tmp_path
    shutil.rmtree(copy)


def test_recorded_samples_are_ours_and_a_file_of_that_name_is_not(tmp_path: Path) -> None:
    path = tmp_path / progress.SAMPLES_FILE
    path.write_text('{"instruction": "Name a colour.", "output": "Red."}\n')
    assert claim.ours(tmp_path) == []
    path.write_text('{"step": 1, "epoch": 0.5, "worker": 0, "ids": ["a"]}\n')
    assert claim.ours(tmp_path) == [path]


# Publishing


def test_an_old_model_is_unmarked_before_its_files_change_and_all_is_durable_before_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "model-00002-of-00002.safetensors").write_text("old")
    events: list[str] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        events.append(f"move {target.name}")
        if target.name != "config.json":
            assert not (tmp_path / "config.json").exists()
        else:
            assert not (tmp_path / "model-00002-of-00002.safetensors").exists()
        replace(source, target)

    monkeypatch.setattr(publish.os, "replace", watched)
    monkeypatch.setattr(publish, "sync_file", lambda path: events.append(f"sync {path.name}"))
    monkeypatch.setattr(publish, "sync_folder", lambda path: events.append("sync folder"))
    with publish.publish_files(tmp_path, "config.json") as staging:
        (staging / "config.json").write_text("new")
        (staging / "model.safetensors").write_text("new")
    assert sorted(events[:2]) == ["sync config.json", "sync model.safetensors"]
    moves = ["move model.safetensors", "sync folder", "move config.json", "sync folder"]
    assert events[2:] == ["sync folder", *moves]


def test_a_run_is_finished_only_while_its_model_is_there(folder: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "checkpoint-4" / name, folder / name)
    digest = storage.hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    content = {"outputs": {"adapter_model.safetensors": digest}}
    assert finish.is_there(folder, content)
    assert not finish.is_there(folder, {"outputs": {"adapter_model.safetensors": "0" * 64}})
    (folder / "adapter_model.safetensors").unlink()
    assert not finish.is_there(folder, content)
    (folder / "config.json").write_text("{}")
    assert not finish.is_there(folder, {"outputs": {"config.json": storage.hashlib.sha256(b"{}").hexdigest()}})


# A full disk


def test_a_full_disk_is_one_line_and_no_other_error_is_taken_for_one() -> None:
    for error in (
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
    ):
        with pytest.raises(OutputError, match=r"^out: cannot be written: "), naming_full_disk("out"):
            raise error
    with pytest.raises(OSError, match="permission"), naming_full_disk("out"):
        raise OSError(errno.EACCES, "permission")


def test_a_full_disk_under_the_rows_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Reporter(tmp_path, parameters=1, mode="lora")
    reporter.trainer = SimpleNamespace(still_ours=lambda: True)
    state = SimpleNamespace(global_step=1, max_steps=2, is_world_process_zero=True)
    monkeypatch.setattr(progress.os, "write", full_disk)
    with pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        reporter.on_log(None, state, None, {"eval_loss": 1.0})


def test_a_full_disk_before_a_checkpoint_or_the_model_is_told_to_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.tempfile, "mkdtemp", full_disk)
    with pytest.raises(OutputError, match=r"checkpoint-4: cannot be written: No space left on device"):
        checkpoints._common_folder(tmp_path / "checkpoint-4")
    monkeypatch.undo()
    told: list[Any] = []
    monkeypatch.setattr(loop, "first_error", lambda error: told.append(error) or error)
    job = SimpleNamespace(plan=SimpleNamespace(mode="full"), output_dir=str(tmp_path), template_used=False)
    trainer = SimpleNamespace(
        args=SimpleNamespace(process_index=0),
        model=SimpleNamespace(config=SimpleNamespace()),
        save_model=full_disk,
        still_ours=lambda: True,
    )
    with pytest.raises(OutputError, match=f"{tmp_path}: cannot be written"):
        loop._save(job, trainer, tmp_path)
    trainer.still_ours = lambda: False
    with pytest.raises(OutputError, match="another run has taken this folder over: no model was written"):
        loop._save(job, trainer, tmp_path)
    assert len(told) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_torch_raises_for_sharded_state_comes_out_of_the_thread() -> None:
    def work() -> None:
        raise CheckpointException("failed", {0: (OSError("full"), None)})  # type: ignore[dict-item]

    beside = background.Background()
    beside.start(work, "out/checkpoint-4")
    beside.wait()
    assert str(beside.error).startswith("out/checkpoint-4: cannot be written: CheckpointException")


# Small files


def test_reading_the_umask_changes_it_in_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        assert storage.umask() == 0o027
    finally:
        os.umask(before)
    calls: list[int] = []
    monkeypatch.setattr(storage.os, "umask", lambda mask: calls.append(mask) or 0)
    assert storage.umask() == before
    assert calls == []


def test_a_torn_row_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / progress.SAMPLES_FILE
    path.write_text('{"step": 1}\n{"step": 2, "i\n{"step": 2}\n')
    progress.append(tmp_path, {"step": 3}, path.name)
    assert [row["step"] for row in progress.read_metrics(tmp_path, path.name)] == [1, 2, 3]
    assert [row["step"] for row in progress.rewind(tmp_path, 2, path.name)] == [1, 2]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_rows_of_several_writers_stay_whole(tmp_path: Path) -> None:
    def write(worker: int) -> None:
        for step in range(50):
            progress.append(tmp_path, {"step": step, "worker": worker, "ids": ["x" * 3000] * 4})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = progress.read_metrics(tmp_path)
    assert sorted((row["worker"], row["step"]) for row in rows) == [(w, s) for w in range(4) for s in range(50)]
    assert (tmp_path / progress.METRICS_FILE).read_text().count("\n") == 200


def test_what_is_no_number_is_null_in_a_row(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    progress.append(tmp_path, {"step": 1, "grad_norm": math.nan, "loss": math.inf, "epoch": 0.5})
    row = json.loads((tmp_path / progress.METRICS_FILE).read_text(), parse_constant=refuse)
    assert row == {"step": 1, "grad_norm": None, "loss": None, "epoch": 0.5}
    assert progress.format_row(row) == "step 1"
