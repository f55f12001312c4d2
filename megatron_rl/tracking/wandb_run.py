"""The run's mirror in wandb; it never asks for anything and never stops a run."""

import dataclasses
import netrc
import os
import secrets
from typing import Any
from urllib.parse import urlparse

from megatron_rl.config import STAGES, Config
from megatron_rl.tracking.run_folder import RunFolder

CONNECT_SECONDS = 15


def start_wandb(run: RunFolder, config: Config) -> Any | None:
    """A wandb run, or None when tracking.wandb=off.

    auto is online with an API key (WANDB_API_KEY or a .netrc entry) and offline without one; whatever keeps wandb from
    starting online, it is said and the run is recorded offline. The run keeps its wandb id when it is continued.
    Raises what wandb raises when it cannot record offline either.
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
    except Exception as error:  # wandb's own errors, and those of whatever it uses
        if mode == "offline":
            raise
        reason = " ".join(str(error).split())
        print(
            f"warning: wandb could not start {mode} ({reason}); it records offline in {run.path}/wandb "
            "(`wandb sync` uploads it).",
            flush=True,
        )
        wandb.teardown()  # its service holds on to the run's id
        started = wandb.init(mode="offline", **options)
    for stage in (*STAGES, "eval"):
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
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
