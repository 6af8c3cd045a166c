"""Deduplication of files: what is kept, what is said of the rest, and what a failed run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dedup_support import FILES, expected, lines, run, save, some_records

import alpaca_ray
from alpaca_ray.dedup import run as dedup_run
from alpaca_ray.dedup.stream import read_items
from alpaca_ray.errors import DataError, OutputError, UserError
from alpaca_ray.novelty.search import Found, LocalSearcher
from alpaca_ray.novelty.tokens import TokenLists
from alpaca_ray.records import digest, read_records
from alpaca_ray.storage import hold_output


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let most records meet a pool that is not empty, and not only those that come with them."""
    monkeypatch.setattr(dedup_run, "_BATCH", 32)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_kept_and_rejected_are_rouge_scores(tmp_path: Path, suffix: str) -> None:
    records = some_records(1, 150)
    folder = run(tmp_path / "out", save(tmp_path / f"d{suffix}", records))
    kept, rejected = lines(folder / "kept.jsonl"), lines(folder / "rejected.jsonl")
    wanted = expected(records, [])
    assert [record["mine"]["n"] for record in kept] == [n for n, (keep, *_) in enumerate(wanted) if keep]
    assert [(row["entry"], row["score"], row["most_similar"]) for row in rejected] == [
        (n, score, text) for n, (keep, score, text) in enumerate(wanted) if not keep
    ]
    assert len(kept) > 20
    assert len(rejected) > 20
    assert {row["reason"] for row in rejected} == {"too_similar"}
    assert {key: kept[0][key] for key in records[0]} == records[0]
    assert kept[0]["id"] == f"{digest(records[0])}-0"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["records"], metrics["kept"], metrics["rejected"]) == (
        150,
        len(kept),
        {"too_similar": len(rejected)},
    )
    manifest = json.loads((folder / "run.json").read_text())
    assert (manifest["stage"], manifest["data_file"]) == ("dedup", "kept.jsonl")
    assert {path.name for path in folder.iterdir()} == FILES
    assert [record["id"] for record in read_records(str(folder))] == [record["id"] for record in kept]


def test_statistics_change_nothing_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []
    search = LocalSearcher.search

    def counted(searcher: LocalSearcher, additions: TokenLists, queries: TokenLists) -> Found:
        found = search(searcher, additions, queries)
        pools.append(len(searcher.pool))
        return found

    monkeypatch.setattr(LocalSearcher, "search", counted)
    path = save(tmp_path / "d.jsonl", some_records(2, 120))
    kept = {}
    for stats in ("none", "top", "full"):
        folder = run(tmp_path / stats, path, similarity_stats=stats)
        kept[stats] = lines(folder / "kept.jsonl")
    assert sum(pool > 10 for pool in pools) >= 9, "the pool itself must be searched, not only batches in themselves"
    assert [record["id"] for record in kept["none"]] == [record["id"] for record in kept["top"]]
    assert [record["id"] for record in kept["none"]] == [record["id"] for record in kept["full"]]
    assert "most_similar_instructions" not in kept["none"][-1]
    assert len(kept["top"][-1]["most_similar_instructions"]) == 10
    assert "avg_similarity_score" not in kept["top"][-1]
    assert 0 < kept["full"][-1]["avg_similarity_score"] < 1
    assert list(kept["full"][-1]["most_similar_instructions"].values()) == list(
        kept["top"][-1]["most_similar_instructions"].values()
    )


def test_seeds_come_first_and_several_files_follow_each_other(tmp_path: Path) -> None:
    records = some_records(3, 90)
    seeds = save(tmp_path / "s.json", records[:10])
    first, second = save(tmp_path / "a.json", records[:50]), save(tmp_path / "b.jsonl", records[50:])
    folder = run(tmp_path / "out", first, second, seed_tasks_path=seeds)
    kept_seeds = [record["instruction"] for record in records[:10]]
    wanted = expected(records, kept_seeds)
    assert [record["mine"]["n"] for record in lines(folder / "kept.jsonl")] == [
        n for n, (keep, *_) in enumerate(wanted) if keep
    ]
    rejected = lines(folder / "rejected.jsonl")
    assert [row["entry"] for row in rejected[:10]] == list(range(10))
    assert {row["source"] for row in rejected} == {first, second}
    assert rejected[0]["score"] == 1.0


