"""The decoding loop against transformers on the same weights."""

from copy import deepcopy
from itertools import chain

import numpy as np
import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.rollout.embedded.attention import StaticCache
from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.embedded.true_on_policy import replace_layers
from megatron_rl.rollout.protocol import Completion, Request, Sampling

FAMILIES = ["qwen2", "qwen3", "qwen3_untied", "qwen3_moe", "llama"]


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 101, length).tolist() for length in lengths]


def requests(lengths: list[int], group: int = 3) -> list[Request]:
    return [
        Request(tokens, [1000 * index + seed for seed in range(group)]) for index, tokens in enumerate(prompts(lengths))
    ]


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return list(chain.from_iterable(groups))


def reference_logprobs(model, prompt: list[int], completion: Completion, temperature: float) -> np.ndarray:
    """Log-probabilities of the completion from one plain forward of the whole sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion.tokens]])).logits[0]
    scores = (logits.double() / (temperature or 1)).log_softmax(-1)
    drawn = torch.tensor(completion.tokens)
    return scores[len(prompt) - 1 : -1].gather(1, drawn[:, None])[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [[9, 9], [3, 17, 1, 8]], ids=["equal", "padded"])
def test_logprobs_are_those_of_a_plain_forward(models, family, lengths):
    model, reference = models[family]
    batch = requests(lengths)
    for temperature in (1.0, 0.7):
        groups = generate(model, batch, Sampling(24, temperature=temperature, stop_tokens=(5, 6, 7)))
        for request, group in zip(batch, groups, strict=True):
            assert len(group) == len(request.seeds)
            for completion in group:
                expected = reference_logprobs(reference, list(request.tokens), completion, temperature)
                assert np.abs(np.array(completion.logprobs) - expected).max() <= 1e-5


@pytest.mark.parametrize("family", ["qwen2", "qwen3_untied", "llama"])
def test_true_on_policy_logprobs_do_not_depend_on_the_batch(models, family):
    model, reference = deepcopy(models[family])
    replace_layers(model)
    batch, sampling = requests([3, 17, 1, 8]), Sampling(24, temperature=0.7)
    together = flat(generate(model, batch, sampling))
    alone = flat([generate(model, [request], sampling)[0] for request in batch])
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.logprobs for c in together] == [c.logprobs for c in alone]
    prompt_of = [request.tokens for request in batch for _ in request.seeds]
    for tokens, completion in zip(prompt_of, together, strict=True):
        expected = reference_logprobs(reference, list(tokens), completion, 0.7)
        assert np.abs(np.array(completion.logprobs) - expected).max() <= 1e-5


def test_true_on_policy_refuses_layers_that_it_does_not_know(models):
    model, _ = deepcopy(models["qwen3"])
    model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    with pytest.raises(InputError, match=r"cannot compute layer model.layers.1.mlp.act_fn, a GELU"):
        replace_layers(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_greedy(models, family):
    model, reference = models[family]
    batch = [Request(tokens, [0]) for tokens in prompts([5, 12, 7])]
    ours = generate(model, batch, Sampling(20, temperature=0.0))
    for request, (completion,) in zip(batch, ours, strict=True):
        tokens = torch.tensor([request.tokens])
        theirs = reference.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert list(completion.tokens) == theirs[0, len(request.tokens) :].tolist()
        expected = reference_logprobs(reference, list(request.tokens), completion, 0.0)
        assert np.abs(np.array(completion.logprobs) - expected).max() <= 1e-5


def test_a_stop_token_ends_a_completion_and_is_kept(qwen3):
    batch = requests([6, 11], group=16)
    free = generate(qwen3, batch, Sampling(30, ignore_stop=True, stop_tokens=(3, 50)))
    stopped = generate(qwen3, batch, Sampling(30, stop_tokens=(3, 50)))
    reasons = set()
    for whole, cut in zip(flat(free), flat(stopped), strict=True):
        assert len(whole.tokens) == 30 and whole.finish_reason == "length"
        ends = [index for index, token in enumerate(whole.tokens) if token in (3, 50)]
        length = ends[0] + 1 if ends else 30
        assert cut.tokens == whole.tokens[:length]
        assert len(cut.logprobs) == length
        assert cut.finish_reason == ("stop" if ends else "length")
        reasons.add(cut.finish_reason)
    assert reasons == {"stop", "length"}


def test_a_stop_as_the_last_token_counts_as_stop(qwen3):
    (free,) = generate(qwen3, requests([6], group=1), Sampling(4))
    stop = free[0].tokens[-1]
    assert stop not in free[0].tokens[:-1]
    (cut,) = generate(qwen3, requests([6], group=1), Sampling(4, stop_tokens=(stop,)))
    assert (cut[0].tokens, cut[0].finish_reason) == (free[0].tokens, "stop")


MIXED = Sampling(30, temperature=0.9, top_p=0.95, stop_tokens=tuple(range(8)))
MIXED_LENGTHS = [4, 19, 8, 8, 1, 13, 30]


@pytest.fixture(scope="module")
def alone(qwen3) -> list[Completion]:
    """Every completion of the mixed batch decoded in a call of its own."""
    return [
        generate(qwen3, [Request(request.tokens, [seed])], MIXED)[0][0]
        for request in requests(MIXED_LENGTHS, group=4)
        for seed in request.seeds
    ]


@pytest.mark.parametrize("max_running", [3, 4, 9, 64])
def test_results_do_not_depend_on_what_runs_together(qwen3, alone, max_running):
    """Waves, refills, dropped rows, groups cut in pieces: the same completions."""
    batch = requests(MIXED_LENGTHS, group=4)
    together = flat(generate(qwen3, batch, MIXED, max_running=max_running))
    backwards = flat(generate(qwen3, batch[::-1], MIXED, max_running=max_running)[::-1])
    assert len({len(completion.tokens) for completion in alone}) > 5
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert one.tokens == two.tokens == three.tokens
        assert one.finish_reason == two.finish_reason == three.finish_reason
        assert np.abs(np.array(one.logprobs) - np.array(two.logprobs)).max() <= 1e-5


def test_it_says_how_many_are_done(qwen3):
    """Two of the four groups at a time: with stop tokens as they are drawn, without when all have all their tokens."""
    batch, said = requests([4, 9, 2, 7], group=5), []

    def say(done: int, asked: int) -> None:
        said.append((done, asked))

    generate(qwen3, batch, Sampling(12), max_running=10, say=say)
    assert said[0] == (0, 20) and {done for done, _ in said} == {0, 10}
    said.clear()
    generate(qwen3, batch, MIXED, max_running=10, say=say)
    assert said == sorted(said) and len(set(said)) > 5 and said[-1][1] == 20


def test_at_most_max_running_rows_are_decoded(qwen3, monkeypatch):
    """Counted where the rows pass: prompts in transformers' last layer, steps where they are attended to."""
    prefills, steps = [], []
    attended = StaticCache.attend

    def counted(cache, layer, query, mask, scaling):
        steps.append(len(query))
        return attended(cache, layer, query, mask, scaling)

    monkeypatch.setattr(StaticCache, "attend", counted)
    hook = qwen3.model.norm.register_forward_hook(lambda module, inputs, output: prefills.append(len(output)))
    batch = requests(MIXED_LENGTHS, group=4)
    generate(qwen3, batch, MIXED, max_running=12)
    hook.remove()
    assert max(steps) == 12
    assert sum(prefills) == len(batch)
    assert len(set(steps)) > 2  # rows that have ended are dropped


