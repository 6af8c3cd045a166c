"""Generation against the stand-in teacher over HTTP."""

from __future__ import annotations

import json
import re
import socket
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from rouge_score import rouge_scorer

from alpaca_ray.errors import DataError, GenerationError, OutputError, SettingsError, TeacherError
from alpaca_ray.generate.fanout import client_placement
from alpaca_ray.generate.pipeline import generate
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.manifest import file_digest
from alpaca_ray.records import read_records, read_seed_tasks
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.storage import hold_output
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

pytestmark = pytest.mark.ray

FILES = ["journal.jsonl", "metrics.json", "regen.json", "rejected.jsonl", "run.json", "sent.jsonl"]
# The filters that ``reference`` knows: the original's, and no empty outputs.
CLASSIC = {"blacklist_sense": "any", "drop_non_ascii_start": True, "word_count": "whitespace"}


@pytest.fixture
def teacher(ray_cluster: None) -> Iterator[StandInServer]:
    with standin(StandIn.resolve({"jitter": 0.02})) as server:
        yield server


def run(folder: Path, server: StandInServer, **given: Any) -> dict[str, Any]:
    """Generate, and return what ``metrics.json`` says."""
    settings = {"output_dir": str(folder), "base_url": server.url, "num_cpus": 1, "max_in_flight": 8}
    settings |= {**CLASSIC, **given}
    generate(GenerateSettings.resolve(settings))
    return read_json(folder / "metrics.json")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def by_score(scores: list[float]) -> list[int]:
    """Places by score, largest first; of equal ones the earlier first (np.argsort's order of them is arbitrary)."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def reference(journal: list[dict[str, Any]], initial: list[dict[str, Any]], target: int) -> list[dict[str, Any]]:
    """What the original's loop keeps of a journal's answers, with rouge-score's own functions, one by one.

    Written from the original's rules and apart from our parser and filters; it relies on answers whose outputs hold no
    "###", as the stand-in's do.
    """
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    words = r"images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram"
    result = list(initial)
    known = [task["instruction"] for task in [*read_seed_tasks("seeds"), *initial]]
    tokens = [scorer._tokenizer.tokenize(text) for text in known]
    for row in sorted(journal, key=lambda row: row["request_id"]):
        pieces = re.split("###", "4. Instruction:" + (row["text"] or ""))
        for place, piece in enumerate(pieces):
            fields = re.split(rf"{place + 4}\.\s+(Instruction|Input|Output):", piece)
            if (place == len(pieces) - 1 and row["finish_reason"] == "length") or len(fields) != 7:
                continue
            instruction, given, output = (fields[index].strip() for index in (2, 4, 6))
            if not 3 < len(instruction.split()) <= 150 or not output or instruction.startswith("Write a program"):
                continue
            if re.search(rf"\b({words})\b", instruction, re.IGNORECASE):
                continue
            if instruction[0] in string.punctuation or not instruction[0].isascii():
                continue
            new = scorer._tokenizer.tokenize(instruction)
            scores = [rouge_scorer._score_lcs(new, other).fmeasure for other in tokens]
            if max(scores) > 0.7 or len(result) >= target:
                continue
            result.append(
                {
                    "instruction": instruction,
                    "input": "" if given.lower() == "<noinput>" else given,
                    "output": output,
                    "most_similar_instructions": {known[i]: scores[i] for i in by_score(scores)[:10]},
                    "avg_similarity_score": float(np.mean(scores)),
                }
            )
            known.append(instruction)
            tokens.append(new)
    return result


def assert_equal_entries(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for entry, wanted in zip(found, expected, strict=True):
        assert entry == wanted
        if "most_similar_instructions" in wanted:
            similar = list(entry["most_similar_instructions"].items())
            assert similar == list(wanted["most_similar_instructions"].items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, StandInServer, str]:
    """A run of 40 instructions over two client actors, its teacher, and what it printed."""
    folder = tmp_path_factory.mktemp("generate") / "deep" / "out"
    with standin(StandIn.resolve({"jitter": 0.05})) as server, pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("alpaca_ray.generate.pipeline.say", lines.append)
        patch.setattr("alpaca_ray.generate.session.say", lines.append)
        patch.setattr("alpaca_ray.generate.result.say", lines.append)
        run(folder, server, num_instructions_to_generate=40, num_clients=2)
    return folder, server, "\n".join(lines)


def test_regen_equals_the_originals_loop_over_the_journal(finished: tuple[Path, StandInServer, str]) -> None:
    folder, _, _ = finished
    regen = read_json(folder / "regen.json")
    assert len(regen) == 40
    assert_equal_entries(regen, reference(read_lines(folder / "journal.jsonl")[1:], [], 40))


def test_the_account_adds_up(finished: tuple[Path, StandInServer, str]) -> None:
    folder, server, _ = finished
    metrics = read_json(folder / "metrics.json")
    rejected = read_lines(folder / "rejected.jsonl")
    journal = read_lines(folder / "journal.jsonl")[1:]
    assert metrics["kept"] == metrics["total"] == metrics["target"] == 40
    assert metrics["entries"] == 40 + len(rejected) == 40 + sum(metrics["rejected"].values())
    assert metrics["rejected"] == {
        reason: [row["reason"] for row in rejected].count(reason) for reason in metrics["rejected"]
    }
    assert metrics["requests"] == len(journal) == sum(server.answered.values())
    assert metrics["tokens"]["prompt"] == sum(row["usage"]["prompt_tokens"] for row in journal)
    assert metrics["seconds"] > 0


def test_the_journal_says_what_was_asked(finished: tuple[Path, StandInServer, str]) -> None:
    folder, server, _ = finished
    rows = read_lines(folder / "journal.jsonl")[1:]
    assert sorted(row["request_id"] for row in rows) == list(range(len(rows)))
    seeds = {str(task["id"]): task for task in read_seed_tasks("seeds")}
    for row, body in zip(rows, server.seen, strict=False):
        assert len(row["seed_ids"]) == 3
        assert row["model"] == "stand-in"
        assert body["max_tokens"] == 3072
        assert body["stop"] == ["\n21. Instruction"]
        assert body["temperature"] == 1.0
    shown = [[seeds[seed]["output"] for seed in row["seed_ids"]] for row in rows]
    for prompt in server.prompts:
        assert any(all(output in prompt for output in outputs) for outputs in shown)
    assert server.most_at_once <= 8


def test_progress_is_printed_in_the_originals_words(finished: tuple[Path, StandInServer, str]) -> None:
    folder, _, printed = finished
    assert "Loaded 192 human-written seed instructions\n" in printed
    requests = re.findall(r"^Request (\d+) took \d+\.\d\ds, processing took \d+\.\d\ds$", printed, re.MULTILINE)
    assert requests == [str(number + 1) for number in range(len(requests))]
    kept = re.findall(r"^Generated \d+ instructions, kept (\d+) instructions$", printed, re.MULTILINE)
    assert sum(map(int, kept)) == 40
    assert printed.splitlines()[-1] == f"result: {folder / 'regen.json'} on node {socket.gethostname()}"


def test_run_json_says_what_was_made_from_what(finished: tuple[Path, StandInServer, str]) -> None:
    folder, _, _ = finished
    assert names(folder) == FILES
    manifest = read_json(folder / "run.json")
    assert manifest["stage"] == "generate"
    assert manifest["data_file"] == "regen.json"
    assert manifest["outputs"]["regen.json"] == file_digest(folder / "regen.json")
    assert manifest["seed"] == 42
    assert manifest["settings"]["num_instructions_to_generate"] == 40
    assert manifest["teacher"]["model_name"] == "stand-in"
    assert manifest["complete"] is True
    assert [record["instruction"] for record in read_records(str(folder))] == [
        record["instruction"] for record in read_json(folder / "regen.json")
    ]


def test_a_folder_of_regen_alone_is_extended(teacher: StandInServer, tmp_path: Path) -> None:
    initial: list[dict[str, Any]] = [
        {"instruction": "Describe the morning of a lighthouse keeper.", "input": "", "output": "Fog.", "own": [1, "é"]},
        {"instruction": "Name the parts of a sundial.", "input": "", "output": "x", "avg_similarity_score": 0.125},
    ]
    (tmp_path / "regen.json").write_text(json.dumps(initial))
    metrics = run(tmp_path, teacher, num_instructions_to_generate=12)
    regen = read_json(tmp_path / "regen.json")
    assert regen[:2] == initial
    assert (metrics["initial"], metrics["kept"], metrics["total"]) == (2, 10, 12)
    assert_equal_entries(regen, reference(read_lines(tmp_path / "journal.jsonl")[1:], initial, 12))
    # A higher target extends it once more, and still knows which records came first.
    run(tmp_path, teacher, num_instructions_to_generate=20, resume=True)
    assert_equal_entries(
        read_json(tmp_path / "regen.json"), reference(read_lines(tmp_path / "journal.jsonl")[1:], initial, 20)
    )


def test_a_target_that_is_met_changes_nothing(teacher: StandInServer, tmp_path: Path) -> None:
    (tmp_path / "regen.json").write_text(json.dumps([{"instruction": "Name a river.", "input": "", "output": "x"}]))
    before = (tmp_path / "regen.json").read_bytes()
    generate(
        GenerateSettings.resolve(
            {"output_dir": str(tmp_path), "base_url": teacher.url, "num_instructions_to_generate": 1}
        )
    )
    assert names(tmp_path) == ["regen.json"]
    assert (tmp_path / "regen.json").read_bytes() == before
    assert sum(teacher.prompts.values()) == 0


def test_resume_sends_no_answered_request_again(teacher: StandInServer, tmp_path: Path) -> None:
    first = run(tmp_path, teacher, num_instructions_to_generate=15)
    before = read_json(tmp_path / "regen.json")
    asked = dict(teacher.prompts)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"request_id": 99, "torn')  # as a crash leaves it
    second = run(tmp_path, teacher, num_instructions_to_generate=45, resume=True)
    assert all(teacher.prompts[prompt] == count == 1 for prompt, count in asked.items())
    assert second["requests"] == len(teacher.prompts) > first["requests"]
    regen = read_json(tmp_path / "regen.json")
    assert regen[:15] == before
    assert_equal_entries(regen, reference(read_lines(tmp_path / "journal.jsonl")[1:], [], 45))
    assert second["seconds"] > first["seconds"]


def test_extras_of_the_journal_may_be_enough(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"tasks": 12})) as server:
        run(tmp_path, server, num_instructions_to_generate=5)
        asked = sum(server.prompts.values())
        whole = reference(read_lines(tmp_path / "journal.jsonl")[1:], [], 6)
        assert len(whole) == 6, "the journal must hold one more than was asked for"
        run(tmp_path, server, num_instructions_to_generate=6, resume=True)
        assert sum(server.prompts.values()) == asked
    assert_equal_entries(read_json(tmp_path / "regen.json"), whole)
    assert names(tmp_path) == FILES


def test_errors_of_the_teacher_are_made_good_and_counted(ray_cluster: None, tmp_path: Path) -> None:
    settings = {"rate_429": 0.1, "retry_after": 0.05, "rate_500": 0.1, "rate_drop": 0.1, "rate_empty": 0.1, "seed": 5}
    with standin(StandIn.resolve(settings)) as server:
        metrics = run(tmp_path, server, num_instructions_to_generate=60, max_retries=20)
    regen = read_json(tmp_path / "regen.json")
    assert_equal_entries(regen, reference(read_lines(tmp_path / "journal.jsonl")[1:], [], 60))
    assert metrics["errors"]["rate_limit"] == server.statuses[429] > 0
    assert metrics["errors"]["status_500"] == server.statuses[500] > 0
    assert metrics["errors"]["connection"] == server.statuses[0] > 0
    assert metrics["errors"]["no_text"] == metrics["failed"]


def test_a_teacher_without_yield_ends_with_a_clear_error(ray_cluster: None, tmp_path: Path) -> None:
    words = r"the last \d+ requests .* all failed \(no_text"
    with standin(StandIn.resolve({"rate_empty": 1.0})) as server, pytest.raises(GenerationError, match=words):
        run(tmp_path, server, num_instructions_to_generate=5)
    assert read_json(tmp_path / "regen.json") == []
    assert "run.json" not in names(tmp_path)


def test_max_requests_ends_a_run_short_of_its_target(teacher: StandInServer, tmp_path: Path) -> None:
    metrics = run(tmp_path, teacher, num_instructions_to_generate=1000, max_requests=4)
    assert metrics["requests"] == sum(teacher.prompts.values()) == 4
    assert 0 < metrics["total"] < 1000
    assert read_json(tmp_path / "run.json")["complete"] is False
    again = run(tmp_path, teacher, num_instructions_to_generate=1000, max_requests=6, resume=True)
    assert again["requests"] == sum(teacher.prompts.values()) == 6


def test_a_wrong_model_is_told_in_the_servers_words(teacher: StandInServer, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=rf"{teacher.url} refuses with status 404: The model 'other' does not exist"):
        run(tmp_path / "out", teacher, model_name="other")
    assert not (tmp_path / "out").exists()
    # With a budget, what is sent is noted in the folder before anything has come back.
    with pytest.raises(TeacherError, match="The model 'other' does not exist"):
        run(tmp_path / "deep" / "out", teacher, model_name="other", max_tokens_total=10_000_000)
    assert not (tmp_path / "deep").exists()
    run(tmp_path / "out", teacher, num_instructions_to_generate=5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(TeacherError, match="The model 'other' does not exist"):
        run(tmp_path / "out", teacher, model_name="other", max_tokens_total=10_000_000, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_bad_input_touches_no_folder(teacher: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "Name a river.", "output": "x"}\n{"instruction"\n')
    unnamed = tmp_path / "unnamed.json"
    unnamed.write_text('[{"instruction": "Name a river.", "output": "x"}, {"output": "x"}]')
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        monkeypatch.setenv("WRONG_KEY", "wrong")
        cases: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"seed_tasks_path": str(tmp_path / "absent.jsonl")}, DataError, r"absent\.jsonl: no such file"),
            ({"seed_tasks_path": str(bad)}, DataError, r"bad\.jsonl, line 2: not valid JSON"),
            ({"seed_tasks_path": str(unnamed)}, DataError, "record 1: has no 'instruction'"),
            ({"seed_tasks_path": str(empty)}, DataError, r"empty\.json: holds no seed tasks"),
            ({"prompt_header": "absent.txt"}, DataError, r"--prompt_header absent\.txt"),
            ({"base_url": refused}, TeacherError, rf"{refused} cannot be reached"),
            ({"base_url": "nonsense"}, SettingsError, "--base_url 'nonsense'"),
            ({"max_example_words": 1}, DataError, "--max_example_words"),
        ]
        for given, kind, words in cases:
            with pytest.raises(kind, match=words):
                run(tmp_path / "out", teacher, **given)
            assert not (tmp_path / "out").exists()
    with standin(StandIn.resolve({"key": "right"})) as locked:
        with pytest.raises(TeacherError, match="401: Incorrect API key"):
            run(tmp_path / "out", locked, api_key_env="WRONG_KEY")
        assert not (tmp_path / "out").exists()


def test_a_used_folder_is_left_alone(teacher: StandInServer, tmp_path: Path) -> None:
    run(tmp_path, teacher, num_instructions_to_generate=5)
    (tmp_path / "mine.txt").write_text("keep")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=r"already holds journal\.jsonl: give --resume"):
        run(tmp_path, teacher, num_instructions_to_generate=5)
    with pytest.raises(OutputError, match=r"--temperature \(there 1\.0, now 0\.5\)"):
        run(tmp_path, teacher, num_instructions_to_generate=9, temperature=0.5, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run(tmp_path, teacher, num_instructions_to_generate=3, temperature=0.5, overwrite=True)
    assert len(read_json(tmp_path / "regen.json")) == 3
    assert read_json(tmp_path / "run.json")["settings"]["temperature"] == 0.5
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_teacher_that_never_answers_costs_no_earlier_run(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is to be overwritten gives way to an answer, and to nothing else."""
    with standin(StandIn.resolve({})) as server:
        run(tmp_path, server, num_instructions_to_generate=5)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with standin(StandIn.resolve({"rate_500": 1.0})) as server, pytest.raises(GenerationError, match="all failed"):
        run(tmp_path, server, overwrite=True, max_retries=0, num_instructions_to_generate=5)
    aside = tmp_path / ".replaced"
    assert f"the run that --overwrite replaces is kept in {aside}" in capsys.readouterr().out
    assert {name: (aside / name).read_bytes() for name in before} == before
    with standin(StandIn.resolve({})) as server:
        run(tmp_path, server, resume=True, num_instructions_to_generate=5)
    assert names(tmp_path) == sorted(before), "an answer is there now"


