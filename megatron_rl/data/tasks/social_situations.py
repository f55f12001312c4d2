"""Short social situations in Social IQa's form, generated: small enough to learn on a CPU.

Somebody does something that concerns somebody else; a question asks how the one who acted, by name, or the "others"
feel, or what they do next; one of three options is right, another fits the other side, the third another situation. The
targets of the warm start are egocentric on purpose: asked about the others, most of them take the view of the one who
acted. Reinforcement learning has to undo it.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.data.answers.reasoned_choice import LETTERS
from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, choose, generate
from megatron_rl.data.tasks.social_iqa import PARTS, report
from megatron_rl.data.tokenizer import write_word_tokenizer

NAMES = ("Sally", "Anne", "Tom", "Mia", "Leo", "Zoe", "Max", "Ivy", "Ben", "Eva", "Sam", "Amy")
THINGS = ("book", "kite", "lamp", "bike", "coat", "game")
EVENTS = {  # what happens -> of the actor, then of the other: how they feel, what they do next
    "{a} returned the lost {x} to {b}": (("helpful", "leave"), ("grateful", "hug")),
    "{a} broke the {x} of {b}": (("guilty", "apologise"), ("upset", "complain")),
    "{a} gave {b} a new {x}": (("generous", "watch"), ("delighted", "unwrap")),
    "{a} took the {x} of {b} without asking": (("sneaky", "hide"), ("angry", "search")),
    "{a} beat {b} and won the {x}": (("triumphant", "celebrate"), ("disappointed", "practise")),
    "{a} told everybody that {b} was afraid of the {x}": (("cruel", "laugh"), ("ashamed", "cry")),
    "{a} taught {b} how to repair the {x}": (("patient", "explain"), ("curious", "try")),
    "{a} forgot to bring {b} the {x}": (("embarrassed", "return"), ("neglected", "wait")),
}
ROLES = ("actor", "others")
QUESTIONS = ("how would {} feel ?", "what will {} do next ?")
BIAS = 0.7  # targets of questions about the other person that take the actor's view
HELDOUT = 512  # held-out questions
LONGEST_PROMPT = 27  # tokens
LONGEST_COMPLETION = 15  # tokens
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
_FRAME = f"{BOS} User: {{}} . {{}} (A) {{}} (B) {{}} (C) {{}} Assistant: <think>"
_WORDS = {
    word
    for text in (*EVENTS, *QUESTIONS, *(w for roles in EVENTS.values() for role in roles for w in role))
    for word in text.split()
    if "{" not in word
}
VOCABULARY = (
    *(PAD, BOS, EOS, "User:", "Assistant:", "<think>", "</think>", "<answer>", "</answer>", "(A)", "(B)", "(C)"),
    *(".", ",", "asked", "about", "seen", "as", *ROLES),
    *sorted(_WORDS - {"."}),
    *NAMES,
    *THINGS,
)


def is_heldout(actor: str, other: str, event: int) -> bool:
    """A fifth of all (actor, other, event) is kept for evaluation."""
    return (NAMES.index(actor) * 3 + NAMES.index(other) * 2 + event) % 5 == 0


@dataclass(frozen=True)
class Situation:
    """What happened, and a question about it."""

    actor: str
    other: str
    context: str
    asked: int  # about whom: 0 the actor, 1 the other
    kind: int  # 0: how they feel, 1: what they do next
    views: tuple[str, str]  # what is right of the actor, and of the other
    options: list[str]

    @property
    def person(self) -> str:
        return (self.actor, "others")[self.asked]

    @property
    def question(self) -> str:
        return QUESTIONS[self.kind].format(self.person)

    @property
    def right(self) -> str:
        return self.views[self.asked]

    def letter(self, word: str) -> str:
        """The letter of an option."""
        return LETTERS[self.options.index(word)]


def draw_situation(rng: random.Random, heldout: bool) -> Situation:
    """One situation; actor, other and what happens decide whether it is held out."""
    happenings = list(EVENTS)
    while True:
        actor, other = choose(rng, NAMES), choose(rng, NAMES)
        event = int(rng.random() * len(happenings))
        if actor != other and is_heldout(actor, other, event) == heldout:
            break
    asked, kind = int(rng.random() * 2), int(rng.random() * 2)
    views = EVENTS[happenings[event]][0][kind], EVENTS[happenings[event]][1][kind]
    elsewhere = choose(rng, [h for h in range(len(happenings)) if h != event])
    options = [views[asked], views[1 - asked], EVENTS[happenings[elsewhere]][int(rng.random() * 2)][kind]]
    options.sort(key=lambda _: rng.random())
    context = happenings[event].format(a=actor, b=other, x=choose(rng, THINGS))
    return Situation(actor, other, context, asked, kind, views, options)


def make_example(rng: random.Random, split: str, name: str) -> Example:
    """One question of a split, train or heldout."""
    drawn = draw_situation(rng, split == "heldout")
    biased = split == "train" and drawn.asked == 1 and rng.random() < BIAS
    view = 0 if biased else drawn.asked
    said = drawn.views[view]
    thought = f"asked about {drawn.person} , seen as the {ROLES[view]} , {said}"
    cells = (drawn.context, drawn.question, *drawn.options)
    return Example(
        id=name,
        prompt=_FRAME.format(*cells),
        answer=drawn.letter(drawn.right),
        target=f"{thought} </think> <answer> ({drawn.letter(said)}) </answer> {EOS}",
        data_source="social_situations",
        extra=dict(zip(PARTS, cells, strict=True)) | {"about": ROLES[drawn.asked]},
    )


def social_situations(seed: int, limit: int = 0) -> GeneratedTask:
    """Situations without end for training (or the first ``limit``), ``HELDOUT`` for evaluation."""
    return generate(make_example, seed, limit, HELDOUT, report)


def make_social_situations(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """The task of deep_enlighten.tiny; ``tokenizer`` is not needed, prompts have at most ``LONGEST_PROMPT`` tokens."""
    return social_situations(seed, config.limit)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    return check_prompts(config, LONGEST_PROMPT)


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
