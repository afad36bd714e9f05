# Reelmill for workers with an NVIDIA GPU: the CPU image's packages, PyTorch and PyNvVideoCodec.
# Build it from the root of the repository:
#
#   docker build --file infra/images/cuda.Dockerfile --tag reelmill-cuda:0.1.0 .
#
# The machine needs a driver for CUDA 13 (580 or newer) and the NVIDIA container toolkit. PyTorch
# brings CUDA's libraries along, so that the small `base` image does.

FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build
ENV DEBIAN_FRONTEND=noninteractive
# Ubuntu keeps one version of a package only, so that a pinned one could not be built again.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv --without-pip /opt/reelmill \
    && python3 -m venv /build/tools \
    && /build/tools/bin/pip install "pip==25.3" "setuptools==84.2.1"
COPY infra/images/constraints.txt infra/images/dashboard.txt infra/images/cuda.txt /build/
RUN /build/tools/bin/pip --python /opt/reelmill/bin/python install \
       --constraint /build/constraints.txt --requirement /build/cuda.txt \
    && /build/tools/bin/pip --python /opt/reelmill/bin/python install --no-deps \
       --requirement /build/constraints.txt --requirement /build/dashboard.txt
COPY . /build/reelmill
RUN /build/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheels \
       /build/reelmill \
    && /build/tools/bin/pip --python /opt/reelmill/bin/python install \
       --constraint /build/constraints.txt /build/wheels/*.whl

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
LABEL org.opencontainers.image.title="Reelmill (CUDA)" \
      org.opencontainers.image.description="The build system for video datasets, for GPU workers" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 reelmill \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /scratch --create-home \
       --shell /usr/sbin/nologin reelmill
COPY --from=build /opt/reelmill /opt/reelmill
# `video` brings the decoder and encoder of the driver in, which PyNvVideoCodec needs.
ENV PATH=/opt/reelmill/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,video,utility \
    HOME=/scratch \
    TMPDIR=/scratch \
    PREFECT_HOME=/scratch/prefect \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/scratch/prefect-ui \
    PYTHONUNBUFFERED=1
VOLUME /scratch
WORKDIR /scratch
USER 10001:10001
HEALTHCHECK NONE
CMD ["reelmill", "--help"]
