"""What `check` says about the SGLang options; no server is started."""

import socket
from pathlib import Path

import pytest

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.rollout.check import check_rollout
from megatron_rl.rollout.config import RolloutConfig, SGLangConfig
from megatron_rl.rollout.sglang.check import check_sglang_gpus, check_sglang_model
from megatron_rl.rollout.sglang.servers.gpus import engine_gpus, first_gpus, shared
from megatron_rl.rollout.sglang.servers.process import arguments
from megatron_rl.rollout.sglang.servers.versions import supported
from megatron_rl.settings.rules import violations
from megatron_rl.system import machine
from megatron_rl.system.channel import KEY
from tests.actor.models import QWEN3

ELSEWHERE = "http://10.0.0.7:30000"  # servers that run elsewhere need no package here


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "5f" * 16)
    monkeypatch.setattr(machine, "gpus", lambda: ())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"swap": "pul"}, "rollout.sglang.swap is 'pul'; it must be pull, tensor, distributed or disk."),
        ({"tensor_parallel": 0}, "rollout.sglang.tensor_parallel is 0; it must be 1 or more."),
        ({"expert_parallel": -2}, "rollout.sglang.expert_parallel is -2; it must be 1 or more."),
        ({"swap_seconds": 0.0}, "rollout.sglang.swap_seconds is 0.0; it must be above 0."),
        (
            {"health_seconds": float("nan")},
            "rollout.sglang.health_seconds is nan; it must be a finite number, above 0.",
        ),
        ({"restarts": -1}, "rollout.sglang.restarts is -1; it must be 0 or more."),
        ({"args": {"tp-size": 2}}, "rollout.sglang.args.tp-size cannot be given: set rollout.sglang.tensor_parallel."),
        (
            {"args": {"tensor_parallel_size": 2}},
            "rollout.sglang.args.tensor_parallel_size cannot be given: set rollout",
        ),
        ({"args": {"tp": 2}}, "rollout.sglang.args.tp cannot be given: set rollout.sglang.tensor_parallel."),
        ({"args": {"nccl-port": 1}}, "rollout.sglang.args.nccl-port cannot be given: the trainer sets it itself."),
        (
            {"args": {"data_parallel_size": 2}},
            "rollout.sglang.args.data_parallel_size cannot be given: every server holds one copy of the model, set "
            "rollout.engines.",
        ),
        ({"args": {"pp_size": 2}}, "rollout.sglang.args.pp_size cannot be given: a server has no pipeline stages, set"),
        (
            {"nodes": 2, "tensor_parallel": 3},
            "rollout.sglang.tensor_parallel=3 workers cannot be dealt out over rollout",
        ),
        ({"nodes": 0}, "rollout.sglang.nodes is 0; it must be 1 or more."),
        ({"args": {"nnodes": 2}}, "rollout.sglang.args.nnodes cannot be given: set rollout.sglang.nodes"),
        (
            {"args": {"preferred-sampling-params": "{}"}},
            "rollout.sglang.args.preferred-sampling-params cannot be given: set rollout.temperature, .top_p and .top_k",
        ),
        ({"args": {"api_key": "x"}}, "rollout.sglang.args.api_key cannot be given: the trainer sets it itself."),
        (
            {"transport": "tcp"},
            "rollout.sglang.transport is 'tcp'; it must be auto, shared_memory, cuda_ipc, gloo,",
        ),
        (
            {"transport": "shared_memory"},
            "rollout.sglang.transport=shared_memory reads the trainer's memory; 10.0.0",
        ),
        ({"transport": "nccl"}, "rollout.sglang.transport=nccl takes weights out of GPU memory, and there is no"),
        (
            {"transport": "gloo", "swap": "tensor"},
            "rollout.sglang.transport=gloo is how bytes are pulled: leave it",
        ),
        (
            {"swap": "disk"},
            "rollout.sglang.swap=disk writes to a temporary folder of this machine, which 10.0.0.7 does",
        ),
        ({"host": "10.0.0.9"}, "rollout.sglang.host is '10.0.0.9', which is no IPv4 address of this machine."),
        ({"fp8": True, "swap": "tensor"}, "rollout.sglang.fp8=true needs rollout.sglang.swap=pull; it is tensor."),
        ({"urls": "localhost:30000"}, "rollout.sglang.urls: 'localhost:30000' is no server's address"),
        (
            {"urls": "http://10.0.0.8:1/path"},
            "rollout.sglang.urls: 'http://10.0.0.8:1/path' is no server's address",
        ),
    ],
)
def test_one_violation(options: dict, said: str) -> None:
    config = RolloutConfig(engine="sglang", sglang=SGLangConfig(**{"urls": ELSEWHERE} | options))
    (found,) = [*violations(config, "rollout.").values(), *check_rollout(config)]
    assert found.startswith(said)


