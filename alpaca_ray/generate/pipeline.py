"""Generation on Ray: the checks, the cluster, the teacher, and then a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from alpaca_ray import cluster
from alpaca_ray.console import say, show_settings
from alpaca_ray.generate.bucket import Bucket, copy_of
from alpaca_ray.generate.claim import Claim
from alpaca_ray.generate.fanout import quiet_ray_data
from alpaca_ray.generate.folder import RECORDS, WHOLE, earlier_metric
from alpaca_ray.generate.journal import FILE_NAME as JOURNAL
from alpaca_ray.generate.journal import read_journal
from alpaca_ray.generate.run import make_plan
from alpaca_ray.generate.session import Session
from alpaca_ray.generate.teacher import Teacher, choose_teachers, probe, recorded_teachers
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.storage import STORAGE_ENV, hold_output, is_uri, resolve_output

_SMALL_PROMPT = 5  # tasks that a prompt may ask a teacher of this size for
_LOCAL_BATCH = 32  # rows that a teacher started here decodes at once


def generate(settings: GenerateSettings) -> None:
    """Generate instruction records into the output folder, which may lie in a bucket.

    Raises:
        UserError: bad input; nothing has been written, and no folder touched.
        GenerationError: the target is out of reach; what there is has been written.
    """
    run = _replay if settings.replay else _ask
    if is_uri(settings.output_dir) and not settings.output_dir.startswith("file://"):
        with copy_of(settings.output_dir, WHOLE) as bucket:
            run(settings, bucket)
    else:
        run(settings, None)


def _ask(settings: GenerateSettings, bucket: Bucket | None) -> None:
    """Ask the teacher until the target is reached, going on from what the folder holds."""
    plan = make_plan(settings)
    teachers = choose_teachers(settings, os.environ)
    folder = resolve_output(settings.output_dir) if bucket is None else bucket.folder
    if not teachers[0].local:
        teachers = [probe(teacher, os.environ) for teacher in teachers]
    plan.price(teachers)  # an unknown one is an error, before anything is asked
    if bucket is None and folder.is_dir():
        with hold_output(folder):  # another run at work in it is said now, and not when everything is ready
            state = plan.look_at(folder, teachers)
    else:
        state = plan.look_at(folder, teachers)
    show_settings("generate", settings)
    say(f"Loaded {len(plan.seeds)} human-written seed instructions")
    if state.total:
        say(f"Loaded {state.total} machine-generated instructions")
    surplus = state.total - settings.num_instructions_to_generate
    # Met, and marked as complete: a run that was killed right before that still has to be.
    if surplus >= 0 and (state.header is None or (folder / MANIFEST).is_file()):
        where = Claim(folder, state, overwrite=False, bucket=bucket).where(RECORDS)
        say(f"{where} already holds {state.total} instructions: nothing to do")
        say(f"result: {where}")
        return
    if surplus > 0:  # what a run that was killed has above a target that was lowered since stays
        settings = settings.model_copy(update={"num_instructions_to_generate": state.total})
        plan = replace(plan, settings=settings)
    if surplus < 0 and not teachers[0].local:
        plan.check_room(state, teachers)
    if settings.num_shards > 1:  # the pool's actors
        cluster.connect(show_workers=False)

    processor = plan.processor(state, folder)
    if state.outcomes:
        say(f"Took up {len(state.outcomes)} answers from the journal: {len(processor.records)} instructions so far")
    if processor.done:  # extras in the journal are enough: no cluster, no teacher
        with Claim(folder, state, overwrite=settings.overwrite, bucket=bucket) as claim:
            Session(plan, teachers, claim, state, processor).go()
        return
    cluster.connect(show_workers=False)
    if bucket is None:
        on_cluster = resolve_output(settings.output_dir, several_nodes=cluster.node_count() > 1)
        if on_cluster != folder:
            folder = on_cluster
            state = plan.look_at(folder, teachers)
            processor = plan.processor(state, folder)
    quiet_ray_data()
    with (
        Claim(folder, state, overwrite=settings.overwrite, bucket=bucket) as claim,
        _running(teachers, settings) as ready,
    ):
        Session(plan, ready, claim, state, processor).go()


def _replay(settings: GenerateSettings, bucket: Bucket | None) -> None:
    """Go through a journal again with the filters and the novelty rule of ``settings``; nobody is asked anything."""
    folder = _written_folder(settings.output_dir) if bucket is None else bucket.folder
    header = read_journal(folder / JOURNAL).header
    target = earlier_metric(folder, "target")
    if target is not None and not settings.was_given("num_instructions_to_generate"):
        settings = settings.model_copy(update={"num_instructions_to_generate": int(target)})
    plan = make_plan(settings) if header is None else make_plan(settings, journal_settings=header.settings)
    teachers = [] if header is None else recorded_teachers(header.settings, settings.api_key_env)
    state = plan.look_at(folder, teachers)
    show_settings("generate", settings)
    if settings.num_shards > 1:
        cluster.connect(show_workers=False)
    processor = plan.processor(state, folder)
    say(f"Went through {processor.next_id} answers of the journal: {len(processor.records)} instructions")
    with Claim(folder, state, overwrite=False, bucket=bucket) as claim:
        Session(plan, teachers, claim, state, processor).go()


def _written_folder(output_dir: str) -> Path:
    """Return the folder that a run with this flag has written, also where the run was on a cluster of several nodes."""
    here = resolve_output(output_dir)
    if (here / JOURNAL).is_file() or not os.environ.get(STORAGE_ENV):
        return here
    stored = resolve_output(output_dir, several_nodes=True)
    return stored if (stored / JOURNAL).is_file() else here


@contextmanager
def _running(teachers: list[Teacher], settings: GenerateSettings) -> Iterator[list[Teacher]]:
    """Yield the teachers with addresses that answer: the local one is started here and stopped at the end."""
    teacher = teachers[0]
    if not teacher.local:
        yield teachers
        return
    from alpaca_ray.serve.local import local_server
    from alpaca_ray.settings.serve import ServeArgs

    if settings.num_tasks_per_prompt > _SMALL_PROMPT:
        say(
            "hint: with prompts of this size a teacher this small may need many minutes for an answer, and few of its "
            "tasks are kept: it does better with --config jobs/configs/generate_embedded.yaml"
        )
    say("starting the embedded model as teacher")
    rows = min(settings.max_in_flight, _LOCAL_BATCH)
    with local_server(ServeArgs.parse({"base_model": teacher.model, "max_batch_size": rows})) as url:
        yield [replace(teacher, base_url=url)]
