"""Starting and ending the processes of one SGLang server. Imports no torch."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import yaml

from megatron_rl.resharding.layouts.fp8 import QUANTISATION
from megatron_rl.rollout.config import Served
from megatron_rl.rollout.sglang.servers.leftovers import mapped_by, remove
from megatron_rl.system import machine
from megatron_rl.system.channel import KEY, api_key
from megatron_rl.system.processes import tied_to_this_process
from megatron_rl.system.supervision.logs import last_lines, told

HOOK = "megatron_rl.rollout.sglang.worker.swap"
STANDINS = Path(__file__).parent / "standins"
CPU_PACKAGES = Path(sys.prefix) / "sglang-cpu"  # torchvision's CUDA build: without a GPU it must not be seen elsewhere
OURS = {  # options of SGLang that this project sets itself -> the option to set instead
    "model_path": "model.path",
    "dtype": "model.dtype",
    "host": "rollout.sglang.urls",
    "port": "rollout.sglang.port",
    "tp_size": "rollout.sglang.tensor_parallel",
    "ep_size": "rollout.sglang.expert_parallel",
    "max_running_requests": "rollout.max_running",
    "api_key": "",
    "custom_weight_loader": "",
    "enable_return_routed_experts": "rollout.sglang.routing_replay",
    "config": "",
    "nccl_port": "",
    "nnodes": "rollout.sglang.nodes",
    "node_rank": "rollout.sglang.nodes",
    "dist_init_addr": "rollout.sglang.nodes",
}
UNSUPPORTED = {  # options of SGLang for servers that a swap cannot fill, or that draw otherwise -> what to do instead
    "preferred_sampling_params": "set rollout.temperature, .top_p and .top_k, which the actor's log-probs know of",
    "dp_size": "every server holds one copy of the model, set rollout.engines",
    "pp_size": "a server has no pipeline stages, set rollout.sglang.tensor_parallel",
}
ALIASES = {  # SGLang's other names of those
    "model": "model_path",
    "tensor_parallel_size": "tp_size",
    "expert_parallel_size": "ep_size",
    "ep": "ep_size",
    "data_parallel_size": "dp_size",
    "pipeline_parallel_size": "pp_size",
    "nccl_init_addr": "dist_init_addr",
}
# Of the host's memory without a GPU, as mem_fraction_static. SGLang takes what others allocate while it loads for
# weights of its own, and gives up where they have more than this: trainers start beside it. max_total_tokens keeps its
# cache small.
HOST_SHARE = 0.5
LAST_LINES = 25  # of a server's log, in an error
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Part:
    """Which of the ``nodes`` machines of a server this is, and the address on the first at which all of them meet."""

    number: int
    nodes: int
    meeting: str


def arguments(
    served: Served,
    model_folder: Path,
    index: int,
    port: int,
    key: bytes,
    gpus: range | None = None,
    host: str = "127.0.0.1",
    part: Part | None = None,
) -> dict[str, Any]:
    """One server's options, by SGLang's own names; ``gpus``: those of its workers here, where it is not to choose.

    ``part``: where its workers are on several machines.
    """
    rollout, options = served.rollout, served.rollout.sglang
    chosen: dict[str, Any] = {
        "random_seed": (served.seed * 1009 + index) % 2**31,
        "load_format": "dummy",  # the weights come by the first swap
        "skip_tokenizer_init": True,  # token ids go in and out
        "skip_server_warmup": True,
        "log_level": "info",
        "log_level_http": "warning",
    }
    if options.routing_replay:
        chosen["disable_radix_cache"] = True  # Replica.ready says why
    if options.colocated:
        chosen["enable_memory_saver"] = True
    if gpus is not None:
        chosen["base_gpu_id"] = gpus.start
    chosen |= on_this_machine((served.longest + 8) * rollout.max_running)
    chosen |= {name.replace("-", "_"): value for name, value in options.args.items()}
    chosen |= {
        "model_path": str(model_folder),
        "dtype": served.dtype,
        "host": host,
        "port": port,
        "nccl_port": machine.free_low_port(),
        "tp_size": options.tensor_parallel,
        "ep_size": options.expert_parallel,
        "max_running_requests": rollout.max_running,
        "api_key": api_key(key),
        "custom_weight_loader": [HOOK],
    }
    if part is not None:
        chosen |= {"nnodes": part.nodes, "node_rank": part.number, "dist_init_addr": part.meeting}
    if options.fp8:
        overrides = json.loads(str(chosen.get("json_model_override_args") or "{}"))
        chosen["json_model_override_args"] = json.dumps(overrides | {"quantization_config": QUANTISATION})
    if options.routing_replay:
        chosen["enable_return_routed_experts"] = True
    return {name.replace("_", "-"): value for name, value in chosen.items()}


def refused(option: str) -> str:
    """Why an option of SGLang cannot be given, and what to do instead; empty when it can."""
    given = option.lstrip("-").replace("-", "_")
    names = [*OURS, *UNSUPPORTED, *ALIASES]
    # SGLang takes the beginning of a name for the name
    found = given if given in names else next((name for name in names if given and name.startswith(given)), "")
    name = ALIASES.get(found, found)
    if name in OURS:
        return f"set {OURS[name]}" if OURS[name] else "the trainer sets it itself"
    return UNSUPPORTED.get(name, "")


def on_this_machine(tokens: int) -> dict[str, Any]:
    """Options without which a server does not run here; ``tokens``: room in its cache, where it has to be said."""
    if machine.gpus():
        return {}
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "disable_overlap_schedule": True,
        "sleep_on_idle": True,  # or it takes a whole core while the trainer trains
        "mem_fraction_static": HOST_SHARE,
        "max_total_tokens": max(8192, tokens),
    }


def environment(threads: int, workers: int, key: bytes | None) -> dict[str, str]:
    """What a server's processes need on top of this process's environment."""
    found = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    found["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "0"  # log-probs are those of the distribution that is drawn from
    if key is not None:
        found[KEY] = key.hex()
    if not machine.gpus():
        path = [str(STANDINS), str(CPU_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        found |= {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": os.pathsep.join(path)}
        # Workers that share matrices would compile a small function at their first token, for twenty seconds and more.
        found["TORCHDYNAMO_DISABLE"] = "1"
        if workers > 1:
            cores = sorted(os.sched_getaffinity(0))
            found["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[i % len(cores)]) for i in range(workers))
    return found


def open_log(path: Path) -> BinaryIO:
    """A log to append to that its owner alone can read: SGLang prints its options, and the API key is one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)  # it may have been there
    return open(descriptor, "ab")


