# CPU:   docker build -t gpt .
# CUDA:  docker build -t gpt --build-arg BUILD=cuda .
#
#   docker run --rm -v "$PWD:/work" gpt train --size gpt2 --n-layer 4 --tokens 10M
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" gpt train --size 350M
#
# PyTorch's CUDA build brings its own CUDA libraries, so both builds start from the same image; the
# host needs an NVIDIA driver and the NVIDIA Container Toolkit.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu or cuda; the former is a tenth of the size
ARG BUILD=cpu
# extras of pyproject.toml
ARG EXTRAS=fast,data,eval,track,serve

# a compiler, for the kernels in C, which are built for the processor at first use
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 PYTHONUNBUFFERED=1
# pip would install the CUDA build; uv knows where the CPU build is
RUN if [ "$BUILD" = cpu ]; then \
      pip install uv && uv pip install --system --torch-backend cpu "torch>=2.11"; \
    else pip install "torch>=2.11"; fi

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gptcli gptcli
RUN pip install ".[$EXTRAS]" && rm -rf /src

# data, runs and downloaded models of the host
WORKDIR /work
ENV HF_HOME=/work/.cache/huggingface XDG_CACHE_HOME=/tmp/cache
ENTRYPOINT ["gpt"]
CMD ["--help"]
