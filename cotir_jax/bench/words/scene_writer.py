"""The scene sentence from a vision-language model behind an OpenAI-compatible endpoint.

Off unless an endpoint is named. Whatever goes wrong, the caller gets None, keeps the measured
sentence, and the failure is counted. Standard library only.
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from cotir_jax import files
from cotir_jax.bench.words.thoughts import without_markers
from cotir_jax.images.pictures import data_url

KEY_VARIABLE = "COTIR_SCENE_KEY"

_QUESTION = (
    "Describe what this photo shows in one plain English sentence of at most 35 words: subject, "
    "surroundings, light and colours. No preamble, no quotation marks, no remarks on quality."
)
_WORDS = 40  # text encoders cut longer thoughts
_SIDE = 512
_ANSWER_BYTES = 1 << 20
_GIVE_UP = 5  # failures in a row after which nobody is asked any more


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # The key must not travel to another host.
    def redirect_request(self, *_arguments: object) -> None:
        return None


@dataclass
class SceneWriter:
    """Asks `model` at `endpoint` for a scene sentence; call it with a clean picture.

    The key, if the endpoint wants one, comes from the environment variable `COTIR_SCENE_KEY`.
    After five failures in a row it stops asking, so that a dead endpoint costs a build seconds
    rather than days. It can be pickled; each process then counts for itself.

    Attributes:
        endpoint: such as `http://localhost:8000/v1`; `/chat/completions` is added.
        model: the name that the endpoint knows the model by.
        timeout: seconds to wait for an answer, of each of two tries.
        asked: calls so far.
        failed: those of them that gave None.
        problem: the latest failure in words.

    Raises:
        ValueError: the endpoint is no http or https address, or model, timeout or key make no
            sense.
    """

    endpoint: str
    model: str
    timeout: float = 30.0
    asked: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    problem: str = field(default="", init=False)
    _in_a_row: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.endpoint)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                f"scene endpoint {self.endpoint!r} is no http or https address; expected one such "
                "as http://localhost:8000/v1"
            )
        if not self.model.strip():
            raise ValueError("the scene endpoint needs a model's name; give --scene-model NAME")
        if not self.timeout > 0:
            raise ValueError(f"scene timeout is {self.timeout}; expected more than 0 seconds")
        if not (_key().isascii() and _key().isprintable()):
            # Found here, since http.client would quote the key in its error.
            raise ValueError(f"{KEY_VARIABLE} holds characters that no key has; set it again")

    def __call__(self, picture: np.ndarray) -> str | None:
        """Describes uint8 `[height, width, 3]` in at most 40 words; None where that failed."""
        self.asked += 1
        if self._in_a_row < _GIVE_UP:
            body = json.dumps(_question(picture, self.model)).encode()
            for _ in range(2):
                try:
                    text = _clean(_answer_of(self._ask(body)))
                except (OSError, ValueError) as error:  # URLError, timeouts; JSON, HTTP framing
                    self.problem = files.one_line(error)
                    if isinstance(error, urllib.error.HTTPError) and _final(error.code):
                        break
                else:
                    self._in_a_row = 0
                    return text
            self._in_a_row += 1
        self.failed += 1
        return None

    def _ask(self, body: bytes) -> bytes:
        url = self.endpoint.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, body, headers)
        deadline = time.monotonic() + self.timeout
        opener = urllib.request.build_opener(_NoRedirects)
        chunks, size = [], 0
        try:
            with opener.open(request, timeout=self.timeout) as response:
                while chunk := response.read1(65536):
                    chunks.append(chunk)
                    size += len(chunk)
                    # The socket's own limit holds for each read, and a slow server has many.
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"no complete answer within {self.timeout:g} s")
                    if size > _ANSWER_BYTES:
                        raise ValueError(f"the answer is longer than {_ANSWER_BYTES} bytes")
        except http.client.HTTPException as error:
            raise OSError(f"broken answer ({type(error).__name__})") from error
        return b"".join(chunks)


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def _final(code: int) -> bool:
    """Returns whether asking again cannot help: refusals other than 'too busy' and 'timed out'."""
    return 300 <= code < 500 and code not in (408, 409, 425, 429)


def _question(picture: np.ndarray, model: str) -> dict:
    """Makes the request's body, with the picture as a JPEG of at most 512 pixels a side."""
    image = {"type": "image_url", "image_url": {"url": data_url(picture, _SIDE, quality=90)}}
    content = [{"type": "text", "text": _QUESTION}, image]
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": 120}


def _answer_of(body: bytes) -> str:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("the answer lacks choices[0].message.content") from error
    if not isinstance(text, str):
        raise ValueError(f"choices[0].message.content is {type(text).__name__}, expected text")
    return text


def _clean(text: str) -> str:
    """Returns a sentence that `thoughts.parse_thoughts` reads back: no marker, at most 40 words.

    Raises:
        ValueError: no letter is left.
    """
    # Halves of surrogate pairs, which cannot be written as UTF-8, are not printable either.
    text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(r"(?i)^\W*(the )?scene description\W*", "", " ".join(text.split()))
    words = without_markers(text).strip(" \"'`*#_-").split()
    sentence = " ".join(words[:_WORDS]).rstrip(" ,;:-\"'`*")
    if not any(c.isalpha() for c in sentence):
        raise ValueError("the answer has no words")
    sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in ".!?" else f"{sentence}."
