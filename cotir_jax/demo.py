"""`cotir demo`: a web page that restores pictures, by Gradio; nothing in it loads from outside."""

from __future__ import annotations

import io
import os
import signal
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cotir_jax.bench.composites import SINGLES, apply_chain, folder_name, sample_chain
from cotir_jax.bench.phrases import prompt_files
from cotir_jax.photo import read_photo
from cotir_jax.restore import DEFAULT_PROMPT, Restored, Restorer

FORMATS = ("png", "jpg", "webp", "tif", "avif")
MAX_STEPS = 50
MAX_PROMPT = 1000  # characters
# Longest side of what the slider shows; the download has all pixels.
_PREVIEW_SIDE = 1600
# Results kept for another format, one for each open page; the oldest is dropped beyond that.
_SESSIONS = 8
_JSON_BYTES = 1_000_000
# Pictures nobody looks at any more are removed after this many seconds.
_KEEP_SECONDS = 3600
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
_EXAMPLES = {"chelsea.png": "noise", "coffee.png": "low-light", "motorcycle_left.png": "haze"}


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
    _import_gradio()
    restorer = Restorer.load(model_dir)
    # An interrupted server takes its pictures with it, a terminated one too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cotir_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(restorer, Path(folder), max_megapixels)
        launch(page, host, port, max_megabytes)


def build_page(restorer: Restorer, folder: Path, max_megapixels: float) -> Any:
    """The page as `gradio.Blocks`.

    Args:
      restorer: restores the pictures.
      folder: for examples and results; the one that Gradio keeps its files in.
      max_megapixels: larger pictures are refused.
    """
    gr = _import_gradio()
    presets = _presets()
    keep = (_KEEP_SECONDS, _KEEP_SECONDS)
    with gr.Blocks(title="CoTIR", analytics_enabled=False, delete_cache=keep) as page:
        gr.Markdown("# CoTIR\nRestores photos: drop one, say what is wrong with it or leave that.")
        done = gr.State(None, time_to_live=_KEEP_SECONDS)
        with gr.Row():
            with gr.Column():
                picture = _upload_class(gr, folder)(
                    label=f"Photo, up to {max_megapixels:g} megapixels",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    height=300,
                    elem_id="photo",
                )
                preset = gr.Dropdown(presets, value=presets[0][1], label="Prompts")
                prompt = gr.Textbox(
                    DEFAULT_PROMPT, label="Prompt", lines=2, max_length=MAX_PROMPT, elem_id="prompt"
                )
                with gr.Row():
                    steps = gr.Slider(
                        1, MAX_STEPS, restorer.config.num_steps, step=1, label="Steps"
                    )
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                button = gr.Button("Restore", variant="primary", elem_id="restore")
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Before, after", format="png", interactive=False, elem_id="slider"
                )
                thoughts = gr.Markdown(elem_id="thoughts")
                with gr.Row():
                    kind = gr.Dropdown(list(FORMATS), value="png", label="Format")
                    quality = gr.Slider(1, 100, 95, step=1, label="Quality (jpg, webp, avif)")
                file = gr.DownloadButton("Download", interactive=False, elem_id="download")
        gr.Examples(_write_examples(folder), [picture, prompt], cache_examples=False)

        restore = _restore_function(gr, restorer, max_megapixels)
        encode = _encode_function(gr, folder)
        preset.input(lambda text: text, preset, prompt, api_visibility="private")
        button.click(
            restore,
            [picture, prompt, steps, seed],
            [slider, thoughts, done],
            api_name="restore",
            concurrency_limit=1,
        ).success(encode, [done, kind, quality], file, api_visibility="private")
        for choice in (kind.input, quality.release):
            choice(encode, [done, kind, quality], file, api_visibility="private")
    return page.queue(max_size=32, default_concurrency_limit=1)


def launch(page: Any, host: str, port: int, max_megabytes: float) -> None:
    """Serves a page of `build_page`: no share link, no server files, no outside scripts or fonts.

    Raises:
      OSError: the port is taken.
    """
    gr = _import_gradio()
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


def _import_gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise ValueError("gradio is not installed: pip install 'cotir_jax[demo]'") from None
    return gradio


