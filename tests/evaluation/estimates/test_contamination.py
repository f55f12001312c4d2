"""Shared n-grams of questions and training rows."""

import random

from megatron_rl.evaluation.estimates.contamination import Overlap, grams, overlaps


def test_grams() -> None:
    assert len(grams("a b c d", 3)) == 2
    assert grams("A b, c!", 3) == grams("a B c", 3)  # case and punctuation say nothing
    assert len(grams("a b", 13)) == 1 and grams("", 13) == grams("?!", 13) == set()
    assert grams("1 Ann left.\n2 Bob came.", 4) == grams("Ann left.\nBob came.", 4)
    assert len(grams("卷心菜在哪里", 3)) == 4  # a character is a word


def test_shares_equal_brute_force() -> None:
    rng = random.Random(0)
    for _ in range(50):
        texts = [[rng.choice("abc") for _ in range(rng.randint(1, 12))] for _ in range(9)]
        questions, rows = texts[:4], texts[4:]
        for found, words in zip(
            overlaps([" ".join(q) for q in questions], [" ".join(r) for r in rows], 3), questions, strict=True
        ):

            def own(w: list[str]) -> set[tuple[str, ...]]:
                return {tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2))}

            mine = own(words)
            if len({q[0] for q in texts[:4]}) == 1 or len({q[-1] for q in texts[:4]}) == 1:
                continue  # what all begin or end with does not count
            if any(sum(g in own(q) for q in texts[:4]) > 2 for g in mine):
                continue  # nor what many have
            there = [number for number, row in enumerate(rows) if own(row) & mine]
            everywhere = set().union(*map(own, rows))
            assert found.share == len(mine & everywhere) / len(mine)
            assert found.row == (there[0] if there else -1)


def test_instructions_do_not_count() -> None:
    head = "read the story and answer the question with the letter of one option"
    questions = [f"{head} {' '.join(f'w{i}x{j}' for j in range(15))}" for i in range(40)]
    found = overlaps(questions, [f"{head} something else", questions[7]], 13)
    assert [o.share > 0 for o in found] == [i == 7 for i in range(40)] and found[7] == Overlap(1.0, 1)
