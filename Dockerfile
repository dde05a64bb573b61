# syntax=docker/dockerfile:1
# The server. For a GPU as it is; for the CPU with TORCH_INDEX, the index of torch's CPU builds, as compose.cpu.yaml has it.
# What is large changes seldom and is a layer of its own: a change of code installs one small wheel over it, in seconds.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# Names alone, so that no other change of pyproject.toml fetches everything again.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /src
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > run.txt \
 && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > build.txt

FROM ${PYTHON_IMAGE} AS dependencies
# An index beside pip's own. Its builds (2.13.0+cpu) satisfy the version in constraints.txt and go before plain ones.
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
COPY --from=requirements /src/run.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/unmask \
 && /opt/unmask/bin/pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} -c constraints.txt -r run.txt

FROM ${PYTHON_IMAGE} AS package
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY --from=requirements /src/build.txt ./
RUN --mount=type=cache,target=/root/.cache/pip pip install -r build.txt
COPY pyproject.toml README.md ./
COPY engine engine
COPY server server
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="unmask" \
      org.opencontainers.image.description="An OpenAI-compatible inference server for diffusion language models" \
      org.opencontainers.image.licenses="Apache-2.0"
# Group 0 may write, so that platforms which choose the user id themselves can run it too.
RUN install -d -o 10001 -g 0 -m 0775 /cache
COPY --from=dependencies /opt/unmask /opt/unmask
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    /opt/unmask/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
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
