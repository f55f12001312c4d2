"""Sally-Anne stories (Wimmer and Perner 1983; Baron-Cohen et al. 1985), generated: small enough to learn on a CPU.

Somebody puts an object somewhere; while they stay, leave or peek, somebody else moves it; a question asks where it is,
where it was, or what one of them believes. Completions have the four stages of social information processing (SIP).
The targets of the warm start carry the classic error on purpose: most of them take the other's belief to be the truth.
Reinforcement learning has to undo it.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.data.answers.think_answer import answer_matches, parse
from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, choose, generate, weighted
from megatron_rl.data.tokenizer import write_word_tokenizer

NAMES = ("Sally", "Anne", "Tom", "Mia", "Leo", "Zoe", "Max", "Ivy", "Ben", "Eva", "Sam", "Amy")
OBJECTS = ("ball", "cup", "book", "key", "apple", "hat", "coin", "toy")
PLACES = ("box", "basket", "drawer", "shelf", "bag", "jar", "chest", "tray")
EVENTS = {"stay": 0.12, "back": 0.08, "leave": 0.50, "peek": 0.30}  # what the owner does around the move
QUESTIONS = {"first": 0.38, "second": 0.46, "real": 0.08, "memory": 0.08}  # belief, belief about a belief, facts
EVENT_WORD = {"stay": "stayed", "back": "returned", "leave": "left", "peek": "peeked"}
RETURN = 0.5  # the owner comes back at the end, after leave and peek
DISTRACTOR = 0.5  # a third person does something that does not matter
BIAS = 0.75  # targets of false-belief questions that say "saw" and name the wrong place
HELDOUT = 512  # held-out questions
LONGEST_PROMPT = 38  # tokens
LONGEST_COMPLETION = 44  # tokens

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
STAGES = re.compile(
    r"<think> Cue Encoding : (?P<cue>.*?) \. Cue Interpretation : (?P<belief>.*?) \. Goal Clarification : (?P<goal>.*?)"
    r" \. Response Generation : (?P<response>.*?) \. </think> <Answer> (?P<answer>.*?) </Answer>"
)
WORDS = (
    f"{PAD} {BOS} {EOS} <sep> <think> </think> <Answer> </Answer> "
    "puts the in . moves to stays leaves returns peeks where will look ? does think is now was first "
    "Cue Encoding : , stayed returned left peeked Interpretation saw missed it thinks believes "
    "Goal Clarification looks says Response Generation say"
).split()
VOCABULARY = (*WORDS, *NAMES, *OBJECTS, *PLACES)


@dataclass(frozen=True)
class Story:
    """Everything that one story and its question depend on."""

    owner: str  # puts the object in ``start``
    mover: str  # moves it to ``end``
    object: str
    start: str
    end: str
    event: str  # stay | back | leave | peek
    sentences: tuple[str, ...]
    kind: str  # first | second | real | memory

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    @property
    def question(self) -> str:
        return {
            "first": f"where will {self.owner} look ?",
            "second": f"where does {self.mover} think {self.owner} will look ?",
            "real": f"where is the {self.object} now ?",
            "memory": f"where was the {self.object} first ?",
        }[self.kind]

    @property
    def answer(self) -> str:
        """The mover knows that the owner left, not that the owner peeked."""
        missed = {"first": ("leave",), "second": ("leave", "peek"), "real": (), "memory": tuple(EVENTS)}
        return self.start if self.event in missed[self.kind] else self.end

    @property
    def false_belief(self) -> bool:
        """The answer is a belief that differs from the truth."""
        return self.kind in ("first", "second") and self.answer == self.start

    def stages(self, place: str) -> dict[str, str]:
        """The four stages and the answer of a completion that settles on ``place``."""
        seen = "saw" if place == self.end else "missed"
        belief = f"{self.owner} {seen} it , thinks {place}"
        interpretation, goal = {
            "first": (belief, f"where {self.owner} looks"),
            "second": (f"{self.mover} believes {belief}", f"where {self.mover} says {self.owner} looks"),
            "real": (f"it is in {place}", "where it is"),
            "memory": (f"it was in {place}", "where it was"),
        }[self.kind]
        return {
            "cue": f"{self.object} {self.start} to {self.end} , {self.owner} {EVENT_WORD[self.event]}",
            "belief": interpretation,
            "goal": goal,
            "response": f"say {place}",
            "answer": place,
        }

    def completion(self, place: str) -> str:
        """The completion in SIP form that settles on ``place``."""
        s = self.stages(place)
        return (
            f"<think> Cue Encoding : {s['cue']} . Cue Interpretation : {s['belief']} . "
            f"Goal Clarification : {s['goal']} . Response Generation : {s['response']} . </think> "
            f"<Answer> {s['answer']} </Answer> {EOS}"
        )


def draw_story(rng: random.Random, heldout: bool) -> Story:
    """One story. Owner, object and first place decide whether it is held out, so no held-out triple is trained on."""
    while True:
        owner, thing, start = choose(rng, NAMES), choose(rng, OBJECTS), choose(rng, PLACES)
        if is_heldout(owner, thing, start) == heldout:
            break
    mover = choose(rng, [n for n in NAMES if n != owner])
    third = choose(rng, [n for n in NAMES if n not in (owner, mover)])
    end = choose(rng, [p for p in PLACES if p != start])
    event = weighted(rng, EVENTS)
    before = {
        "stay": [f"{owner} stays ."],
        "back": [f"{owner} leaves .", f"{owner} returns ."],
        "leave": [f"{owner} leaves ."],
        "peek": [f"{owner} leaves .", f"{owner} peeks ."],
    }[event]
    events = [*before, f"{mover} moves the {thing} to the {end} ."]
    if event in ("leave", "peek") and rng.random() < RETURN:
        events.append(f"{owner} returns .")
    if rng.random() < DISTRACTOR:
        slot = int(rng.random() * (len(events) + 1))
        events.insert(slot, f"{third} {choose(rng, ('stays', 'leaves', 'peeks'))} .")
    sentences = (f"{owner} puts the {thing} in the {start} .", *events)
    return Story(owner, mover, thing, start, end, event, sentences, weighted(rng, QUESTIONS))


def is_heldout(owner: str, thing: str, start: str) -> bool:
    """A fifth of all (owner, object, first place) is kept for evaluation."""
    return (NAMES.index(owner) * 3 + OBJECTS.index(thing) * 2 + PLACES.index(start)) % 5 == 0


def make_example(rng: random.Random, split: str, name: str) -> Example:
    """One question of a split, train or heldout."""
    story = draw_story(rng, heldout=split == "heldout")
    biased = split == "train" and story.false_belief and rng.random() < BIAS
    return Example(
        id=name,
        prompt=f"{BOS} {story.text} {story.question} <sep>",
        answer=story.answer,
        target=story.completion(story.end if biased else story.answer),
        data_source="false_belief",
        extra={
            "story": story.text,
            "question": story.question,
            "kind": story.kind,
            "event": story.event,
            "false_belief": story.false_belief,
            "stages": story.stages(story.answer),
        },
    )


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the right place, in the right format; ``format``; ``faithful``: right, and cue, belief, goal and
    response stages all say what the story implies; ``false_belief_correct``: on false-belief items only."""
    text, _, parts = parse(sample.prompt, sample.response)
    stages = STAGES.fullmatch(text)
    found = {
        "correct": float(answer_matches(parts, sample.answer)),
        "format": float(parts is not None),
        "faithful": float(stages is not None and stages.groupdict() == sample.extra["stages"]),
    }
    if sample.extra["false_belief"]:
        found["false_belief_correct"] = found["correct"]
    return found


def false_belief(seed: int, limit: int = 0) -> GeneratedTask:
    """Stories without end for training (or the first ``limit``), ``HELDOUT`` for evaluation."""
    return generate(make_example, seed, limit, HELDOUT, report)


def make_false_belief(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """The task of the quick start; ``tokenizer`` is not needed, prompts have at most ``LONGEST_PROMPT`` tokens."""
    return false_belief(seed, config.limit)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    return check_prompts(config, LONGEST_PROMPT)


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
