#!/usr/bin/env bash
# The test suite's models on a library of CPU kernels that was built with AddressSanitizer: what Python hands to them lies in memory
# that torch has allocated, and a byte read or written beside it ends the run. `make sanitize` runs this with the library that it builds.
#     tests/native/asan_models.sh PYTHON LIBRARY [arguments of pytest instead of the usual tests]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1 library=$2 out=build/asan cxx=${CXX:-g++}
shift 2

rm -rf $out && mkdir -p $out
cp -r src $out/src  # the package with this library, and its note, in the place of its own
cp "$library" $out/src/isobit/kernels/cpu/_cpu.so
cp "${library%.so}.json" $out/src/isobit/kernels/cpu/_cpu.json

# The sanitizer comes first, and the C++ library with it, or exceptions thrown inside torch are not known to it.
runtime=$("$cxx" -print-file-name=libasan.so)
case $("$cxx" --version) in *clang*) runtime=$("$cxx" -print-file-name=libclang_rt.asan-"$(uname -m)".so) ;; esac
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/cpu/test_{misshapen,small_shapes,narrow_blocks,kv_scales,load_weights,cpu_layer_models,cpu_ragged}.py)
# Leaks are Python's own affair, and torch frees some memory by other means than those that allocated it.
ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=1:allocator_may_return_null=1 \
    LD_PRELOAD="$runtime $("$cxx" -print-file-name=libstdc++.so)" PYTHONPATH=$PWD/$out/src OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -x -p no:cacheprovider "${tests[@]}"
