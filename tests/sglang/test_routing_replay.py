"""The experts that a real SGLang server chose, replayed in the actor."""

from pathlib import Path


def test_log_probs_agree_where_rounding_decides_the_routing(tmp_path: Path, run_ranks) -> None:
    run_ranks(Path(__file__).parent / "routing_ranks.py", 1, tmp_path / "model", tmp_path / "logs", timeout=500)