def test_ids_and_chats_stay_as_they_are(tmp_path: Path) -> None:
    chat = {
        "id": "c1",
        "messages": [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "A"}],
    }
    rows = [
        chat,
        {"id": 7, "instruction": "name a RIVER", "output": "B"},
        {"instruction": "Something else", "output": "C"},
    ]
    folder = run(tmp_path / "out", save(tmp_path / "d.jsonl", rows))
    kept = lines(folder / "kept.jsonl")
    assert kept[0] == chat
    assert kept[1]["instruction"] == "Something else"
    (row,) = lines(folder / "rejected.jsonl")
    assert (row["id"], row["most_similar"], row["score"], row["output"]) == (7, "Name a river.", 1.0, "B")


def test_ids_count_occurrences_over_all_files_and_seed_tasks_have_none(tmp_path: Path) -> None:
    record = {"instruction": "Name a river.", "input": "", "output": "Nile"}
    task = {"instruction": "List some names", "instances": [{"input": "", "output": "Ada"}]}
    first, second = save(tmp_path / "a.json", [record, task]), save(tmp_path / "b.jsonl", [record, record])
    folder = run(tmp_path / "out", first, second)
    assert lines(folder / "kept.jsonl") == [{**record, "id": f"{digest(record)}-0"}, task]
    assert [row["id"] for row in lines(folder / "rejected.jsonl")] == [f"{digest(record)}-{n}" for n in (1, 2)]


def test_an_id_that_says_nothing_is_none(tmp_path: Path) -> None:
    record = {"instruction": "say a b c", "output": "x"}
    sources = [save(tmp_path / f"{number}.json", [row]) for number, row in enumerate(({**record, "id": None}, record))]
    (first, *_), (second, *_) = (list(read_items([source])) for source in sources)
    assert isinstance(first.record["id"], str)
    assert first.record["id"][-2:] == second.record["id"][-2:] == "-0"


def test_the_tokenizer_decides(tmp_path: Path) -> None:
    rows = [{"instruction": text, "output": "x"} for text in ("写一首关于大海的诗。", "写一首关于大海的短诗")]
    path = save(tmp_path / "d.json", rows)
    assert len(lines(run(tmp_path / "rouge", path) / "kept.jsonl")) == 2
    assert len(lines(run(tmp_path / "unicode", path, tokenizer="unicode") / "kept.jsonl")) == 1


def test_contaminated_records_are_named_and_join_no_pool(tmp_path: Path) -> None:
    rows = [
        {"instruction": "What is the capital of Peru?", "output": "Lima"},
        {"instruction": "Sort the numbers", "input": "5 3 8 1 9 2", "output": "1 2 3 5 8 9"},
        {"instruction": "What is the capital city of Peru?", "output": "Lima"},
        {"instruction": "What is the tallest mountain of Bolivia?", "output": "Sajama"},
    ]
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(
        '{"question": "What is the capital of Peru?"}\n{"prompt": "Sort the numbers 5 3 8 1 9 2"}\n', encoding="utf-8"
    )
    folder = run(tmp_path / "out", save(tmp_path / "d.json", rows), decontaminate=[str(evaluation)])
    rejected = lines(folder / "rejected.jsonl")
    assert [(row["entry"], row["reason"]) for row in rejected] == [(n, "contaminated") for n in range(3)]
    assert rejected[1]["most_similar"] == "Sort the numbers 5 3 8 1 9 2"
    assert [record["output"] for record in lines(folder / "kept.jsonl")] == ["Sajama"]


def test_contamination_has_a_threshold_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a b c d e f g h i j", "output": "1"},
        {"instruction": "a b c d e f g x y z", "output": "2"},
    ]
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text('{"prompt": "a b c d e f g h i j"}\n')
    path = save(tmp_path / "d.json", rows)
    for number, (threshold, near, kept) in enumerate(
        [(1.0, 1.0, ["2"]), (1.0, 0.7, ["2"]), (1.0, 0.69, []), (0.1, 1.0, ["2"])]
    ):
        folder = run(
            tmp_path / str(number),
            path,
            decontaminate=[str(evaluation)],
            threshold=threshold,
            decontaminate_threshold=near,
        )
        assert [record["output"] for record in lines(folder / "kept.jsonl")] == kept


