#!/usr/bin/env bash
# The CPU kernels on machines that are not here: 64-bit Arm (NEON and portable), x86 without AVX2 (portable).
#     tests/native/emulate.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1 cpp=src/isobit/kernels/cpp out=build/emulate

have() { for tool; do command -v "$tool" > /dev/null || return 1; done; }
if ! have aarch64-linux-gnu-g++ qemu-aarch64 qemu-x86_64; then
    as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
    if ! { $as_root apt-get update -qq && $as_root apt-get install -qq -y g++-aarch64-linux-gnu qemu-user; } > /dev/null; then
        echo "emulating needs the packages g++-aarch64-linux-gnu and qemu-user, which could not be installed" >&2
        exit 1
    fi
fi

build() { # machine, compiler
    mkdir -p "$out/$1"
    "$python" $cpp/build.py --machine "$1" --compiler "$2" --output "$out/$1/libisobit_cpu.so"
    "$2" -std=c++17 -O2 -Wall -Wextra -I$cpp tests/native/linear_test.cpp "$out/$1/libisobit_cpu.so" \
        -Wl,-rpath,"$PWD/$out/$1" -o "$out/$1/linear_test"
}

build aarch64 aarch64-linux-gnu-g++
qemu-aarch64 -L /usr/aarch64-linux-gnu $out/aarch64/linear_test neon,portable
[ "$(uname -m)" = x86_64 ] || exit 0
build x86_64 "${CXX:-g++}"
qemu-x86_64 -cpu Nehalem $out/x86_64/linear_test portable
# Python too: the library installed here must load on such a machine.
qemu-x86_64 -cpu Nehalem "$python" -c 'from isobit.kernels import cpu_library; assert cpu_library.isas() == ("portable",), cpu_library.isas()'
