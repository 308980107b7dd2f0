#!/bin/sh
# Builds the tools of llama.cpp that inferd is measured against, for this machine's CPU, from the source in the PyPI
# package llama-cpp-python. Prints the folder they are in. Does nothing when they are there already.
# Needs: python3 with pip, cmake, a C++ compiler. The folder is outside the source tree: ~/.cache/inferd/llama.cpp
set -eu
version=0.3.36
cache=${XDG_CACHE_HOME:-$HOME/.cache}/inferd/llama.cpp
src=$cache/llama_cpp_python-$version
build=$cache/build-$version
tools="llama-bench llama-batched-bench llama-server llama-perplexity"

complete() {
    for t in $tools; do
        [ -x "$build/bin/$t" ] || return 1
    done
}

fetch() {
    [ ! -f "$src/vendor/llama.cpp/CMakeLists.txt" ] || return 0
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$cache" "llama-cpp-python==$version" >&2
    # Unpacked aside and then renamed, so that a run that was cut off leaves nothing half-done.
    tmp=$(mktemp -d "$cache/unpack.XXXXXX")
    tar -xzf "$cache/llama_cpp_python-$version.tar.gz" -C "$tmp"
    # GCC 12 does not know what _tile_loadconfig reads and drops it: on a CPU with AMX every prompt would end in SIGILL.
    sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory");\n&/' \
        "$tmp/llama_cpp_python-$version/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
    rm -rf "$src"
    mv "$tmp/llama_cpp_python-$version" "$src"
    rmdir "$tmp"
}

if ! complete; then
    mkdir -p "$cache"
    fetch
    generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
    [ -f "$build/CMakeCache.txt" ] || cmake -S "$src/vendor/llama.cpp" -B "$build" -G "$generator" \
        -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_UI=OFF >&2
    # shellcheck disable=SC2086
    cmake --build "$build" --parallel "${JOBS:-$(nproc)}" --target $tools >&2
    complete
fi
echo "$build/bin"
