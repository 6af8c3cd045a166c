"""What a run is made of before anything is sent: every check that needs no network and writes nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.errors import SettingsError
from alpaca_ray.generate import identity
from alpaca_ray.generate.answers import AnswerReader
from alpaca_ray.generate.budget import Limits, Price, Tokens, price_of, prompt_bound
from alpaca_ray.generate.client import Sampling
from alpaca_ray.generate.folder import FolderState, inspect
from alpaca_ray.generate.journal import Header, Outcome
from alpaca_ray.generate.limits import Rates, shared_path
from alpaca_ray.generate.process import Processor
from alpaca_ray.generate.prompt import PromptMaker, eligible_seeds, load_header
from alpaca_ray.generate.store import RowStore
from alpaca_ray.generate.teacher import Teacher, is_openai
from alpaca_ray.generate.terms import Terms
from alpaca_ray.models import cache_folder
from alpaca_ray.novelty.decontaminate import Decontaminator, evaluation_prompts
from alpaca_ray.novelty.filter import NoveltyFilter
from alpaca_ray.records import Record, read_seed_tasks
from alpaca_ray.settings.generate import GenerateSettings

_AT_ONCE = 256  # answers that are processed together
_REQUESTS_BEFORE_GIVING_UP = 100
_REQUESTS_PER_INSTRUCTION = 20


@dataclass(frozen=True)
class Plan:
    """Seeds and prompts of a run, the same for the same settings.

    ``journal_settings``: of a run that is replayed; what its answers depend on is theirs.
    """

    settings: GenerateSettings
    seeds: Sequence[Record]
    header: str
    prompts: PromptMaker
    journal_settings: Mapping[str, Any] | None = None
    decontaminator: Decontaminator | None = None

    def answer_settings(self, teachers: Sequence[Teacher]) -> dict[str, Any]:
        """Return what the answers and their processing depend on, for the journal's header and for ``run.json``."""
        asked = self.journal_settings or identity.asking(self.settings, teachers, self.header, self.seeds)
        return {**asked, **identity.deciding(self.settings, self.decontaminator.prompts if self.decontaminator else ())}

    def look_at(self, folder: Path, teachers: Sequence[Teacher]) -> FolderState:
        """Return what an output folder holds, where this run may use it (see ``folder.inspect`` for errors)."""
        settings = self.settings
        state = inspect(folder, resume=settings.resume, overwrite=settings.overwrite, replay=settings.replay)
        if state.header is not None:
            if settings.replay:
                now = identity.asking(settings, teachers, self.header, self.seeds)
                identity.check_replayable(state.header, settings, now, folder)
            else:
                identity.check_same(state.header, self.answer_settings(teachers), folder)
        return state

    def journal_header(self, state: FolderState, teachers: Sequence[Teacher]) -> Header | None:
        """Return the header that a new journal needs; None where there is one."""
        if state.header is not None:
            return None
        return Header(self.answer_settings(teachers), initial=len(state.initial))

    def processor(self, state: FolderState, folder: Path) -> Processor:
        """Return a decision maker that has gone through what the journal holds.

        Args:
            folder: rows wait on its disk until they are written into it.
        """
        records = RowStore(folder)
        for record in state.initial:
            records.append(record)
        processor = Processor(
            records=records,
            rejected=RowStore(folder),
            target=self.settings.num_instructions_to_generate,
            reader=AnswerReader(self.settings, first_number=self.prompts.first_number),
            novelty=self._novelty([str(task["instruction"]) for task in itertools.chain(self.seeds, state.initial)]),
            decontaminator=self.decontaminator,
        )
        for outcome in state.outcomes.in_order():
            if processor.done:
                break
            processor.offer([outcome])
            if processor.ready >= _AT_ONCE:
                processor.process()
        processor.process()
        return processor

    def _novelty(self, known: list[str]) -> NoveltyFilter:
        """Return the novelty rule; where its pool is spread over actors, Ray must be there."""
        settings = self.settings
        make_shard = None
        if settings.num_shards > 1:
            from alpaca_ray.dedup.actors import shard_maker

            make_shard = shard_maker()
        rule = functools.partial(
            NoveltyFilter,
            threshold=settings.similarity_threshold,
            workers=settings.num_cpus or -1,
            stats=settings.similarity_stats,
            tokenizer=settings.tokenizer,
        )
        # Its loops are compiled now, which takes seconds on a new machine, and not while the first answers wait.
        for _ in rule(["one two"]).decide(["one two", "three"]):
            pass
        return rule(known, make_shard=make_shard, num_shards=settings.num_shards)

    def request_limit(self, state: FolderState) -> int:
        """Return after how many requests in all the run ends, target or not."""
        if self.settings.max_requests is not None:
            return self.settings.max_requests
        missing = self.settings.num_instructions_to_generate - len(state.initial)
        return _REQUESTS_BEFORE_GIVING_UP + _REQUESTS_PER_INSTRUCTION * max(0, missing)

    def expected_yield(self) -> float:
        """Return how many records a request may be expected to bring before any has come back."""
        return 0.5 * self.prompts.new_tasks

    def sampling(self, api: str) -> Sampling:
        """Return what is asked of the model beside the prompt, through ``api``."""
        settings = self.settings
        parameters = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stop": settings.stops() or None,
            **self.prompts.answer_parameters(),
            **settings.compat_parameters(api),
        }
        dropped = set(settings.drop_params or ())
        return Sampling(
            {name: value for name, value in parameters.items() if name not in dropped and value is not None},
            settings.max_tokens,
            settings.extra_body,
            send_length="max_tokens" not in dropped,
        )

    def price(self, teachers: Sequence[Teacher]) -> Price | None:
        """Return what the teachers' tokens cost, the dearest's where they differ; None where one's is unknown.

        Raises:
            SettingsError: ``max_cost`` is given and the price is unknown.
        """
        settings = self.settings
        prices = [price_of(one.model, settings.prices, openai=is_openai(one.base_url)) for one in teachers]
        known = [price for price in prices if price is not None]
        if len(known) == len(prices):
            return Price(max(price.prompt for price in known), max(price.completion for price in known))
        if settings.max_cost is not None and not settings.replay:
            model = next(one.model for one, price in zip(teachers, prices, strict=True) if price is None)
            raise SettingsError(
                f"--max_cost needs the price of {model}: give it with --prices '{{\"{model}\": [PROMPT, ANSWER]}}' (US "
                "dollars for a million tokens)"
            )
        return None

    def check_room(self, state: FolderState, teachers: Sequence[Teacher]) -> None:
        """Check that the limits and what is left of the budget have room for a request at all.

        Raises:
            SettingsError: they have none.
        """
        settings = self.settings
        if self.prompts.draws:
            return  # the records that the first prompt shows are not known yet
        number = next(one for one in range(len(state.outcomes) + 1) if one not in state.outcomes.ids)
        worst = Tokens(prompt_bound(self.prompts.make(number).text), settings.max_tokens)
        may_take = f"a request may take {worst.total:,} tokens (its prompt, and --max_tokens {settings.max_tokens})"
        if settings.tokens_per_minute is not None and settings.tokens_per_minute < worst.total:
            raise SettingsError(f"--tokens_per_minute {settings.tokens_per_minute:g}: {may_take}")
        limits = Limits(self.price(teachers), settings.max_cost, settings.max_tokens_total)
        flag = limits.exceeded_by(spent(state) + worst)
        if flag is not None:
            used = f", beside {spent(state).total:,} that were used" if spent(state).total else ""
            raise SettingsError(f"{flag} leaves no room for a request: {may_take}{used}; give a higher one")

    def terms(self, state: FolderState, teachers: Sequence[Teacher], environ: Mapping[str, str]) -> Terms:
        """Return what the run may do, and has spent already."""
        settings = self.settings
        rates = Rates(settings.requests_per_second, settings.requests_per_minute, settings.tokens_per_minute)
        shared = [
            shared_path(cache_folder(), one.base_url, one.key(environ)) if rates.any else None for one in teachers
        ]
        return Terms(
            [(one.base_url or one.model, one.weight, path) for one, path in zip(teachers, shared, strict=True)],
            rates,
            settings.max_in_flight,
            Limits(self.price(teachers), settings.max_cost, settings.max_tokens_total),
            spent(state),
        )


