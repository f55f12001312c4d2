"""``megatron-rl serve``: a trained policy behind SGLang's OpenAI-compatible API, or a reward model behind HTTP."""

import argparse
import os
import secrets
import shlex
import threading
from pathlib import Path
from typing import Any

import yaml

from megatron_rl.actor.checkpoint_folder import damage, latest, read_state
from megatron_rl.commands.foreground import address, check_address, run_server, stopped
from megatron_rl.errors import InputError
from megatron_rl.resharding.families.table import scalar_head
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.rewards.serving.reward_model import KEY as REWARD_KEY
from megatron_rl.rollout.sglang.servers.process import ALIASES, environment, on_this_machine
from megatron_rl.rollout.sglang.servers.versions import supported
from megatron_rl.settings.written import read_value
from megatron_rl.system import machine
from megatron_rl.system.processes import program

KEY = "MEGATRON_RL_API_KEY"  # environment variable: the key that callers must send; a new one when it is not set
OURS = ("model_path", "host", "port", "tp_size", "api_key", "config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, or a Hugging Face folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=30000, help="(default 30000)")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share every matrix (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--start-seconds", type=float, default=1800.0, help="it must be ready by then (default 1800)")
    parser.add_argument(
        "args", metavar="name=value", nargs="*", default=[], help="more options of sglang.launch_server"
    )
    parser.set_defaults(run=serve)


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal; returns 128 + it. Raises InputError for what cannot be served, RunError when it ends."""
    for name in ("tensor_parallel", "threads", "start_seconds"):
        if not (given := getattr(options, name)) > 0:
            raise InputError(f"--{name.replace('_', '-')} {given} must be above 0.")
    check_address(options.host, options.port)
    folder, key = model_folder(Path(options.checkpoint)), os.environ.get(KEY) or secrets.token_hex(16)
    if scalar_head(read_hf_config(folder)):
        if options.args or options.tensor_parallel > 1:
            raise InputError(
                f"{folder} is a reward model, which is served on CPUs without SGLang: leave "
                f"{options.args[0] if options.args else '--tensor-parallel'} away."
            )
        return _serve_rewards(folder, options.host, options.port, key, options.threads)
    chosen = server_options(folder, options, key)
    env = environment(options.threads, options.tensor_parallel, None)
    said = _how_to_call(address(options.host, options.port), folder, key)
    return run_server(chosen, env, key, said, options.start_seconds)


def model_folder(checkpoint: Path) -> Path:
    """The Hugging Face folder of a run or of its own. Raises InputError when there is none."""
    if (checkpoint / "hf" / "config.json").is_file():
        if said := _earlier(checkpoint):
            print(f"warning: {said}", flush=True)
        return checkpoint / "hf"
    if (checkpoint / "manifest.json").is_file():
        raise InputError(
            f"The run {checkpoint} has no exported policy yet ({checkpoint / 'hf'}): let it end with run.export=true"
            + _or_convert(checkpoint)
        )
    if (checkpoint / "metadata.json").is_file():
        raise InputError(
            f"{checkpoint} is a Megatron checkpoint, and a Hugging Face folder is needed: "
            f"{program()} convert megatron-to-hf {shlex.quote(str(checkpoint))} FOLDER."
        )
    if not checkpoint.exists():
        raise InputError(f"{checkpoint} does not exist: name a run's folder, or that of a Hugging Face model.")
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint} is neither a run's folder nor a Hugging Face model: it has no config.json.")
    return checkpoint


def _earlier(checkpoint: Path) -> str:
    """What to say where a run has gone on since its policy was exported."""
    from megatron_rl.tracking.run_folder import RunFolder  # OmegaConf

    run = RunFolder(checkpoint)
    newest, exported = latest(run.checkpoints), run.exported()
    if newest is None or exported is None or damage(newest):
        return ""
    state = read_state(newest)
    if (state.get("stage"), state.get("step")) == exported:
        return ""
    return (
        f"{run.export} is the policy of step {exported[1]}, and the newest checkpoint is {newest.name}: continue the "
        f"run to its end{_or_convert(checkpoint)}"
    )


def _or_convert(run: Path) -> str:
    """What else can be done with the newest checkpoint of a run, if there is one."""
    newest = latest(run / "checkpoints")
    if newest is None:
        return "."
    model = run / "initial_model"
    named = f" --model {shlex.quote(str(model))}" if model.is_dir() else " --model MODEL"
    convert = f"{program()} convert megatron-to-hf {shlex.quote(str(newest))} FOLDER{named}"
    return f", or take a checkpoint: `evaluate` does as it is ({newest}), else convert it: {convert}."


def server_options(folder: Path, options: argparse.Namespace, key: str) -> dict[str, Any]:
    """SGLang's options, by its own names. Raises InputError naming what is wrong."""
    version = machine.installed("sglang")
    if version is None:
        raise InputError('SGLang is not installed: pip install "megatron-rl[sglang]", or `make sglang` without a GPU.')
    supported(version)
    chosen: dict[str, Any] = {"log_level": "info", "skip_server_warmup": True, "served_model_name": folder.name}
    chosen |= on_this_machine(0)
    for item in options.args:
        name, equals, text = item.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise InputError(f"{item!r} is no option of SGLang: write name=value, for example context_length=8192.")
        if ALIASES.get(name, name) in OURS:
            raise InputError(f"{item}: {name} is set by this command's own options; see {program()} serve --help.")
        try:
            chosen[name] = read_value(text).value(Any)
        except (yaml.YAMLError, ValueError):
            raise InputError(f"{item}: the value is not valid YAML; quote it.") from None
    chosen |= {"model_path": str(folder), "host": options.host, "port": options.port, "api_key": key}
    chosen["tp_size"] = options.tensor_parallel
    return {name.replace("_", "-"): value for name, value in chosen.items()}


def _how_to_call(url: str, folder: Path, key: str) -> str:
    body = f'{{"model": "{folder.name}", "messages": [{{"role": "user", "content": "…"}}]}}'
    return (
        f"Serving at {url}/v1, key {key} (Ctrl-C ends it). For example:\n"
        f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f"-d '{body}'"
    )


def _serve_rewards(folder: Path, host: str, port: int, key: str, threads: int) -> int:
    from megatron_rl.rewards.serving.scorer import Scorer  # torch
    from megatron_rl.rewards.serving.server import make_server

    with stopped() as stop:
        print(f"Loading the reward model {folder} …", flush=True)
        server = make_server(Scorer(folder, threads), host, port, key)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(_how_to_ask(address(host, port), key), flush=True)
        stop.wait()
        server.shutdown()
        server.server_close()
    return 128 + stop.signal


def _how_to_ask(url: str, key: str) -> str:
    body = '{"inputs": [{"prompt": "…", "response": "…"}]}'
    return (
        f"Serving rewards at {url}/score, key {key} (Ctrl-C ends it). For example:\n"
        f"  curl {url}/score -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'\n"
        f"As a reward: {REWARD_KEY}={key} {program()} train RECIPE rewards.terms.reward_model=1.0 "
        f"rewards.args.reward_model.url={url}"
    )
