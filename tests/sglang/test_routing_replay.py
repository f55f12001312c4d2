"""The experts that a real SGLang server chose, replayed in the actor."""

import base64
from pathlib import Path

import numpy as np
import pytest

from megatron_rl.rollout.sglang.generation import part
from megatron_rl.rollout.sglang.servers.http import ServerError


def test_log_probs_agree_where_rounding_decides_the_routing(tmp_path: Path, run_ranks) -> None:
    run_ranks(Path(__file__).parent / "routing_ranks.py", 1, tmp_path / "model", tmp_path / "logs")


def test_an_answer_without_experts_or_with_half_of_them() -> None:
    chosen = np.arange(2 * 3 * 2, dtype=np.int32)
    answer = {
        "output_ids": [7],
        "meta_info": {
            "finish_reason": {"type": "length"},
            "output_token_logprobs": [(-0.5, 7, None)],
            "weight_version": "3",
            "prompt_tokens": 2,
            "routed_experts": base64.b64encode(chosen.tobytes()).decode(),
        },
    }
    experts = part(answer, experts=True).experts
    assert experts is not None and experts.dtype == np.int16 and experts.tolist() == chosen.reshape(2, 6).tolist()
    assert part(answer).experts is None
    answer["meta_info"]["routed_experts"] = base64.b64encode(chosen[:7].tobytes()).decode()
    with pytest.raises(ServerError, match="7 choices of experts for 2 tokens"):
        part(answer, experts=True)
    del answer["meta_info"]["routed_experts"]
    with pytest.raises(ServerError, match="did not say which experts"):
        part(answer, experts=True)
