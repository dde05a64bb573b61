# syntax=docker/dockerfile:1
# The server. For a GPU as it is (torch from PyPI brings CUDA); for the CPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://pypi.org/simple
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
RUN python -m venv /opt/unmask
# Dependencies first, so that a change of code does not fetch them again. torch alone comes from its own index.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/unmask/bin/pip install -c constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple torch
COPY engine engine
COPY server server
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/unmask/bin/pip install -c constraints.txt .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="unmask" \
      org.opencontainers.image.description="An OpenAI-compatible inference server for diffusion language models" \
      org.opencontainers.image.licenses="Apache-2.0"
# Group 0 may write, so that platforms which choose the user id themselves can run it too.
RUN install -d -o 10001 -g 0 -m 0775 /cache
COPY --from=build /opt/unmask /opt/unmask
COPY configs /etc/unmask
ENV PATH=/opt/unmask/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    XDG_CACHE_HOME=/cache \
    UNMASK_HOST=0.0.0.0
USER 10001:0
EXPOSE 8000
STOPSIGNAL SIGTERM
# Loading a large model takes minutes; only after the start period do failures count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["unmask", "serve"]
