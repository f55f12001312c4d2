"""The score of a reward model that ``megatron-rl serve`` serves, asked over HTTP."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from math import isfinite

from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score

KEY = "MEGATRON_RL_REWARD_KEY"  # environment variable: the key that the server printed
_PAUSE = 0.25  # seconds before the first retry; doubled for each further one
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # no proxy is to learn the key


def reward_model(
    sample: Sample, url: str, timeout: float = 3.0, retries: int = 2, default: float | None = None
) -> Score:
    """What the model at ``url`` (http://HOST:PORT) gives prompt and response, unclamped.

    A call may take ``timeout`` seconds and is repeated up to ``retries`` times while the server cannot be reached or
    is not well; all together must stay below rewards.deadline. Then the score is ``default`` (component ``failed``: 1),
    or, without one, the run ends. A refusal (another key, a text that is too long) ends it in any case.
    """
    body = json.dumps({"inputs": [{"prompt": sample.prompt, "response": sample.response}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get(KEY, '')}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/score", body, headers)
    said = ""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        try:
            with _open(request, timeout=timeout) as answer:
                score = float(json.load(answer)["scores"][0])
            if not isfinite(score):
                raise ValueError(f"the reward model at {url} gives {score}")
            return {"score": score, "failed": 0.0}
        except urllib.error.HTTPError as error:
            said = f"status {error.code}: {error.read(1000).decode(errors='replace')}"
            if error.code < 500:
                raise ValueError(f"the reward model at {url} refuses ({said}); its key is {KEY}'s") from error
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
    if default is None:
        raise ConnectionError(f"the reward model at {url} gave no score in {retries + 1} calls: {said}")
    return {"score": default, "failed": 1.0}
