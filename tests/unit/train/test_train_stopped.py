"""What a folder says of a run that was stopped, and of one that must be refused before Ray starts."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_ray import errors, signals, storage
from alpaca_ray.errors import OutputError
from alpaca_ray.prompts import load_template
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import builder, claim, data, early, identity, progress, publish, stopped
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.whole import write_list


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / publish.STATE_FILE).write_text("{}")
    write_list(path)
    return path


def taken(folder: Path, *, overwrite: bool = False, step: bool = True) -> Any:
    """A run that holds the folder, has taken a step or not, and is interrupted."""
    with (
        claim.claimed(folder, resume=False, overwrite=overwrite, examine=lambda: None),
        stopped.saying_where(folder, overwrite=overwrite),
    ):
        progress.append(folder, {"step": 0, "total_steps": 90, "eval_loss": 1.0})
        if step:
            claim.settle(folder)
            progress.append(folder, {"step": 20, "total_steps": 90, "loss": 1.0})
        raise KeyboardInterrupt


def text_of(folder: Path, **flags: bool) -> str:
    with pytest.raises(KeyboardInterrupt) as caught:
        taken(folder, **flags)
    return str(caught.value)


def test_a_run_that_took_steps_names_the_last_one_and_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    newest = checkpoint(tmp_path, 25)
    (tmp_path / "checkpoint-30").mkdir()  # cut off
    progress.append(tmp_path, {"step": 20, "total_steps": 90})
    assert stopped.where(tmp_path, overwrite=False) == (
        f"after step 25/90, the last one shown or saved; the newest whole checkpoint is {newest}; the same command "
        "goes on from it with --resume"
    )
    assert stopped.where(tmp_path, overwrite=True).endswith("with --resume, in place of --overwrite")


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    assert text_of(tmp_path / "out") == (
        "after step 20/90, the last one shown or saved; no checkpoint is whole yet: --resume begins at the first step"
    )


def test_a_run_before_its_first_step_says_that_nothing_was_written(tmp_path: Path) -> None:
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    assert text_of(fresh, step=False) == "before its first step: nothing was written"
    assert not fresh.exists()
    checkpoint(old, 3)
    progress.append(old, {"step": 3})
    said = text_of(old, step=False, overwrite=True)
    assert said == f"before its first step: nothing was written, {old} is as it was"
    assert progress.read_metrics(old) == [{"step": 3}]


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_the_job_ends_with_one_line_and_the_signals_code(
    number: signal.Signals, word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_terminated", False)
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def main() -> None:
        with signals.interrupts_say("before anything was written"):
            signal.raise_signal(number)

    try:
        with pytest.raises(SystemExit) as caught:
            errors.run_main(main)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert caught.value.code == 128 + number
    assert capsys.readouterr().err == f"{word} before anything was written\n"


def test_the_text_that_an_interrupt_has_stays() -> None:
    with pytest.raises(KeyboardInterrupt, match="at step 3"), signals.interrupts_say("nowhere"):
        raise KeyboardInterrupt("at step 3")


# Folders of killed runs


def test_who_finds_an_overwriting_run_killed_is_told_that_the_earlier_one_is_back(tmp_path: Path) -> None:
    old, copy, told = tmp_path / "old", tmp_path / "copy", []
    (old / publish.RAY_FOLDER).mkdir(parents=True)
    checkpoint(old, 3)
    progress.append(old, {"step": 3})
    with claim.claimed(old, resume=False, overwrite=True, examine=lambda: None):
        shutil.copytree(old, copy)
        claim.settle(old)
    with claim.claimed(copy, resume=True, overwrite=False, examine=lambda: None, tell=told.append):
        pass
    assert told == [
        f"the last run in {copy} ended before its first step: the earlier run that it was to replace was put back"
    ]
    with claim.claimed(copy, resume=True, overwrite=False, examine=lambda: None, tell=told.append):
        claim.settle(copy)
    assert len(told) == 1  # a resumed run that never began replaces nothing
    assert progress.read_metrics(copy) == [{"step": 3}]


def test_a_worker_that_outlives_its_run_loses_its_token_before_the_next_one_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / publish.RAY_FOLDER / "claim-old"
    token.parent.mkdir()
    token.touch()
    progress.append(tmp_path, {"step": 3})
    there: list[bool] = []
    job: Any = SimpleNamespace(output_dir=str(tmp_path), token=f"{publish.RAY_FOLDER}/claim-old")
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    with claim.claimed(tmp_path, resume=True, overwrite=False, examine=lambda: there.append(token.exists())):
        builder.settle(job)  # the old run's first step comes now
        assert claim.may_be_put_back(tmp_path)
        token.parent.mkdir()
        token.touch()
        builder.settle(job)
        assert not claim.may_be_put_back(tmp_path)
    assert there == [False]


def test_a_used_folder_is_refused_by_a_name_that_its_user_sees(tmp_path: Path) -> None:
    for name in (".encoded", "train_settings.yaml", "metrics.jsonl"):
        (tmp_path / name).mkdir() if name[0] == "." else (tmp_path / name).touch()
    with pytest.raises(OutputError, match=r"already holds metrics\.jsonl"):
        claim.check(tmp_path, resume=False, overwrite=False)


# Before Ray starts


def asked(folder: Path, *flags: str) -> None:
    settings = parse_settings(TrainSettings, ["--output_dir", str(folder), *flags], description="test")
    records = data.split(data.read_all(settings.data_path), settings.val_set_size, seed=settings.seed)
    early.check(settings, load_template(settings.prompt_template), records, "m", None, one_node=False)


def test_a_run_that_must_be_refused_is_refused_before_ray_starts(tmp_path: Path) -> None:
    settings = parse_settings(TrainSettings, ["--output_dir", str(tmp_path), "--fp16"], description="test")
    records = data.split(data.read_all(settings.data_path), settings.val_set_size, seed=settings.seed)
    plan = make_plan(settings, has_gpus=True)
    identity.write(
        tmp_path, identity.identity(settings, plan, load_template(settings.prompt_template), records, "m", None)
    )
    with pytest.raises(OutputError, match=r"already holds train_identity\.json"):
        asked(tmp_path)
    with pytest.raises(OutputError, match=r"holds another run \(--learning_rate: .* there, 0\.5 now\)"):
        asked(tmp_path, "--resume", "--learning_rate", "0.5")
    asked(tmp_path, "--resume")  # in bfloat16 or not is for the cluster to say
    asked(tmp_path, "--overwrite")
    with storage.hold_output(tmp_path), pytest.raises(OutputError, match="another run is at work in it"):
        asked(tmp_path, "--overwrite")
    asked(tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"train_identity.json"}


def test_a_relative_folder_is_looked_at_early_only_where_it_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse_settings(TrainSettings, ["--output_dir", "out"], description="test")
    assert early.known_folder(settings, one_node=False) is None
    assert early.known_folder(settings, one_node=True) == tmp_path / "out"


# What a run shows


def test_phases_are_shown_as_they_come_and_only_while_the_folder_is_the_runs(tmp_path: Path) -> None:
    shown: list[str] = []
    progress.phase(tmp_path, "nobody's")
    (tmp_path / publish.RAY_FOLDER).mkdir()
    with progress.follow(tmp_path, shown.append):
        progress.phase(tmp_path, "loading the model")
        progress.append(tmp_path, {"step": 1, "loss": 0.5})
    assert shown == ["loading the model", "step 1 | loss 0.5000"]


def test_fsdp_with_one_worker_is_a_warning() -> None:
    def warnings(workers: str) -> list[str]:
        flags = ["--fsdp", "full_shard auto_wrap", "--num_workers", workers]
        return make_plan(parse_settings(TrainSettings, flags, description="test"), has_gpus=False).warnings

    assert warnings("1") == ["--fsdp shards nothing with one worker: give --num_workers 2 or more"]
    assert not [line for line in warnings("2") if "--fsdp" in line]


def test_a_row_is_not_added_to_a_folder_that_another_run_has(tmp_path: Path) -> None:
    from alpaca_ray.train.callbacks import Reporter

    reporter = Reporter(tmp_path, parameters=1, mode="lora")
    reporter.trainer = SimpleNamespace(still_ours=lambda: False)
    state = SimpleNamespace(global_step=1, max_steps=2, is_world_process_zero=True)
    with pytest.raises(OutputError, match="another run has taken this folder over"):
        reporter.on_log(None, state, None, {"eval_loss": 1.0})
    assert progress.read_metrics(tmp_path) == []


def test_a_first_step_whose_row_comes_later_is_told_of(tmp_path: Path) -> None:
    from alpaca_ray.train.callbacks import Reporter

    (tmp_path / publish.RAY_FOLDER).mkdir()
    state = SimpleNamespace(global_step=1, max_steps=90, logging_steps=10, is_world_process_zero=True)
    shown: list[str] = []
    with progress.follow(tmp_path, shown.append):
        for logged in (True, False):
            reporter = Reporter(tmp_path, parameters=1, mode="lora")
            reporter.on_step_begin(None, state, None)
            reporter.on_step_end(SimpleNamespace(logging_strategy="steps"), state, SimpleNamespace(should_log=logged))
    assert len(shown) == 1
    assert shown[0].startswith("step 1/90 took ")
    assert shown[0].endswith(" s; a line every 10 steps")
