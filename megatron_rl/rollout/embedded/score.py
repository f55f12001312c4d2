"""Log-probabilities of given tokens, by the model's own layers: what tasks with given answers are judged by."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from megatron_rl.errors import InputError
from megatron_rl.rollout.embedded.attention import ATTENTION
from megatron_rl.rollout.protocol import Given, Scored

_TOKENS = 1024  # padding included, in one forward: bounds the logits


def score(model: PreTrainedModel, given: Sequence[Given]) -> list[Scored]:
    """Each text's, in their order. Sets the model's attention implementation.

    Raises ``InputError`` for a text without a token before those that are scored, or with one outside of the
    vocabulary.
    """
    vocabulary = model.config.vocab_size
    for index, each in enumerate(given):
        if not 0 < each.scored < len(each.tokens) or min(each.tokens) < 0 or max(each.tokens) >= vocabulary:
            raise InputError(
                f"text {index} has {len(each.tokens)} tokens, {each.scored} of them to be scored: it needs one before "
                f"them, all below the model's vocabulary of {vocabulary}; check the tokenizer and the data."
            )
    model.config._attn_implementation = ATTENTION
    found: dict[int, Scored] = {}
    order = sorted(range(len(given)), key=lambda index: -len(given[index].tokens))
    while order:
        rows = max(1, _TOKENS // len(given[order[0]].tokens))
        chunk, order = order[:rows], order[rows:]
        with torch.inference_mode():
            found |= dict(zip(chunk, _score(model, [given[index] for index in chunk]), strict=True))
    return [found[index] for index in range(len(given))]


def _score(model: PreTrainedModel, given: Sequence[Given]) -> list[Scored]:
    """Of texts that are padded at their ends, which causal attention does not see."""
    longest = max(len(each.tokens) for each in given) - 1
    tokens = torch.tensor([[*each.tokens[:-1], *[0] * (longest + 1 - len(each.tokens))] for each in given])
    first = min(len(each.tokens) - each.scored for each in given) - 1  # the first column whose logits are needed
    logits = model(
        tokens,
        position_ids=torch.arange(longest)[None],
        use_cache=False,
        logits_to_keep=longest - first,
    ).logits
    found = []
    for each, row in zip(given, logits, strict=True):
        end = len(each.tokens) - 1 - first
        own = row[end - each.scored : end].float()  # [scored, vocabulary]
        wanted = torch.tensor(each.tokens[-each.scored :])
        logprobs = own.gather(1, wanted[:, None])[:, 0] - own.logsumexp(-1)
        found.append(Scored(logprobs.tolist(), bool((own.argmax(-1) == wanted).all())))
    return found
