#!/usr/bin/env bash
# The CPU kernels on machines that are not here: 64-bit Arm (NEON and portable), x86 without AVX2 (portable), x86 with AVX2 and with parts
# of it.
#     tests/native/emulate.sh PYTHON [arm|x86]    all, or those of one architecture
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/native/programs.sh
python=$1 machines=${2:-all} out=build/emulate installed=src/isobit/kernels/cpu/_cpu.so

have() { for tool; do command -v "$tool" > /dev/null || return 1; done; }
if ! have aarch64-linux-gnu-g++ qemu-aarch64 qemu-x86_64; then
    as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
    if ! { $as_root apt-get update -qq && $as_root apt-get install -qq -y g++-aarch64-linux-gnu qemu-user; } > /dev/null; then
        echo "emulating needs the packages g++-aarch64-linux-gnu and qemu-user, which could not be installed" >&2
        exit 1
    fi
fi

case $machines in all | arm | x86) ;; *) echo "$machines: arm or x86, or nothing for all" >&2 && exit 2 ;; esac
if [ "$machines" != x86 ]; then
    "$python" $cpp/build.py --machine aarch64 --compiler aarch64-linux-gnu-g++ --output $out/aarch64/_cpu.so
    compile $out/aarch64 $out/aarch64/_cpu.so aarch64-linux-gnu-g++ -O2
fi
arm="qemu-aarch64 -L /usr/aarch64-linux-gnu $out/aarch64"

# Options of the programs: tests/native/isas.h. Every eleventh value against float64: a step that meets each column of small results.
on_arm() {
    echo "$arm/linear_test neon,portable 11"
    echo "$arm/memory_test neon,portable 1 neon"
    echo "$arm/layer_test neon,portable 11"
    echo "$arm/latent_test neon,portable 11"
    echo "$arm/experts_test neon,portable 11"
    echo "$arm/attention_test neon,portable 5"
    echo "$arm/arguments_test neon,portable"
}

on_x86() {
    local without="qemu-x86_64 -cpu Nehalem $out/x86_64" with="qemu-x86_64 -cpu max $out/x86_64" part
    echo "$without/linear_test portable 11"
    echo "$without/memory_test portable"
    echo "$without/layer_test portable 11"
    echo "$without/latent_test portable 11"
    echo "$without/experts_test portable 11"
    echo "$without/attention_test portable 5"
    echo "$without/arguments_test portable"
    # 16 bytes of slack: see exact.h.
    echo "$with/linear_test avx2,portable 11 avx2 16"
    echo "$with/memory_test avx2,portable 1 avx2 16"
    echo "$with/layer_test avx2,portable 11 avx2 16"
    echo "$with/latent_test avx2,portable 11 avx2 16"
    echo "$with/experts_test avx2,portable 11 avx2 16"
    echo "$with/attention_test avx2,portable 5 avx2 16"
    # AVX2 alone is not enough.
    for part in f16c fma bmi2 avx; do echo "qemu-x86_64 -cpu max,-$part $out/x86_64/attention_test portable 23"; done
    # Python too: the library installed here must load on such a machine.
    echo "qemu-x86_64 -cpu Nehalem $python -c 'from isobit.kernels.cpu import library as c; assert c.isas() == (\"portable\",), c.isas()'"
}

if [ "$(uname -m)" = x86_64 ] && [ "$machines" != arm ]; then
    compile $out/x86_64 $installed "${CXX:-g++}" -O2
    { [ "$machines" = x86 ] || on_arm; on_x86; } | together
else
    on_arm | together
fi
