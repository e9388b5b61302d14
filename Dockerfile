# The base only has to bring Python 3.11 or newer with venv and pip: torch's wheels carry their own CUDA libraries, and the
# driver is the host's. By digest, so that the same bytes are built on every time; Dependabot proposes newer ones.
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE_IMAGE} AS build
# Which GPUs and drivers the image runs on is decided by the torch wheel. The default index serves builds for CUDA 13, which need
# a driver of 580 or newer. A build for CUDA 12 runs with drivers from 525 (NVIDIA, "CUDA minor version compatibility") on the
# same GPUs, T4 (sm_75) to H100 (sm_90): the widest range. Whoever has such drivers gives the address of PyTorch's own index
# here; it is no default, because the image has to build wherever only the default index can be reached.
ARG TORCH_INDEX_URL=""
# Everything else comes by hash from the lock. torch cannot: each index has a build of its own under one version, and with it
# other CUDA libraries; pip takes hashes for all packages of a command or for none. What the lock has is kept as it is then.
COPY requirements.txt .ci/image.lock /tmp/
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r /tmp/image.lock \
 && grep -oE '^[a-z0-9-]+==[^ ;]+' /tmp/image.lock > /tmp/kept.txt \
 && if [ -n "${TORCH_INDEX_URL}" ]; then set -- --index-url "${TORCH_INDEX_URL}"; fi \
 && /opt/venv/bin/pip install --no-cache-dir --constraint /tmp/kept.txt "$@" "$(grep '^torch==' /tmp/requirements.txt)" \
 && /opt/venv/bin/pip check \
 # headers are for compilers, and there is none; nobody runs torch's and pandas' own tests here
 && for part in torch/include torch/test pandas/tests; do rm -rf /opt/venv/lib/python3.*/site-packages/"${part}"; done

# docker build --target evaluation: the evaluation container of grand-challenge.org and Codabench, without torch.
FROM ${BASE_IMAGE} AS evaluation
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY .ci/image.lock /tmp/
RUN python3 -m venv /opt/venv \
 && pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r /tmp/image.lock \
 # what only the method needs
 && pip uninstall --yes connected-components-3d cuda-core cuda-pathfinder isal llvmlite networkx numba simpleitk sympy \
 && rm -rf /opt/venv/lib/python3.*/site-packages/pandas/tests
WORKDIR /opt/app
COPY LICENSE ./
COPY evaluation evaluation
RUN chmod -R a+rX . && python -m compileall -q .
LABEL org.opencontainers.image.title="MCBO evaluation" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["python", "-m", "evaluation"]
CMD ["grand-challenge"]

FROM ${BASE_IMAGE}
# Only /tmp and /output can be written where this runs, and the user, who may have any number, has no home. So kernels that are
# not in the image are kept in a folder of that user alone, mode 0700, below /tmp (mcbo/kernels/caches.py). Nor is there a C
# compiler, which Triton asks for: torch for CUDA would otherwise use Triton for some products of matrices (torch/_native).
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    MCBO_CUDA_PREBUILT=/opt/app/kernels \
    MCBO_CPU_PREBUILT=/opt/app/kernels \
    TORCH_DISABLE_NATIVE_JIT=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/app
COPY --from=build /opt/venv /opt/venv
COPY LICENSE process.py ./
COPY evaluation evaluation
COPY mcbo mcbo
# The CUDA kernels, for T4, A100, RTX 30, RTX 40 and L40, H100, B200, RTX 50: a container that lives for one case must not compile
# them. That needs no GPU; an older NVRTC does not know the last two. A torch without CUDA needs none of it.
# Modes come from whoever made the clone; any user has to read it.
RUN if python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
      python -m mcbo.kernels.cuda.build --skip-unknown --output kernels \
        --arch sm_75 --arch sm_80 --arch sm_86 --arch sm_89 --arch sm_90 --arch sm_100 --arch sm_120; \
    fi \
 # and those for CPUs from AVX2 on: without, the first case would take 20 to 40 s longer
 && python -m mcbo.studies.prebuilt_kernels --output kernels \
 && chmod -R a+rX . && python -m compileall -q .
ARG VERSION=0.1.0
ARG REVISION=unknown
# exec: grand-challenge.org runs the entry point for each job. invoke: it keeps the container, and asks it for jobs over HTTP. The
# site goes by the label, and tells the container by the variable, which is set here for all who run an image elsewhere.
ARG API_METHOD=exec
ENV GRAND_CHALLENGE_COMPONENT_API_METHOD="${API_METHOD}"
LABEL org.opencontainers.image.title="MCBO" \
      org.opencontainers.image.description="Multimodal 3D image registration for the Learn2Reg tasks ReMIND2Reg and COMULIS3DCLEM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.grand-challenge.api-method="${API_METHOD}"
USER 65532:65532
ENTRYPOINT ["python", "process.py"]
