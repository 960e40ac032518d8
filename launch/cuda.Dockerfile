# CUDA, cuDNN and NCCL come with the extra; the host needs a driver for CUDA 13 and NVIDIA's container
# runtime, which these variables tell what to mount.
FROM python:3.12.11-slim-bookworm

ARG JAX_VERSION=0.12.0.1
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/cotir
COPY setup.py requirements.txt pyproject.toml README.md ./
COPY cotir_jax cotir_jax
COPY configs configs
COPY launch/train.sh launch/train.sh
# In place: train.sh starts the program in this folder. train.sh's flags are known to this version
# of JAX.
RUN pip install --editable ".[cuda]" "jax==$JAX_VERSION" \
    && useradd --uid 1000 --create-home cotir
USER cotir
# Model weights and data are mounted, never copied in.
ENTRYPOINT ["bash", "launch/train.sh", "gpu"]
