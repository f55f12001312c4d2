"""The run's mirror in wandb; it never asks for anything and never stops a run."""

import dataclasses
import netrc
import os
import secrets
from typing import Any
from urllib.parse import urlparse

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.tracking.run_folder import RunFolder

CONNECT_SECONDS = 15


def start_wandb(run: RunFolder, config: Config) -> Any | None:
    """A wandb run, or None when tracking.wandb=off.

    auto is online with an API key (WANDB_API_KEY or a .netrc entry) and offline without one, or when the server
    does not answer. The run keeps its wandb id when it is continued. Raises InputError when tracking.wandb=online
    and the server does not answer.
    """
    mode = config.tracking.wandb
    if mode == "off":
        return None
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    import wandb

    if "wandb_id" not in run.manifest():
        run.update_manifest(wandb_id=secrets.token_hex(4))
    options: dict[str, Any] = {
        "project": config.tracking.project,
        "name": run.path.name,
        "id": run.manifest()["wandb_id"],
        "resume": "allow",
        "dir": str(run.path),
        "config": dataclasses.asdict(config),
        "settings": wandb.Settings(
            silent=True, console="off", init_timeout=CONNECT_SECONDS, x_disable_stats=True, x_disable_meta=True
        ),
    }
    try:
        started = wandb.init(mode=mode, **options)  # type: ignore[arg-type]
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        if config.tracking.wandb != "auto":
            raise InputError(
                f"tracking.wandb={config.tracking.wandb}: wandb could not start ({reason}). Log in with "
                "`wandb login`, or use tracking.wandb=offline."
            ) from error
        print(f"wandb could not start online ({reason}); it records offline in {run.path}/wandb.", flush=True)
        wandb.teardown()  # its service holds on to the run's id
        started = wandb.init(mode="offline", **options)
    for stage in ("sft", "rl", "eval"):
        started.define_metric(f"{stage}/step", hidden=True)
        started.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return started


def has_key() -> bool:
    """Whether wandb would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
