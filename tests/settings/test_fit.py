"""What a run needs, counted by hand, and machines on which it does not fit."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from megatron_rl.config import Config
from megatron_rl.resharding.families import with_scalar_head
from megatron_rl.settings import fit
from megatron_rl.settings.describe import describe
from megatron_rl.settings.fit import check_fit, warnings
from megatron_rl.settings.footprint import footprint, readable
from megatron_rl.system import machine
from tests.settings.foresight.shapes import QWEN3_8B, QWEN3_235B
from tests.settings.test_settings_check import LLAMA

QWEN3_4B = QWEN3_8B | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
MODEL = LLAMA | {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
Memory = namedtuple("Memory", ["available"])
Usage = namedtuple("Usage", ["free"])


def config_of(model: dict = MODEL) -> Config:
    config = Config()
    config.model.architecture = model
    return config


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """gpus(n): the machine has so many of 80 GB, no shared memory and hardly any memory."""

    def have(count: int, size: int = 80 << 30, memory: int = 1000) -> None:
        monkeypatch.setattr(machine, "gpus", lambda: (size,) * count)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(memory))
        monkeypatch.setattr(fit.shutil, "disk_usage", lambda path: Usage(0 if str(path) == "/dev/shm" else 1 << 50))

    return have


def test_footprint_of_a_known_model() -> None:
    """Numbers worked out by hand from the shapes of LLAMA, bf16, TP 2 x DP 2."""
    config = config_of()
    config.actor.tensor_parallel = config.actor.data_parallel = 2
    config.algorithm.kl_coef = 0.1
    hidden, layer_split = 64, 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128  # q k v, o, gate up down
    parameters = 4 * (layer_split + 2 * hidden) + 2 * 100 * hidden + hidden
    rank = 4 * (layer_split // 2 + 2 * hidden) + 2 * 50 * hidden + hidden
    needed = footprint(config, MODEL)
    assert needed.parameters == parameters
    assert needed.shared == 4 * rank * 2
    assert needed.ranks == (rank * (2 + 4 + 2) + parameters * 12 // 4,) * 4
    assert (needed.engine, needed.export, needed.checkpoint) == (parameters * 2, parameters * 2, parameters * 14)


def test_frozen_policies_lie_on_the_host_of_gpus(gpus) -> None:
    """All but the one that is being asked; without GPUs all are in a rank's memory."""
    config = config_of()
    config.preference.steps = 1
    config.preference.loss = "sigmoid"
    one = footprint(config, MODEL).ranks[0]
    config.preference.loss = "cdpo"
    three = footprint(config, MODEL)
    assert three.ranks[0] == one + 2 * 2 * three.parameters
    gpus(1)
    there, copy = footprint(config, MODEL), 2 * three.parameters
    assert there.ranks[0] == one - copy and there.frozen == (copy,)


def test_the_host_of_gpus_has_room_for_frozen_policies(gpus) -> None:
    """Each of two replicas keeps a copy of its own, beside AdamW's state."""
    config = config_of(QWEN3_4B)
    config.rollout.engine, config.actor.data_parallel, config.actor.optimizer_on_host = "sglang", 2, 0.5
    gpus(2)
    bare = footprint(config, QWEN3_4B)
    assert (bare.kept, bare.host) == (0, 8 * bare.parameters)
    config.algorithm.kl_coef = 0.1
    needed = footprint(config, QWEN3_4B)
    assert (needed.kept, needed.host) == (2 * 2 * needed.parameters, bare.host)
    gpus(3, memory=needed.host + needed.kept)
    assert check_fit(config, needed) == []
    gpus(3, memory=needed.host + needed.kept - 1)
    (said,) = check_fit(config, needed)
    assert f"at least {readable(needed.host + needed.kept)} of memory" in said and "actor.optimizer_on_host" in said
    config.actor.optimizer_on_host = 0.0
    needed = footprint(config, QWEN3_4B)
    gpus(3, memory=needed.kept - 1)
    (said,) = check_fit(config, needed)
    assert f"of it {readable(needed.kept)} are frozen weights" in said and "lower actor.data_parallel" in said


