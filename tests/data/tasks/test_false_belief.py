"""The generated task: its distribution, its answers against a simulation of beliefs, its bias, its reports."""

import re
from collections import Counter
from math import sqrt

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import make_task
from megatron_rl.data.task import sample_of
from megatron_rl.data.tasks import false_belief as fb

COUNT = 12_000


@pytest.fixture(scope="module")
def task():
    return fb.false_belief(seed=7)


@pytest.fixture(scope="module")
def train(task):
    return task.train[:COUNT]


def triple(example):
    words = example.extra["story"].split()
    return words[0], words[3], words[6]


def simulate(prompt: str) -> str:
    """The answer by following who is in the room, sentence by sentence: independent of the generator's tables."""
    story, question = re.fullmatch(r"<bos> (.*) \. (where .*) \? <sep>", prompt).groups()
    sentences = [s.split() for s in story.split(" . ")]
    present, peeking = {}, {}
    beliefs, seen_by_mover = {}, {}  # what each person believes; what the mover thinks the owner believes
    owner, thing = sentences[0][0], sentences[0][3]
    first = last = sentences[0][6]
    beliefs[owner] = first
    for person, verb, *rest in sentences[1:]:
        if verb == "leaves":
            present[person], peeking[person] = False, False
        elif verb == "peeks":
            peeking[person] = True
        elif verb in ("returns", "stays"):
            present[person] = True
        elif verb == "moves":
            assert rest[1] == thing
            last = rest[4]
            openly_there = present.get(owner, True)
            if openly_there or peeking.get(owner, False):
                beliefs[owner] = last
            seen_by_mover[person] = last if openly_there else first
    words = question.split()
    if words[1] == "will":
        return beliefs[words[2]]
    if words[1] == "does":
        assert words[4] == owner
        return seen_by_mover[words[2]]
    return last if words[-1] == "now" else first


def test_answers_are_those_of_a_simulation_of_beliefs(task, train):
    for example in (*train, *task.heldout):
        assert simulate(example.prompt) == example.answer, example.prompt


def expect(counts: Counter, total: int, shares: dict[str, float]) -> None:
    assert set(counts) == set(shares)
    for name, share in shares.items():
        assert abs(counts[name] / total - share) < 4 * sqrt(share * (1 - share) / total), name


def test_events_and_questions_have_the_stated_frequencies(train):
    expect(Counter(e.extra["event"] for e in train), COUNT, {"stay": 0.12, "back": 0.08, "leave": 0.5, "peek": 0.3})
    kinds = {"first": 0.38, "second": 0.46, "real": 0.08, "memory": 0.08}
    expect(Counter(e.extra["kind"] for e in train), COUNT, kinds)
    assert Counter(e.extra["false_belief"] for e in train)[True] / COUNT == pytest.approx(
        0.38 * 0.5 + 0.46 * 0.8, abs=0.02
    )


def test_returns_and_distractors_come_half_of_the_time(train):
    away = [e for e in train if e.extra["event"] in ("leave", "peek")]
    returned = sum(f"{triple(e)[0]} returns ." in e.extra["story"] for e in away)
    assert returned / len(away) == pytest.approx(0.5, abs=0.03)
    basic = {"stay": 3, "back": 4, "leave": 3, "peek": 4}  # sentences without return and distractor
    third, slots = 0, Counter()
    for e in train:
        sentences = e.extra["story"].split(" . ")
        owner = sentences[0].split()[0]
        others = [i for i, s in enumerate(sentences) if s.split()[0] != owner and "moves" not in s]
        extra = (
            len(sentences)
            - basic[e.extra["event"]]
            - (any(f"{owner} returns" in s for s in sentences[-2:]) and e.extra["event"] in ("leave", "peek"))
        )
        assert len(others) == extra <= 1
        third += extra
        if e.extra["event"] == "stay":
            slots.update(others)
    assert third / COUNT == pytest.approx(0.5, abs=0.02)
    assert set(slots) == {1, 2, 3}  # any slot after the first sentence
    assert min(slots.values()) > 0.8 * max(slots.values())


def test_every_word_is_used_evenly(train):
    for position, words in ((0, fb.NAMES), (1, fb.OBJECTS), (2, fb.PLACES)):
        counts = Counter(triple(e)[position] for e in train)
        assert set(counts) == set(words)
        assert max(counts.values()) < 1.25 * min(counts.values())


def test_held_out_triples_are_never_trained_on(task, train):
    everything = [(s, o, c) for s in fb.NAMES for o in fb.OBJECTS for c in fb.PLACES]
    held_out = {
        t
        for t in everything
        if (fb.NAMES.index(t[0]) * 3 + fb.OBJECTS.index(t[1]) * 2 + fb.PLACES.index(t[2])) % 5 == 0
    }
    assert len(everything) == 768 and len(held_out) in (153, 154)
    assert {triple(e) for e in train} == set(everything) - held_out
    assert {triple(e) for e in task.heldout} <= held_out
    assert len(task.heldout) == 512


def test_lengths_and_vocabulary(task, train, word_tokenizer):
    assert len(fb.VOCABULARY) == len(set(fb.VOCABULARY)) == 77
    assert len(word_tokenizer) == 77
    used = set()
    for example in (*train, *task.heldout):
        prompt, target = example.prompt.split(), example.target.split()
        used |= {*prompt, *target}
        assert len(prompt) <= 38 and len(target) <= 44
    assert set(fb.VOCABULARY) - used == {"<pad>"}
    assert max(len(e.prompt.split()) for e in train) == fb.LONGEST_PROMPT == 38
    assert max(len(e.target.split()) for e in train) == fb.LONGEST_COMPLETION == 44


