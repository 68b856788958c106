# The service on a CPU:  docker build -f docker/service.Dockerfile -t segue-service .
# The base is pinned by its version. Add its digest when you build: docs/operate/deploy.md, "Pin image versions".
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/build && python -m venv /opt/segue
# Install the dependencies first, because they change less often than the sources: pinned versions and hashes, and only
# prebuilt wheels. `make lock` updates them.
COPY docker/requirements/build.txt docker/requirements/service.txt ./
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r build.txt \
    && /opt/segue/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r service.txt
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/segue/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM ${PYTHON}
# The service writes to /data and /tmp only. A volume mounted at /data gets the owner of this folder.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin segue && install --directory --owner segue --mode 0700 /data
COPY --from=build /opt/segue /opt/segue
# Turn off the telemetry of ONNX Runtime.
ENV PATH=/opt/segue/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    SEGUE_HOST=0.0.0.0 \
    SEGUE_DATA_DIR=/data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["segue", "serve"]
CMD ["/release"]
