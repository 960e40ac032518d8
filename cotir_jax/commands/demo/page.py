"""The page of `cotir demo`: what is on it, and what its buttons do."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cotir_jax import files
from cotir_jax.bench.composites import SINGLES, apply_chain, folder_name, sample_chain
from cotir_jax.bench.words.phrases import prompt_files
from cotir_jax.bench.words.table import plain_name
from cotir_jax.images.photo import eight_bits, read_photo
from cotir_jax.restoring.restorer import DEFAULT_PROMPT, Restored, Restorer

FORMATS = ("png", "jpg", "webp", "tif", "avif")
MAX_STEPS = 50
MAX_PROMPT = 1000  # characters
MAX_SEED = 2**31 - 1
# Longest side of what the slider shows; the download has all pixels.
_PREVIEW_SIDE = 1600
# Pictures nobody looks at any more are removed after this many seconds.
_KEEP_SECONDS = 3600
# Script of the page: a click on a link to the file that the server has written.
_SAVE = """file => {
    const link = document.createElement("a");
    Object.assign(link, {href: file.url, download: file.orig_name});
    link.click();
}"""
_EXAMPLES = {"chelsea.png": "noise", "coffee.png": "low-light", "motorcycle_left.png": "haze"}


def build_page(restorer: Restorer, folder: Path, max_megapixels: float) -> Any:
    """The page as `gradio.Blocks`.

    Args:
      restorer: restores the pictures.
      folder: for examples and results; the one that Gradio keeps its files in.
      max_megapixels: larger pictures are refused.
    """
    import gradio as gr

    presets = _presets()
    keep = (_KEEP_SECONDS, _KEEP_SECONDS)
    with gr.Blocks(title="CoTIR", analytics_enabled=False, delete_cache=keep) as page:
        gr.Markdown("# CoTIR\nRestores photos: drop one, say what is wrong with it or leave that.")
        done = gr.State(None, time_to_live=_KEEP_SECONDS)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label=f"Photo, up to {max_megapixels:g} megapixels",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    height=300,
                    elem_id="photo",
                )
                # In place of Gradio's own, which decodes with Pillow. Not in a subclass: for those
                # Gradio writes a .pyi file into this package.
                vars(picture)["preprocess"] = _reference_reader(gr, folder)
                preset = gr.Dropdown(presets, value=presets[0][1], label="Prompts")
                prompt = gr.Textbox(
                    DEFAULT_PROMPT, label="Prompt", lines=2, max_length=MAX_PROMPT, elem_id="prompt"
                )
                with gr.Row():
                    steps = gr.Slider(
                        1, MAX_STEPS, restorer.config.num_steps, step=1, label="Steps"
                    )
                    seed = gr.Number(0, label="Seed", precision=0)
                button = gr.Button("Restore", variant="primary", elem_id="restore")
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Before, after",
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],  # its download would be of the preview
                    elem_id="slider",
                )
                thoughts = gr.Markdown(elem_id="thoughts")
                with gr.Row():
                    kind = gr.Dropdown(list(FORMATS), value="png", label="Format")
                    quality = gr.Slider(1, 100, 95, step=1, label="Quality (jpg, webp, avif)")
                download = gr.Button("Download", elem_id="download")
                file = gr.File(visible="hidden")
        examples = gr.Dataset(
            components=[picture, prompt],
            samples=_write_examples(folder),
            headers=["Photo", "Prompt"],
            label="Examples",
            elem_id="examples",
        )

        restore = _restore_function(gr, restorer, max_megapixels)
        preset.input(lambda text: text, preset, prompt, api_visibility="private")
        # Not `gr.Examples`: it replaces the session's picture component, and our reader with it.
        examples.click(lambda chosen: chosen, examples, [picture, prompt], api_visibility="private")
        button.click(
            restore,
            [picture, prompt, steps, seed],
            [slider, thoughts, done],
            api_name="restore",
            concurrency_limit=1,
        )
        # Encoded only now: a file made before would be of an earlier result, format or quality.
        download.click(
            _encode_function(gr, folder), [done, kind, quality], file, api_visibility="private"
        ).success(None, file, js=_SAVE, api_visibility="private")
    return page.queue(max_size=32, default_concurrency_limit=1)


def _reference_reader(gr: Any, folder: Path) -> Callable:
    """What the browser sends of its picture, as path and name; the file is not opened yet."""
    inside = folder.resolve()

    def read(reference: Any) -> tuple[str, str] | None:
        if reference is None or not reference.path:
            return None
        # Gradio itself looks only at references that are marked as such.
        if not Path(reference.path).resolve().is_relative_to(inside):
            raise gr.Error("paths are not taken; upload the picture", print_exception=False)
        return reference.path, reference.orig_name or "picture"

    return read


def _restore_function(gr: Any, restorer: Restorer, max_megapixels: float) -> Callable:
    def restore(picture, prompt, steps, seed, progress=gr.Progress()):  # noqa: B008 (Gradio's way)
        try:
            if picture is None:
                raise ValueError("choose a photo first")
            if len(prompt or "") > MAX_PROMPT:
                raise ValueError(f"prompt of {len(prompt)} characters: at most {MAX_PROMPT}")
            if not 0 <= (seed or 0) <= MAX_SEED:
                raise ValueError(f"seed {seed}: must be 0 to {MAX_SEED}")
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
            raise gr.Error(files.one_line(error), duration=None, print_exception=False) from None
        before_after = _preview(photo.pixels), _preview(restored.image)
        return before_after, describe(restored.thoughts), restored

    return restore


def _encode_function(gr: Any, folder: Path) -> Callable:
    def encode(restored: Restored | None, kind: str, quality: float) -> str:
        path = folder / "results" / uuid.uuid4().hex / f"restored.{kind}"
        try:
            if restored is None:
                raise ValueError("restore a photo first")
            restored.save(path, int(quality))
        except (ValueError, OSError) as error:
            raise gr.Error(files.one_line(error), duration=None, print_exception=False) from None
        return str(path)

    return encode


def describe(thoughts: Any) -> str:
    """An `explain.Explanation` as Markdown: what is wrong, most likely first, and the sentences."""
    if thoughts is None:
        return "*This model gives no explanation: it has no CoT adapter.*"
    lines = ["**What was wrong**", "", "| degradation | severity | score |", "|---|---|---|"]
    for item in thoughts.degradations[:6]:
        mark = "**" if item.named else ""
        lines.append(
            f"| {mark}{plain_name(item.name)}{mark} | {item.severity} | {item.score:.2f} |"
        )
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
    image = Image.fromarray(eight_bits(pixels))
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return image


def _write_examples(folder: Path) -> list[list[str]]:
    """Degraded crops of scikit-image's photos, and a precise prompt for each."""
    prompts = prompt_files(SINGLES)
    examples = []
    for photo, name in _EXAMPLES.items():
        clean = np.asarray(
            Image.open(io.BytesIO((resources.files("skimage.data") / photo).read_bytes()))
        )
        rng = np.random.default_rng(0)
        degraded = apply_chain(clean[20:276, 40:296], sample_chain(name, 256, rng, 0.6), rng)
        path = folder / "examples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(degraded).save(path)
        examples.append([str(path), prompts[folder_name(name)][0]])
    return examples
