"""``megatron-rl engine``: one SGLang server of a run that is started by hand, on this machine or another.

The trainer adopts it by ``rollout.sglang.urls``. It has no weights: until a trainer's first swap it serves nothing.
"""

import argparse
import copy
import os
import secrets
import shlex
import sys
from pathlib import Path

from megatron_rl.commands.foreground import address, check_address, run_server
from megatron_rl.commands.recipe import add_recipe, print_problems
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.rollout.sglang.check import check_sglang
from megatron_rl.rollout.sglang.servers.process import arguments, environment
from megatron_rl.settings.load import load
from megatron_rl.settings.rules import violations
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import KEY, api_key, key_from_environment
from megatron_rl.system.processes import BAD_INPUT, program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=30000, help="(default 30000)")
    parser.set_defaults(run=engine)


def engine(options: argparse.Namespace) -> int:
    """Run until a signal; returns 128 + signal. Raises InputError for what cannot be started, RunError when it ends."""
    config, problems = load(options.recipe, options.overrides)
    config = _for_one_engine(config)
    if problems := [*problems, *violations(config).values(), *check_sglang(config.rollout)]:
        print_problems(options.recipe, problems, sys.stderr)
        return BAD_INPUT
    check_address(options.host, options.port)
    key = key_from_environment() if os.environ.get(KEY) else secrets.token_bytes(16)
    with scratch.made() as own:
        folder = _model_folder(config, own / "model")
        chosen = arguments(config.served(), folder, 0, options.port, key) | {"host": options.host}
        env = environment(config.rollout.threads, config.rollout.sglang.tensor_parallel, key) | scratch.temporary(own)
        return run_server(chosen, env, api_key(key), _how_to_train(options, key), config.rollout.sglang.start_seconds)


def _for_one_engine(config: Config) -> Config:
    config = copy.deepcopy(config)
    config.rollout.engine, config.rollout.engines = "sglang", 1
    config.rollout.sglang.urls, config.rollout.sglang.port, config.rollout.sglang.host = "", 0, ""
    config.rollout.sglang.nodes = 1
    return config


def _model_folder(config: Config, made: Path) -> Path:
    """The model's folder, of which config.json is read; one that the run would make itself is made here too."""
    if config.model.path:
        folder = Path(config.model.path)
        if not (folder / "config.json").is_file():
            raise InputError(f"model.path: {folder} is no Hugging Face folder on this machine: it has no config.json.")
        return folder
    from megatron_rl.launch.initial_model import write_initial_model

    write_initial_model(config.model, config.data, config.run.seed, made)
    return made


def _how_to_train(options: argparse.Namespace, key: bytes) -> str:
    host = machine.own_address() if options.host == "0.0.0.0" else options.host
    overrides = " ".join(["", *map(shlex.quote, options.overrides)])
    return (
        "The engine waits for its trainer (Ctrl-C ends it):\n"
        f"  {KEY}={key.hex()} {program()} train {shlex.quote(options.recipe)}{overrides} rollout.engine=sglang "
        f"rollout.sglang.urls={address(host, options.port)}"
    )
