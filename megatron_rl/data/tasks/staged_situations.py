"""The situations of ``social_situations`` in Social-R1's form (arXiv 2603.09249): four stages of reasoning, a letter.

The targets of the warm start have the faults that Social-R1 sets out to mend, each now and then: they take the view of
the one who acted, settle on an answer before they look at the story, take no cue from it, or leave a stage out, by
which the reasoning becomes too short, too.
"""

import random
from pathlib import Path
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example
from megatron_rl.data.tasks import multiple_choice
from megatron_rl.data.tasks import social_situations as situations
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, generate
from megatron_rl.data.tasks.social_situations import BOS, EOS, PAD, Situation
from megatron_rl.data.tokenizer import write_word_tokenizer

EGOCENTRIC = 0.5  # share of the targets of questions about the other person that take the actor's view
ANSWER_FIRST = 0.3  # shares of all targets: the answer stands before the cues
VAGUE = 0.4  # no cue is the story's
SHORT = 0.4  # one of the two middle stages is missing
HELDOUT = 512  # held-out questions
LONGEST_PROMPT = 28  # tokens
LONGEST_COMPLETION = 103  # tokens
_FRAME = f"{BOS} Story: {{}} . Question: {{}} Options: {{}} (A) {{}} (B) {{}} (C) <sep>"
_VAGUE = "somebody did something that concerns somebody else"
_STAGES = (
    "Cue Encoding : the story mentions that {cue} .",
    "Cue Interpretation : {actor} is the one who acted , and {other} is the one whom it concerns . this suggests that "
    "{actor} {will} {one} ({first}) , while {other} {will} {another} ({second}) .",
    "Goal Clarification : the question asks about {person} , so it wants the point of view of {whose} and nobody "
    "else .",
    "Response Generation : {whose} {will} {said} ({letter}) , therefore the answer is ({letter}) and none of the "
    "others .",
)
VOCABULARY = tuple(
    dict.fromkeys(
        [
            *(PAD, BOS, EOS, "<sep>", "<think>", "</think>", "<Answer>", "</Answer>", *"ABC", "(A)", "(B)", "(C)"),
            *(w for text in (_FRAME, _VAGUE, *_STAGES) for w in text.split() if "{" not in w and "(" not in w),
            *("feels", "will", *(word for word in situations.VOCABULARY if word[0] not in "<(")),
        ]
    )
)


def reasoning(drawn: Situation, view: int, faults: tuple[bool, bool, int]) -> str:
    """A completion that takes the view of the actor (0) or of the other (1), without the end token.

    ``faults``: the answer stands first; the cue is not the story's; the stage that is left out, 1 or 2 (0: none).
    """
    answer_first, vague, without = faults
    said = drawn.views[view]
    cells = {
        "cue": _VAGUE if vague else drawn.context,
        "actor": drawn.actor,
        "other": drawn.other,
        "will": ("feels", "will")[drawn.kind],
        "one": drawn.views[0],
        "another": drawn.views[1],
        "first": drawn.letter(drawn.views[0]),
        "second": drawn.letter(drawn.views[1]),
        "person": drawn.person,
        "whose": (drawn.actor, drawn.other)[view],
        "said": said,
        "letter": drawn.letter(said),
    }
    stages = [stage.format(**cells) for number, stage in enumerate(_STAGES) if not number or number != without]
    before = [f"the answer is ({cells['letter']}) ."] if answer_first else []
    return f"<think> {' '.join(before + stages)} </think> <Answer> {cells['letter']} </Answer>"


def make_example(rng: random.Random, split: str, name: str) -> Example:
    """One question of a split, train or heldout."""
    drawn = situations.draw_situation(rng, split == "heldout")
    chances = [rng.random() for _ in range(5)]
    view, faults = drawn.asked, (False, False, 0)
    if split == "train":
        view = 0 if chances[0] < EGOCENTRIC else view
        without = (1 if chances[4] < 0.5 else 2) if chances[3] < SHORT else 0
        faults = (chances[1] < ANSWER_FIRST, chances[2] < VAGUE, without)
    return Example(
        id=name,
        prompt=_FRAME.format(drawn.context, drawn.question, *drawn.options),
        answer=drawn.letter(drawn.right),
        target=f"{reasoning(drawn, view, faults)} {EOS}",
        data_source="staged_situations",
        extra={"story": f"{drawn.context} .", "question": drawn.question, "options": drawn.options}
        | {"about": situations.ROLES[drawn.asked]},
    )


def make_staged_situations(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """Situations without end for training (or the first data.limit), ``HELDOUT`` for evaluation; needs no tokenizer."""
    return generate(make_example, seed, config.limit, HELDOUT, multiple_choice.report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    return check_prompts(config, LONGEST_PROMPT)


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
