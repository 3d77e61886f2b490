# Targets: `gpu` (the default) brings no weights and downloads the model into the cache volume; `cpu` ships the embedded
# model. Stages of a target stand before it, so that builders that build every stage in order do no work in vain.
#
#   docker build -t dfmr-server .
#   docker build -t dfmr-server:cpu --target cpu .

# A Debian or Ubuntu with Python 3.11 to 3.13 in its archive.
ARG BASE_IMAGE=debian:12.12-slim

FROM ${BASE_IMAGE} AS base
# The compiler and Python's headers are for Triton and torch.compile, which build launchers of kernels at run time.
# Versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ libnuma1 python3-dev tini \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home --home-dir /home/dfmr dfmr \
    && install --directory --owner dfmr --group dfmr /cache
ENV PATH=/opt/dfmr/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    FLASHINFER_WORKSPACE_BASE=/cache \
    VLLM_NO_USAGE_STATS=1
WORKDIR /app
COPY deploy/entrypoint.sh /usr/local/bin/dfmr-entrypoint
EXPOSE 8000
VOLUME /cache
# Loading a large model takes minutes; a server that is up answers at once.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "dfmr-entrypoint"]

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/bootstrap.txt requirements/
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --requirement requirements/bootstrap.txt \
    && /opt/uv/bin/uv venv --python /usr/bin/python3 /opt/dfmr
# Builders behind a proxy bring its certificate with the base image or mount it there. Bytecode is compiled here, because
# the server's user can't write it: each of its three processes would compile all of vLLM and torch at every start. It is
# not checked against times of sources, which layers round to seconds.
ENV UV_SYSTEM_CERTS=true \
    UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH
COPY pyproject.toml ./
COPY requirements requirements
COPY packaging packaging
COPY deploy/constraints-gpu.txt deploy/

# In each build, what changes seldom comes first: the dependencies, then our code.
FROM build AS build-cpu
# Where torch's CPU build comes from: its public index, or a folder or page that offers wheels.
ARG TORCH_BACKEND=cpu
ARG FIND_LINKS=
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/dfmr/bin/python \
    ${TORCH_BACKEND:+--torch-backend "${TORCH_BACKEND}"} ${FIND_LINKS:+--find-links "${FIND_LINKS}"} \
    --constraints requirements/cpu.txt --excludes requirements/cpu-excludes.txt \
    --requirement pyproject.toml --extra cpu ./packaging/vllm-metadata
COPY README.md LICENSE ./
COPY dfmr_kernels dfmr_kernels
COPY server server
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/dfmr/bin/python --no-deps .

FROM base AS cpu
COPY --from=build-cpu /opt/dfmr /opt/dfmr
# A checkpoint in the source tree; its folder's name is what clients call it.
ARG MODEL=tiny-llava-dfmr
COPY models/${MODEL} /opt/models/${MODEL}
ENV DEFAULT_MODEL=/opt/models/${MODEL} \
    VLLM_CPU_KVCACHE_SPACE=1
USER 1000

FROM build AS build-gpu
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/dfmr/bin/python \
    --constraints deploy/constraints-gpu.txt --requirement pyproject.toml --extra gpu
COPY README.md LICENSE ./
COPY dfmr_kernels dfmr_kernels
COPY server server
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/dfmr/bin/python --no-deps .

FROM base AS gpu
COPY --from=build-gpu /opt/dfmr /opt/dfmr
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DEFAULT_MODEL=llava-hf/llava-1.5-7b-hf
USER 1000
