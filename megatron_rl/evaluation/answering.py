"""A suite's questions to an engine, its completions to their judge: records of single completions, and outcomes."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rl.data.task import sample_of
from megatron_rl.data.tokenizer import decode, end_tokens, load_tokenizer, make_encoder
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.estimates.votes import majority
from megatron_rl.evaluation.suite import Outcome, Suite
from megatron_rl.rollout.collect import collect
from megatron_rl.rollout.protocol import Completer, Completion, Sampling
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.strategies.single import Single

Judge = Callable[[Sequence[Sequence[Rollout]]], Sequence[None]]
Record = dict[str, Any]
"""One completion: item, form, sample (a number), prompt, completion, answer (the right one), extracted, correct, report
(None: its judge hung or crashed), finish_reason, tokens (how many), groups."""


@dataclass(frozen=True)
class Speech:
    """How a model's texts become tokens, and its completions texts."""

    tokenizer: Any
    stops: Collection[int]  # tokens that end a completion

    def single(self) -> Single:
        """One prompt, independent completions."""
        return Single(make_encoder(self.tokenizer), self.decode)

    def decode(self, completion: Completion) -> str:
        """A completion's text without the token that ended it."""
        return decode(self.tokenizer, completion.tokens, self.stops if completion.finish_reason == "stop" else ())


def speech(folder: Any) -> Speech:
    """Of a model's folder. Raises InputError for a tokenizer that is missing or broken."""
    tokenizer = load_tokenizer(folder)
    return Speech(tokenizer, end_tokens(folder, tokenizer))


def sampling_of(config: SuiteConfig, stops: Collection[int]) -> Sampling:
    """How a suite's completions are drawn."""
    return Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k, tuple(stops))


def answer(
    suite: Suite,
    config: SuiteConfig,
    speech: Speech,
    engine: Completer,
    judge: Judge,
    seed: str,
    done: int = 0,
    at_once: int = 256,
) -> Iterator[list[Record]]:
    """The records of all completions but the first ``done`` prompts', some ``at_once`` at a time, in a fixed order.

    A completion does not depend on how many are asked for at a time, nor on ``done``.
    """
    asked = [(item, place, form) for item in suite.items for place, form in enumerate(item.forms)]
    prompts, single, sampling = max(1, at_once // config.samples), speech.single(), sampling_of(config, speech.stops)
    for first in range(done, len(asked), prompts):
        some = asked[first : first + prompts]
        forms = [form for _, _, form in some]
        made = collect(forms, config.samples, single, engine, sampling, judge, f"{seed}/{suite.name}", first)
        yield [
            _record(suite, item.id, place, number, rollout, item.groups)
            for (item, place, _), group in zip(some, made.groups, strict=True)
            for number, rollout in enumerate(group)
        ]


def outcomes(suite: Suite, records: Sequence[Record], samples: int) -> list[Outcome]:
    """Of every item, the score of each of its samples: of one form its verdict, of several that of their vote."""
    found, at = [], 0
    for item in suite.items:
        count = len(item.forms) * samples
        own = list(records[at : at + count])
        at += count
        votes = [own[number::samples] for number in range(samples)]
        found.append(Outcome(item, [vote[majority([r["extracted"] for r in vote])]["correct"] for vote in votes], own))
    return found


def _record(suite: Suite, item: str, form: int, number: int, rollout: Rollout, groups: Any) -> Record:
    report = rollout.scored.report
    return {
        "item": item,
        "form": form,
        "sample": number,
        "groups": dict(groups),
        "prompt": rollout.example.prompt,
        "completion": rollout.text,
        "answer": rollout.example.answer,
        "extracted": suite.extract(sample_of(rollout.example, rollout.text, rollout.finish)),
        "correct": report["correct"] if report is not None else 0.0,
        "report": report,
        "finish_reason": rollout.finish,
        "tokens": rollout.length,
    }