def test_a_reference_that_moves_is_float32(gpus) -> None:
    config = config_of()
    config.algorithm.kl_coef = 0.1
    fixed = footprint(config, MODEL)
    config.algorithm.reference_ema = 0.9
    assert footprint(config, MODEL).ranks[0] - fixed.ranks[0] == 2 * fixed.parameters
    gpus(1)
    assert footprint(config, MODEL).kept == 4 * fixed.parameters
    assert footprint(config, MODEL).frozen == (2 * fixed.parameters,)  # while it scores, in the model's dtype


def test_adapters_keep_what_they_are_added_to_once(gpus) -> None:
    config = config_of()
    config.actor.lora.rank, config.algorithm.kl_coef = 4, 0.1
    gpus(1)
    linear = 4 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128)  # of LLAMA's layers
    assert abs(footprint(config, MODEL).kept - 2 * linear) <= 1  # which is the reference's as well
    config.preference.steps, config.preference.loss = 1, "cdpo"
    needed = footprint(config, MODEL)
    assert abs(needed.kept - 2 * linear - 2 * 2 * needed.parameters) <= 1


def test_of_a_stage_without_rl_no_reference_is_counted(gpus) -> None:
    config = config_of()
    config.algorithm.kl_coef = 0.1
    with_rl = footprint(config, MODEL)
    config.run.steps = 0
    alone = footprint(config, MODEL)
    assert with_rl.ranks[0] - alone.ranks[0] == 2 * alone.parameters
    gpus(1)
    assert footprint(config, MODEL).frozen == (0,)


def test_a_reference_is_there_only_while_it_scores(gpus) -> None:
    """An engine sleeps meanwhile, or counts beside it; of two ranks each holds half of the reference."""
    config = config_of(QWEN3_4B)
    config.rollout.engine, config.rollout.sglang.colocated, config.algorithm.kl_coef = "sglang", True, 0.1
    config.actor.tensor_parallel = 2
    gpus(2, memory=1 << 40)
    needed = footprint(config, QWEN3_4B)
    rank, copy = needed.ranks[0], needed.frozen[0]
    assert needed.parameters <= copy <= 1.001 * needed.parameters and rank == 3 * copy + 6 * needed.parameters
    room = rank + needed.engine
    gpus(2, size=room, memory=1 << 40)
    assert check_fit(config, needed) == []
    gpus(2, size=room - 1, memory=1 << 40)
    (said,) = check_fit(config, needed)
    assert said.startswith(f"GPU 0 holds at least {readable(room)}") and ": set actor.asleep=true, shard" in said
    config.actor.asleep = True
    assert not any(each.startswith("GPU") for each in check_fit(config, footprint(config, QWEN3_4B)))
    config.actor.asleep = config.rollout.sglang.colocated = False
    config.rollout.sglang.args = {"base_gpu_id": 0}  # where it stays
    gpus(2, size=room + copy - 1, memory=1 << 40)
    (said,) = check_fit(config, needed)
    assert said.startswith(f"GPU 0 holds at least {readable(room + copy)}") and "asleep" not in said


def test_a_rank_that_is_too_large_while_a_reference_scores(gpus) -> None:
    config = config_of(QWEN3_4B)
    config.rollout.engine, config.rollout.sglang.colocated, config.algorithm.kl_coef = "sglang", True, 0.1
    gpus(1, memory=1 << 40)
    needed = footprint(config, QWEN3_4B)
    gpus(1, size=20 * needed.parameters - 1, memory=1 << 40)
    (said,) = check_fit(config, needed)
    assert said.startswith(f"A rank needs at least {readable(20 * needed.parameters)} while a frozen policy scores")
    assert "or set actor.asleep=true or actor.gradients=bfloat16" in said
    config.actor.asleep = True
    gpus(1, size=20 * needed.parameters - 1, memory=1 << 50)
    assert check_fit(config, footprint(config, QWEN3_4B)) == []


def test_a_rank_that_is_too_large_is_told_what_would_help(gpus) -> None:
    """Not what it has already, nor what does not go with it; experts where there are some."""
    config = config_of(QWEN3_4B)
    gpus(5000, size=1 << 30, memory=1 << 50)

    def said(model: dict = QWEN3_4B) -> str:
        found = check_fit(config, footprint(config, model))[0]
        assert found.startswith("A rank needs at least ") and "for weights, gradients and optimiser" in found
        return found.partition("shard further ")[2]

    every = "actor.gradients=bfloat16 or actor.moments=bfloat16 or actor.optimizer_on_host=1.0."
    assert said() == f"(actor.tensor_parallel, .pipeline_parallel or .data_parallel), or set {every}"
    assert said(QWEN3_235B).startswith("(actor.expert_parallel, .tensor_parallel")
    config.actor.gradients, config.actor.moments = "bfloat16", "bfloat16"
    assert said().endswith(".data_parallel).")
    config.actor.moments, config.actor.optimizer_on_host = "float32", 0.5
    assert said().endswith("or set actor.optimizer_on_host=1.0.")


