"""Shared n-grams of questions and training rows."""

import random

import pytest

from megatron_rl.evaluation.estimates.contamination import Overlap, overlaps, too_short


def test_words() -> None:
    """Case, punctuation and numbers of lines say nothing; a Chinese character is a word."""
    asked = ["1 Ann left, and Bob came.", "卷心菜在哪里", "where is it"]
    rows = ["x ann LEFT and\nBob came", "请问卷心菜在哪里呢", "where is it"]
    assert overlaps(asked, rows) == [Overlap(1.0, 0), Overlap(1.0, 1), Overlap(0.0, -1)]
    assert [too_short(question) for question in asked] == [False, False, True]


def test_shares_equal_brute_force() -> None:
    rng, n, least, looked = random.Random(0), 6, 4, 0
    for _ in range(300):
        texts = [[rng.choice("abc") for _ in range(rng.randint(1, 12))] for _ in range(9)]
        questions, rows = texts[:4], [*texts[4:], [rng.choice("ab"), *texts[0], "c"]]

        def grams(words: list[str], size: int) -> set[tuple[str, ...]]:
            return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

        if len({q[0] for q in questions}) == 1 or len({q[-1] for q in questions}) == 1:
            continue  # what all begin or end with does not count
        asked = [grams(q, min(n, len(q))) if len(q) >= least else set() for q in questions]
        if any(sum(gram in each for each in asked) > 2 for each in asked for gram in each):
            continue  # nor what many have
        found = overlaps([" ".join(q) for q in questions], [" ".join(r) for r in rows], n)
        for overlap, mine in zip(found, asked, strict=True):
            there = [number for number, row in enumerate(rows) if any(gram in grams(row, len(gram)) for gram in mine)]
            everywhere = {gram for gram in mine for row in rows if gram in grams(row, len(gram))}
            assert overlap.share == (len(everywhere) / len(mine) if mine else 0.0)
            assert overlap.row == (there[0] if there else -1)
            looked += len(everywhere) > 0
    assert looked > 200


def test_short_questions_that_begin_alike() -> None:
    """What all have in common is a part of them where little else is left."""
    questions = [f"What is {i} plus 2?" for i in range(20)]
    assert overlaps(questions, [f"question {q} answer" for q in questions]) == [Overlap(1.0, i) for i in range(20)]
    assert {each.share for each in overlaps(questions, ["What is 77 plus 2?"])} == {0.0}


def test_instructions_do_not_count() -> None:
    head = "read the story and answer the question with the letter of one option"
    questions = [f"{head} {' '.join(f'w{i}x{j}' for j in range(15))}" for i in range(40)]
    found = overlaps(questions, [f"{head} something else", questions[7]], 13)
    assert [o.share > 0 for o in found] == [i == 7 for i in range(40)] and found[7] == Overlap(1.0, 1)


@pytest.mark.parametrize("length", [3, 8, 40])
def test_a_prompt_is_found_in_the_columns_that_it_was_made_of(length: int) -> None:
    """Labels stand between them, options have letters, and another question about the same story is another."""
    draw = random.Random(0)
    words = ["ball", "box", "Mia", "Tom", "garden", "sees", "takes", "thinks", "then", "leaves", "bag", "room"]
    stories = [f"Mia lost {' '.join(draw.choices(words, k=length))} {i}." for i in range(60)]
    options = [draw.sample(["happy", "sad", "very angry"], 3) for _ in stories]
    rows = [f"{story}\nHow does she feel?\n" + "\n".join(each) for story, each in zip(stories, options, strict=True)]
    prompts = [
        f"Choose one of the options.\n\nStory: {story}\n\nQuestion: How does she feel?\n\nOptions:\nA. {each[0]}\n"
        f"(b) {each[1]}\nC) {each[2]}\n\nResponse:\n"
        for story, each in zip(stories, options, strict=True)
    ]
    assert overlaps(prompts, rows) == [Overlap(1.0, i) for i in range(60)]
    assert {each.share for each in overlaps(prompts[:30], rows[30:])} == {0.0}
