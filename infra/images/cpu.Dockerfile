# Reelmill with everything that needs no GPU: workers, builds, `reelmill serve`, the Dask scheduler
# and the Prefect server. Build it from the root of the repository:
#
#   docker build --file infra/images/cpu.Dockerfile --tag reelmill:0.1.0 .

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install "setuptools==84.2.1" && python -m venv --without-pip /opt/reelmill
# The packages come first: their layer stands until their versions change.
COPY infra/images/constraints.txt infra/images/dashboard.txt /build/
RUN pip --python /opt/reelmill/bin/python install --no-deps \
       --requirement /build/constraints.txt --requirement /build/dashboard.txt
COPY . /build/reelmill
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheels /build/reelmill \
    && pip --python /opt/reelmill/bin/python install --constraint /build/constraints.txt \
       /build/wheels/*.whl

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="Reelmill" \
      org.opencontainers.image.description="The build system for video datasets" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that volumes and Kubernetes can name it.
RUN groupadd --gid 10001 reelmill \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /scratch --create-home \
       --shell /usr/sbin/nologin reelmill
COPY --from=build /opt/reelmill /opt/reelmill
# All that a process writes besides its store goes to /scratch; everything else may be read-only.
ENV PATH=/opt/reelmill/bin:$PATH \
    HOME=/scratch \
    TMPDIR=/scratch \
    PREFECT_HOME=/scratch/prefect \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/scratch/prefect-ui \
    PYTHONUNBUFFERED=1
VOLUME /scratch
WORKDIR /scratch
USER 10001:10001
# The same image runs servers and commands that end: whoever starts one says how it is checked.
HEALTHCHECK NONE
CMD ["reelmill", "--help"]
