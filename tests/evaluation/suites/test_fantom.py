"""FANToM: each kind of question, and sets of them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from megatron_rl.data.answers.sentences import nearer
from megatron_rl.data.tokenizer import write_word_tokenizer
from megatron_rl.errors import InputError
from megatron_rl.evaluation.suites.fantom import chooses, lists, weighted_f1, word_f1, yes_or_no
from megatron_rl.evaluation.summary import summarise
from tests.evaluation.suites.asked import records_of, suite_of


def a_set(number: int, scenario: str = "inaccessible") -> dict:
    def qa(question: str, right: object, **more: object) -> dict:
        return {"question": question, "correct_answer": right, "missed_info_accessibility": scenario, **more}

    return {
        "set_id": f"0-0-{number}",
        "short_context": "Ann: I have a dog. \n",
        "factQA": {"question": "What does Ann have?", "correct_answer": "Ann has a dog"},
        "beliefQAs": [qa("What does Bob believe?", "Bob does not know", wrong_answer="Ann has a dog")],
        "answerabilityQA_list": qa("Who can answer?", ["Ann"], wrong_answer=["Bob"]),
        "answerabilityQAs_binary": [qa("Can Ann?", "yes"), qa("Can Bob?", "no"), qa("Can Eve?", "no:long")],
        "infoAccessibilityQA_list": qa("Who knows this?", ["Ann"], wrong_answer=["Bob"]),
        "infoAccessibilityQAs_binary": [qa("Does Ann?", "yes"), qa("Does Bob?", "no")],
    }


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "fantom_v1.json"
    path.write_text(json.dumps([a_set(1), a_set(2), a_set(3, "accessible")]))
    return str(path)


def right(form) -> str:
    kind = form.extra["kind"]
    if kind == "fact":
        return form.answer
    if kind == "belief:choice":
        return f"({form.answer})"
    return "Answer: Ann" if kind.endswith("list") else "Yes." if form.answer else "No, for he left."


def test_all_right(file: str) -> None:
    suite = suite_of("fantom", path=file)
    assert len(suite.items) == 3 * 8  # "no:long" is of the whole conversation
    found = summarise(suite, records_of(suite, right), 1)
    assert found["accuracy"]["mean"] == 1
    assert {name: value["mean"] for name, value in found["measures"].items()} == {
        f"{scenario}_{name}": 1
        for scenario in ("inaccessible", "accessible")
        for name in ("all", "answerability_all", "access_all", "answerability_binary_f1", "access_binary_f1")
    }


def test_a_set_counts_where_all_of_it_is_right(file: str) -> None:
    suite = suite_of("fantom", path=file)

    def say(form) -> str:
        if form.extra["set"] == "0-0-1" and form.prompt.endswith(
            "Question: Can Bob? Answer yes or no.\nAnswer:\n\nResponse:\n"
        ):
            return "Yes, he can."
        return right(form)

    found = summarise(suite, records_of(suite, say), 1)["measures"]
    assert (found["inaccessible_all"]["mean"], found["inaccessible_all"]["n"]) == (0.5, 2)
    assert found["inaccessible_answerability_all"]["mean"] == 0.5
    assert found["inaccessible_access_all"]["mean"] == found["accessible_all"]["mean"] == 1
    # said yes yes yes no, right yes no yes no: F1 of yes 0.8, of no 2/3, as many of each
    assert found["inaccessible_answerability_binary_f1"]["mean"] == pytest.approx((0.8 + 2 / 3) / 2)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder with random weights, and a word a token."""
    folder = tmp_path_factory.mktemp("embedder")
    words = ["<pad>", "<s>", "</s>", "Ann", "has", "a", "dog", "Bob", "does", "not", "know", "Yes", "."]
    write_word_tokenizer(folder, words, "<s>", "</s>", "<pad>")
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_free_answers_are_compared_by_a_sentence_model(file: str, embedder: str) -> None:
    suite = suite_of("fantom", path=file, embedder=embedder)
    assert len(suite.items) == 3 * 9

    def say(form) -> str:
        if form.extra["kind"] != "belief:free":
            return right(form)
        return form.answer["right" if form.extra["set"] == "0-0-1" else "wrong"]

    found = summarise(suite, records_of(suite, say), 1)
    assert found["by"]["question"]["inaccessible belief:free"]["mean"] == 0.5
    measures = {name: value["mean"] for name, value in found["measures"].items()}
    assert (measures["inaccessible_all"], measures["inaccessible_all_star"]) == (1, 0.5)
    assert (measures["accessible_all"], measures["accessible_all_star"]) == (1, 0)
    assert measures["inaccessible_belief_word_f1"] == 1 and "accessible_belief_word_f1" not in measures
    with pytest.raises(InputError, match=r"fantom.embedder=nowhere is no folder of a model"):
        suite_of("fantom", path=file, embedder="nowhere")


def test_embeddings_are_means_over_a_texts_own_tokens(embedder: str) -> None:
    """Padding changes nothing, and the nearer text is that of the larger cosine."""
    model, tokenizer = BertModel.from_pretrained(embedder).eval(), AutoTokenizer.from_pretrained(embedder)

    def alone(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    texts = ["Ann has", "Bob does not know a dog", "Yes ."]
    said, one, other = map(alone, texts)
    cosine = torch.nn.functional.cosine_similarity
    assert nearer(*texts, embedder) == bool(cosine(said, one, dim=0) > cosine(said, other, dim=0))
    assert nearer(texts[0], texts[2], texts[1], embedder) != nearer(*texts, embedder)
    assert not nearer("Ann", "Bob", "Bob", embedder)  # equal is not nearer


def test_parts() -> None:
    assert word_f1("ann has a dog", "a dog") == pytest.approx(2 / 3)
    assert word_f1("a a b", "a c") == pytest.approx(2 * 1 / 5)
    assert word_f1("a", "") == word_f1("a", "b") == 0
    for text in ("(B) x", "b) x", "B", "b: x", "I say (b)."):
        assert chooses(text, "b"), text
    assert not chooses("a) b)", "b") and not chooses("bob", "b")
    assert lists("ANN and Eve", ["Ann", "Eve"], ["Bob"])
    assert not lists("Ann", ["Ann", "Eve"], []) and not lists("Ann, Bob", ["Ann"], ["Bob"])
    said = {"Yes": 1, "'No'": 0, "I think no.": 0, "He knows it": 1, "True": 1, "maybe": -1, "": -1, "I know": -1}
    assert {text: yes_or_no(text) for text in said} == said
    assert yes_or_no("Well, no, he left") == 0 and yes_or_no("Bob knows of it") == 1
    assert weighted_f1([1, 0, -1], [1, 0, 0]) == pytest.approx(1 / 3 * 1 + 2 / 3 * 2 / 3)


def test_a_row_that_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([{k: v for k, v in a_set(1).items() if k != "beliefQAs"}]))
    with pytest.raises(InputError, match=r"f.json, row 1 is no set of questions"):
        suite_of("fantom", path=str(tmp_path / "f.json"))
