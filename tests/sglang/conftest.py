"""Real SGLang models and servers: ``pytest tests/sglang`` where SGLang is installed."""

import os

from megatron_rl.rollout.sglang.process import environment

os.environ.update(environment(threads=1, workers=1, key=None))  # for the processes that tests start