class ServerProcess:
    """One server's processes; they end with this one."""

    def __init__(self, name: str, options: Mapping[str, Any], env: Mapping[str, str], folder: Path, log: Path) -> None:
        self.name, self.log, self._env = name, log, env
        file = folder / f"{name}.yaml"  # not the command line: everybody can read that, and it holds the key
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            yaml.safe_dump(dict(options), out)
        self._command = [sys.executable, "-m", "sglang.launch_server", "--config", str(file)]
        self._popen: subprocess.Popen[bytes] | None = None
        self._parts: list[psutil.Process] = []

    places = (machine.place(),)
    lost = ""  # why it cannot be started again: this machine is still here

    def start(self) -> None:
        """Start it. It dies with the thread that calls this."""
        self._parts = []
        with open_log(self.log) as log:
            self._began = log.tell()
            self._popen = subprocess.Popen(
                tied_to_this_process(self._command),
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid if self._popen else 0

    def note_parts(self) -> None:
        """It is ready: from now on it has ended when one of its schedulers, or its detokenizer, has."""
        children = psutil.Process(self.pid).children()
        self._parts = [child for child in children if _is_part(child)]

    @property
    def started(self) -> bool:
        """Whether it ever was."""
        return self._popen is not None

    @property
    def ended(self) -> bool:
        """Whether it has been started and is gone, or a part of it is without which it cannot answer."""
        return self._popen is not None and (self._popen.poll() is not None or any(map(_gone, self._parts)))

    def listens(self, port: int) -> bool:
        """Whether one of its processes listens at a TCP port."""
        for member in self._family():
            with contextlib.suppress(psutil.Error):
                for connection in member.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                        return True
        return False

    def last_words(self) -> str:
        """The end of what it printed since it was started."""
        return told(last_lines(self.log, self._began), LAST_LINES) or "\n  (nothing)"

    def kill(self, gently: bool = False) -> None:
        """End it and every process that it has started."""
        if self._popen is None:
            return
        family = self._family()
        shared = {path for member in family for path in mapped_by(member.pid)}
        if gently and family:
            with contextlib.suppress(psutil.NoSuchProcess):
                family[-1].send_signal(signal.SIGTERM)
            psutil.wait_procs(family, timeout=_END_SECONDS)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=_END_SECONDS)
        self._popen.wait()
        remove(shared)

    def _family(self) -> list[psutil.Process]:
        """Every process that it has started, and itself; empty when it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.pid)
            return [*leader.children(recursive=True), leader]
        return []


def _is_part(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("sglang::") for word in process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return True


def _gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
