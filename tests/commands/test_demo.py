"""The web page, in a browser and by HTTP. COTIR_FUZZ=10000 sends that many broken files."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from support.xla_flags import xla_flags

from cotir_jax.bench.composites import SINGLES

pytest.importorskip("gradio", reason="gradio, which serves the page, is not installed")

BROKEN = int(os.environ.get("COTIR_FUZZ", "200"))
MEGAPIXELS = 1
START = (
    "import sys; from cotir_jax.commands.demo import server; "
    f"server.serve(port=int(sys.argv[1]), max_megapixels={MEGAPIXELS}, max_megabytes=8)"
)


class Server:
    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}/", folder / "log"
        environment = os.environ | {
            "TMPDIR": str(folder),
            "XLA_FLAGS": xla_flags(devices=1, level=1),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(self.port)],
                stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        while self.url[:-1] not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.3)

    def post(self, path, body, kind="application/json"):
        request = urllib.request.Request(
            f"{self.url}gradio_api/{path}", body, {"Content-Type": kind}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def upload(self, content, name="picture.png"):
        edge = uuid.uuid4().hex
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        )
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        return self.post("upload", body, f"multipart/form-data; boundary={edge}")[0]

    def restore(self, picture, prompt="Restore it.", steps=1, seed=0):
        """Name of the event that ends it, and its data."""
        arguments = json.dumps({"data": [picture, prompt, steps, seed]}).encode()
        event = self.post("call/restore", arguments)["event_id"]
        url = f"{self.url}gradio_api/call/restore/{event}"
        with urllib.request.urlopen(url, timeout=120) as answer:
            events = answer.read().decode().strip().split("\n\n")
        name, content = re.fullmatch(r"event: (\w+)\ndata: (.*)", events[-1]).groups()
        return name, json.loads(content)

    def memory(self):
        """Resident megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def reference(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def dark():
    return (data.astronaut()[60:188, 130:290] // 3).astype(np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder)
    yield server
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    assert [path.name for path in folder.iterdir()] == ["log"]  # no picture is left behind


@pytest.fixture(scope="module")
def page(server):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives the browser, is not installed"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium here")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    with playwright.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=options)
        page = window.new_page(
            viewport={"width": 1200, "height": 1000},
            permissions=["clipboard-read", "clipboard-write"],
        )
        page.set_default_timeout(120_000)
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(server.url)
        page.locator("#restore").wait_for()
        yield page
        window.close()


def give(page, path, content):
    """Uploads a photo."""
    path.write_bytes(content)
    page.locator("#photo input[type=file]").set_input_files(path)
    page.locator("#photo img").wait_for(state="attached")


def choose(page, kind):
    page.get_by_label("Format").click()
    page.get_by_role("option", name=kind).click()


def downloaded(page):
    """What the button hands out, as a Pillow picture; its name and bytes are in `info`."""
    with page.expect_download() as download:
        page.locator("#download").click()
    content = Path(download.value.path()).read_bytes()
    image = Image.open(io.BytesIO(content))
    image.info |= {"name": download.value.suggested_filename, "bytes": len(content)}
    return image


def test_browser_restores_and_explains(page, dark, tmp_path):
    give(page, tmp_path / "dark.png", encoded(dark))
    page.locator("#restore").click()
    page.locator("#slider img").first.wait_for()
    thoughts = page.locator("#thoughts")
    thoughts.locator("table").wait_for()
    text = thoughts.inner_text()
    assert "low light" in text and "Scene." in text and "Plan." in text
    if "COTIR_SCREENSHOT" in os.environ:
        page.wait_for_timeout(1000)
        page.screenshot(path=os.environ["COTIR_SCREENSHOT"], type="jpeg", quality=80)


def test_browser_moves_the_slider(page):
    slider = page.locator("#slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2

    def brightness():
        page.wait_for_timeout(500)
        shown = Image.open(io.BytesIO(slider.screenshot())).convert("L")
        return np.asarray(shown)[60:-10].mean()

    before = brightness()
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.1, middle, steps=5)
    page.mouse.up()
    assert brightness() > before + 5  # more of the restored picture, which is brighter


