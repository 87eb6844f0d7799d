# cogcache in a container, for machines with and without a GPU.
#
#   docker build -t cogcache .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" cogcache run /data/clips --cache /data/cache --model tiny
#
# CUDA: torch brings its libraries itself, so this image is for NVIDIA GPUs, too. The host needs the
# driver and the container toolkit: add `--gpus all`. On a machine without a GPU they are some
# gigabytes for nothing: install a CPU build of torch before the line that begins with RUN pip.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE constraints.txt ./
COPY cogcache cogcache
COPY configs configs
COPY docs docs
RUN pip install -c constraints.txt .

# Checkpoints are kept in /models: give it a volume, or they are downloaded each time.
ENV HF_HOME=/models
RUN useradd --create-home captions && mkdir /data /models && chmod 1777 /data /models
USER captions
WORKDIR /data
ENTRYPOINT ["cogcache"]
CMD ["--help"]
