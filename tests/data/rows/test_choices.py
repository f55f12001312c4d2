"""Options read from cells or derived from stories."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.rows import choices

TOMI = "Ada entered the hall. Bo hates the plum Bo entered the den. The hat is in the box. Bo moved the hat to the tin."
HITOM = (
    "Ada, Bo and Cy entered the pantry. The pear is in the red_box. Ada made no movements and stayed in the pantry for "
    "1 minute. Ada exited the pantry. Bo moved the pear to the blue_pantry. Cy publicly claimed that pear is in the "
    "tub now. Ada entered the TV_room. The corn is in the green_jar."
)
EXPLORE = (
    "Ada entered the back room of the shop. Ada moved the small, old watch to the tin box, which is also located in "
    "the back room of the shop. Ada told privately to Bo that the small, old watch is in the back room of the shop. "
    "Bo moved the tin box to the cellar, leaving the small, old watch in its original location. Ada moved the pen to "
    "the bag, which is also located in the cellar."
)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (["shelf", "bag"], ["shelf", "bag"]),
        (np.array(["shelf", "bag"], dtype=object), ["shelf", "bag"]),
        (["A. shelf", "(B) bag", "C) jar"], ["shelf", "bag", "jar"]),
        (["B. Franklin", "A. Lincoln"], ["B. Franklin", "A. Lincoln"]),
        (["shelf", "bag", None, float("nan"), ""], ["shelf", "bag"]),
        (["shelf", None, "bag"], ["shelf", "", "bag"]),
        ([1, 2.5], ["1", "2.5"]),
        ({"B": "bag", "A": "shelf", "C": None}, ["shelf", "bag"]),
        ({"text": ["shelf", "bag"], "label": ["A", "B"]}, ["shelf", "bag"]),
        ('["shelf", "it\'s a bag"]', ["shelf", "it's a bag"]),
        ("['shelf', \"it's a bag\"]", ["shelf", "it's a bag"]),
        ("[shelf, bag]", []),
        ("[1.50, 2, '3.0']", ["1.50", "2", "3.0"]),
        ("[1.50, 2e3, null]", ["1.50", "2e3"]),
        ("A. shelf, B. bag, C. jar", ["shelf", "bag", "jar"]),
        ("A) a shelf, high up\nB) a bag", ["a shelf, high up", "a bag"]),
        ("shelf, bag", []),
        (None, []),
        ([], []),
    ],
)
def test_listed(cell, expected):
    assert choices.listed(cell).texts == expected


OBJECTS = [{"label": "A", "text": "box"}, {"label": "B", "text": "shelf"}]


@pytest.mark.parametrize(
    ("cell", "texts", "labels"),
    [
        (OBJECTS, ["box", "shelf"], ["A", "B"]),
        (OBJECTS[::-1], ["box", "shelf"], ["A", "B"]),
        (json.dumps(OBJECTS[::-1]), ["box", "shelf"], ["A", "B"]),
        (repr(OBJECTS), ["box", "shelf"], ["A", "B"]),
        ([{"id": "(b)", "content": "shelf"}, {"id": "a.", "content": "box"}], ["box", "shelf"], ["a", "b"]),
        ([{"B": "shelf"}, {"A": "box"}], ["box", "shelf"], ["A", "B"]),
        ([{"text": "box"}, {"text": "shelf"}], ["box", "shelf"], []),
        ({"label": ["B", "A"], "text": ["shelf", "box"]}, ["box", "shelf"], ["A", "B"]),
        ({"label": ["2", "1"], "text": ["shelf", "box"]}, ["box", "shelf"], ["1", "2"]),
        ({"label": ["y", "xx"], "text": ["shelf", "box"]}, ["shelf", "box"], ["y", "xx"]),
        ({str(n): f"o{n}" for n in (10, 9, 1, 2, 3, 4, 5, 6, 7, 8)}, [f"o{n}" for n in range(1, 11)], None),
        ("{'B': 'shelf', 'A': 1.50}", ["1.50", "shelf"], ["A", "B"]),
        ({"A": "box", "C": "shelf", "D": None}, ["box", "shelf"], ["A", "C"]),
    ],
)
def test_options_with_labels_come_in_the_order_of_these(cell, texts, labels):
    found = choices.listed(cell)
    assert found.texts == texts
    assert found.labels == (labels if labels is not None else [str(n) for n in range(1, 11)])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([{"name": "A", "says": "box"}], "an option is {'name': 'A', 'says': 'box'}"),
        ([{"label": "A", "text": ["box"]}], "a list where a text is needed"),
        ([["box"], ["shelf"]], "a list where a text is needed"),
        ([b"box", b"shelf"], "bytes where a text is needed: b'box'"),
        ({"A": {"text": "box"}}, "an object where a text is needed"),
        ({"label": ["A"], "text": ["box", "shelf"]}, "2 option texts and 1 labels"),
        ([{"label": "A", "text": "box"}, "shelf"], r"labels of the options are \['A', ''\]"),
        ([{"label": "A", "text": "box"}, {"label": "A", "text": "shelf"}], r"labels of the options are \['A', 'A'\]"),
    ],
)
def test_a_structure_that_is_not_understood_never_becomes_a_text(cell, message):
    with pytest.raises(ValueError, match=message):
        choices.listed(cell)


@pytest.mark.parametrize(
    ("answer", "labels", "index"),
    [
        ("A", ["B", "A"], 1),
        ("(a).", ["B", "A"], None),
        ("(a)", ["B", "A"], 1),
        ("1", ["1", "2"], 0),
        ("shelf", ["1", "2"], 1),
        ("B", ["1", "2"], 1),
        ("C", ["A", "C"], 1),
        ("B", ["A", "C"], None),
        ("0", ["1", "2"], None),
    ],
)
def test_an_answer_by_its_label(answer, labels, index):
    assert choices.answer_index(answer, ["box", "shelf"], labels) == index


def test_a_label_that_is_another_option_s_text_says_nothing():
    assert choices.answer_index("1", ["2", "1"], ["1", "2"]) is None
    assert choices.answer_index("2", ["1", "2"], ["1", "2"]) == 1


@pytest.mark.parametrize(
    ("answers", "first"),
    [
        ([("0", 4), ("3", 4)], 0),
        ([("1", 3), ("3", 3)], 1),
        ([("2.0", 3), ("3.0", 3)], 1),
        ([("1", 4), ("3", 4)], None),
        ([("0", 3), ("3", 3)], None),
        ([], None),
    ],
)
def test_numbers_count_from_where_a_file_shows_it(answers, first):
    assert choices.counts_from(answers) == first


def test_lettered_cuts_the_options_off_a_question():
    assert choices.lettered("Where is it? (A) shelf (B) bag") == ("Where is it?", ["shelf", "bag"])
    assert choices.lettered("Where is A. Smith?") == ("Where is A. Smith?", [])
    many = " ".join(f"{letter}. x{letter}" for letter in choices.LETTERS) + " A. again"
    assert len(choices.lettered(many)[1]) == 26


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("bag", 1),
        ("The  Bag.", 1),
        ("B", 1),
        ("(B)", 1),
        ("C.", 2),
        ("b", 1),
        ("(c)", 2),
        ("d", None),
        ("1", None),
        ("E", None),
        ("tin", None),
        ("", None),
    ],
)
def test_answer_index(answer, index):
    assert choices.answer_index(answer, ["shelf", "bag", "jar"]) == index


def test_an_answer_that_is_two_options_is_none():
    assert choices.answer_index("bag", ["bag", "Bag"]) is None
    assert choices.answer_index("A", ["B", "A"]) == 1  # text goes before letter


def test_places_of_the_three_kinds_of_story():
    assert choices.places(TOMI, "Where is the hat really?") == (["tin", "box"], [], ["hall", "den"])
    own, other, rooms = choices.places(HITOM, "Where does Ada think the pear is?")
    assert (set(own), set(other)) == ({"red_box", "blue_pantry", "tub"}, {"green_jar"})
    assert rooms == ["pantry", "TV_room"]
    own, other, rooms = choices.places(EXPLORE, "In which container is the small, old watch now?")
    assert (own, other) == (["tin box"], ["bag"])
    assert rooms == ["back room of the shop", "cellar"]


def test_kind_of_answer():
    both = "Ada entered the pantry. The hat is in the pantry. Ada moved the hat to the box."
    places = choices.places(both, "Where is the hat?")
    assert choices.kind("Where is the hat?", "pantry", places) == "container"
    assert choices.kind("In which room is the hat?", "pantry", places) == "room"
    assert choices.kind("Where is the hat?", "Box.", places) == "container"
    assert choices.kind("Where is the hat?", "roof", places) == ""


WORDS = st.lists(st.text("abcd", min_size=1, max_size=3), max_size=12)


@given(near=st.lists(WORDS, max_size=2), others=WORDS.map(lambda w: sorted(set(w))), key=st.text(max_size=5))
def test_derived_options(near, others, key):
    found = choices.derive("gold", near, others, key)
    assert found == choices.derive("gold", near, others, key)
    assert "gold" in found and len(found) == len(set(found))
    available = {w for group in (*near, others) for w in group}
    assert len(found) == min(4, 1 + len(available))
    first = set(near[0]) if near else set()
    assert len(first & set(found)) == min(3, len(first))  # the nearest come first


def test_every_place_of_the_answer_is_equally_likely():
    at = [choices.derive("gold", [["a", "b", "c", "d"]], [], str(key)).index("gold") for key in range(2000)]
    assert all(abs(at.count(i) - 500) < 80 for i in range(4))
