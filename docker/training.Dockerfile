# prepare, train, evaluate, index:  docker build -f docker/training.Dockerfile -t segue-training .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u)" segue-training train data/mine --out releases/mine
# torch includes CUDA (5 GB). For the CPU builds of torch, which have other hashes, see "Pin images" too.
# The base is pinned by its version. Add its digest when you build: docs/operate/deploy.md, "Pin image versions".
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/segue
# Install the dependencies first, because they change less often than the sources: pinned versions and hashes, and only
# prebuilt wheels. `make lock` updates them.
COPY docker/requirements/build.txt docker/requirements/training.txt ./
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r build.txt \
    && /opt/segue/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r training.txt
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/segue/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM ${PYTHON}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin segue && install --directory --owner segue /work
COPY --from=build /opt/segue /opt/segue
# For any --user: libraries need a home folder for their caches, and a user name.
# Turn off the telemetry of ONNX Runtime.
ENV PATH=/opt/segue/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    USER=segue
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["segue"]
CMD ["--help"]