def test_a_seed_is_a_completion(qwen3):
    (group,) = generate(qwen3, [Request([1, 2, 3], [7, 8, 7, 9])], Sampling(16))
    assert group[0] == group[2]
    assert len({tuple(completion.tokens) for completion in group}) == 3


def test_one_token_and_nothing_to_do(qwen3):
    (group,) = generate(qwen3, [Request([1, 2], [1, 2, 3])], Sampling(1), version=9)
    assert [(len(c.tokens), len(c.logprobs), c.finish_reason, c.weight_version) for c in group] == [
        (1, 1, "length", 9)
    ] * 3
    assert generate(qwen3, [], Sampling(5)) == []
    assert generate(qwen3, [Request([1], [])], Sampling(5)) == [[]]


def test_more_prompt_tokens_than_one_prefill_takes(qwen3, monkeypatch):
    batch = requests([20, 11, 5, 17, 9, 2], group=2)
    expected = generate(qwen3, batch, Sampling(6))
    monkeypatch.setattr("megatron_rl.rollout.embedded.generate._PREFILL_TOKENS", 24)
    for one, two in zip(flat(expected), flat(generate(qwen3, batch, Sampling(6))), strict=True):
        assert one.tokens == two.tokens


@pytest.mark.parametrize("tokens", [[], [1, 101], [-1]])
def test_a_prompt_the_model_cannot_read_is_refused(qwen3, tokens):
    with pytest.raises(InputError, match=r"prompt 1 of the batch.*101"):
        generate(qwen3, [Request([1], [0]), Request(tokens, [1])], Sampling(4))


def test_weights_that_are_not_finite_are_refused(models):
    model = models["qwen2"][0]
    weight = model.model.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
        with pytest.raises(FloatingPointError, match="version 3"):
            generate(model, [Request([1, 2], [0])], Sampling(4), version=3)
        weight.copy_(kept)