def make_plan(settings: GenerateSettings, *, journal_settings: Mapping[str, Any] | None = None) -> Plan:
    """Read the seed tasks and the prompt's header.

    Args:
        journal_settings: of the journal that is to be replayed: what is asked is as there, where nothing else is given.

    Raises:
        DataError: either cannot be read, or there are too few seed tasks.
    """
    if journal_settings is not None:
        asked = {name: journal_settings[name] for name in identity.ASKING if name in journal_settings}
        settings = settings.model_copy(
            update={name: value for name, value in asked.items() if not settings.was_given(name)}
        )
    seeds = read_seed_tasks(settings.seed_tasks_path)
    evolving = settings.strategy == "evolve"
    shown = 1 if evolving else settings.num_prompt_instructions
    new_tasks = 1 if evolving else settings.num_tasks_per_prompt - shown
    header = load_header(
        settings.prompt_header,
        settings.num_tasks_per_prompt,
        new_tasks,
        strategy=settings.strategy,
        response_format=settings.response_format,
    )
    prompts = PromptMaker(
        header,
        eligible_seeds(seeds, examples=shown, max_words=settings.max_example_words),
        shown,
        settings.seed,
        settings.response_format,
        settings.strategy,
        settings.machine_examples,
        new_tasks,
        settings.max_example_words,
    )
    return Plan(settings, seeds, header, prompts, journal_settings, _decontaminator(settings))


def _decontaminator(settings: GenerateSettings) -> Decontaminator | None:
    """Return what knows the evaluation sets' prompts; None where there are none."""
    if not settings.decontaminate:
        return None
    prompts = [prompt for source in settings.decontaminate for prompt in evaluation_prompts(source)]
    return Decontaminator(prompts, threshold=settings.decontaminate_threshold, tokenizer_name=settings.tokenizer)


def spent(state: FolderState) -> Tokens:
    """Return the tokens that earlier sessions used; what was under way when they ended counts in full."""
    return sum((outcome_tokens(outcome) for outcome in state.outcomes), state.lost)


def outcome_tokens(outcome: Outcome) -> Tokens:
    """Return the tokens that a request took, at most where the endpoint did not say."""
    return sum(map(Tokens.of_usage, (outcome.usage, outcome.estimated, outcome.lost)), Tokens())


def shown(rejected: Mapping[str, int]) -> str:
    """Return rejections by reason in one line."""
    return ", ".join(f"{reason} {count}" for reason, count in rejected.items()) or "none"
