"""Asking a model over HTTP from an event loop: JSON there and back, again and later where the server is not well."""

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

PAUSE = 0.25  # seconds before the second call, doubled before each further one; times 0.5 to 1.5, or all come at once
LONGEST_PAUSE = 30.0  # that a server's Retry-After may ask for
CONNECT_SECONDS = 5.0  # to see whether anybody listens
AGAIN = (408, 425, 429)  # refusals that pass


class RefusedError(ValueError):
    """The server answers that this is no request for it."""


class UnansweredError(ConnectionError):
    """No call got an answer. ``retries``: calls after the first."""

    def __init__(self, said: str, retries: int) -> None:
        super().__init__(said)
        self.retries = retries


@dataclass(frozen=True)
class Answer:
    """What came back."""

    content: Any  # of the JSON
    retries: int  # calls after the first
    seconds: float  # from the first call to the answer, pauses included


class Client:
    """Calls of one URL. Connections are kept as long as the event loop lives, and closed with it."""

    def __init__(self, url: str, key: str = "", timeout: float = 3.0, retries: int = 2) -> None:
        """``key``: sent as ``Authorization: Bearer KEY`` unless empty; ``timeout``: seconds of one call."""
        self.url, self.timeout, self.retries = url, timeout, retries
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: AsyncIterator[aiohttp.ClientSession] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: Any) -> Answer:
        """Send JSON; the answer's JSON.

        Calls that get no answer in time, and answers of 408, 425, 429 and 500 or above, are followed by further ones;
        then raises UnansweredError. Raises RefusedError for any other status of 300 or above, ValueError for what is
        no JSON.
        """
        session, began, said = await self._connected(), time.monotonic(), ""
        for attempt in range(self.retries + 1):
            asked_for = 0.0
            try:
                async with session.post(self.url, json=body) as answer:
                    text = await answer.text(errors="replace")
                if answer.status < 300:
                    return Answer(_parsed(text), attempt, time.monotonic() - began)
                said = f"status {answer.status}: {text[:1000]}"
                if answer.status < 500 and answer.status not in AGAIN:
                    raise RefusedError(said)
                asked_for = _seconds(answer.headers.get("Retry-After", ""))
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                said = str(error) or type(error).__name__
            if attempt < self.retries:
                pause = PAUSE * 2**attempt * random.uniform(0.5, 1.5)
                await asyncio.sleep(max(pause, min(asked_for, LONGEST_PAUSE)))
        raise UnansweredError(said, self.retries)

    async def _connected(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop, self._opened = loop, self._open()
            self._session = await anext(self._opened)
        return self._session

    async def _open(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A loop that is closed ends its generators, and this one its session. No proxy is to learn the key."""
        connector = aiohttp.TCPConnector(limit=0)  # as many as rewards.concurrency
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self.headers) as session:
            yield session


def longest(timeout: float, retries: int) -> float:
    """Seconds that ``post`` may take where no server asks for more."""
    return timeout * (retries + 1) + sum(1.5 * PAUSE * 2**attempt for attempt in range(retries))


def call_violations(url: str, timeout: float, retries: int, deadline: float) -> list[str]:
    """What is wrong with how a server is to be asked, or that nobody listens there; keys are those of the reward."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [f"url is {url!r}; it must be http://HOST:PORT, or https."]
    if not timeout > 0 or retries < 0:
        return [f"timeout={timeout} must be above 0, and retries={retries} 0 or more."]
    if (most := longest(timeout, retries)) > deadline:
        return [
            f"{retries + 1} calls of {timeout:g} s with their pauses may take {most:g} s, more than "
            f"rewards.deadline={deadline:g}: raise that, or lower timeout or retries."
        ]
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return [f"url={url}: nobody answers ({error}). Start the server, or correct the address."]
    return []


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"gave no JSON ({error}): {text[:200]!r}") from error


def _seconds(said: str) -> float:
    return float(said) if said.isdecimal() else 0.0  # it may be a date, too
