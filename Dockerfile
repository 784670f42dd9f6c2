# syntax=docker/dockerfile:1
# docker build -t sdlora:0.1.0 .                                               with torch for CPUs
# docker build -t sdlora:0.1.0 --build-arg TORCH_LOCK=requirements-cuda.lock .  with the package index's CUDA, by hash
# docker run --gpus all -v "$PWD":/work sdlora:0.1.0 snakemake --cores 1 results/v8/metrics.csv
# profiles/kubernetes names it.
# Packages come from the lock through the Makefile, the one way in which they are installed anywhere.
FROM python:3.11-slim-bookworm
ARG TORCH_LOCK=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/sdlora
COPY Makefile pyproject.toml requirements.lock requirements-build.lock requirements-cuda.lock README.md ./
COPY src src
RUN make TORCH_LOCK="${TORCH_LOCK}" TORCH_INDEX="${TORCH_INDEX}" .venv/installed
ENV PATH=/opt/sdlora/.venv/bin:$PATH
RUN useradd --uid 1000 --create-home user
USER 1000
WORKDIR /work
CMD ["sdlora", "doctor"]
