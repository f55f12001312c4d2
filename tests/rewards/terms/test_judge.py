"""A judge over HTTP, alone and in the workers."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import changed_rubrics, check_rewards, reward_facts
from megatron_rl.rewards.serving import client
from megatron_rl.rewards.serving.judge import KEY, judge_of
from megatron_rl.rewards.terms.judge import judge
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rewards.workers.trial import try_rewards
from tests.conftest import PATIENCE, free_port
from tests.rewards.serving import said, serving

SAMPLE = Sample(
    "Q <think>", "because</think><Answer>A</Answer>", "A", extra={"story": "S {answer}", "options": ["x", "y"]}
)
RUBRIC = '{story}|{options}|{reasoning}|{response}|{answer}|{"n": {not a name}}'


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without long pauses, and with nothing known from another test."""
    monkeypatch.setattr(client, "PAUSE", 0.001)
    judge_of.cache_clear()


@pytest.fixture
def rubric(tmp_path: Path) -> str:
    (tmp_path / "rubric.txt").write_text(RUBRIC)
    return str(tmp_path / "rubric.txt")


def ask(url: str, rubric: str, sample: Sample = SAMPLE, **args: Any) -> dict[str, float]:
    score = asyncio.run(judge(sample, url, "gpt", rubric, **({"timeout": PATIENCE} | args)))
    assert isinstance(score, dict)
    return score


def test_a_judge_is_asked_with_the_rubric(rubric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with serving(lambda body: (200, said("first <Score>1</Score>, no: <Score> 7.5 </Score>"))) as server:
        found = ask(server.url, rubric, low=5, high=10)
        assert found.pop("seconds") > 0
        assert found == {
            **{"score": 0.5, "calls": 1, "cached": 0, "failures": 0, "retries": 0},
            **{"prompt_tokens": 7, "completion_tokens": 3},
        }
        text = '<think>because</think><Answer>A</Answer>|A|{"n": {not a name}}'
        assert server.asked == [
            {
                **{"model": "gpt", "temperature": 0.0, "max_tokens": 1024},
                "messages": [{"role": "user", "content": f"S {{answer}}|A. x\nB. y|because|{text}"}],
            }
        ]
        assert server.keys == ["Bearer secret"] and server.paths == ["/v1/chat/completions"]
        assert ask(f"{server.url}/v1", rubric, low=0, high=10)["score"] == 0.75  # the address as others write it


def test_a_server_that_is_not_well_is_asked_again(rubric: str) -> None:
    replies: list[Any] = [
        (500, b"oh"),
        (429, b"slow", {"Retry-After": "0"}),
        (503, b""),
        (200, said("<Score>1</Score>")),
    ]
    with serving(lambda body: replies.pop(0)) as server:
        found = ask(server.url, rubric, retries=3)
        assert (found["score"], found["retries"], found["failures"]) == (1.0, 3.0, 0.0)
        replies[:] = [(500, b"oh"), (500, b"oh"), (200, said("<Score>1</Score>"))]
        other = Sample("Q", "R", "A", extra={"story": "", "options": ""})
        found = ask(server.url, rubric, other, retries=1, default=0.25)
        assert (found["score"], found["retries"], found["failures"]) == (0.25, 1.0, 1.0) and len(replies) == 1
        replies[:] = [(500, b"oh")]
        with pytest.raises(ConnectionError, match=r"the judge gpt at \S+ gave no answer in 1 calls: status 500: oh"):
            ask(server.url, rubric, other, retries=0)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_asked_again_and_ends_the_run(status: int, rubric: str) -> None:
    with serving(lambda body: (status, b"not this")) as server:
        with pytest.raises(ValueError, match=rf"refuses \(status {status}: not this\); its key is {KEY}'s"):
            ask(server.url, rubric, default=0.0)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"no json", "gave no JSON"),
        ({"choices": []}, "gave no chat completion"),
        (["x"], "gave no chat completion"),
        (said("I like it"), "gave no "),
        (said("<Score>1.2.3</Score>"), "gave the score '1.2.3', which is no number"),
        (said("<Score>1.5</Score>"), "gave the score 1.5; it must be between low=0 and high=1"),
        (said("<Score>-1</Score>"), "gave the score -1; it must"),
        ({"choices": [{"message": {"content": None}}], "usage": None}, "gave no "),
    ],
)
def test_nonsense_is_a_failure(reply: Any, reason: str, rubric: str) -> None:
    with serving(lambda body: (200, reply)) as server:
        found = ask(server.url, rubric, default=0.0)
        assert (found["score"], found["failures"], found["calls"]) == (0.0, 1.0, 1.0)
        with pytest.raises(ValueError, match=f"the judge gpt at {server.url} {reason}"):
            ask(server.url, rubric)
        assert len(server.asked) == 2  # nothing of it is remembered


def test_what_was_said_is_remembered(rubric: str, tmp_path: Path) -> None:
    """In memory; in a folder beyond the worker; not for another rubric, text, model or address."""
    with serving(lambda body: (200, said("<Score>0.3</Score>"))) as server:
        folder = str(tmp_path / "cache")
        assert [ask(server.url, rubric, cache=folder)["cached"] for _ in range(2)] == [0, 1]
        judge_of.cache_clear()  # a new worker
        again = ask(server.url, rubric, cache=folder)
        assert (again["cached"], again["score"], again["calls"]) == (1, 0.3, 0) and len(server.asked) == 1
        judge_of.cache_clear()
        assert ask(server.url, rubric)["cached"] == 0  # another worker without the folder
        other = tmp_path / "other.txt"
        other.write_text(RUBRIC + ".")
        assert ask(server.url, str(other), cache=folder)["cached"] == 0
        assert ask(server.url, rubric, Sample("Q", "R", "A", extra=SAMPLE.extra), cache=folder)["cached"] == 0
        assert ask(server.url, rubric, cache=folder, high=2.0)["score"] == 0.15
        assert len(server.asked) == 5
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert len(files) == 4 and {float(path.read_text()) for path in files} == {0.3, 0.15}
        files[0].write_text("")  # as a machine that lost power leaves it
        judge_of.cache_clear()
        assert ask(server.url, rubric, cache=folder)["score"] == 0.3