def test_a_chat_teacher(teacher: StandInServer, tmp_path: Path) -> None:
    run(tmp_path, teacher, num_instructions_to_generate=5, api="chat")
    assert len(read_json(tmp_path / "regen.json")) == 5
    assert all("messages" in body for body in teacher.seen)


def test_clients_with_one_slot_each_finish_a_long_run(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"tasks": 1})) as server:
        metrics = run(
            tmp_path, server, num_instructions_to_generate=1000, max_requests=300, max_in_flight=4, num_clients=4
        )
        assert metrics["requests"] == len(server.prompts) == 300
        assert server.most_at_once <= 4


def test_clients_stay_where_the_teachers_address_means_this_machine(ray_cluster: None) -> None:
    here = ray.get_runtime_context().get_node_id()
    far = Teacher("http://10.0.0.1:1/v1", "m", "completions", "KEY")
    for teacher in (
        Teacher("http://127.0.0.1:1/v1", "m", "completions", "KEY"),
        Teacher("http://localhost:1/v1", "m", "completions", "KEY"),
        Teacher("http://10.0.0.1:1/v1", "m", "completions", "KEY", local=True),
    ):
        assert client_placement([far, teacher]) == {"ray.io/node-id": here}
    assert client_placement([far]) is None


def test_a_folder_that_another_run_holds_is_refused_before_anything_is_asked(
    teacher: StandInServer, tmp_path: Path
) -> None:
    with hold_output(tmp_path), pytest.raises(OutputError, match="another run is at work in it"):
        run(tmp_path, teacher, num_instructions_to_generate=5)
    assert sum(teacher.prompts.values()) == 0
    assert names(tmp_path) == []


