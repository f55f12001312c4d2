"""Social information processing in the reasoning, scored by rules.

The stages are those of Crick & Dodge (1994) that Social-R1 (arXiv 2603.09249) keeps: cue encoding, cue
interpretation, goal clarification, response generation. Social-R1 scores them with a language model as judge
and a learnt reward model; these rules need neither and keep the scale of both.
"""

import re
from functools import lru_cache

from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score

STAGES = 4
LONGEST = 1 << 16  # characters of a reasoning that are looked at, about 16,000 tokens
MIN_CHARACTERS = 20  # of content that make a heading a stage
NAMES = ("cue encoding", "cue interpretation", "goal clarification", "response generation")
CUES = (  # what a stage says when the text has no headings
    ("the story says", "mentions", "notice", "observed", "cue"),
    ("this suggests", "implies", "because", "believes", "feels", "knows"),
    ("wants", "goal", "intends", "the question asks", "need to decide"),
    ("therefore", "so the answer", "best option", "conclude"),
)
_TAG = re.compile(
    r"<(?:(encode|encoding|cue_encoding)|(interpret|interpretation|cue_interpretation)"
    r"|(goal|clarify|goal_clarification)|(respond|response|response_generation))>"
)
_NUMBER = re.compile(r"^[ \t#*(]*(?:step |stage )?([1-4]) ?[.):](?!\d)", re.MULTILINE)
_COMMITMENTS = ("nswer is", "ption")  # "the answer is (B)", "Option B"
_OPTION_LETTER = re.compile(r"[\s:*]*\(?[A-H]\b")
_EDGE = " \t\n:;.,*#-"  # between a heading and its content
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")
_ASCII_LOWER = {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_LOWER_OR_SPACE = {c: chr(c).lower() if chr(c).isalnum() else " " for c in range(128)}
_FUNCTION_WORDS = (
    "a about after again all also am an and any are as at be because been before being both but by can could did do "
    "does doing done down during each even ever few for from further get gets got had has have having he her here "
    "hers herself him himself his how however i if in into is it its itself just ll may me might more most must my "
    "no nor not now of off on once one only or other our out over own re s same she should so some such t than that "
    "the their them then there these they this those though through to too two under until up upon us ve very was "
    "we were what when where whether which while who whom whose why will with would yet you your "
    "answer cue cues encoding information mentions notice observed says story text"
)
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


Stage = tuple[int, int, int]
"""Where the heading starts, where the content starts and where it ends, in characters."""


def find_stages(text: str, min_characters: int = MIN_CHARACTERS) -> list[Stage | None]:
    """The four stages of a reasoning, each at its first occurrence; None where one is missing or nearly empty.

    Headings by name or tag (``Cue Encoding``, ``<encode>``) come first; without any, numbered lines
    (``1.``) when there are two or more; without these, the phrases of ``CUES``.
    """
    lower = _lower(text[:LONGEST])
    found = _named(lower)
    if not found:
        found = _numbered(lower)
        if len(found) < 2:
            found = _cued(lower)
    stages: list[Stage | None] = [None] * STAGES
    end = len(lower)
    tagged = "</" in lower
    for start, content, stage in sorted(found, reverse=True):
        closing = lower.find("</", content, end) if tagged else -1
        stop = end if closing < 0 else closing
        if len(lower[content:stop].strip(_EDGE)) >= min_characters:
            stages[stage] = (start, content, stop)
        end = start
    return stages


def structure(text: str, stages: list[Stage | None]) -> Score:
    """S = coverage / 2 + order / 2, halved when an answer is committed to before the cues are interpreted.

    ``order`` is the share of the three neighbouring pairs of stages that are both there and in order.
    Where stage 2 is missing, the first later stage stands for it.
    """
    first, second, third, fourth = starts = [stage[0] if stage else -1 for stage in stages]
    coverage = (STAGES - starts.count(-1)) / STAGES
    order = ((0 <= first < second) + (0 <= second < third) + (0 <= third < fourth)) / (STAGES - 1)
    later = [start for start in starts[1:] if start >= 0]
    answer_first = _commits(text, later[0] if later else min(len(text), LONGEST))
    score = (coverage + order) / 2
    return {
        "score": score / 2 if answer_first else score,
        "coverage": coverage,
        "order": order,
        "answer_first": float(answer_first),
    }


def grounded(text: str, stages: list[Stage | None], story: str) -> float:
    """Share of the distinct content words of cue encoding that occur in the story; 0 without any."""
    encoding = stages[0]
    if encoding is None:
        return 0.0
    content = _words(text[encoding[1] : encoding[2]]) - STOP_WORDS
    return len(content & _story_words(story)) / len(content) if content else 0.0


def story_of(sample: Sample) -> str:
    """The text that cues come from: ``extra["story"]``, or else the prompt."""
    return sample.extra.get("story", sample.prompt)


def sip_structure(sample: Sample, min_characters: int = MIN_CHARACTERS) -> Score:
    """S in [0, 1]; components ``coverage``, ``order`` and ``answer_first``."""
    text = parse(sample.prompt, sample.response).think
    return structure(text, find_stages(text, min_characters))


def sip_content(sample: Sample, min_characters: int = MIN_CHARACTERS) -> Score:
    """C = 4 g - 2 in [-2, 2], the scale of a reward model; component ``grounded`` is g."""
    text = parse(sample.prompt, sample.response).think
    share = grounded(text, find_stages(text, min_characters), story_of(sample))
    return {"score": 4 * share - 2, "grounded": share}


Hit = tuple[int, int, int]
"""Start of a heading, start of its content, stage."""


def _named(lower: str) -> list[Hit]:
    found = [(at, at + len(name), stage) for stage, name in enumerate(NAMES) if (at := lower.find(name)) >= 0]
    if "<" in lower:
        found += [(tag.start(), tag.end(), (tag.lastindex or 0) - 1) for tag in _TAG.finditer(lower)]
        found = _first(found)
    return found


def _numbered(lower: str) -> list[Hit]:
    return _first([(line.start(), line.end(), int(line[1]) - 1) for line in _NUMBER.finditer(lower)])


def _first(found: list[Hit]) -> list[Hit]:
    """The first hit of every stage."""
    return list({hit[2]: hit for hit in sorted(found, reverse=True)}.values())


def _cued(lower: str) -> list[Hit]:
    spaced = " " + lower.replace("\n", " ")  # a cue starts a word; one space in front: a hit's index is the cue's
    found = []
    for stage, cues in enumerate(CUES):
        hits = [at for cue in cues if (at := spaced.find(" " + cue)) >= 0]
        if hits:
            found.append((min(hits), min(hits), stage))
    return found


def _commits(text: str, end: int) -> bool:
    """Whether an option is named as the answer in ``text[:end]``."""
    for phrase in _COMMITMENTS:
        at = text.find(phrase, 0, end)
        while at >= 0:
            if _OPTION_LETTER.match(text, at + len(phrase), end):
                return True
            at = text.find(phrase, at + 1, end)
    return False


def _lower(text: str) -> str:
    """ASCII letters in lower case: unlike ``str.lower`` it never changes the length."""
    return text.lower() if text.isascii() else text.translate(_ASCII_LOWER)


def _words(text: str) -> set[str]:
    """Distinct words in lower case; a Chinese character is a word."""
    if text.isascii():
        return set(text.translate(_LOWER_OR_SPACE).split())
    return set(_WORD.findall(text.lower()))


@lru_cache(maxsize=256)  # a group's completions share their story
def _story_words(story: str) -> set[str]:
    return _words(story)
