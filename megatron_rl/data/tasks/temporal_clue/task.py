"""Temporal Clue: who murdered Mr. Boddy, with what, where, when and why. Puzzles are generated, or rows of files.

A file has a ``prompt``, a ``solution`` (an object of letters with their answers) and mostly ``num_clues``, as the
published ones of OpenPipe (github.com/bradhilton/temporal-clue) and those that ``megatron-rl data generate`` writes.
"""

import contextlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megatron_rl.data.answers.lettered import shares
from megatron_rl.data.config import DataConfig, PuzzlesConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.messages import as_messages, chat_marks, render, short
from megatron_rl.data.rows.parts import Part, Rows, load_parts
from megatron_rl.data.rows.template import make_template
from megatron_rl.data.task import UNBOUNDED, Example, Report, Sample
from megatron_rl.data.tasks.generated import Generated, choose
from megatron_rl.data.tasks.temporal_clue.prompt import (
    BOS,
    END,
    EOS,
    PAD,
    VOCABULARY,
    full_target,
    full_text,
    short_target,
    short_text,
)
from megatron_rl.data.tasks.temporal_clue.puzzle import Puzzle, make_puzzle
from megatron_rl.data.tasks.temporal_clue.sizes import draw_size, problems
from megatron_rl.data.tasks.temporal_clue.solver import require_solver
from megatron_rl.data.tasks.temporal_clue.story import NAMES, WORDS
from megatron_rl.data.tokenizer import ended, write_word_tokenizer
from megatron_rl.errors import InputError

COLUMNS = ("prompt", "solution", "num_clues")
HELDOUT = 256  # held-out puzzles, where none are read from a file
ERROR = 0.75  # of the short training targets take another suspect for the murderer
TRIES = 100  # puzzles that may be too long before it is said that all are
HASHED = 16  # generated puzzles of each kind that the fingerprint looks at: large ones take seconds


def report(sample: Sample, by_source: bool = False) -> dict[str, float]:
    """``correct``: all answers are right; ``partial``: their share; ``format``: every question has an answer.
    ``by_source``: ``correct/NAME``, too, for held-out puzzles of several sources."""
    right, answered = shares(sample.response, sample.answer)
    found = {"correct": float(right == 1), "partial": right, "format": float(answered == 1)}
    return found | ({f"correct/{sample.data_source}": found["correct"]} if by_source else {})


@dataclass(frozen=True)
class Puzzles:
    """The task, of puzzles that are made or read; as ``megatron_rl.data.task.Task``."""

    train: Sequence[Example]
    heldout: Sequence[Example]
    notes: dict[str, int]
    report: Report = report

    def fingerprint(self) -> str:
        """Hash of the examples; of puzzles that are made for training, and of those held out, of the first."""
        digest = xxhash.xxh3_128()
        for examples in (self.train, self.heldout):
            for example in examples[:HASHED] if isinstance(examples, Generated) else examples:
                said = (example.id, example.prompt, example.target, json.dumps(example.answer, sort_keys=True))
                digest.update("\n".join((*said, "")).encode())
        return digest.hexdigest()


def make_temporal_clue(config: DataConfig, seed: int, tokenizer: Any) -> Rows | Puzzles:
    """Puzzles of data.path and data.eval_path; without data.path made for training, without either for evaluation too.

    Raises InputError for rows that cannot be used, sizes without puzzles, and where OR-Tools is missing.
    """
    if not config.path and not config.eval_path:
        make = _maker(config, tokenizer)
        heldout = Generated(make, seed, "heldout", HELDOUT)
        return Puzzles(Generated(make, seed, "train", config.limit or UNBOUNDED), heldout, {})
    train, heldout_rows, notes = load_parts(
        config, tokenizer, lambda table, part: _read(table, part, config, tokenizer)
    )
    if config.path:
        return Rows(train, heldout_rows, notes, report)
    made = Generated(_maker(config, tokenizer), seed, "train", config.limit or UNBOUNDED)
    return Puzzles(made, heldout_rows, notes, report)


def draw_puzzle(rng: random.Random, config: PuzzlesConfig, heldout: bool) -> Puzzle:
    """A puzzle of the sizes that the options allow; no story of one that is held out is trained on."""
    names = (NAMES if config.style == "full" else WORDS).first(config.names)
    return make_puzzle(rng, draw_size(rng, config), names, config.questions, config.clues, heldout)


def row(puzzle: Puzzle, config: PuzzlesConfig) -> dict[str, Any]:
    """A puzzle as a row of a file: ``num_clues``, ``prompt``, ``solution`` and ``target``, a completion to imitate."""
    text, target = (full_text, full_target) if config.style == "full" else (short_text, short_target)
    solution = puzzle.solution
    return {
        "num_clues": len(puzzle.clues),
        "prompt": text(puzzle),
        "solution": solution,
        "target": target(puzzle, solution),
    }


