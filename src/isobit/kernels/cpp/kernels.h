// What one instruction set offers: a table of functions, made by kernels.inc.h for each of the isa_*.cpp files.
#pragma once

#include "isobit_cpu.h"

namespace isobit {

// Codes of 32 weights are decoded at a time; activations are laid out to match (see `arrange`).
constexpr int64_t BLOCK = 32;

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// A linear with everything that derives from its description.
struct Layout {
    int64_t group;         // weights that share a scale along k
    int64_t groups;        // how many there are in a row
    int64_t padded_group;  // group in whole blocks
    int64_t width;         // groups * padded_group: floats of an arranged row of activations
    int64_t group_bytes;   // bytes of a group's codes
};

struct Isa {
    const char *name;
    bool (*available)();
    // Lays out m rows of activations for `format`: groups padded with zeros to whole blocks, the values of a block in the
    // order in which its codes are decoded. Scales (per row, or per row and group) are multiplied in if given.
    void (*arrange)(int32_t format, const Layout &, const float *x, int64_t m, int64_t ldx, int64_t k, float *out);
    // y[0..m, begin..end) for few rows of activations: codes are decoded once for up to four rows.
    void (*gemv)(const isobit_linear &, const Layout &, const float *arranged, const float *sums, const float *act_scales,
                 int64_t m, int64_t begin, int64_t end, float *y, int64_t ldy);
    // The same for many rows: PANEL outputs are decoded once for all of them. begin is a multiple of `panel`.
    void (*gemm)(const isobit_linear &, const Layout &, const float *arranged, const float *act_scales, int64_t m,
                 int64_t begin, int64_t end, float *y, int64_t ldy);
    int64_t panel;
    // Exact integer products: x int8 codes [m, k] rows apart by k, one scale per row.
    void (*int8)(const isobit_linear &, const int8_t *x, const float *act_scales, int64_t m, int64_t begin, int64_t end,
                 float *y, int64_t ldy);
    // Largest magnitude of n values; NaN if one is NaN.
    float (*absmax)(const float *x, int64_t n);
    // The law of activations for values that share a scale: code values as floats (int8 too).
    void (*round)(int32_t activations, const float *x, int64_t n, float scale, float *out);
    uint64_t (*read)(const void *data, int64_t bytes);
};

extern const Isa portable_isa;
#ifdef ISOBIT_AVX2
extern const Isa avx2_isa;
#endif
#ifdef ISOBIT_AVX512
extern const Isa avx512_isa;
#endif
#ifdef ISOBIT_NEON
extern const Isa neon_isa;
#endif

}  // namespace isobit