@pytest.mark.parametrize(
    "url", ["http://h:99999", "http://h:abc", "http://h:0", "http://h:1?x=1", "http://h:1?", "http://u:p@h:1", ""]
)
def test_what_is_no_servers_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_here", lambda _: True)
    monkeypatch.setattr(machine, "installed", lambda _: "0.3.2")
    found = check_rollout(RolloutConfig(engine="sglang", sglang=SGLangConfig(urls=f"{ELSEWHERE},{url}")))
    assert found == [f"rollout.sglang.urls: {url!r} is no server's address; write http://host:port."]


def test_several_servers_that_run_already(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RolloutConfig(engine="sglang", sglang=SGLangConfig(urls=f"{ELSEWHERE}, {ELSEWHERE}/"))
    monkeypatch.setattr(machine, "installed", lambda _: None)
    assert check_rollout(config) == [
        'More than one engine needs sglang-router, which is not installed: pip install "megatron-rl[sglang]".',
        f"rollout.sglang.urls: '{ELSEWHERE}/' is given twice; every server is one engine.",
    ]


def test_servers_that_run_already_have_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY)
    (found,) = check_rollout(RolloutConfig(engine="sglang", sglang=SGLangConfig(urls=ELSEWHERE)))
    assert found.startswith(f"rollout.sglang.urls: the environment variable {KEY} must hold the run's key")


def test_fp8_needs_a_gpu_and_whole_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed", lambda _: "0.5.21")
    (found,) = check_rollout(RolloutConfig(engine="sglang", sglang=SGLangConfig(fp8=True)))
    assert found == "rollout.sglang.fp8=true needs engines with GPUs, and there is none here."
    hf_config = {
        "model_type": "qwen3",
        "vocab_size": 256,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    options = SGLangConfig(fp8=True, urls=ELSEWHERE)
    assert check_sglang_model(options, hf_config) == []
    options.tensor_parallel = 2
    (found,) = check_sglang_model(options, hf_config)
    assert "which cuts its 128 x 128 FP8 tiles" in found and found.startswith("rollout.sglang.fp8=true: ")


def test_servers_that_are_started_here_need_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "installed", lambda _: "0.5.21")
    monkeypatch.setattr(machine, "SHARED", tmp_path / "shm")
    assert machine.shared_memory() == 0
    (found,) = check_rollout(RolloutConfig(engine="sglang"))
    assert found.startswith(f"This machine has no {tmp_path}/shm, where the processes") and "SGLang server" in found
    assert check_rollout(RolloutConfig(engine="sglang", sglang=SGLangConfig(urls=ELSEWHERE))) == []
    (tmp_path / "shm").mkdir()
    assert check_rollout(RolloutConfig(engine="sglang")) == []
    assert machine.shared_memory() > 0


@pytest.mark.parametrize("name", ["enable_deterministic_inference", "enable-deterministic-inference"])
def test_a_mode_of_gpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed", lambda _: "0.5.21")
    options = SGLangConfig(args={name: True})
    (found,) = check_rollout(RolloutConfig(engine="sglang", sglang=options))
    assert found.startswith("rollout.sglang.args.enable_deterministic_inference=true is for GPUs, and there is none")
    monkeypatch.setattr(machine, "gpus", lambda: (1,))
    assert check_rollout(RolloutConfig(engine="sglang", sglang=options)) == []


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed", lambda _: "0.5.21")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        (found,) = check_rollout(RolloutConfig(engine="sglang", sglang=SGLangConfig(port=port)))
    assert found.startswith(f"rollout.sglang.port={port}: port {port} cannot be used (Address already in use).")
    (found,) = check_rollout(RolloutConfig(engine="sglang", engines=2, sglang=SGLangConfig(port=65535)))
    assert found == "rollout.sglang.port is 65535; it must be 0 or a port of 1 to 65534."


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RolloutConfig(engine="sglang", engines=2)
    versions: dict[str, str] = {}
    monkeypatch.setattr(machine, "installed", versions.get)
    assert "SGLang is not installed" in check_rollout(config)[0]
    versions["sglang"] = "0.5.11"
    assert check_rollout(config)[0].startswith("SGLang 0.5.11 is not supported: versions 0.5.12 to 0.5.23 are.")
    versions["sglang"] = "0.5.12"
    assert "needs sglang-router" in check_rollout(config)[0]
    versions["sglang-router"] = "0.3.2"
    assert check_rollout(config) == []


@pytest.mark.parametrize("version", ["0.5.12", "0.5.12.post1", "0.5.21", "0.5.23.post2"])
def test_supported_versions(version: str) -> None:
    supported(version)


