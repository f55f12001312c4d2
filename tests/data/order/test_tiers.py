"""The tiers and prompts of SimpleRL-Zoo's recipes, on rows in the forms of MATH and GSM8K."""

import json

from megatron_rl.data.config import DataConfig
from megatron_rl.data.order.mixed import make_prompts
from megatron_rl.data.registry import make_task
from megatron_rl.settings.recipes import recipe


def test_tiers_and_prompts(tmp_path, chat_tokenizer):
    rows = [{"problem": f"P{i}?", "solution": rf"\boxed{{{i}}}", "level": f"Level {i}"} for i in range(1, 6)]
    (tmp_path / "math.jsonl").write_text("\n".join(map(json.dumps, rows)))
    gsm8k = [{"question": f"Q{i}?", "answer": f"x\n#### {i}"} for i in range(8)]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, gsm8k)))

    def drawn(data: DataConfig) -> list[str]:
        task = make_task(data, 0, chat_tokenizer)
        return sorted({e.prompt for e in make_prompts(data, task, 0, steps=1).take(400)})

    data = recipe("simplerl_zoo.qwen2_5_0_5b").data
    data.path = str(tmp_path / "math.jsonl")
    assert drawn(data) == [f"Question:\nP{i}?\nAnswer:\nLet's think step by step.\n" for i in range(1, 5)]
    data = recipe("simplerl_zoo.qwen2_5_7b").data
    data.path = str(tmp_path / "math.jsonl")
    asked = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert drawn(data) == [f"<|im_start|>user\nP{i}?{asked}<|im_end|>\n<|im_start|>assistant\n" for i in (3, 4, 5)]
    data = recipe("simplerl_zoo.llama3_1_8b").data
    data.mixture["gsm8k"] |= {"path": str(tmp_path / "gsm8k.jsonl"), "subset": ""}
    data.mixture["math"]["path"] = str(tmp_path / "math.jsonl")
    easy = [f"Question:\n{q}?\nAnswer:\nLet's think step by step.\n" for q in ("P1", *(f"Q{i}" for i in range(8)))]
    assert drawn(data) == easy
