# One image for every role: `worker`, `deliver`, `receive`, `topics`, `keys` are commands of the same program.
#
#   docker build -t postback .                                                       # echo and openai engines, delivery
#   docker build -t postback:gpu --build-arg BASE=vllm/vllm-openai:v0.32.0 .         # the in-process engine on GPUs
#
# BASE brings Python 3.11 or newer as `python3` with its venv module, and vLLM where a GPU is to be used.
ARG BASE=python:3.11-slim

FROM python:3.11-slim AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY LICENSE README.md pyproject.toml ./
COPY console console
COPY devkit devkit
COPY gateway gateway
COPY operators operators
COPY producers producers
COPY schemas schemas
COPY screening screening
COPY telemetry telemetry
COPY workers workers
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . ./producers/postback_client

FROM ${BASE}

# An environment of our own over the base's packages: it sees the base's vLLM and torch and changes nothing of them.
RUN python3 -m venv --system-site-packages /opt/postback
ENV PATH=/opt/postback/bin:$PATH
COPY requirements/worker.txt /tmp/worker.txt
RUN pip install --no-cache-dir --ignore-installed --require-hashes -r /tmp/worker.txt && rm /tmp/worker.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl

# The user has a name because torch asks for it. What is written at run time is below these two directories and /tmp, so
# that the root file system can be read-only: models and compiled kernels in the cache, the keyring beside it.
RUN groupadd --gid 10001 postback \
    && useradd --uid 10001 --gid 10001 --home-dir /var/cache/postback --no-create-home --shell /usr/sbin/nologin postback \
    && install -d -o postback -g postback -m 0750 /var/cache/postback /var/lib/postback
ENV HOME=/var/cache/postback \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/cache/postback

EXPOSE 9100
# Exec form: SIGTERM reaches the process itself, which drains and exits 0.
ENTRYPOINT ["postback"]
CMD ["--help"]