def test_every_hub_source_is_opened_before_the_first_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, *, streaming: bool) -> Any:
        raise FileNotFoundError("404")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(dedup_run, "read_items", lambda sources: pytest.fail("read before all was checked"))
    with pytest.raises(DataError, match="no/where: no such file, and not readable"):
        run(tmp_path / "out", save(tmp_path / "d.json", some_records(1, 5)), "no/where")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"instruction": "ok a b"}\n{"instruction": \n', "bad.jsonl, line 2: not valid JSON"),
        ('{"instruction": "ok a b"}\n{"output": "x"}\n', "bad.jsonl: record 1: has no 'instruction'"),
        ('{"instruction": "ok a b"}\n{"instruction": " \\t"}\n', "bad.jsonl: record 1: has no 'instruction'"),
        ('{"instruction": "ok a b"}\n[1]\n', "bad.jsonl: record 1: must be an object"),
        ("\n", "bad.jsonl: holds no records"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    good = save(tmp_path / "good.json", some_records(1, 20))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        run(tmp_path / "deep" / "out", good, str(bad))
    assert message in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"good.json", "bad.jsonl"}


def test_seeds_that_are_none_leave_nothing(tmp_path: Path) -> None:
    source, seeds = save(tmp_path / "d.jsonl", some_records(1, 5)), save(tmp_path / "s.jsonl", [])
    with pytest.raises(DataError, match=r"s\.jsonl: holds no records"):
        run(tmp_path / "out", source, seed_tasks_path=seeds)
    assert not (tmp_path / "out").exists()


def test_records_of_a_run_that_has_not_finished_come_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "regen.json", some_records(1, 5))
    (folder / "metrics.json").write_text("{}")
    run(tmp_path / "a", str(folder))
    assert f"warning: the run in {folder} has not finished" in capsys.readouterr().out
    (folder / "run.json").write_text("{}")
    run(tmp_path / "b", str(folder))
    assert "has not finished" not in capsys.readouterr().out


def test_a_failed_run_leaves_the_results_of_an_earlier_one(tmp_path: Path) -> None:
    good = save(tmp_path / "good.json", some_records(1, 20))
    folder = run(tmp_path / "out", good)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="give --overwrite"):
        run(folder, good)
    bad = tmp_path / "bad.json"
    bad.write_text('[{"instruction": "ok a b", "output": "x"}, {]', encoding="utf-8")
    with pytest.raises(DataError):
        run(folder, str(bad), overwrite=True)
    with hold_output(folder), pytest.raises(OutputError, match="another run is at work"):
        run(folder, good, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run(folder, save(tmp_path / "other.json", some_records(5, 30)), overwrite=True)
    assert (folder / "kept.jsonl").read_bytes() != before["kept.jsonl"]


def test_another_stages_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"stage": "train"}')
    with pytest.raises(OutputError, match="of another stage"):
        run(tmp_path, save(tmp_path / "d.json", some_records(1, 5)), overwrite=True)


@pytest.mark.parametrize(
    "given",
    [
        {"threshold": 1.5},
        {"threshold": -0.1},
        {"decontaminate_threshold": 1.1},
        {"num_shards": 0},
        {"num_cpus": 0},
        {"similarity_stats": "some"},
    ],
)
def test_flags_out_of_range(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(given))}"):
        run(tmp_path / "out", "seeds", **given)


def test_the_job(tmp_path: Path) -> None:
    job = Path(alpaca_ray.__file__).parent.parent / "jobs" / "dedup.py"
    command = [
        sys.executable,
        str(job),
        "--data_path",
        str(tmp_path / "none.json"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path}/none.json: no such file or folder\n")
    command[3] = save(tmp_path / "d.json", some_records(1, 30))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"result: {tmp_path}/o/kept.jsonl on node ")