def test_browser_downloads_the_result(page, dark):
    image = downloaded(page)
    assert image.format == "PNG" and image.size == (160, 128)
    assert np.asarray(image).mean() > dark.mean() + 10


@pytest.mark.parametrize("kind", ["jpg", "webp", "tif", "avif", "png"])
def test_browser_downloads_other_formats(page, kind):
    if kind == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow does not read AVIF")
    choose(page, kind)
    image = downloaded(page)
    assert image.info["name"] == f"restored.{kind}" and image.size == (160, 128)
    assert image.format == {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper())


def test_browser_downloads_in_the_quality_that_is_shown(page):
    choose(page, "jpg")
    number, slider = (
        page.get_by_label("number input for Q"),
        page.get_by_label("range slider for Q"),
    )
    number.fill("10")
    sizes = [downloaded(page).info["bytes"]]
    slider.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert number.input_value() == "50"
    sizes.append(downloaded(page).info["bytes"])
    number.fill("95")
    number.press("Enter")
    sizes.append(downloaded(page).info["bytes"])
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize(
    "preset", ["vague: Make this photo look better.", "precise: Remove the haze."]
)
def test_browser_sends_preset_steps_and_seed(page, dark, tmp_path, preset):
    page.reload()
    give(page, tmp_path / "dark.png", encoded(dark))
    page.get_by_label("Prompts").click()
    offered = page.get_by_role("option").all_inner_texts()
    assert sum("precise: " in text for text in offered) == len(SINGLES)
    assert sum("vague: " in text for text in offered) == len(offered) - len(SINGLES) > 2
    page.get_by_role("option", name=preset).click()
    prompt = preset.split(": ")[1]
    page.wait_for_function(f"document.querySelector('#prompt textarea').value == '{prompt}'")
    page.get_by_label("Seed").fill("12")
    page.get_by_label("number input for Steps").fill("2")
    with page.expect_request("**/queue/join*") as request:
        page.locator("#restore").click()
    assert request.value.post_data_json["data"][1:] == [prompt, 2, 12]
    page.locator("#thoughts table").wait_for()


@pytest.mark.parametrize("name", ["noise", "low-light", "haze"])
def test_browser_restores_an_example(page, name):
    page.reload()
    row = page.locator("#examples tbody tr").filter(has=page.locator(f"img[src$='{name}.png']"))
    prompt = row.locator("td").last.inner_text()
    row.click()
    page.locator(f"#photo img[src$='{name}.png']").wait_for()
    assert page.locator("#prompt textarea").input_value() == prompt
    page.locator("#restore").click()
    page.locator("#thoughts table").wait_for()
    assert downloaded(page).size == (256, 256)


def test_browser_pastes_from_the_clipboard(page, dark):
    page.reload()
    picture = base64.b64encode(encoded(dark[:40, :56])).decode()
    page.evaluate(
        """async picture => {
            const bytes = Uint8Array.from(atob(picture), character => character.charCodeAt(0));
            const png = new Blob([bytes], {type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);
        }""",
        picture,
    )
    page.get_by_label("Paste from clipboard").click()
    page.locator("#photo img").wait_for()
    page.locator("#restore").click()
    page.locator("#thoughts table").wait_for()
    assert downloaded(page).size == (56, 40)


def test_browser_shows_errors(page, dark, tmp_path):
    page.reload()
    page.locator("#download").click()
    page.get_by_text("restore a photo first").first.wait_for()
    page.locator("#restore").click()
    page.get_by_text("choose a photo first").first.wait_for()
    give(page, tmp_path / "dark.png", encoded(dark))
    page.get_by_label("Seed").fill("-3")
    page.locator("#restore").click()
    page.get_by_text("seed -3: must be 0 to 2147483647").first.wait_for()


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("torn.png", b"\x89PNG\r\n\x1a\n and no more", ""),
        ("beach.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC; accepted are JPEG"),
    ],
)
def test_browser_shows_the_error_of_a_bad_file(page, tmp_path, name, content, reason):
    page.reload()
    give(page, tmp_path / name, content)
    page.locator("#restore").click()
    page.get_by_text(f"{name}: cannot be read as a picture ({reason}").first.wait_for()