def test_it_hangs_in_the_workers(rubric: str) -> None:
    """The calls that are never answered cost their samples the score, and nothing else."""
    over = threading.Event()

    def reply(body: Any) -> Any:
        if "hang" in body["messages"][0]["content"]:
            over.wait()
        return 200, said("<Score>1</Score>")

    with serving(reply) as server:
        args = {"url": server.url, "model": "gpt", "rubric": rubric, "retries": 0}
        args |= {"timeout": 10.0, "default": 0.5}  # as the deadline: which comes first is the machine's
        options = RewardsConfig(
            terms={"judge": 2.0}, args={"judge": args}, deadline=10.0, first_deadline=10.0, concurrency=16, workers=2
        )
        extra = {"story": "s", "options": []}
        drawn = [Sample("Q", "hang" if i in (3, 40) else f"fine {i}", "A", extra=extra) for i in range(60)]
        with RewardPool(options) as pool:
            scored = pool.score(drawn)
        over.set()
    lost = {i for i, s in enumerate(scored) if s.timed_out or s.components["judge/failures"]}
    assert lost == {3, 40}
    assert [s.reward for i, s in enumerate(scored) if i not in lost] == [2.0] * 58


def test_it_is_looked_at_before_a_run(rubric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**args: Any) -> list[str]:
        with serving(lambda body: (200, said("<Score>1</Score>"))) as server:
            given = {"url": server.url, "model": "gpt", "rubric": rubric} | args
            return check_rewards(RewardsConfig(terms={"judge": 1.0}, args={"judge": given}, deadline=20.0))

    assert found() == []
    nobody, empty = f"http://127.0.0.1:{free_port()}", tmp_path / "empty.txt"
    empty.write_text("Is it good?")
    for args, said_of_it in (
        ({"url": nobody}, f"rewards.args.judge: url={nobody}: nobody answers ("),
        ({"url": "localhost:3"}, "url is 'localhost:3'; it must be http://HOST:PORT"),
        ({"rubric": "missing.txt"}, "rubric=missing.txt cannot be read ("),
        ({"rubric": str(empty)}, "names neither {response} nor {reasoning}"),
        ({"pattern": "("}, "pattern is '(', which is no regular expression"),
        ({"pattern": "[0-9]"}, "it must have one group"),
        ({"low": 1.0}, "low=1.0 must be below high=1.0"),
        ({"key": "NO_SUCH_KEY"}, "key names the environment variable NO_SUCH_KEY, which is not set."),
        ({"timeout": 10.0}, "3 calls of 10 s with their pauses may take 30"),
        ({"timeout": 0.0}, "timeout=0.0 must be above 0"),
        ({"cache": str(empty)}, "is no folder"),
        ({"modle": "gpt"}, "did you mean model?"),
    ):
        (sentence,) = found(**args)
        assert sentence.startswith("rewards.args.judge: ") and said_of_it in sentence


def test_a_rubric_with_a_name_that_no_row_has(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("{response} {topic}")
    with serving(lambda body: (200, said("<Score>1</Score>"))) as server:
        args = {"url": server.url, "model": "gpt", "rubric": str(tmp_path / "rubric.txt")}
        config = RewardsConfig(terms={"judge": 1.0, "format": 1.0}, args={"judge": args})
        (sentence,) = try_rewards(config, SAMPLE)
        assert "names {topic}, which a sample has not; it has answer, data_source, options, prompt, reas" in sentence
        with pytest.raises(InputError, match=r"names \{topic\}"):
            ask(server.url, args["rubric"])
        assert not server.asked


def test_facts_for_the_manifest_hold_no_key(rubric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    args = {"url": "http://host:1", "model": "gpt", "rubric": rubric}
    facts = reward_facts(RewardsConfig(terms={"judge": 1.0, "format": 1.0}, args={"judge": args}))
    assert facts.keys() == {"judge"} and "secret" not in json.dumps(facts)
    (of_judge,) = facts["judge"]
    assert of_judge.items() >= {"judge": "gpt", "url": "http://host:1", "rubric": rubric}.items()
    assert len(of_judge["rubric_hash"]) == 32


def test_places_that_a_sample_does_not_fill_are_found_without_a_judge(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("{response} of {storry}, {plot} and {storry}")
    args = {"url": "http://127.0.0.1:9", "model": "m", "rubric": str(tmp_path / "rubric.txt")}
    config = RewardsConfig(terms={"judge": 1.0}, args={"judge": args})
    assert any("nobody answers" in said for said in check_rewards(config))
    (said,) = try_rewards(config, SAMPLE)
    assert "names {storry}, {plot}, which a sample has not; it has answer, data_source," in said


def test_a_rubric_that_changed_is_told_by_its_hash() -> None:
    known = {"judge": [{"judge": "m", "rubric": "r.txt", "rubric_hash": "1"}], "reward_model": [{"reward_model": "u"}]}
    other = {"judge": [{"judge": "m", "rubric": "r.txt", "rubric_hash": "2"}], "reward_model": [{"reward_model": "v"}]}
    assert changed_rubrics(known, known) == changed_rubrics({}, other) == []
    (said,) = changed_rubrics(known, other)
    assert said.startswith("The rubric r.txt of the reward judge changed since the run began: restore it, or")
