"""An engine as lm-eval's model: texts as its Hugging Face backend reads, cuts and scores them (lm_eval 0.4)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from megatron_rl.data.tokenizer import require_encodable
from megatron_rl.errors import InputError
from megatron_rl.evaluation.answering import Speech
from megatron_rl.evaluation.config import BenchmarkConfig
from megatron_rl.evaluation.records import Records
from megatron_rl.rollout.protocol import Completer, Completion, Given, Request, Sampling

NEW_TOKENS = 256  # of a completion, where a task does not say
LENGTH = 2048  # tokens of a text, where neither model nor tokenizer says
_ENDLESS = 10**9  # what tokenizers have where they know no limit is larger
_READ = {"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"}  # of a task's generation_kwargs
_PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}  # what others may be


class EngineModel(TemplateLM):  # type: ignore[misc]
    """Answers from ``records`` where they are there, else from the engine.

    ``start`` gives the engine when one is needed; it is told how many tokens the longest text has.

    A prompt that leaves no room for its completion loses its first tokens, as in lm-eval's own backends; ``cut`` counts
    them.
    """

    def __init__(
        self,
        name: str,
        config: BenchmarkConfig,
        speech: Speech,
        hf_config: Mapping[str, Any],
        records: Records,
        start: Callable[[int], Completer],
        said: Callable[[int], None],
        at_once: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.name, self.config, self.speech, self.tokenizer = name, config, speech, speech.tokenizer
        self.records, self.start, self.said, self.at_once, self.seed = records, start, said, at_once, seed
        self.answered = self.cut = 0  # requests so far, and prompts among them that lost their first tokens
        limits = (hf_config.get("max_position_embeddings"), self.tokenizer.model_max_length)
        self.max_length = next((n for n in limits if isinstance(n, int) and n < _ENDLESS), LENGTH)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty text begins with."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """Of whom the prompts are."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A prompt of messages; without ``add_generation_prompt`` the last one, of the assistant, is gone on with."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.config.chat_template_kwargs,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the tokenizer's own first token unless the text begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        try:
            return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))
        except Exception:  # of tokenizers, which have no class of their own for it
            require_encodable(self.tokenizer, [(f"a text of {self.name}, {string[:80]!r}", string)])
            raise

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions, up to the first of their stop texts."""
        asked = [request.args for request in requests]
        ready = [self._request(prompt, self._sampling(options), n) for n, (prompt, options) in enumerate(asked)]
        longest = max(len(request.tokens) + sampling.max_new_tokens for request, sampling in ready)

        def ask(numbers: Sequence[int]) -> list[dict[str, Any]]:
            engine = self.start(longest)

            async def all_of_them() -> list[list[Completion]]:
                return await asyncio.gather(*(engine.complete(*ready[number]) for number in numbers))

            made = asyncio.run(all_of_them())
            return [self._row(asked[n], own, ready[n][0]) for n, (own,) in zip(numbers, made, strict=True)]

        wanted = [{"kind": "generate_until", "prompt": prompt, "options": options} for prompt, options in asked]
        return [row["answer"] for row in self._answers(wanted, ask)]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Sums of log-probabilities of continuations, and whether each is what greedy decoding gives."""
        given, wanted = [], []
        for texts, context, continuation in requests:
            tokens = [*context, *continuation]
            self.cut += len(tokens) > self.max_length + 1
            given.append(Given(tokens[-(self.max_length + 1) :], len(continuation)))
            wanted.append({"kind": "loglikelihood", "prompt": texts[0], "given": texts[1]})

        def ask(numbers: Sequence[int]) -> list[dict[str, Any]]:
            engine: Any = self.start(self.max_length)  # the embedded one, as ``tasks.load`` has seen to
            scored = engine.score([given[number] for number in numbers])
            return [{"logprob": sum(each.logprobs), "greedy": each.greedy} for each in scored]

        return [(row["logprob"], row["greedy"]) for row in self._answers(wanted, ask)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in windows of ``max_length``, each token once."""
        sums = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            parts = [((text, ""), *utils.make_disjoint_window(window)) for window in windows]
            sums.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(parts)))
        return sums

    def _answers(
        self, wanted: Sequence[dict[str, Any]], ask: Callable[[Sequence[int]], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """The records of requests, those that are there first. Raises InputError where they are of other requests."""
        first, rows = self.answered, self.records.rows
        for number, (old, new) in enumerate(zip(rows[first:], wanted, strict=False), start=first):
            if any(old.get(key) != value for key, value in new.items()):
                raise InputError(
                    f"{self.records.path}, line {number + 2} answers another question than {self.name} asks now: its "
                    "data or its YAML have changed. Name another place with --out, or remove the file."
                )
        done = min(len(rows) - first, len(wanted))
        self.said(done)
        for at in range(done, len(wanted), self.at_once):
            numbers = range(at, min(at + self.at_once, len(wanted)))
            self.records.append([wanted[n] | row for n, row in zip(numbers, ask(numbers), strict=True)])
            self.said(len(numbers))
        self.answered += len(wanted)
        return self.records.rows[first : self.answered]

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """A task's ``generation_kwargs``. Raises InputError for what no engine here does."""
        known = normalize_gen_kwargs(dict(options), NEW_TOKENS)
        for key in known.keys() - _READ:
            if key not in _PLAIN or known[key] != _PLAIN[key]:
                raise InputError(
                    f"{self.name} asks for {key}={known[key]!r} when it generates, which the engines here do not know: "
                    "take it out of a copy of the task's YAML."
                )
        temperature = known["temperature"] if known.get("do_sample") else 0.0
        return Sampling(
            known["max_gen_toks"],
            temperature,
            known.get("top_p", 1.0) if temperature else 1.0,
            known.get("top_k", 0) if temperature else 0,
            tuple(self.speech.stops),
        )

    def _request(self, prompt: str, sampling: Sampling, number: int) -> tuple[Request, Sampling]:
        room = self.max_length - sampling.max_new_tokens
        if room <= 0:
            raise InputError(
                f"{self.name}: completions of up to {sampling.max_new_tokens} tokens leave no room for a prompt in the "
                f"model's {self.max_length}: set {self.name}.max_new_tokens."
            )
        tokens = self.tok_encode(prompt)
        self.cut += len(tokens) > room
        seed = xxhash.xxh3_64_intdigest(f"{self.seed}/{self.name}/{self.answered + number}".encode()) >> 1
        return Request(tokens[-room:], [seed]), sampling

    def _row(self, asked: tuple[str, dict[str, Any]], completion: Completion, request: Request) -> dict[str, Any]:
        text = self.tokenizer.decode(list(completion.tokens), skip_special_tokens=True)
        stops = handle_stop_sequences(list(_until(asked[1])), self.tokenizer.decode(self.eot_token_id))
        return {
            "completion": text,
            "answer": postprocess_generated_text(text, stops, self.config.think_end or None),
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.tokens),
            "prompt_tokens": len(request.tokens),
        }


def _until(options: Mapping[str, Any]) -> Sequence[str]:
    until = options.get("until") or ()
    return [until] if isinstance(until, str) else until
