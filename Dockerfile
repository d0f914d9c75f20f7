# One image for every role: `worker`, `deliver`, `gateway`, `exporter`, `topics`, `keys` are commands of one program.
#
#   docker build -t postback .                              # light: every role, and workers without an engine of their own
#   docker build -t postback:gpu --target worker-gpu .      # workers with vLLM on GPUs
#   scripts/images                                          # both, the same bytes each time, with SBOM and digest
#
# A base brings Python 3.11 or newer as `python3` with its venv module. scripts/images gives it with its digest.
ARG LIGHT_BASE=python:3.11-slim
ARG GPU_BASE=vllm/vllm-openai:v0.32.0

FROM ${LIGHT_BASE} AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY LICENSE README.md pyproject.toml ./
COPY cli cli
COPY gateway gateway
COPY producers producers
COPY schemas schemas
COPY telemetry telemetry
COPY workers workers
# A wheel's files have this time: the same sources give the same bytes.
ARG SOURCE_DATE_EPOCH=1735689600
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . ./producers/postback_client

FROM ${GPU_BASE} AS worker-gpu
# useradd writes the day of the last change of a password, which is this time's day and not the build's.
ARG SOURCE_DATE_EPOCH=1735689600
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements/worker.txt,target=/requirements/worker.txt \
    --mount=type=bind,source=requirements/install,target=/requirements/install \
    --mount=type=bind,source=docs/reference/licences.md,target=/requirements/licences.md \
    sh /requirements/install
ENV PATH=/opt/postback/bin:$PATH \
    HOME=/var/cache/postback \
    USER=postback \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Below the installation, whose cached layer stays valid for another version or revision.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG GPU_BASE
LABEL org.opencontainers.image.title="Postback worker with vLLM" \
      org.opencontainers.image.description="Asynchronous LLM inference over Kafka: workers with vLLM on GPUs" \
      org.opencontainers.image.base.name="${GPU_BASE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
WORKDIR /var/cache/postback
EXPOSE 9464
# Exec form: SIGTERM reaches the process itself, which drains and exits 0.
ENTRYPOINT ["postback"]
CMD ["--help"]

FROM ${LIGHT_BASE} AS light
# useradd writes the day of the last change of a password, which is this time's day and not the build's.
ARG SOURCE_DATE_EPOCH=1735689600
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements/worker.txt,target=/requirements/worker.txt \
    --mount=type=bind,source=requirements/install,target=/requirements/install \
    --mount=type=bind,source=docs/reference/licences.md,target=/requirements/licences.md \
    sh /requirements/install
ENV PATH=/opt/postback/bin:$PATH \
    HOME=/var/cache/postback \
    USER=postback \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Below the installation, whose cached layer stays valid for another version or revision.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG LIGHT_BASE
LABEL org.opencontainers.image.title="Postback" \
      org.opencontainers.image.description="Asynchronous LLM inference over Kafka: every role, without an engine of its own" \
      org.opencontainers.image.base.name="${LIGHT_BASE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
WORKDIR /var/cache/postback
EXPOSE 8443 9464
ENTRYPOINT ["postback"]
CMD ["--help"]