def test_browser_asked_this_machine_only(page, server):
    hosts = {url for url in page.requests if not url.startswith(("data:", "blob:", server.url))}
    assert hosts == set()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", ["file", "relative", "climbing", "address", "file address"])
def test_paths_and_addresses_are_refused(server, dark, tmp_path, kind, marked):
    (tmp_path / "secret.png").write_bytes(encoded(dark))
    uploaded = server.upload(encoded(dark))
    path = {
        "file": str(tmp_path / "secret.png"),
        "relative": os.path.relpath(tmp_path / "secret.png"),
        "climbing": os.path.join(
            Path(uploaded).parent, os.path.relpath(tmp_path / "secret.png", Path(uploaded).parent)
        ),
        "address": server.url + "favicon.ico",
        "file address": (tmp_path / "secret.png").as_uri(),
    }[kind]
    picture = reference(path) if marked else {"path": path}
    event, content = server.restore(picture)
    assert event == "error" and "cannot be read" not in str(content)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{server.url}gradio_api/file={tmp_path / 'secret.png'}", timeout=30)


def test_limits(server, dark):
    # The server answers and hangs up before it has taken all; which comes first is chance.
    with pytest.raises(OSError, match="413|Broken pipe|reset by peer"):
        server.upload(bytes(9_000_000))
    with pytest.raises(OSError, match="413|Broken pipe|reset by peer"):
        server.post("call/restore", b" " * 2_000_000)
    large = encoded(np.zeros((1001, 1000, 3), np.uint8))
    event, content = server.restore(reference(server.upload(large)))
    assert event == "error" and "more than the limit of 1,000,000" in content["error"]
    for wrong, reason in (
        ({"steps": 10_000}, "greater than maximum value 50"),
        ({"seed": -1}, "seed -1: must be 0 to 2147483647"),
        ({"prompt": "x" * 2000}, "prompt of 2000 characters: at most 1000"),
        ({"steps": "many"}, None),
    ):
        event, content = server.restore(reference(server.upload(encoded(dark))), **wrong)
        assert event == "error" and (reason is None or reason in content["error"])


def broken(rng, whole):
    """A picture cut off in its header or wrong in its first bytes, or no picture at all."""
    kind = rng.integers(3)
    if kind == 0:
        return whole[: rng.integers(1, 30)]
    if kind == 1:
        return rng.integers(0, 256, rng.integers(1, 4000), np.uint8).tobytes()
    torn = bytearray(whole[: len(whole) // 2])
    for place in rng.integers(0, len(torn), 20):
        torn[place] = rng.integers(256)
    return bytes(torn)


@pytest.mark.slow
def test_broken_files_end_in_clean_errors(server, dark):
    rng = np.random.default_rng(0)
    wholes = [encoded(dark[:48, :48], kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")]
    memory, told = None, server.log.read_text()
    for number in range(BROKEN):
        path = server.upload(broken(rng, wholes[number % len(wholes)]), f"{number}.png")
        event, content = server.restore(reference(path) | {"orig_name": f"{number}.png"})
        if event == "error":
            assert content["error"].startswith(f"{number}.png: cannot be read"), content
            assert "\n" not in content["error"] and str(Path(path).parent) not in content["error"]
        if number == BROKEN // 4:
            memory = server.memory()
    assert server.memory() < memory + 150
    assert "Traceback" not in server.log.read_text().removeprefix(told)
    event, content = server.restore(reference(server.upload(encoded(dark))))
    assert event == "complete" and len(content[0]) == 2