def test_tokenizer_round_trip(train, word_tokenizer):
    for example in train[:200]:
        for text in (example.prompt, example.target):
            ids = word_tokenizer.encode(text, add_special_tokens=False)
            assert len(ids) == len(text.split())
            assert word_tokenizer.decode(ids) == text
    special = word_tokenizer.bos_token, word_tokenizer.eos_token, word_tokenizer.pad_token
    assert special == ("<bos>", "<eos>", "<pad>")
    assert word_tokenizer.encode("ball", add_special_tokens=False) == [fb.VOCABULARY.index("ball")]


def test_only_false_belief_targets_are_biased_three_times_in_four(task, train):
    right = fb.STAGES.fullmatch
    wrong = Counter()
    for example in train:
        stages = right(example.target.removesuffix(" <eos>")).groupdict()
        told = example.extra["stages"]
        assert stages["cue"] == told["cue"] and stages["goal"] == told["goal"]
        assert stages["response"] == f"say {stages['answer']}"
        biased = stages["answer"] != example.answer
        wrong[example.extra["false_belief"], biased] += 1
        if example.extra["kind"] in ("first", "second"):  # saw or missed always agrees with the place
            saw = stages["answer"] == told["cue"].split()[3]
            assert (" saw it " in stages["belief"]) == saw != (" missed it " in stages["belief"])
    assert wrong[False, True] == 0
    assert wrong[True, True] / (wrong[True, True] + wrong[True, False]) == pytest.approx(0.75, abs=0.02)
    assert all(task.report(sample_of(e, e.target.removesuffix(fb.EOS)))["faithful"] == 1 for e in task.heldout)


def test_an_example_depends_on_seed_split_and_index_alone(task):
    again = fb.false_belief(seed=7)
    assert [again.train[i] for i in (5, 3, 5)] == [task.train[5], task.train[3], task.train[5]]
    assert again.train[2**40] == task.train[2**40]
    assert again.heldout[:20] == task.heldout[:20]
    assert [e.prompt for e in fb.false_belief(seed=8).train[:5]] != [e.prompt for e in task.train[:5]]
    assert again.fingerprint() == task.fingerprint() != fb.false_belief(seed=8).fingerprint()
    assert re.fullmatch("[0-9a-f]{32}", task.fingerprint())
    assert len({e.id for e in (*task.train[:100], *task.heldout)}) == 612


def test_limit_and_index_errors():
    task = make_task(DataConfig(task="false_belief", limit=3), seed=0, tokenizer=None)
    assert len(task.train) == 3 and task.train[-1] == task.train[2]
    with pytest.raises(IndexError, match="example 3 of 3"):
        task.train[3]


STORY = fb.Story("Sally", "Anne", "ball", "box", "basket", "leave", ("…",), "second")
GOOD = (
    "<think> Cue Encoding : ball box to basket , Sally left . Cue Interpretation : Anne believes Sally missed it , "
    "thinks box . Goal Clarification : where Anne says Sally looks . Response Generation : say box . </think> "
    "<Answer> box </Answer>"
)


@pytest.mark.parametrize(
    ("response", "correct", "format", "faithful"),
    [
        (GOOD, 1, 1, 1),
        (GOOD + " <eos>", 0, 0, 0),  # the one that ended it is not part of a response
        (GOOD.replace("Sally left", "Sally stayed"), 1, 1, 0),
        (GOOD.replace("ball box to basket", "ball basket to box"), 1, 1, 0),
        (GOOD.replace("missed it", "saw it"), 1, 1, 0),
        (GOOD.replace("thinks box", "thinks basket"), 1, 1, 0),
        (GOOD.replace("Anne believes ", ""), 1, 1, 0),
        (GOOD.replace("where Anne says Sally looks", "where it is"), 1, 1, 0),
        (GOOD.replace("say box", "say basket"), 1, 1, 0),
        (GOOD.replace("Cue Interpretation : ", ""), 1, 1, 0),
        (GOOD.replace("<Answer> box", "<Answer> basket"), 0, 1, 0),
        (GOOD.replace("</think> ", ""), 0, 0, 0),
        ("box " + GOOD, 0, 0, 0),
        (GOOD + " box", 0, 0, 0),
        ("<think> </think> <Answer> box </Answer>", 1, 1, 0),
        ("", 0, 0, 0),
    ],
)
def test_reports_of_known_responses(task, response, correct, format, faithful):
    assert STORY.completion("box") == GOOD + " <eos>"
    example = fb.Example(
        id="x", prompt="…", answer=STORY.answer, extra={"false_belief": True, "stages": STORY.stages(STORY.answer)}
    )
    assert task.report(sample_of(example, response)) == {
        "correct": correct,
        "format": format,
        "faithful": faithful,
        "false_belief_correct": correct,
    }


def test_false_belief_accuracy_is_reported_for_false_belief_items_only(task):
    for example in task.heldout:
        present = "false_belief_correct" in task.report(sample_of(example, ""))
        believed = example.extra["kind"] in ("first", "second")
        assert present == (believed and example.answer == triple(example)[2])
