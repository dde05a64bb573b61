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
# torch's wheel brings the programs that test its own C++.
RUN rm -rf /opt/unmask/lib/python3*/site-packages/torch/test /opt/unmask/lib/python3*/site-packages/torch/bin/test_* \
    /opt/unmask/lib/python3*/site-packages/torch/bin/protoc*

# Kernels for a CPU, compiled here for the processors that the image may meet: it has no compiler itself.
# The compiler is of whatever version the base image's Debian has.
FROM ${PYTHON_IMAGE} AS kernels
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY engine/kernels/chain.cpp engine/kernels/native.cpp engine/kernels/proposals.cpp engine/kernels/rows.cpp engine/kernels/codes.h engine/kernels/vectors.h engine/kernels/library.py kernels/
RUN python kernels/library.py /kernels

FROM ${PYTHON_IMAGE} AS package
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY --from=requirements /src/build.txt ./
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /build && /build/bin/pip install -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY server server
COPY --from=kernels /kernels engine/kernels
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# What is in the image, for whoever looks for known holes: CycloneDX's list of Python packages. Of Debian's, dpkg has one.
FROM ${PYTHON_IMAGE} AS listing
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /listing && /listing/bin/pip install cyclonedx-bom==7.5.0
RUN --mount=type=bind,from=dependencies,source=/opt/unmask,target=/opt/unmask \
    /listing/bin/cyclonedx-py environment --output-reproducible --output-file /packages.cdx.json /opt/unmask/bin/python

FROM ${PYTHON_IMAGE}
# Group 0 may write, so that platforms which choose the user id themselves can run it too.
RUN install -d -o 10001 -g 0 -m 0775 /cache
COPY --from=dependencies /opt/unmask /opt/unmask
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    /opt/unmask/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
COPY --from=listing /packages.cdx.json /usr/share/doc/unmask/
COPY configs /etc/unmask
ENV PATH=/opt/unmask/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    XDG_CACHE_HOME=/cache \
    UNMASK_HOST=0.0.0.0
USER 10001:0
EXPOSE 8000
STOPSIGNAL SIGTERM
# Loading a large model takes minutes; only after the start period do failures count. It follows the port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["python", "-m", "server.http.health"]
ENTRYPOINT ["unmask", "serve"]
# Last, so that another revision changes no layer.
ARG REVISION=
LABEL org.opencontainers.image.title="unmask" \
      org.opencontainers.image.description="An OpenAI-compatible inference server for diffusion language models" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
