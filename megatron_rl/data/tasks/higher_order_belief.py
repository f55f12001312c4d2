"""Beliefs about beliefs, up to the fourth order, with agents who lie: stories in the manner of Hi-ToM (He et al. 2023,
arXiv 2310.16755), generated.

Five agents are in a room; one after the other moves the object or does not, and leaves. Then some tell others a false
place, in private or to all. Who was there decides who knows what. A claim is believed by hearers who left before the
speaker did, as the order of leaving is known to all, and does not change what the speaker believes. As in Hi-ToM's
answers, only the speaker draws conclusions from it, and takes it to be believed by all who hear it; what third parties
think about others stays, in public too. Held-out questions are a suite: as many of each order, and ``report`` says how
many are right by order and where somebody lied.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.data.answers.think_answer import answer_matches, parse
from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tasks.false_belief import BOS, EOS, NAMES, OBJECTS, PAD, PLACES
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, choose, generate
from megatron_rl.data.tokenizer import write_word_tokenizer

ORDERS = 5  # questions are of order 0 to 4
AGENTS = 5
MOVES = 0.6  # agents that move the object before they leave
DECEPTION = 0.5  # stories with claims, one or two
PUBLIC = 0.4  # of those, claims that all hear
HELDOUT = 500  # held-out questions, a fifth of each order
LONGEST_PROMPT = 116  # tokens
LONGEST_COMPLETION = 21  # tokens
WORDS = (
    f"{PAD} {BOS} {EOS} <sep> <think> </think> <Answer> </Answer> . , ? : and are in the room is moves to leaves stays "
    "tells privately publicly claims that where really does think thinks asked seen told nobody"
).split()
VOCABULARY = (*WORDS, *NAMES, *OBJECTS, *PLACES)


@dataclass(frozen=True)
class Event:
    """Something that happens after the object was put in its first place."""

    kind: str  # move | leave | tell
    agent: str
    place: str = ""  # where the object is moved to, or said to be
    hearers: tuple[str, ...] = ()  # of a claim, without the speaker


def believed(agents: Sequence[str], start: str, events: Sequence[Event], chain: Sequence[str]) -> str:
    """Where the first of a chain thinks that the second thinks … that the object is; of an empty one: where it is.

    A move changes that where all of the chain see it. A claim changes what a hearer thinks who left before the speaker
    did, and what the speaker thinks that any hearer thinks.
    """
    left = [event.agent for event in events if event.kind == "leave"]
    left += [agent for agent in agents if agent not in left]  # those who stay leave last
    present, place = set(agents), start
    for event in events:
        if event.kind == "leave":
            present.discard(event.agent)
        elif event.kind == "move":
            place = event.place if set(chain) <= present else place
        elif chain and chain[-1] in event.hearers:
            trusted = left.index(chain[-1]) < left.index(event.agent)
            if list(chain[:-1]) == [event.agent] or (len(chain) == 1 and trusted):
                place = event.place
    return place


@dataclass(frozen=True)
class Story:
    """Everything that a question depends on."""

    agents: tuple[str, ...]
    object: str
    start: str
    events: tuple[Event, ...]

    @property
    def text(self) -> str:
        *others, last = self.agents
        said = [f"{' , '.join(others)} and {last} are in the room .", f"the {self.object} is in the {self.start} ."]
        return " ".join([*said, *(self._sentence(i) for i in range(len(self.events)))])

    @property
    def deceptive(self) -> bool:
        return any(event.kind == "tell" for event in self.events)

    def _sentence(self, index: int) -> str:
        event = self.events[index]
        if event.kind == "move":
            return f"{event.agent} moves the {self.object} to the {event.place} ."
        if event.kind == "leave":
            moved = index and self.events[index - 1].kind == "move"
            return f"{event.agent} leaves ." if moved else f"{event.agent} stays . {event.agent} leaves ."
        what = f"that the {self.object} is in the {event.place} ."
        if len(event.hearers) > 1:
            return f"{event.agent} publicly claims {what}"
        return f"{event.agent} privately tells {event.hearers[0]} {what}"


def draw_story(rng: random.Random, heldout: bool) -> Story:
    """One story. First agent, object and first place decide whether it is held out."""
    while True:
        first, thing, start = choose(rng, NAMES), choose(rng, OBJECTS), choose(rng, PLACES)
        if is_heldout(first, thing, start) == heldout:
            break
    others = sorted((name for name in NAMES if name != first), key=lambda _: rng.random())
    agents = (first, *others[: AGENTS - 1])
    events: list[Event] = []
    place = start
    for agent in sorted(agents, key=lambda _: rng.random()):
        if rng.random() < MOVES:
            place = choose(rng, [p for p in PLACES if p != place])
            events.append(Event("move", agent, place))
        events.append(Event("leave", agent))
    for _ in range(1 + int(rng.random() * 2) if rng.random() < DECEPTION else 0):
        speaker = choose(rng, agents)
        hearers = [agent for agent in agents if agent != speaker]
        if rng.random() >= PUBLIC:
            hearers = [choose(rng, hearers)]
        held = believed(agents, start, events, [speaker])
        events.append(Event("tell", speaker, choose(rng, [p for p in PLACES if p != held]), tuple(hearers)))
    return Story(agents, thing, start, tuple(events))


def is_heldout(first: str, thing: str, start: str) -> bool:
    """A fifth of all (first agent, object, first place) is kept for evaluation."""
    return (NAMES.index(first) * 3 + OBJECTS.index(thing) * 2 + PLACES.index(start)) % 5 == 0


def question(thing: str, chain: Sequence[str]) -> str:
    """The question of the order len(chain)."""
    if not chain:
        return f"where is the {thing} really ?"
    return " ".join([f"where does {chain[0]} think", *(f"{a} thinks" for a in chain[1:]), f"the {thing} is ?"])


def make_example(rng: random.Random, split: str, name: str) -> Example:
    """One question of a split, train or heldout; of the latter, the orders come in turn."""
    story = draw_story(rng, heldout=split == "heldout")
    order = int(rng.random() * ORDERS)
    if split == "heldout":
        order = int(name.rpartition("/")[2]) % ORDERS
    chain = sorted(story.agents, key=lambda _: rng.random())[:order]
    seen = believed(story.agents, story.start, [e for e in story.events if e.kind != "tell"], chain)
    answer = believed(story.agents, story.start, story.events, chain)
    told = answer if answer != seen else "nobody"
    return Example(
        id=name,
        prompt=f"{BOS} {story.text} {question(story.object, chain)} <sep>",
        answer=answer,
        target=f"<think> asked : {' '.join(chain)} . seen : {seen} . told : {told} . </think> "
        f"<Answer> {answer} </Answer> {EOS}".replace(" :  .", " : ."),
        data_source="higher_order_belief",
        extra={
            "story": story.text,
            "question": question(story.object, chain),
            "order": order,
            "deception": story.deceptive,
        },
    )


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the right place, in the right format; ``format``; ``correct_order_N`` for the question's order;
    ``correct_deception``: where somebody lied."""
    parts = parse(sample.prompt, sample.response).parts
    correct = float(answer_matches(parts, sample.answer))
    found = {"correct": correct, "format": float(parts is not None), f"correct_order_{sample.extra['order']}": correct}
    return found | ({"correct_deception": correct} if sample.extra["deception"] else {})


def higher_order_belief(seed: int, limit: int = 0) -> GeneratedTask:
    """Stories without end for training (or the first ``limit``), ``HELDOUT`` for evaluation."""
    return generate(make_example, seed, limit, HELDOUT, report)


def make_higher_order_belief(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """The task; ``tokenizer`` is not needed, prompts have at most ``LONGEST_PROMPT`` words."""
    return higher_order_belief(seed, config.limit)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    return check_prompts(config, LONGEST_PROMPT)


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
