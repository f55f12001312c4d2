"""Rows as ``megatron-rl data`` shows them with a model's tokenizer."""

import json

from megatron_rl.cli import main

ROW = {
    "prompt": [{"role": "user", "content": "Hi?"}],
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "data_source": "x",
}


def test_with_a_model_prompts_are_what_it_is_given(tmp_path, capsys, tiny_model):
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(ROW)] * 2))
    assert main(["data", str(tmp_path / "rows.jsonl"), "--model", str(tiny_model)]) == 0
    out = capsys.readouterr().out
    assert "  | <|im_start|>user\n  | Hi?<|im_end|>\n  | <|im_start|>assistant" in out and "tokens, median" in out
