# prepare, train, evaluate, index:  docker build -f docker/training.Dockerfile -t segue-training .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u)" segue-training train data/mine --out releases/mine
# torch comes with CUDA, 5 GB of it. For torch's CPU builds, which have hashes of their own, see "Pin images" as well.
# The base is pinned by its version. Add its digest when you build: docs/operations.md, "Pin images".
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/segue
# First what Segue needs, which changes less often than the sources: these versions, files of these hashes, nothing that
# would have to be compiled. `make lock` renews them.
COPY docker/requirements/build.txt docker/requirements/training.txt ./
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r build.txt \
    && /opt/segue/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r training.txt
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/segue/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

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
