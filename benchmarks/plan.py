"""Planning the swap of DeepSeek-V3: python -m benchmarks.plan [--engine-expert-parallel N] [--engines N]

256 training ranks (tensor 8 x pipeline 16, expert 16, data 2; 61 layers as 4 + 14 x 4 + 1) to 32-way SGLang engines,
on one core, without weights. Says how long each part takes, the process's peak memory, and what the plan predicts.
With --engine-expert-parallel 1 every expert is cut 32 ways: the most copies that this pair of layouts can need.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layout_violations, megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, engine_violations, sglang_layout
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.report import FABRICS, predict, size, traffic

DEEPSEEK_V3: dict[str, Any] = {  # of its config.json, what its tensors depend on
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "tie_word_embeddings": False,
}
ACTOR = ParallelSizes(tensor=8, pipeline=16, expert=16, data=2, first_stage=4, last_stage=1)
GPUS = 8  # on one host
Result = TypeVar("Result")


def timed(what: str, work: Callable[[], Result]) -> Result:
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{what:28}{wall:8.2f} s {cpu:8.2f} CPU-s   peak {size(peak)}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine-expert-parallel", type=int, default=32)
    parser.add_argument("--engines", type=int, default=1)
    options = parser.parse_args()
    engine = EngineSizes(tensor=32, expert=options.engine_expert_parallel, data=options.engines)
    problems = layout_violations(DEEPSEEK_V3, ACTOR, fused_norms=True) + engine_violations(DEEPSEEK_V3, engine)
    assert not problems, problems
    started = time.perf_counter()
    source = timed(
        "layout of the trainer",
        lambda: megatron_layout(DEEPSEEK_V3, ACTOR, fused_norms=True, grouped_experts=True),
    )
    destination = timed("layout of the engines", lambda: sglang_layout(DEEPSEEK_V3, engine))
    trainers = [divmod(rank, GPUS) for rank in range(ACTOR.world)]
    workers = [divmod(ACTOR.world + rank, GPUS) for rank in range(engine.world)]
    plan = timed("plan", lambda: make_plan(source, destination, source_places=trainers, destination_places=workers))
    timed("hash", lambda: plan.hash)
    timed("proof", lambda: prove(plan, source, destination))
    print(f"{'all':28}{time.perf_counter() - started:8.2f} s")
    moved = traffic(plan, trainers, workers)
    print(plan.summary())
    print(f"busiest: {size(moved.into_busiest[1])} into a worker, {size(moved.out_of_busiest[1])} out of a rank")
    for said in (predict(moved, fabric) for fabric in FABRICS):
        print(f"{said.fabric:38}{said.seconds:8.3f} s predicted, {said.limit:.3f} s the limit ({said.busiest})")


if __name__ == "__main__":
    main()