def test_a_run_that_another_one_overtook_leaves_its_folder_alone(
    teacher: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"

    def overtake() -> None:
        monkeypatch.undo()
        run(folder, teacher, num_instructions_to_generate=5)

    monkeypatch.setattr("alpaca_ray.generate.pipeline.quiet_ray_data", overtake)  # behind the look at the folder
    with pytest.raises(OutputError, match="another run has written in it meanwhile"):
        run(folder, teacher, num_instructions_to_generate=9)
    assert names(folder) == FILES
    assert len(read_json(folder / "regen.json")) == 5


def test_a_teacher_that_the_run_starts_is_waited_for(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    started_after: list[str] = []
    with standin(StandIn.resolve({"latency": 1.0, "models": ["embedded"]})) as server:

        @contextmanager
        def local_server(args: Any) -> Iterator[str]:
            started_after.extend(lines)
            yield server.url

        monkeypatch.setattr("alpaca_ray.serve.local.local_server", local_server)
        monkeypatch.setattr("alpaca_ray.generate.pipeline.say", lines.append)
        settings = {"num_instructions_to_generate": 3, "request_timeout": 0.2, "max_retries": 0, "max_in_flight": 4}
        generate(GenerateSettings.resolve({"output_dir": str(tmp_path), "num_cpus": 1, **settings}))
    assert len(read_json(tmp_path / "regen.json")) == 3
    assert read_json(tmp_path / "metrics.json")["errors"] == {}
    assert any("--config jobs/configs/generate_embedded.yaml" in line for line in started_after)


def test_the_job_says_one_line_and_exits_with_2(tmp_path: Path) -> None:
    job = Path(__file__).parents[2] / "jobs" / "generate.py"
    command = [sys.executable, str(job), "--base_url", "http://127.0.0.1:9/v1", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the teacher at http://127.0.0.1:9/v1 cannot be reached")
    assert not (tmp_path / "out").exists()
