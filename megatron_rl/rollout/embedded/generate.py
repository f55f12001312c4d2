"""The decoding loop over a Hugging Face causal language model.

Departures from transformers' ``generate``: a group's prompt is prefilled once, and read once for all its completions,
the cache is static, rows that have ended are dropped, waiting groups take their place, and the log-probability of every
token comes with it. Prompts run through the model's own layers; so do steps, unless ``decoder`` knows the model.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedModel

from megatron_rl.errors import InputError
from megatron_rl.rollout.embedded import decoder
from megatron_rl.rollout.embedded.attention import ATTENTION, StaticCache
from megatron_rl.rollout.embedded.decoder import Decoder
from megatron_rl.rollout.embedded.sampling import draw
from megatron_rl.rollout.protocol import Completion, Request, Sampling

_PREFILL_TOKENS = 4096  # prompt tokens, padding included, in one forward: bounds the activations
_DROP_FRACTION = 8  # rows are dropped when one in so many has ended


@dataclass(frozen=True)
class _Group:
    """A prompt and those of its completions that start together; ``first`` is the output row of the first."""

    tokens: Sequence[int]
    seeds: Sequence[int]
    first: int


@dataclass
class _Rows:
    """The running completions, int64 [rows] each; the order is that of the cache."""

    output: torch.Tensor  # row of the output
    seed: torch.Tensor
    group: torch.Tensor  # the prompt's place in the cache, ascending
    prompt: torch.Tensor  # its length
    start: torch.Tensor  # own column of the first token in the cache
    token: torch.Tensor  # drawn last, not yet in the cache
    ended: torch.Tensor  # bool

    def __len__(self) -> int:
        return len(self.output)

    def take(self, rows: torch.Tensor) -> "_Rows":
        return _Rows(*(column[rows] for column in vars(self).values()))

    def extend(self, other: "_Rows") -> "_Rows":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Rows(*(torch.cat(pair) for pair in pairs))


def _groups(requests: Sequence[Request], max_running: int) -> Iterator[_Group]:
    """One group per request, or several when it has more seeds than may run."""
    first = 0
    for request in requests:
        for at in range(0, len(request.seeds), max_running):
            seeds = request.seeds[at : at + max_running]
            yield _Group(request.tokens, seeds, first)
            first += len(seeds)


def generate(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    version: int = 0,
    max_running: int = 256,
    say: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """Completions in the order of the requests and of their seeds, all marked with ``version``.

    At most ``max_running`` sequences are decoded together; the results do not depend on it. ``say`` is called now and
    then with the numbers of completions that are done and that there will be. Sets the model's attention
    implementation. Raises ``InputError`` for a prompt that is empty or holds a token outside of
    the vocabulary, ``FloatingPointError`` when the weights give log-probabilities that are not finite.
    """
    model.config._attn_implementation = ATTENTION
    vocabulary = model.config.vocab_size
    for index, request in enumerate(requests):
        if not request.tokens or min(request.tokens) < 0 or max(request.tokens) >= vocabulary:
            raise InputError(
                f"prompt {index} of the batch has {len(request.tokens)} tokens: it needs at least one, "
                f"all of them below the model's vocabulary of {vocabulary}; check the tokenizer and the data."
            )
    decoding = _Decoding(model, requests, sampling, max_running)
    with torch.inference_mode():
        decoding.run(say or (lambda done, total: None))
    return decoding.completions(requests, version)


class _Decoding:
    """State of one call of ``generate``."""

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], sampling: Sampling, max_running: int
    ) -> None:
        self.model, self.sampling, self.max_running = model, sampling, max_running
        self.device = next(model.parameters()).device
        # longest prompts first: neighbours are padded little, and later rows never need more columns
        self.waiting = deque(sorted(_groups(requests, max_running), key=lambda group: -len(group.tokens)))
        self.total = sum(len(group.seeds) for group in self.waiting)
        longest = len(self.waiting[0].tokens) if self.waiting else 0
        rows = min(self.total, max_running)
        prompts = min(len(self.waiting), max_running)
        self.cache = StaticCache(
            model.config.num_hidden_layers, prompts, longest, rows, columns=sampling.max_new_tokens - 1
        )
        positions = longest + sampling.max_new_tokens
        self.decoder = Decoder(model, positions) if self.total and decoder.knows(model) else None
        self.drawn: list[tuple[torch.Tensor, ...]] = []  # per step: output row, index, token, log-probability
        self.stops = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.may_stop = bool(sampling.stop_tokens) and not sampling.ignore_stop
        if self.may_stop:
            self.stops[list(sampling.stop_tokens)] = True
        empty = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.rows = _Rows(empty, empty, empty, empty, empty, empty, empty.bool())
        self.deadline = 0  # own column at which the first row has all its tokens
        self.padding: torch.Tensor | None = None  # additive mask [rows, 1, 1, columns] where not all are tokens

    def run(self, say: Callable[[int, int], None]) -> None:
        """Decode until nothing is waiting or running."""
        while self.waiting or len(self.rows):
            self._drop()
            self._admit()
            done = self.total - len(self.rows) - sum(len(group.seeds) for group in self.waiting)
            while len(self.rows):
                ended = int(self.rows.ended.sum()) if self.may_stop else 0
                say(done + ended, self.total)
                if self._due(ended):
                    break
                self._step()

    def completions(self, requests: Sequence[Request], version: int) -> list[list[Completion]]:
        """Cut every output row after its first stop token."""
        tokens = np.zeros((self.total, self.sampling.max_new_tokens), dtype=np.int32)
        logprobs = np.zeros(tokens.shape, dtype=np.float32)
        if self.drawn:
            output, index, token, logprob = (
                torch.cat(column).cpu().numpy() for column in zip(*self.drawn, strict=True)
            )
            tokens[output, index], logprobs[output, index] = token, logprob
        is_stop = self.stops.cpu().numpy()[tokens]
        stopped = np.any(is_stop, axis=1)
        ends = np.where(stopped, is_stop.argmax(1) + 1, tokens.shape[1])
        kept = np.arange(tokens.shape[1]) < ends[:, None]
        if not np.isfinite(logprobs[kept]).all():
            raise FloatingPointError(f"the weights of version {version} give log-probabilities that are not finite")
        flat = [
            Completion(
                array("i", tokens[row, :end].tobytes()),
                array("f", logprobs[row, :end].tobytes()),
                "stop" if stop else "length",
                ((version, end),),
            )
            for row, (end, stop) in enumerate(zip(ends.tolist(), stopped.tolist(), strict=True))
        ]
        rows = iter(flat)
        return [list(islice(rows, len(request.seeds))) for request in requests]

    def _due(self, ended: int) -> bool:
        """Whether a row has all its tokens, or so many have ended that dropping them pays."""
        return self.cache.length >= self.deadline or (self.may_stop and ended * _DROP_FRACTION >= len(self.rows))

    def _drop(self) -> None:
        """Drop the rows that have ended, and the prompts and columns that only they used."""
        rows, cache = self.rows, self.cache
        drawn = cache.length - rows.start + 1
        running = (~rows.ended & (drawn < self.sampling.max_new_tokens)).nonzero()[:, 0]
        if len(running) == len(rows):
            return
        self.rows = rows = rows.take(running)
        first = int(rows.start.min()) if len(rows) else cache.length
        prompts, rows.group = rows.group.unique(return_inverse=True)
        cache.keep(prompts, running, first)
        rows.start -= first
        self._align()

    def _admit(self) -> None:
        """Prefill the waiting groups that find room."""
        free = self.max_running - len(self.rows)
        chunk: list[_Group] = []
        while self.waiting and len(self.waiting[0].seeds) <= free:
            group = self.waiting.popleft()
            if chunk and (len(chunk) + 1) * len(chunk[0].tokens) > _PREFILL_TOKENS:
                self._prefill(chunk)
                chunk = []
            chunk.append(group)
            free -= len(group.seeds)
        if chunk:
            self._prefill(chunk)
            self._align()

    def _prefill(self, groups: list[_Group]) -> None:
        """Run the prompts once each and draw their rows' first tokens."""
        longest = len(groups[0].tokens)
        lengths = self._int64([len(group.tokens) for group in groups])
        tokens = self._int64([[0] * (longest - len(group.tokens)) + list(group.tokens) for group in groups])
        owner = self._int64([index for index, group in enumerate(groups) for _ in group.seeds])
        rows = _Rows(
            output=self._int64([group.first + index for group in groups for index in range(len(group.seeds))]),
            seed=self._int64([seed for group in groups for seed in group.seeds]),
            group=self.cache.prompts + owner,
            prompt=lengths[owner],
            start=torch.full_like(owner, self.cache.length),
            token=torch.zeros_like(owner),
            ended=torch.zeros_like(owner, dtype=torch.bool),
        )
        column = torch.arange(longest, device=self.device)
        position = column - (longest - lengths)[:, None]  # [groups, longest], negative in the padding
        mask = None
        if int(lengths.min()) < longest:
            # a padding token sees itself: a row that sees nothing would be NaN
            causal = (column[:, None] >= column) & (position >= 0)[:, None]
            mask = (causal | (column[:, None] == column))[:, None]
        with self.cache.filling(len(groups)):
            logits = self._forward(tokens, mask, position.clamp(min=0))
        self._record(rows, logits[owner])
        self.rows = self.rows.extend(rows)

    def _align(self) -> None:
        """What depends on which rows there are: where they read, and the own column of the next full row."""
        rows, cache = self.rows, self.cache
        self.padding = None
        if not len(rows):
            return
        width = int(rows.prompt.max())
        cache.arrange(rows.group, width)
        self.deadline = int(rows.start.min()) + self.sampling.max_new_tokens - 1
        if int(rows.prompt.min()) < width or int(rows.start.max()) > 0:
            column = torch.arange(width + cache.sizes[1][1], device=self.device)
            own = column - width
            empty = (column < (width - rows.prompt)[:, None]) | ((own >= 0) & (own < rows.start[:, None]))
            self.padding = torch.zeros(empty.shape, dtype=self.model.dtype, device=self.device)
            self.padding = self.padding.masked_fill_(empty, -torch.inf)[:, None, None]

    def _step(self) -> None:
        """Feed every row's last token and draw the next."""
        rows, cache = self.rows, self.cache
        position = (rows.prompt + cache.length - rows.start)[:, None]
        cache.length += 1
        mask = None
        if self.padding is None:  # all rows are at the same position
            position = position[:1]
        else:
            mask = self.padding[..., : cache.width + cache.length]
        if self.decoder is None:
            logits = self._forward(rows.token[:, None], mask, position)
        else:
            logits = self.decoder.step(rows.token, mask, position[:, 0], cache)
        self._record(rows, logits)

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor | None, position: torch.Tensor) -> torch.Tensor:
        """Logits of the last column, [rows, vocabulary]."""
        output = self.model(
            tokens,
            attention_mask=mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _record(self, rows: _Rows, logits: torch.Tensor) -> None:
        """Draw one token for each row and write it down."""
        index = self.cache.length - rows.start
        rows.token, logprobs = draw(logits, rows.seed, index, self.sampling)
        self.drawn.append((rows.output, index, rows.token, logprobs))
        if self.may_stop:
            rows.ended |= self.stops[rows.token]

    def _int64(self, values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
