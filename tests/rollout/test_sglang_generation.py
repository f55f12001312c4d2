"""What a server is asked for."""

from megatron_rl.rollout.protocol import Request, Sampling
from megatron_rl.rollout.sglang.generation import body


def test_a_request_leaves_nothing_open_that_decides_what_is_drawn() -> None:
    """Its seed too: without one, a deterministic server draws the same for all completions of a prompt."""
    sampling = Sampling(9, temperature=0.7, top_p=0.9, top_k=5, stop_tokens=(2, 0))
    asked = body(Request([4, 5], [2**63 - 1]), sampling, "name")
    assert (asked["rid"], asked["input_ids"], asked["return_logprob"]) == ("name", [4, 5], True)
    assert asked["sampling_params"] == {
        "max_new_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "stop_token_ids": [2, 0],
        "ignore_eos": False,
        "sampling_seed": 2**63 - 1,
    }
    greedy = body(Request([4], [1]), Sampling(9, temperature=0.0, top_p=0.9, ignore_stop=True), "name")
    assert greedy["sampling_params"].items() >= {"top_p": 1.0, "top_k": 1, "ignore_eos": True}.items()
