"""LPIPS against AlexNet and the linear layers written in PyTorch, with random weights."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from skimage import data
from support.scoring import evaluate

from cotir_jax.images.pictures import save_picture
from cotir_jax.scoring import lpips

torch = pytest.importorskip("torch", reason="the other implementation needs PyTorch")


@pytest.fixture(scope="module")
def alexnet():
    """torchvision's `alexnet.features`, layer by layer, random weights."""
    torch.manual_seed(0)
    relu, pool = torch.nn.ReLU, lambda: torch.nn.MaxPool2d(3, 2)
    convolution = torch.nn.Conv2d
    return torch.nn.Sequential(
        convolution(3, 64, 11, 4, 2), relu(), pool(), convolution(64, 192, 5, padding=2), relu(),
        pool(), convolution(192, 384, 3, padding=1), relu(), convolution(384, 256, 3, padding=1),
        relu(), convolution(256, 256, 3, padding=1), relu(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(1)
    return [torch.rand(1, channels, 1, 1) for channels in (64, 192, 384, 256, 256)]


@pytest.fixture(scope="module")
def files(alexnet, linear, tmp_path_factory):
    """As published: AlexNet (with a classifier) and the linear layers in two files."""
    folder = tmp_path_factory.mktemp("weights")
    state = {f"features.{name}": tensor for name, tensor in alexnet.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, folder / "alexnet.pth")
    layers = {f"lin{at}.model.1.weight": tensor for at, tensor in enumerate(linear)}
    torch.save(layers, folder / "alex.pth")
    return [folder / "alexnet.pth", folder / "alex.pth"]


def _torch_lpips(first, second, alexnet, linear):
    def maps(picture):
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
        hidden, found = (2 * tensor - 1 - shift) / scale, []
        for layer in alexnet:
            hidden = layer(hidden)
            if isinstance(layer, torch.nn.ReLU):
                found.append(hidden)
        return found

    total = 0.0
    with torch.no_grad():
        for one, two, weight in zip(maps(first), maps(second), linear, strict=True):
            one, two = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (one, two))
            distance = torch.nn.functional.conv2d((one - two) ** 2, weight)
            total += distance.mean().item()
    return total


@pytest.mark.parametrize("shape", [(64, 64), (97, 130), (31, 31)])
def test_distance_is_that_of_pytorch(files, alexnet, linear, shape):
    clean = data.astronaut()[: shape[0], : shape[1]]
    noise = np.random.default_rng(0).normal(0, 30, clean.shape)
    restored = np.clip(clean + noise, 0, 255).astype(np.uint8)
    expected = _torch_lpips(restored, clean, alexnet, linear)
    weights = lpips.load_lpips(files)
    assert lpips.lpips(restored, clean, weights) == pytest.approx(expected, rel=2e-5)
    assert expected > 1e-3


def test_equal_pictures_and_small_ones(files):
    weights = lpips.load_lpips(files)
    clean = data.chelsea()[:64, :64]
    assert lpips.lpips(clean, clean, weights) == pytest.approx(0, abs=1e-9)
    assert lpips.lpips(clean[:30], clean[:30], weights) is None
    with pytest.raises(ValueError, match="restored is"):
        lpips.lpips(clean, clean[1:], weights)
    with pytest.raises(ValueError, match="float64"):
        lpips.lpips(clean / 255, clean, weights)


def test_one_safetensors_file_with_the_names_of_lpips(files, alexnet, linear, tmp_path):
    places = {0: "slice1.0", 3: "slice2.3", 6: "slice3.6", 8: "slice4.8", 10: "slice5.10"}
    tensors = {f"lins.{at}.model.1.weight": tensor.numpy() for at, tensor in enumerate(linear)}
    for index, place in places.items():
        tensors[f"net.{place}.weight"] = alexnet[index].weight.detach().numpy()
        tensors[f"net.{place}.bias"] = alexnet[index].bias.detach().numpy()
    save_file(tensors, tmp_path / "lpips.safetensors")
    ours, theirs = lpips.load_lpips([tmp_path / "lpips.safetensors"]), lpips.load_lpips(files)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_mean_over_a_folder(files, alexnet, linear, tmp_path):
    rng = np.random.default_rng(0)
    expected = []
    for name in ("a.png", "b.png"):
        clean = rng.integers(0, 256, (40, 50, 3), np.uint8)
        restored = np.clip(clean + rng.normal(0, 30, clean.shape), 0, 255).astype(np.uint8)
        for folder, picture in (("hq", clean), ("results", restored)):
            save_picture(picture, tmp_path / folder / name)
        expected.append(_torch_lpips(restored, clean, alexnet, linear))
    result = evaluate(tmp_path / "hq", tmp_path / "results", metrics=["lpips"], lpips_weights=files)
    assert result["lpips"] == pytest.approx(np.mean(expected), rel=2e-5)
    row = (tmp_path / "results" / "metrics_summary.txt").read_text().splitlines()[-1]
    assert row.endswith(f" & {result['lpips']:.4f}")


def test_wrong_files_are_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"alexnet.pth: no tensor lin0.model.1.weight"):
        lpips.load_lpips(files[:1])
    with pytest.raises(ValueError, match="nowhere.pth: no such"):
        lpips.load_lpips([tmp_path / "nowhere.pth"])
    state = torch.load(files[0]) | {"features.3.weight": torch.zeros(1, 2)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"features.3.weight is \[1, 2\], expected \[192, 64"):
        lpips.load_lpips([tmp_path / "other.pth", files[1]])