def test_too_few_gpus_for_any_layout(gpus) -> None:
    """How many would do, and options only where they are enough."""
    config = config_of(QWEN3_4B)
    config.actor.data_parallel = 2

    def said() -> str:
        return check_fit(config, footprint(config, QWEN3_4B))[0]

    count = footprint(config, QWEN3_4B).parameters
    gpus(2, size=9 * count - 1, memory=1 << 50)  # 2 + 4 + 12 bytes a weight
    assert f"take {readable(18 * count)} together, and 2 GPUs have {readable(18 * count - 2)}" in said()
    options = "actor.gradients=bfloat16 and actor.optimizer_on_host=1.0"
    assert f"whatever the layout: take 3 such GPUs or more, or set {options}, and shard further (" in said()
    gpus(2, size=2 * count - 1, memory=1 << 50)  # not even 2 + 2
    assert said().endswith("whatever the layout: take 10 such GPUs or more.")


def test_a_critic_is_counted() -> None:
    """Its decoder, a head of 64 numbers on the ranks of the last stage, its gradients and its moments."""
    config = config_of()
    config.actor.tensor_parallel = config.actor.pipeline_parallel = 2
    alone, both = footprint(config, MODEL), footprint(config, MODEL, with_scalar_head(MODEL))
    critic = alone.parameters - 100 * 64 + 64
    assert both.checkpoint == alone.checkpoint + critic * 14
    half = 2 * ((64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128) // 2 + 2 * 64)
    first, last = (half + 50 * 64) * (2 + 4) + critic * 12 // 4, (half + 2 * 64) * (2 + 4) + critic * 12 // 4
    assert [b - a for a, b in zip(alone.ranks, both.ranks, strict=True)] == [first, first, last, last]
    assert (both.engine, both.shared, both.export) == (alone.engine, alone.shared, alone.export)


def test_the_cache_of_an_embedded_engine() -> None:
    config = config_of(QWEN3_4B)
    config.data.max_prompt_tokens, config.rollout.max_new_tokens = 1024, 3072
    config.rollout.prompts_per_step, config.rollout.group_size = 64, 5
    token = 36 * 8 * 128 * 2 * 2  # layers, heads, head_dim, keys and values, bfloat16
    assert footprint(config, QWEN3_4B).cache == 256 * 4096 * token  # 155 GB
    assert readable(256 * 4096 * token) == "154.6 GB"
    config.rollout.engines, config.evaluation.prompts = 3, 30
    assert footprint(config, QWEN3_4B).cache == 22 * 5 * 4096 * token  # 64 prompts are 22, 21 and 21
    config.evaluation.prompts = 600
    assert footprint(config, QWEN3_4B).cache == 200 * 4096 * token
    config.rollout.engine = "sglang"
    assert footprint(config, QWEN3_4B).cache == 256 * 4104 * token
    config.rollout.sglang.args = {"max_total_tokens": 1000}
    assert footprint(config, QWEN3_4B).cache == 1000 * token


def test_an_embedded_engine_whose_cache_does_not_fit(gpus) -> None:
    config = config_of(QWEN3_4B)
    config.rollout.max_new_tokens = 3072
    gpus(0, memory=200 << 30)
    needed = footprint(config, QWEN3_4B)
    (said,) = [each for each in check_fit(config, needed) if "of memory" in each]
    total = needed.engine + needed.cache + sum(needed.ranks) + needed.shared
    assert total > 200 << 30 > total - needed.cache
    assert f"needs at least {readable(total)} of memory" in said
    assert f"{readable(needed.cache)} for keys and values" in said


def test_what_sglang_on_gpus_does_not_need(gpus) -> None:
    """Neither the host's memory nor shared memory, wherever the servers run."""
    config = config_of()
    config.rollout.engine, config.rollout.engines, config.actor.data_parallel = "sglang", 4, 4
    gpus(4)
    needed = footprint(config, MODEL)
    assert check_fit(config, needed) == []
    for transport in ("cuda_ipc", "gloo", "nccl", "files"):
        config.rollout.sglang.transport = transport
        assert check_fit(config, needed) == []
    config.rollout.sglang.transport = "shared_memory"
    found = check_fit(config, needed)
    assert len(found) == 1 and f"needs at least {readable(needed.shared)} of memory" in found[0]
    config.rollout.sglang.transport, config.rollout.sglang.swap = "auto", "tensor"
    assert "of memory" in check_fit(config, needed)[0]


def test_servers_that_run_elsewhere_need_no_memory_here(gpus) -> None:
    config = config_of()
    config.rollout.engine, config.rollout.sglang.urls = "sglang", "http://127.0.0.1:1,http://127.0.0.1:2"
    config.rollout.sglang.transport = "gloo"
    gpus(0)
    needed = footprint(config, MODEL)
    assert readable(sum(needed.ranks)) in check_fit(config, needed)[0]
    gpus(0, memory=sum(needed.ranks))
    assert check_fit(config, needed) == []
    config.rollout.sglang.urls = ""
    assert "of memory" in check_fit(config, needed)[0]
    assert "2 sglang, started elsewhere" not in describe(config)
    config.rollout.sglang.urls = "http://127.0.0.1:1,http://127.0.0.1:2"
    assert "2 sglang, started elsewhere" in describe(config)


def test_engines_share_the_memory_of_the_trainers_gpus(gpus) -> None:
    config = config_of(QWEN3_4B)
    config.rollout.engine, config.rollout.sglang.colocated = "sglang", True
    needed = footprint(config, QWEN3_4B)
    room = needed.ranks[0] + needed.engine
    gpus(1, size=room)
    assert check_fit(config, needed) == []
    gpus(1, size=room - 1)
    (said,) = check_fit(config, needed)
    assert said.startswith(f"GPU 0 holds at least {readable(room)}")
    gpus(2, size=room - 1)
    config.rollout.sglang.colocated = False  # it has the second one for itself
    assert check_fit(config, needed) == []
    gpus(1, size=needed.ranks[0] - 1)
    assert check_fit(config, needed)[0].startswith("A rank needs at least")


def test_what_sleeps_is_not_beside_an_engine(gpus) -> None:
    """Weights alone are there with the engine's; everything comes back when that one has gone."""
    config = config_of(QWEN3_4B)
    config.rollout.engine, config.rollout.sglang.colocated, config.actor.asleep = "sglang", True, True
    needed = footprint(config, QWEN3_4B)
    assert needed.resting == (2 * needed.parameters,) and needed.host == 12 * needed.parameters
    gpus(1, size=needed.ranks[0], memory=needed.host)
    assert check_fit(config, needed) == []
    gpus(1, size=needed.ranks[0], memory=needed.host - 1)
    (said,) = check_fit(config, needed)
    assert "of memory" in said and "set actor.asleep=false" in said


def test_a_machine_without_shared_memory(gpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = config_of()
    gpus(0, memory=1 << 50)
    monkeypatch.setattr(machine, "SHARED", tmp_path / "no")
    (said,) = check_fit(config, footprint(config, MODEL))
    assert said.startswith(f"This machine has no {tmp_path}/no, where the processes that write checkpoints")


def test_weights_that_find_no_room_to_be_shared_need_memory_once_more(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    needed = footprint(config, MODEL)
    total = needed.engine + needed.cache + sum(needed.ranks)
    gpus(0, memory=total)
    (said,) = check_fit(config, needed)
    assert f"needs at least {readable(total + needed.shared)} of memory" in said
    gpus(0, memory=total + needed.shared)
    assert check_fit(config, needed) == []
    gpus(0, memory=total)
    monkeypatch.setattr(machine, "shared_memory", lambda: needed.shared)
    assert check_fit(config, needed) == []


def test_an_engine_on_the_cpu_beside_gpus_is_a_warning(gpus) -> None:
    config = config_of()
    gpus(0)
    assert warnings(config) == []
    gpus(2)
    (said,) = warnings(config)
    assert "rollout.engine=embedded generates on the CPU" in said and "2 GPUs" in said
    config.rollout.engine = "sglang"
    assert warnings(config) == []


@pytest.mark.parametrize(("count", "text"), [(0, "0 MB"), (35e6, "35 MB"), (1.24e9, "1.2 GB")])
def test_readable(count: float, text: str) -> None:
    assert readable(count) == text
