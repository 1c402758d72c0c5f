# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target serving  -t moxserve .            the server, with tensorflow_model_server's interface
#   docker build --target training -t moxserve:training .   pipelines, export, load tests
#
#   docker run -p 8500:8500 -p 8501:8501 -v /path/to/models:/models -e MODEL_NAME=digits moxserve
#   docker run -v "$PWD:/work" moxserve:training pipeline run train.yaml

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY moxserve moxserve
COPY plugins plugins
COPY loadtests loadtests
COPY pipelines pipelines
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
COPY --from=build /wheels /wheels
RUN useradd --create-home --uid 1000 moxserve

FROM base AS serving
RUN pip install "$(ls /wheels/moxserve-*.whl)[serve,onnx]" && rm -r /wheels
ENV MODEL_NAME=model MODEL_BASE_PATH=/models
EXPOSE 8500 8501
USER moxserve
# As the image of TensorFlow Serving: the model is named by environment variables, further flags are arguments.
# `exec` makes the server process 1, so that it gets SIGTERM and drains.
ENTRYPOINT ["/bin/sh", "-c", "exec moxserve serve --port=8500 --rest_api_port=8501 --model_name=${MODEL_NAME} --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} \"$@\"", "moxserve"]

FROM base AS training
RUN pip install "$(ls /wheels/moxserve-*.whl)[all]" && rm -r /wheels
WORKDIR /work
USER moxserve
ENTRYPOINT ["moxserve"]
CMD ["--help"]