@pytest.mark.parametrize("version", ["0.4.9", "0.5.11.post3", "0.5.24", "0.6.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(InputError, match="not supported"):
        supported(version)


def test_modes_that_exclude_each_other() -> None:
    interrupted = RolloutConfig(in_flight=True)
    assert check_rollout(interrupted) == [
        "rollout.in_flight=true needs rollout.staleness of 1 or more and rollout.engine=sglang."
    ]
    shared = RolloutConfig(engine="sglang", staleness=1, sglang=SGLangConfig(urls=ELSEWHERE, colocated=True))
    assert "rollout.sglang.colocated=true needs rollout.staleness=0" in check_rollout(shared)[0]


@pytest.mark.parametrize(
    ("gpus", "world", "options", "environment", "said"),
    [
        (2, 1, {"transport": "nccl"}, "", ""),
        (1, 1, {"transport": "nccl"}, "", "rollout.sglang.transport=nccl connects processes that have a GPU each"),
        (4, 2, {"transport": "nccl", "args": {"base-gpu-id": 1}}, "", "rollout.sglang.transport=nccl connects"),
        (4, 2, {"transport": "nccl", "args": {"base_gpu_id": 2}}, "", ""),
        (4, 2, {"swap": "distributed", "args": {"base_gpu_id": 1}}, "", ""),  # rank 0 alone sends
        (2, 2, {"swap": "distributed"}, "", "rollout.sglang.swap=distributed connects"),
        (2, 1, {"tensor_parallel": 3}, "", "rollout.sglang.tensor_parallel=3 gives every worker of an engine its own"),
        (2, 1, {"tensor_parallel": 4, "nodes": 2}, "", ""),
        (2, 1, {"tensor_parallel": 6, "nodes": 2}, "", "rollout.sglang.tensor_parallel=6 gives every worker of an"),
        (2, 1, {"args": {"base_gpu_id": 2}}, "", "rollout.sglang.args.base_gpu_id: an engine takes GPU 2, and the"),
        (2, 2, {"transport": "gloo"}, "expandable_segments:True", ""),
        (2, 1, {}, "max_split_size_mb:64,expandable_segments:True", "The environment variable PYTORCH_ALLOC_CONF has"),
        (2, 1, {"transport": "gloo", "colocated": True}, "expandable_segments:True", "The environment variable"),
        (1, 1, {"transport": "auto", "urls": ELSEWHERE}, "expandable_segments:True", ""),  # over nccl
        (1, 1, {"urls": "http://127.0.0.1:30000"}, "expandable_segments:True", "The environment variable"),
        (1, 1, {"urls": "http://no.such.host.invalid:30000"}, "expandable_segments:True", ""),
        (0, 1, {"tensor_parallel": 3}, "expandable_segments:True", ""),
    ],
)
def test_gpus(
    gpus: int, world: int, options: dict, environment: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,) * gpus)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", environment)
    found = check_sglang_gpus(RolloutConfig(engine="sglang", sglang=SGLangConfig(**options)), world)
    assert len(found) == bool(said) and all(each.startswith(said) for each in found), found


@pytest.mark.parametrize(
    ("world", "workers", "engines", "gpus", "colocated", "firsts"),
    [
        (4, 1, 4, 8, False, [4, 5, 6, 7]),
        (4, 2, 2, 8, False, [4, 6]),
        (4, 1, 6, 8, False, [4, 5, 6, 7, 4, 5]),  # they share GPUs with each other, not with the trainer
        (4, 2, 2, 7, False, [4, 4]),
        (7, 2, 2, 8, False, [0, 2]),
        (1, 1, 2, 1, False, [0, 0]),
        (1, 1, 1, 2, False, [1]),
        (8, 2, 4, 8, True, [0, 2, 4, 6]),
        (2, 2, 3, 4, True, [0, 2, 0]),
        (4, 3, 2, 4, True, [0, 0]),
        (1, 4, 1, 2, False, [0]),  # refused
    ],
)
def test_where_engines_compute(
    world: int, workers: int, engines: int, gpus: int, colocated: bool, firsts: list[int]
) -> None:
    assert first_gpus(world, workers, engines, gpus, colocated) == firsts


def test_servers_are_told_their_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config()
    config.actor.tensor_parallel, config.rollout.engine, config.rollout.engines = 2, "sglang", 2
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,) * 4)
    places = engine_gpus(config.rollout, 2)
    chosen = [arguments(config.served(), tmp_path, i, 1, b"", place)["base-gpu-id"] for i, place in enumerate(places)]
    assert chosen == [2, 3] and not shared(places, 2)
    config.rollout.sglang.args = {"base_gpu_id": 1}
    (place, _) = places = engine_gpus(config.rollout, 2)
    assert place == range(1, 2) and arguments(config.served(), tmp_path, 0, 1, b"", place)["base-gpu-id"] == 1
    assert shared(places, 2) and not shared(places, 1)


def test_sizes_that_do_not_divide_the_model() -> None:
    assert check_sglang_model(SGLangConfig(tensor_parallel=2), QWEN3) == []
    found = check_sglang_model(SGLangConfig(tensor_parallel=3), QWEN3)
    assert found[0] == "rollout.sglang.tensor_parallel=3 does not divide num_attention_heads=4; 1, 2, 4 do."
    assert len(found) == 3
    mixture = QWEN3 | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 16}
    mixture |= {"num_experts_per_tok": 2, "tie_word_embeddings": True}
    (said,) = check_sglang_model(SGLangConfig(), mixture)
    assert said.startswith("SGLang's Qwen3-MoE has a head of its own")
    mixture |= {"tie_word_embeddings": False}
    assert check_sglang_model(SGLangConfig(tensor_parallel=2), mixture) == []
