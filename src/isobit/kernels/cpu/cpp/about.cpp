// What this library is. Python asks before it calls anything else.
#include "isobit_cpu.h"

#define ISOBIT_EXPORT __attribute__((visibility("default")))

extern "C" {

ISOBIT_EXPORT int isobit_cpu_abi(void) { return ISOBIT_CPU_ABI; }

ISOBIT_EXPORT const char *isobit_cpu_built(void) {
    return
#ifdef ISOBIT_AVX512
        "avx512,"
#endif
#ifdef ISOBIT_AVX2
        "avx2,"
#endif
#ifdef ISOBIT_NEON
        "neon,"
#endif
        "portable";
}

ISOBIT_EXPORT const char *isobit_cpu_compiler(void) {
#ifdef __clang__
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}

}  // extern "C"
