"""One real SGLang server behind the engine protocol: what it generates, how it is swapped, what it refuses."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from megatron_rl.errors import InputError, SwapError
from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.pool import SGLangEngines
from tests.actor.models import CONFIGS
from tests.conftest import PATIENCE
from tests.sglang.conftest import ServedTrainer, configuration

VOCABULARY = CONFIGS["qwen3"].vocab_size
REQUESTS = [Request([7, 8, 9], [1, 2, 3]), Request([4] * 11, [4, 5]), Request([1, 2], [7])]
GREEDY = Sampling(16, temperature=0.0, ignore_stop=True)
EXACT = 2e-5  # nats

Models = Callable[[str], tuple[Path, PreTrainedModel]]


def changed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The same architecture with other weights."""
    torch.manual_seed(seed)
    other = type(model)(model.config).eval()
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(torch.randn_like(p) * 0.1 + (1.0 if "norm" in name else 0.0))
    return other


def logprobs(model: PreTrainedModel, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    """transformers' log-probs of the tokens after the prompt."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def gap(
    model: PreTrainedModel, requests: list[Request], groups: list[list[Completion]], temperature: float = 1
) -> float:
    return max(
        float((logprobs(model, list(r.tokens), c.tokens, temperature) - torch.tensor(c.logprobs)).abs().max())
        for r, group in zip(requests, groups, strict=True)
        for c in group
    )


@pytest.fixture
def served(dense: SGLangEngines, trainer: ServedTrainer, model_folder: Models) -> SGLangEngines:
    """Attached, with the model's weights as version 1."""
    trainer.load(model_folder("qwen3")[1])
    trainer.attach(dense)
    trainer.swap(dense, 1)
    return dense


def test_serves_nothing_before_a_swap_and_exactly_the_weights_after_it(
    dense: SGLangEngines, trainer: ServedTrainer, model_folder: Models
) -> None:
    _, model = model_folder("qwen3")
    trainer.load(model)
    trainer.attach(dense)
    assert dense.health()["engines"][0]["weight_version"] == -1
    with pytest.raises(SwapError, match="no complete swap"):
        dense.generate(REQUESTS, GREEDY)
    for version, weights in ((3, model), (4, changed(model, 1))):
        trainer.load(weights)
        trainer.swap(dense, version)
        groups = dense.generate(REQUESTS, GREEDY)
        expected = generate(weights, REQUESTS, GREEDY)
        assert [[c.tokens for c in g] for g in groups] == [[c.tokens for c in g] for g in expected]
        assert gap(weights, REQUESTS, groups) < EXACT
        assert {c.versions for g in groups for c in g} == {((version, 16),)}


def test_sampling_parameters(served: SGLangEngines, model_folder: Models) -> None:
    _, model = model_folder("qwen3")
    warm = Sampling(12, temperature=0.7, ignore_stop=True)
    groups = served.generate(REQUESTS, warm)
    assert [len(g) for g in groups] == [3, 2, 1]
    assert all(len(c.tokens) == 12 and c.finish_reason == "length" for g in groups for c in g)
    assert gap(model, REQUESTS, groups, 0.7) < EXACT
    few = served.generate([Request([7, 8, 9], list(range(24)))], Sampling(1, temperature=1.0, top_k=3))[0]
    best = model(torch.tensor([[7, 8, 9]])).logits[0, -1].topk(3).indices.tolist()
    assert {c.tokens[0] for c in few} <= set(best)
    # log-probs are those of the whole distribution
    assert gap(model, [Request([7, 8, 9], list(range(24)))], [few]) < EXACT
    first = generate(model, REQUESTS[:1], GREEDY)[0][0].tokens
    stop = Sampling(16, temperature=0.0, stop_tokens=(first[5],))
    ended = served.generate(REQUESTS[:1], stop)[0][0]
    assert ended.tokens == first[: first.index(first[5]) + 1] and ended.finish_reason == "stop"


def generate_once_asked(
    engine: SGLangEngines, completions: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, object], float], Awaitable[dict[str, object]]]:
    """The server's ``generate``, of which none is answered before so many completions have been asked for."""
    (replica,) = engine.replicas
    generate_there = replica.server.generate

    async def held(body: dict[str, object], seconds: float) -> dict[str, object]:
        while engine.progress()[1] < completions:
            await asyncio.sleep(1e-3)
        return await generate_there(body, seconds)

    monkeypatch.setattr(replica.server, "generate", held)
    return held