def _maker(config: DataConfig, tokenizer: Any) -> Callable[[random.Random, str, str], Example]:
    """What makes an example. Puzzles that are too long are drawn again."""
    require_solver()
    puzzles = config.puzzles
    form = _form(config, tokenizer)

    def make(rng: random.Random, split: str, name: str) -> Example:
        for _ in range(TRIES):
            puzzle = draw_puzzle(rng, puzzles, split == "heldout")
            found = row(puzzle, puzzles)
            prompt = form(found["prompt"])
            if len(tokenizer.encode(prompt, add_special_tokens=False)) <= config.max_prompt_tokens:
                break
        else:
            raise InputError(
                f"data.max_prompt_tokens is {config.max_prompt_tokens}, and {TRIES} puzzles of data.puzzles have "
                "longer prompts: raise it, or make the puzzles smaller."
            )
        target = ended(found["target"], tokenizer)
        if puzzles.style == "short" and split == "train" and rng.random() < ERROR:
            target = short_target(puzzle, _mistaken(puzzle, rng))
        extra = {"num_clues": len(puzzle.clues)}
        return Example(name, prompt, puzzle.solution, target, "temporal_clue", extra)

    _require_words(tokenizer, puzzles.style, row(draw_puzzle(random.Random(0), puzzles, False), puzzles)["prompt"])
    make(random.Random(0), "train", "")
    return make


def _require_words(tokenizer: Any, style: str, text: str) -> None:
    """Raises InputError when the tokenizer does not have the words of a puzzle."""
    if style == "short" and END not in tokenizer.get_vocab():
        raise InputError(
            f"data.puzzles.style=short is for models that start from model.architecture: the tokenizer "
            f"{tokenizer.name_or_path} does not know its words. Set data.puzzles.style=full."
        )
    try:
        tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # of tokenizers, which have no class of their own for it
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} cannot encode a puzzle ({error}); one of words alone takes "
            "data.puzzles.style=short."
        ) from error


def _form(config: DataConfig, tokenizer: Any) -> Callable[[str], str]:
    if config.puzzles.style == "short":
        return lambda text: text
    template = make_template(config, tokenizer)
    return lambda text: template([{"role": "user", "content": text}])


def _mistaken(puzzle: Puzzle, rng: random.Random) -> dict[str, str]:
    """The solution, but for another suspect than the murderer, and the room where that one was."""
    story = puzzle.story
    taken = choose(rng, [s for s in range(len(story.suspects)) if s != story.murderer] or [story.murderer])
    wrong = {
        "Who murdered Mr. Boddy?": story.suspects[taken],
        "Where was the murder committed?": story.rooms[story.where[taken][story.time]],
    }
    return {letter: wrong.get(question.text, question.answer) for letter, question in puzzle.lettered.items()}


def _read(table: Table, part: str, config: DataConfig, tokenizer: Any) -> Part:
    columns = {name: table.require(name, config.columns) for name in ("prompt", "solution")}
    counted = table.find("num_clues", config.columns)
    messages = []
    for number, cell in enumerate(table.column(columns["prompt"]), start=1):
        if (said := as_messages(cell)) is None:
            raise InputError(
                f"{table.name}, row {number}, column {columns['prompt']!r}: the prompt is {short(cell)}. It must be a "
                "text, or a list of messages."
            )
        messages.append(said)
    prompts = render(table, messages, make_template(config, tokenizer), chat_marks(config, tokenizer))
    solutions = [
        _solution(cell, f"{table.name}, row {number}, column {columns['solution']!r}")
        for number, cell in enumerate(table.column(columns["solution"]), start=1)
    ]
    clues = table.column(counted) if counted else [None] * table.length
    examples = [
        Example(f"{part}/{number}", prompt, solution, "", "temporal_clue", {"num_clues": n} if n is not None else {})
        for number, (prompt, solution, n) in enumerate(zip(prompts, solutions, clues, strict=True), start=1)
    ]
    return Part(examples)


def _solution(cell: Any, place: str) -> dict[str, str]:
    """Letter -> answer; parquet gives every row the letters of all, those that it does not have being None."""
    if isinstance(cell, str):
        with contextlib.suppress(ValueError):  # said below
            cell = json.loads(cell)
    found = {key: text for key, text in cell.items() if text is not None} if isinstance(cell, Mapping) else {}
    if not found or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise InputError(
            f"{place}: the solution is {short(cell)}. It must be an object of letters with texts, such as "
            '{"A": "Mr. Green"}.'
        )
    return found


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    if config.path:
        return []
    found = problems(config.puzzles)
    if config.puzzles.style == "short" and config.prompt in ("chat", "plain"):
        found.append(
            f"data.prompt={config.prompt} puts a form around prompts, and data.puzzles.style=short has one of its own: "
            "leave data.prompt=auto."
        )
    try:
        require_solver()
    except InputError as error:
        found.append(str(error))
    return found


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of puzzles in few words (data.puzzles.style=short) as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
