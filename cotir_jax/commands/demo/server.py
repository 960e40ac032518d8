"""`cotir demo`: serves a web page that restores pictures, by Gradio, from this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cotir_jax.commands.demo.page import build_page
from cotir_jax.restoring.restorer import Restorer

# Results kept for another format, one for each open page; the oldest is dropped beyond that.
_SESSIONS = 8
_JSON_BYTES = 1_000_000
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)


def serve(
    model_dir: str = "nano",
    host: str = "127.0.0.1",
    port: int = 7860,
    max_megapixels: float = 24,
    max_megabytes: float = 64,
) -> None:
    """Serves the page until it is interrupted.

    Args:
      model_dir: model folder, or the name of a packaged one.
      host: address to listen at; the default is reached from this machine only.
      port: the page is at `http://host:port`.
      max_megapixels: larger pictures are refused by what their header says.
      max_megabytes: larger uploads are refused.

    Raises:
      ValueError: gradio is not installed, or there is no such model.
      OSError: the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.getLogger("pyvips").setLevel(logging.ERROR)  # damage is told in the page
    # An interrupted server takes its pictures with it, a terminated one too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cotir_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported, and later
        _require_gradio()
        page = build_page(Restorer.load(model_dir), Path(folder), max_megapixels)
        launch(page, host, port, max_megabytes)


def launch(page: Any, host: str, port: int, max_megabytes: float) -> None:
    """Serves a page of `build_page`: no share link, no server files, no outside scripts or fonts.

    Raises:
      OSError: the port is taken.
    """
    import gradio as gr
    from gradio import processing_utils
    from starlette.middleware import Middleware

    # What a page names by URL, Gradio would fetch; only uploads are taken here.
    processing_utils.async_ssrf_protected_download = _refuse_address
    system = ["system-ui", "sans-serif"]
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        allowed_paths=[],
        max_file_size=int(max_megabytes * 1_000_000),
        state_session_capacity=_SESSIONS,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [Middleware(_Guard)]},
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


class _Guard:
    """ASGI middleware: bounds what is read into memory, and lets the page load from here alone."""

    def __init__(self, app: Callable):
        self._app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        # Uploads are counted by Gradio while they are written to disk.
        if scope["method"] == "POST" and not scope["path"].rstrip("/").endswith("/upload"):
            length = headers.get(b"content-length", b"")
            if not length.isdigit() or int(length) > _JSON_BYTES:
                status = {"type": "http.response.start", "status": 413, "headers": []}
                await send(status)
                await send({"type": "http.response.body", "body": b"request too large"})
                return

        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = message | {"headers": [*message.get("headers", []), policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)


def _require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ValueError("gradio is not installed: pip install 'cotir_jax[demo]'") from None


async def _refuse_address(url: str, *_args: Any, **_kwargs: Any) -> str:
    import gradio

    raise gradio.Error("addresses are not fetched; upload the picture", print_exception=False)
