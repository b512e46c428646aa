#!/usr/bin/env bash
# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, their threads under ThreadSanitizer, and, without those, sizes
# beyond 32 bits; then models of the test suite on the first of these.
#     tests/native/sanitize.sh PYTHON [ISA]    with all instruction sets of this machine, or one and the portable one
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/native/programs.sh
python=$1 isa=${2:-} out=build/sanitize installed=src/isobit/kernels/cpu/_cpu.so cxx=${CXX:-g++}

# Null and wrongly sized objects are left to AddressSanitizer, and its checks are calls: else compiling takes four minutes.
sanitizers="-O1 -fsanitize=address,undefined -fno-sanitize=null,object-size,vptr -fno-sanitize-recover=all"
calls=--param=asan-instrumentation-with-call-threshold=0
case $("$cxx" --version) in *clang*) calls="-mllvm -asan-instrumentation-with-call-threshold=0" ;; esac
flags=(); for flag in $sanitizers $calls; do flags+=("--flag=$flag"); done

"$python" $cpp/build.py "${flags[@]}" ${isa:+--isa "$isa"} --output $out/_cpu.so
compile $out $out/_cpu.so "$cxx" $sanitizers $calls
pool="$cxx -std=c++17 -O1 -g -Wall -Wextra -I$cpp -pthread tests/native/pool.cpp $cpp/pool.cpp"
together << END
$cxx -std=c++17 -O2 -Wall -Wextra -I$cpp -pthread tests/native/large_test.cpp $PWD/$installed -o $out/large_test
$pool -fsanitize=undefined -fno-sanitize-recover=all -o $out/pool
$pool -fsanitize=thread -o $out/threads
END
# ThreadSanitizer needs its memory where it expects it.
together << END
$out/linear_test
$out/memory_test
$out/layer_test
$out/latent_test
$out/experts_test
$out/attention_test
$out/arguments_test
$out/pool
setarch -R $out/threads without-fork
END
$out/large_test  # alone: it uses all cores
tests/native/asan_models.sh "$python" $out/_cpu.so