def test_requests_awaited_one_by_one(served: SGLangEngines, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request([i, 5, 9], [i, i + 1]) for i in range(24)]
    count, seen = served._count, list[tuple[int, int]]()

    def counted() -> None:
        count()
        seen.append(served.progress())

    async def complete() -> list[list[Completion]]:
        return await asyncio.gather(*(served.complete(request, GREEDY) for request in requests))

    with monkeypatch.context() as patched:
        generate_once_asked(served, 48, patched)
        patched.setattr(served, "_count", counted)
        assert served.progress() == (0, 0)
        answers = asyncio.run(complete())
    assert seen == [(done, 48) for done in range(1, 49)]
    assert served.progress() == (0, 0)
    assert [[c.tokens for c in group] for group in answers] == [
        [c.tokens for c in group] for group in served.generate(requests, GREEDY)
    ]


def test_the_bound_on_running_requests_holds_for_all_calls_together(
    served: SGLangEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (replica,) = served.replicas
    generate_there, under_way, most = generate_once_asked(served, 120, monkeypatch), set[object](), [0]

    async def counted(body: dict[str, object], seconds: float) -> dict[str, object]:
        under_way.add(body["rid"])
        most[0] = max(most[0], len(under_way))
        try:
            return await generate_there(body, seconds)
        finally:
            under_way.remove(body["rid"])

    monkeypatch.setattr(replica.server, "generate", counted)
    requests = [Request([i, 5, 9], [i]) for i in range(60)]
    threads = [threading.Thread(target=served.generate, args=(requests, GREEDY)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [64]  # twice max_running


def test_a_prompt_that_the_server_refuses_is_an_error_at_once(served: SGLangEngines) -> None:
    with pytest.raises(InputError, match=r"refuses a prompt of 500 tokens with up to 16 more .*answered 400"):
        served.generate([Request([4] * 500, [1])], GREEDY)


def generate_and(disturb: Callable[[], None], served: SGLangEngines) -> tuple[list[Request], list[list[Completion]]]:
    """31 completions of 60 tokens; a short one that was asked for after them has been answered when it is disturbed."""
    requests = [Request([i, 5, 9], [i]) for i in range(31)]

    async def generate() -> list[list[Completion]]:
        long = Sampling(60, temperature=0.0, ignore_stop=True)
        groups = asyncio.gather(*(served.complete(request, long) for request in requests))
        await served.complete(Request([31, 5, 9], [31]), Sampling(8, temperature=0.0, ignore_stop=True))
        await asyncio.to_thread(disturb)
        return await groups

    return requests, asyncio.run(generate())


def test_completions_under_way_are_swapped_in_flight(
    served: SGLangEngines, trainer: ServedTrainer, model_folder: Models
) -> None:
    _, model = model_folder("qwen3")
    other = changed(model, 7)

    trainer.load(other)  # the engine has its own
    requests, groups = generate_and(lambda: trainer.swap(served, 2), served)
    mixed = [c for g in groups for c in g if len(c.versions) == 2]
    assert mixed and all([v for v, _ in c.versions] == [1, 2] for c in mixed)
    for request, group in zip(requests, groups, strict=True):
        for c in group:
            assert sum(n for _, n in c.versions) == len(c.tokens) == 60
            at = 0
            for version, count in c.versions:  # each token by the weights that drew it, over the whole text before it
                weights = {1: model, 2: other}[version]
                theirs = logprobs(weights, list(request.tokens), c.tokens)[at : at + count]
                assert float((theirs - torch.tensor(c.logprobs[at : at + count])).abs().max()) < EXACT
                at += count


def test_what_a_server_gives_up_goes_on_where_it_was(served: SGLangEngines, model_folder: Models) -> None:
    _, model = model_folder("qwen3")
    (replica,) = served.replicas

    def abort() -> None:
        served._do(replica.server.call("POST", "/abort_request", {"rid": "", "abort_all": True}, seconds=PATIENCE))

    requests, groups = generate_and(abort, served)
    log = Path(replica.process.log).read_text() if replica.process else ""
    assert "abort" in log.lower()
    assert {(len(c.tokens), c.versions, c.finish_reason) for g in groups for c in g} == {(60, ((1, 60),), "length")}
    assert gap(model, requests, groups) < EXACT


def test_what_is_not_proved_is_not_served(served: SGLangEngines, trainer: ServedTrainer, model_folder: Models) -> None:
    _, model = model_folder("qwen3")
    hashes = trainer.hashes()
    wrong = hashes.copy()
    wrong[7] ^= np.uint64(1)
    served.begin_swap(5)
    name = trainer.plan.copies[7].tensors[0]
    with pytest.raises(SwapError, match=name.replace(".", r"\.")):
        served.finish_swap(5, wrong)
    state = served.health()["engines"][0]
    assert state["weight_version"] == -1 and name in state["poisoned"]
    with pytest.raises(SwapError, match=name.replace(".", r"\.")):
        served.generate(REQUESTS, GREEDY)
    served.begin_swap(6)
    served.finish_swap(6, hashes)
    assert gap(model, REQUESTS, served.generate(REQUESTS, GREEDY)) < EXACT


def test_memory_that_was_given_back_comes_back_with_the_next_swap(
    served: SGLangEngines, trainer: ServedTrainer, model_folder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.options, "colocated", True)
    served.release()
    with pytest.raises(SwapError, match="gave back their memory"):
        served.generate(REQUESTS, GREEDY)
    trainer.swap(served, 2)
    groups = served.generate(REQUESTS, GREEDY)
    assert gap(model_folder("qwen3")[1], REQUESTS, groups) < EXACT
    assert {c.versions for g in groups for c in g} == {((2, 16),)}


def test_memory_is_taken_back_once_by_a_swap_that_is_tried_again(
    served: SGLangEngines, trainer: ServedTrainer, model_folder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.options, "colocated", True)
    (replica,) = served.replicas
    restarted = replica.restarted
    served.release()
    assert replica.released == {"weights", "kv_cache"}
    served.begin_swap(2)
    with pytest.raises(SwapError, match="did not arrive"):
        served.finish_swap(2, trainer.hashes() ^ np.uint64(1))
    assert replica.released == {"kv_cache"}
    trainer.swap(served, 3)
    assert not replica.released and replica.restarted == restarted  # asked twice, SGLang 0.5.21 ends
    groups = served.generate(REQUESTS, GREEDY)
    assert gap(model_folder("qwen3")[1], REQUESTS, groups) < EXACT
    served.release()
    served._do(replica.restart("a test"))
    assert not replica.released
    trainer.swap(served, 4)
    assert {c.versions for g in served.generate(REQUESTS, GREEDY) for c in g} == {((4, 16),)}


@pytest.mark.parametrize("way", ["tensor", "distributed", "disk"])
def test_sglangs_own_ways_are_proved_too(
    way: str, served: SGLangEngines, trainer: ServedTrainer, model_folder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.options, "swap", way)
    weights = changed(model_folder("qwen3")[1], 11)
    trainer.load(weights)
    trainer.attach(served)
    trainer.swap(served, 8)
    groups = served.generate(REQUESTS, GREEDY)
    assert gap(weights, REQUESTS, groups) < EXACT
    assert {c.versions for g in groups for c in g} == {((8, 16),)}


def test_a_server_that_dies_at_start_is_an_error_with_its_last_words(
    start: Callable[..., SGLangEngines], trainer: ServedTrainer
) -> None:
    engine = start("qwen3", args={"no-such-option": 1})
    with pytest.raises(InputError, match=r"(?s)sglang0 ended before it was ready.*no-such-option"):
        engine.attach(trainer.source())


@pytest.mark.parametrize(("gpu", "at_once"), [(1, True), (0, False)])
def test_on_a_gpu_of_the_trainer_a_server_starts_when_it_is_attached(
    gpu: int,
    at_once: bool,
    start: Callable[..., SGLangEngines],
    trainer: ServedTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("megatron_rl.rollout.sglang.servers.keeper.engine_gpus", lambda *_: [range(gpu, gpu + 1)])
    engine = start("qwen3", args={"no-such-option": 1})
    (process,) = (replica.process for replica in engine.replicas)
    assert process is not None and process.started == at_once
    with pytest.raises(InputError, match="no-such-option"):
        engine.attach(trainer.source())
    assert process.started


def test_a_running_server_that_cannot_replay_its_routing(
    dense: SGLangEngines, key: bytes, model_folder: Models, tmp_path: Path, trainer: ServedTrainer
) -> None:
    options = configuration(urls=dense.replicas[0].url, routing_replay=True)
    engine = SGLangEngines(options.served(), model_folder("qwen3")[0], key, tmp_path / "logs")
    try:
        with pytest.raises(InputError, match="--enable-return-routed-experts and --disable-radix-cache"):
            engine.attach(trainer.source())
    finally:
        engine.stop()


def test_a_model_that_sglang_refuses(key: bytes, tmp_path: Path, trainer: ServedTrainer) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "unheard_of", "architectures": ["Nothing"]}')
    engine = SGLangEngines(configuration().served(), tmp_path / "model", key, tmp_path / "logs")
    try:
        with pytest.raises(InputError, match=r"(?s)ended before it was ready.*unheard_of"):
            engine.attach(trainer.source())
    finally:
        engine.stop()
    assert engine.replicas[0].process is not None and engine.replicas[0].process.ended
