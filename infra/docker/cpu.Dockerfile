# The head, the CPU workers, and everything that runs without a GPU. Build from the root of the repository:
#   docker build --file infra/docker/cpu.Dockerfile --tag music-feature-store:0.1.0-cpu .
FROM python:3.11.14-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# wget: KubeRay's health probes; rsync, ssh, tmux and below boto3: `ray up`, `ray exec --tmux`, and the autoscaler.
# profile.d: `ray up` runs its commands in login shells, which forget the PATH below.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync tmux wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --gid users --create-home --shell /bin/bash ray \
    && python -m venv /opt/venv \
    && echo "export PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    OMP_WAIT_POLICY=passive \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=268435456 \
    RAY_idle_worker_killing_time_threshold_ms=60000 \
    PYTORCH_ALLOC_CONF=expandable_segments:True

WORKDIR /app
COPY constraints.txt pyproject.toml ./

# A layer each for torch, for the other libraries, and for the code: a change of the code moves kilobytes.
RUN pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.11.0+cpu torchaudio==2.11.0+cpu
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['search'], *extras['serve'], *extras['probe'], 'boto3', sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY LICENSE README.md ./
COPY jobs jobs
COPY musicfm_model musicfm_model
COPY pipeline pipeline
RUN pip install --no-cache-dir --no-deps .

USER 1000
CMD ["musicfm", "--help"]
