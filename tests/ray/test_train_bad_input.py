"""Bad input to jobs/train.py, as a user meets it: one line, exit code 2, no output folder; and what is taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import alpaca_ray
from alpaca_ray.errors import OutputError, SettingsError, TrainingError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import claim, whole
from alpaca_ray.train.job import Job

JOB = Path(alpaca_ray.__file__).parent.parent / "jobs" / "train.py"

pytestmark = pytest.mark.ray  # one of the cases starts a cluster of its own


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(JOB.parent.parent)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, str(JOB), *flags], cwd=folder, capture_output=True, text=True, timeout=250, env=environment
    )


CASES = {
    "a missing file": (["--data_path", "nowhere.json"], "nowhere.json: no such file"),
    "a JSON error": (["--data_path", "broken.json"], "broken.json, line 2"),
    "a record without an instruction": (["--data_path", "poor.json"], "record 1: has no 'instruction'"),
    "empty data": (["--data_path", "empty.json"], "empty.json: holds no records"),
    "an unknown flag": (["--lerning_rate", "1"], "unknown flag --lerning_rate: did you mean --learning_rate?"),
    "a path without a model": (["--model", "void"], "--model void: the folder holds no model"),
    "a model that is no more": (["--base_model", "decapoda-research/llama-7b-hf"], "huggyllama/llama-7b"),
    "too large a validation set": (["--val_set_size", "5000"], "--val_set_size 5000"),
    "a missing checkpoint": (["--resume_from_checkpoint", "gone"], "Checkpoint gone not found"),
    "a used folder": (["--output_dir", "used"], "already holds train_settings.yaml: give --resume"),
    "somebody's model": (["--output_dir", "theirs", "--resume"], "which no run of this program wrote"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[\n{"instruction": }\n]')
    (tmp_path / "poor.json").write_text('[{"instruction": "a", "output": "b"}, {"output": "c"}]')
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "void").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "train_settings.yaml").write_text("{}")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    flags, message = CASES[case]
    done = run(tmp_path, *flags)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_help_is_complete_and_needs_no_heavy_import(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for flag in (
        "--base_model",
        "--model_name_or_path",
        "--num_workers",
        "--lora_r",
        "--micro_batch_size",
        "--dry_run",
    ):
        assert flag in done.stdout


class Launches:
    """What the driver hands to the workers, kept in their place; the folder is kept as a kill would leave it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from alpaca_ray.train import runner

        self.jobs: list[Job] = []
        self.left: Path | None = None
        self._train = runner.train
        monkeypatch.setattr(runner, "launch", self._launch)

    def _launch(self, job: Job, bundle: dict[str, float]) -> dict[str, Any]:
        self.jobs.append(job)
        if self.left:
            claim.settle(Path(job.output_dir))
            shutil.copytree(job.output_dir, self.left)
        raise TrainingError("launched")

    def __call__(self, *flags: object) -> Job:
        with pytest.raises(TrainingError, match=r"^launched$"):
            self.refused(*flags)
        return self.jobs[-1]

    def refused(self, *flags: object) -> None:
        given = ["--val_set_size", "0", *map(str, flags)]
        self._train(parse_settings(TrainSettings, given, description="test"))


def checkpoint(folder: Path) -> Path:
    """A folder that counts as a whole checkpoint."""
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_text("content")
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    whole.write_list(folder)
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_killed_before_its_first_checkpoint_is_resumed_from_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = Launches(monkeypatch)
    begin, folder = checkpoint(tmp_path / "begin"), tmp_path / "killed"
    launched.left = folder
    job = launched("--output_dir", tmp_path / "out", "--resume_from_checkpoint", begin)
    assert job.restart_from == str(begin)
    launched.left = None
    with pytest.raises(OutputError, match=f"give --resume_from_checkpoint {begin} too"):
        launched.refused("--output_dir", folder, "--resume")
    assert launched("--output_dir", folder, "--resume", "--resume_from_checkpoint", begin).restart_from == str(begin)
    assert launched("--config", folder / "train_settings.yaml", "--output_dir", folder, "--resume").restart_from
    with pytest.raises(OutputError, match=r"--learning_rate: 0\.0005 there, 0\.01 now"):
        launched.refused("--output_dir", folder, "--resume", "--resume_from_checkpoint", begin, "--learning_rate", 0.01)
    # From here on the run has a checkpoint of its own: the newest is taken, and the first need not be there.
    own = checkpoint(folder / "checkpoint-1")
    shutil.rmtree(begin)
    for flags in (["--resume"], ["--resume", "--resume_from_checkpoint", begin], ["--resume_from_checkpoint", own]):
        assert launched("--output_dir", folder, *flags).settings.resume
        assert json.loads((folder / "train_identity.json").read_text())["resume_from_checkpoint"]["path"] == str(begin)
    with pytest.raises(OutputError, match="give --resume"):
        launched.refused("--output_dir", folder)


@pytest.mark.usefixtures("ray_cluster")
def test_chats_take_the_prompt_template_where_the_tokenizer_has_no_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    launched = Launches(monkeypatch)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": messages}]))
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    flags = ["--data_path", tmp_path / "chats.json", "--output_dir", tmp_path / "out", "--model", base]
    line = "chats take the prompt template alpaca: the model's tokenizer has no chat template"
    assert launched(*flags, "--prompt_template", "alpaca").template_used
    assert line in capsys.readouterr().out.splitlines()
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert not launched(*flags).template_used
    assert "chats take" not in capsys.readouterr().out


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_that_has_room_for_a_worker_must_see_the_output_folder(tmp_path: Path) -> None:
    from alpaca_ray.train.launch import check_shared

    (tmp_path / "mark").touch()
    check_shared(tmp_path, "mark", {"CPU": 1})
    with pytest.raises(OutputError, match=f"--output_dir {tmp_path} is not the same folder on every node"):
        check_shared(tmp_path, "another", {"CPU": 1})
    check_shared(tmp_path, "another", {"CPU": 1, "GPU": 64})  # no node would get a worker


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_library_refuses_in_a_worker_ends_the_run_at_once(tmp_path: Path, tiny_llama: Path) -> None:
    from alpaca_ray.train.runner import train

    flags = f"--model {tiny_llama} --output_dir {tmp_path / 'out'} --batch_size 4 --micro_batch_size 2 --max_steps 1"
    twice = ["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}']
    settings = parse_settings(TrainSettings, [*flags.split(), *twice], description="test")
    with pytest.raises(SettingsError, match=r"^this model cannot be trained as asked: .*`num_steps` is set but"):
        train(settings)
    assert not (tmp_path / "out").exists()
