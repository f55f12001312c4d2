"""Scores over HTTP: ``POST /score`` with {"inputs": [text or {"prompt": …, "response": …}, …]} -> {"scores": […]}.

Callers send a key (``Authorization: Bearer KEY``). ``GET /health`` answers 200 to anybody. What is wrong with a request
is answered with 400 and {"error": …}.
"""

import hmac
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from megatron_rl.rewards.serving.scorer import Input

_LONGEST = 1 << 26  # bytes of a request
_LISTED = 4096  # inputs of a request
Score = Callable[[Sequence[Input]], list[float]]


def make_server(score: Score, host: str, port: int, key: str) -> ThreadingHTTPServer:
    """A server that listens; ``serve_forever`` has it answer, one request's model pass at a time."""
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # seconds that a caller may keep a connection without a word

        def do_GET(self) -> None:
            self._answer(*((200, {"status": "ready"}) if self.path == "/health" else (404, {"error": "no such page"})))

        def do_POST(self) -> None:
            said = self.headers.get("Authorization", "")
            length = self.headers.get("Content-Length", "")
            if not hmac.compare_digest(said.encode(), f"Bearer {key}".encode()):
                self.close_connection = True  # its body is not read
                return self._answer(401, {"error": "another key is needed"})
            if not length.isdecimal() or int(length) > _LONGEST:
                self.close_connection = True
                return self._answer(413, {"error": f"a request has a length of at most {_LONGEST} bytes"})
            body = self.rfile.read(int(length))
            if self.path != "/score":
                return self._answer(404, {"error": "no such page; there is /score"})
            try:
                inputs = _inputs(body)
                with turn:
                    scores = score(inputs)
            except ValueError as error:
                return self._answer(400, {"error": str(error)})
            self._answer(200, {"scores": scores})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A line per request says nothing to anybody."""

    return ThreadingHTTPServer((host, port), Handler)


def _inputs(body: bytes) -> list[Input]:
    """The inputs of a request. Raises ValueError saying what is wrong with it."""
    content = json.loads(body)  # its error is a ValueError
    given = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(given, list) or len(given) > _LISTED:
        raise ValueError(f'a request is {{"inputs": […]}} with at most {_LISTED} texts or {{"prompt", "response"}}')
    found: list[Input] = []
    for number, item in enumerate(given):
        if isinstance(item, dict):
            item = item.get("prompt"), item.get("response")
        texts = (item,) if isinstance(item, str) else item
        if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'input {number} is no text and no {{"prompt": text, "response": text}}')
        found.append(item)
    return found
