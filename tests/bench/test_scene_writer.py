"""Scene sentences from a stub of a chat-completions server on loopback."""

import base64
import io
import json
import pickle
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from cotir_jax.bench.composites import sample_chain
from cotir_jax.bench.words.scene_writer import SceneWriter
from cotir_jax.bench.words.thoughts import parse_thoughts, write_meta

PICTURE = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
PICTURE[:, :450] = (200, 30, 20)


def _answer(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def _server(*replies):
    """Serves ``replies`` in turn, the last one for ever: (status, body) or a function.

    Gives the endpoint and the list of requests as (path, headers, body).
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, dict(self.headers), body))
            reply = replies[min(len(requests), len(replies)) - 1]
            if callable(reply):
                reply(self)
                return
            status, text = reply
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):  # where a redirect would lead
            requests.append((self.path, dict(self.headers), b""))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(_answer("an elephant"))

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("COTIR_SCENE_KEY", raising=False)


def test_good_answer(monkeypatch):
    monkeypatch.setenv("COTIR_SCENE_KEY", " secret ")
    with _server((200, _answer("a red wall beside colourful grain"))) as (url, requests):
        writer = SceneWriter(url + "/", "tiny-vision")
        assert writer(PICTURE) == "A red wall beside colourful grain."
    path, headers, body = requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    body = json.loads(body)
    assert body["model"] == "tiny-vision" and body["temperature"] == 0
    text, image = body["messages"][0]["content"]
    assert text["type"] == "text" and "one" in text["text"]
    kind, data = image["image_url"]["url"].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == (512, 341)
    np.testing.assert_allclose(np.asarray(sent)[150, 100], (200, 30, 20), atol=6)
    assert (writer.asked, writer.failed) == (1, 0)


def test_without_a_key_none_is_sent():
    with _server((200, _answer("a wall"))) as (url, requests):
        assert SceneWriter(url + "/chat/completions", "m")(PICTURE) == "A wall."
    assert requests[0][0] == "/v1/chat/completions" and "Authorization" not in requests[0][1]


def test_one_retry_then_none():
    with _server((500, b"oops"), (200, _answer("a wall"))) as (url, requests):
        writer = SceneWriter(url, "m")
        assert writer(PICTURE) == "A wall." and len(requests) == 2 and writer.failed == 0
    with _server((500, b"oops")) as (url, requests):
        writer = SceneWriter(url, "m")
        assert writer(PICTURE) is None and len(requests) == 2
        assert (writer.asked, writer.failed) == (1, 1) and "500" in writer.problem


@pytest.mark.parametrize("status", [401, 404, 302, 307])
def test_refusals_are_not_asked_again(status):
    with _server((status, b"no")) as (url, requests):
        writer = SceneWriter(url, "m")
        assert writer(PICTURE) is None and len(requests) == 1 and writer.failed == 1


def test_a_server_that_hangs_or_drips():
    def hang(handler):
        time.sleep(0.8)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(20):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    for reply in (hang, drip):
        with _server(reply) as (url, requests):
            writer = SceneWriter(url, "m", timeout=0.3)
            started = time.monotonic()
            assert writer(PICTURE) is None
            assert time.monotonic() - started < 1.5 and len(requests) == 2


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    writer = SceneWriter(f"http://127.0.0.1:{port}/v1", "m", timeout=1)
    assert writer(PICTURE) is None and writer.failed == 1 and writer.problem


def test_it_gives_up_after_five_failures_in_a_row():
    with _server((500, b"")) as (url, requests):
        writer = SceneWriter(url, "m")
        assert [writer(PICTURE) for _ in range(9)] == [None] * 9
        assert len(requests) == 10 and (writer.asked, writer.failed) == (9, 9)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b"\xff\xfe\x00",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": [{"message": {"content": " ... \\n"}}]}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b"[" * 100_000,
        b" " * (2 << 20) + _answer("a wall"),
    ],
)
def test_garbage(body):
    with _server((200, body)) as (url, _):
        writer = SceneWriter(url, "m")
        assert writer(PICTURE) is None and writer.failed == 1 and "\n" not in writer.problem


def test_half_an_answer():
    def half(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "500")
        handler.end_headers()
        handler.wfile.write(_answer("a wall")[:20])

    def noise(handler):
        handler.wfile.write(b"\x00\x01garbage\r\n\r\n")

    for reply in (half, noise):
        with _server(reply) as (url, _):
            assert SceneWriter(url, "m")(PICTURE) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("word " * 90, "Word" + " word" * 39 + "."),
        ('"A cat on a mat."', "A cat on a mat."),
        ("**Scene description:** a cat\n\non a mat", "A cat on a mat."),
        ("The scene description: a cat!", "A cat!"),
        ("a cat \x00\x1b[31m on \u2028a mat,", "A cat [31m on a mat."),
        ("Katze \U0001f408 am Fu\u00df,;", "Katze \U0001f408 am Fu\u00df."),
        ("a cat \ud83d on a mat", "A cat on a mat."),
    ],
)  # fmt: skip
def test_answers_are_cut_and_cleaned(text, expected):
    with _server((200, _answer(text))) as (url, _):
        assert SceneWriter(url, "m")(PICTURE) == expected


def test_markers_in_the_answer_do_no_harm():
    text = (
        "a sign that says answer: 42, Degradation Description: none, enhancement plan:: rest, "
        "enhancement plan : more, SCENE DESCRIPTION: a cat"
    )
    rng = np.random.default_rng(0)
    chain = sample_chain("haze", 64, rng)
    with _server((200, _answer(text))) as (url, _):
        scene = SceneWriter(url, "m")(PICTURE)
    for given in (scene, text):  # write_meta trusts nobody
        meta = write_meta(PICTURE, chain, "haze", np.random.default_rng(1), scene=given)
        plain = write_meta(PICTURE, chain, "haze", np.random.default_rng(1))
        parsed = parse_thoughts(json.loads(json.dumps(meta)))
        assert "42" in parsed[0] and "rest" in parsed[0] and "cat" in parsed[0]
        # The other two thoughts, the questions and the answer stay what they were.
        assert parsed[1:] == parse_thoughts(plain)[1:]
        assert meta["cot"]["questions"] == plain["cot"]["questions"]


@pytest.mark.parametrize(
    ("endpoint", "model", "timeout", "message"),
    [
        ("localhost:8000/v1", "m", 1, "no http or https address"),
        ("file:///etc/passwd", "m", 1, "no http or https address"),
        ("http://", "m", 1, "no http or https address"),
        ("http://[::1", "m", 1, "no http or https address"),
        ("http://h:99999/", "m", 1, "no http or https address"),
        ("http://h/v1", " ", 1, "--scene-model"),
        ("http://h/v1", "m", 0, "more than 0 seconds"),
    ],
)
def test_what_it_refuses(endpoint, model, timeout, message):
    with pytest.raises(ValueError, match=message) as caught:
        SceneWriter(endpoint, model, timeout=timeout)
    assert "\n" not in str(caught.value)


def test_a_broken_key_is_not_shown(monkeypatch):
    monkeypatch.setenv("COTIR_SCENE_KEY", "top\nsecret")
    with pytest.raises(ValueError, match="COTIR_SCENE_KEY") as caught:
        SceneWriter("http://h/v1", "m")
    assert "secret" not in str(caught.value)


def test_it_travels_to_worker_processes(monkeypatch):
    monkeypatch.setenv("COTIR_SCENE_KEY", "hidden")
    sent = pickle.dumps(SceneWriter("http://h/v1", "m"))
    assert b"hidden" not in sent and pickle.loads(sent).model == "m"
    assert "hidden" not in repr(SceneWriter("http://h/v1", "m"))