def _upload_class(gr: Any, folder: Path) -> type:
    """Gradio's picture input, but with the uploaded file left as it is, unread."""
    inside = folder.resolve()

    class Upload(gr.Image):
        is_template = True  # shown as its base class

        def preprocess(self, payload: Any) -> tuple[str, str] | None:
            if payload is None or not payload.path:
                return None
            # Gradio itself looks only at references that are marked as such.
            if not Path(payload.path).resolve().is_relative_to(inside):
                raise gr.Error("paths are not taken; upload the picture", print_exception=False)
            return payload.path, payload.orig_name or "picture"

    return Upload


async def _refuse_address(url: str, *_args: Any, **_kwargs: Any) -> str:
    import gradio

    raise gradio.Error("addresses are not fetched; upload the picture", print_exception=False)


def _restore_function(gr: Any, restorer: Restorer, max_megapixels: float) -> Callable:
    def restore(picture, prompt, steps, seed, progress=gr.Progress()):  # noqa: B008 (Gradio's way)
        try:
            if picture is None:
                raise ValueError("choose a photo first")
            if len(prompt or "") > MAX_PROMPT:
                raise ValueError(f"prompt of {len(prompt)} characters: at most {MAX_PROMPT}")
            path, name = picture
            photo = read_photo(Path(path), Path(name).name, int(max_megapixels * 1e6))
            progress(0, desc="Restoring")
            restored = restorer(
                photo,
                prompt or DEFAULT_PROMPT,
                num_steps=int(steps),
                seed=int(seed or 0),
                explain=restorer.config.adapter_depth > 0,
                progress=lambda done, total: progress((done, total), desc="Restoring"),
            )
        except (ValueError, OSError, MemoryError) as error:
            raise gr.Error(_one_line(error), duration=None, print_exception=False) from None
        before_after = _preview(photo.pixels), _preview(restored.image)
        return before_after, describe(restored.thoughts), restored

    return restore


def _encode_function(gr: Any, folder: Path) -> Callable:
    def encode(restored: Restored | None, kind: str, quality: float) -> Any:
        if restored is None:
            return gr.DownloadButton(value=None, interactive=False)
        path = folder / "results" / uuid.uuid4().hex / f"restored.{kind}"
        try:
            restored.save(path, int(quality))
        except (ValueError, OSError) as error:
            raise gr.Error(_one_line(error), duration=None, print_exception=False) from None
        return gr.DownloadButton(value=str(path), interactive=True)

    return encode


def describe(thoughts: Any) -> str:
    """An `explain.Explanation` as Markdown: what is wrong, most likely first, and the sentences."""
    if thoughts is None:
        return "*This model gives no explanation: it has no CoT adapter.*"
    lines = ["**What was wrong**", "", "| degradation | severity | score |", "|---|---|---|"]
    for item in thoughts.degradations[:6]:
        mark = "**" if item.named else ""
        lines.append(f"| {mark}{item.name}{mark} | {item.severity} | {item.score:.2f} |")
    if not thoughts.calibrated:
        lines += ["", "*Scores of this model are not calibrated.*"]
    for title in ("scene", "degradation", "plan"):
        lines += ["", f"**{title.capitalize()}.** {getattr(thoughts, title)}"]
    return "\n".join(lines)


def _presets() -> list[tuple[str, str]]:
    files = prompt_files(SINGLES)
    vague = [DEFAULT_PROMPT, *files["gen_prompt"][:4]]
    precise = [files[folder_name(name)][0] for name in SINGLES]
    return [(f"vague: {text}", text) for text in vague] + [
        (f"precise: {text}", text) for text in precise
    ]


def _preview(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return image


def _write_examples(folder: Path) -> list[list[str]]:
    """Degraded crops of scikit-image's photos, and a precise prompt for each."""
    from importlib.resources import files

    prompts = prompt_files(SINGLES)
    examples = []
    for photo, name in _EXAMPLES.items():
        clean = np.asarray(Image.open(io.BytesIO((files("skimage.data") / photo).read_bytes())))
        rng = np.random.default_rng(0)
        degraded = apply_chain(clean[20:276, 40:296], sample_chain(name, 256, rng, 0.6), rng)
        path = folder / "examples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(degraded).save(path)
        examples.append([str(path), prompts[folder_name(name)][0]])
    return examples


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "not enough memory for this picture"
