# prepare, train, evaluate, index:  docker build -f docker/training.Dockerfile -t segue-training .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u)" segue-training train data/mine --out releases/mine
# torch comes with CUDA, 5 GB of it; for CPUs give the index of torch's CPU builds: --build-arg PIP_EXTRA_INDEX_URL=...
# The base is pinned by its version; to pin its digest as well: --build-arg PYTHON=python:3.11.13-slim-bookworm@sha256:...
ARG PYTHON=python:3.11.13-slim-bookworm

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/segue
# What Segue needs goes first, without Segue: it changes less often than the sources.
COPY pyproject.toml README.md LICENSE ./
RUN /opt/segue/bin/pip install --no-cache-dir '.[training]'
COPY . .
RUN /opt/segue/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM ${PYTHON}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin segue && install --directory --owner segue /work
COPY --from=build /opt/segue /opt/segue
# So that any --user will do: libraries look for a home to keep caches in, and for a name.
# ONNX Runtime tells Microsoft of its use unless it is told not to.
ENV PATH=/opt/segue/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    USER=segue
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["segue"]
CMD ["--help"]
