// Linears of every kind for the native tests, and what their codes mean: by the bits, which shares nothing with the kernels.
#pragma once

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "exact.h"
#include "isobit_cpu.h"

namespace test {

struct Case {
    const char *name;
    int32_t format, activations;
    int64_t group, block_rows, activation_group;
    int bits;
    float input_scale;
    int32_t scales = ISOBIT_F32;  // their format; ISOBIT_F32: any that is a float
    int32_t over_rule = ISOBIT_ALONE;
    int32_t activation_scales = ISOBIT_SCALES_FLOAT;
};

inline const Case CASES[] = {
    {"f32", ISOBIT_F32, ISOBIT_ACT_NONE, 0, 0, 0, 32, 0},
    {"bf16", ISOBIT_BF16, ISOBIT_ACT_NONE, 0, 0, 0, 16, 0},
    {"f16", ISOBIT_F16, ISOBIT_ACT_NONE, 0, 0, 0, 16, 0},
    {"e4m3", ISOBIT_E4M3FN, ISOBIT_ACT_NONE, 0, 1, 0, 8, 0},
    {"e4m3 by e4m3", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 0, 1, 0, 8, 0},
    {"e4m3 by static e4m3", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 0, 0, 0, 8, 0.01f},
    {"e4m3 by e4m3, blocks", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 128, 128, 128, 8, 0},
    {"e5m2", ISOBIT_E5M2, ISOBIT_ACT_NONE, 0, 1, 0, 8, 0},
    {"e5m2 by e5m2", ISOBIT_E5M2, ISOBIT_ACT_E5M2, 0, 1, 0, 8, 0},
    {"int8", ISOBIT_INT8, ISOBIT_ACT_NONE, 0, 1, 0, 8, 0},
    {"int8 g64", ISOBIT_INT8, ISOBIT_ACT_NONE, 64, 1, 0, 8, 0},
    {"int8 by int8", ISOBIT_INT8, ISOBIT_ACT_INT8, 0, 1, 0, 8, 0},
    {"int4", ISOBIT_INT4, ISOBIT_ACT_NONE, 0, 1, 0, 4, 0},
    {"int4 g128", ISOBIT_INT4, ISOBIT_ACT_NONE, 128, 1, 0, 4, 0},
    {"int4 g32", ISOBIT_INT4, ISOBIT_ACT_NONE, 32, 1, 0, 4, 0},
    {"int4 g40", ISOBIT_INT4, ISOBIT_ACT_NONE, 40, 1, 0, 4, 0},
    {"int4 g16", ISOBIT_INT4, ISOBIT_ACT_NONE, 16, 1, 0, 4, 0},
    {"int4 g8", ISOBIT_INT4, ISOBIT_ACT_NONE, 8, 1, 0, 4, 0},
    {"int4 g256", ISOBIT_INT4, ISOBIT_ACT_NONE, 256, 1, 0, 4, 0},
    {"int4 g128 by int8", ISOBIT_INT4, ISOBIT_ACT_INT8, 128, 1, 0, 4, 0},
    {"int4 g32 by int8", ISOBIT_INT4, ISOBIT_ACT_INT8, 32, 1, 0, 4, 0},
    {"int4 g8 by int8", ISOBIT_INT4, ISOBIT_ACT_INT8, 8, 1, 0, 4, 0},
    {"uint4 g128", ISOBIT_UINT4, ISOBIT_ACT_NONE, 128, 1, 0, 4, 0},
    {"uint4", ISOBIT_UINT4, ISOBIT_ACT_NONE, 0, 1, 0, 4, 0},
    {"uint4 g256", ISOBIT_UINT4, ISOBIT_ACT_NONE, 256, 1, 0, 4, 0},
    {"uint4 g32", ISOBIT_UINT4, ISOBIT_ACT_NONE, 32, 1, 0, 4, 0},
    {"int3 g40", ISOBIT_INT3, ISOBIT_ACT_NONE, 40, 1, 0, 3, 0},
    {"int3 g32", ISOBIT_INT3, ISOBIT_ACT_NONE, 32, 1, 0, 3, 0},
    {"int2 g32", ISOBIT_INT2, ISOBIT_ACT_NONE, 32, 1, 0, 2, 0},
    {"e2m1", ISOBIT_E2M1, ISOBIT_ACT_NONE, 0, 1, 0, 4, 0},
    {"e2m1 g128", ISOBIT_E2M1, ISOBIT_ACT_NONE, 128, 1, 0, 4, 0},
    {"mxfp4", ISOBIT_E2M1, ISOBIT_ACT_NONE, 32, 1, 0, 4, 0, ISOBIT_E8M0},
    {"nvfp4", ISOBIT_E2M1, ISOBIT_ACT_NONE, 16, 1, 0, 4, 0, ISOBIT_E4M3FN, ISOBIT_DIVIDES},
    {"nvfp4, multiplied", ISOBIT_E2M1, ISOBIT_ACT_NONE, 16, 1, 0, 4, 0, ISOBIT_E4M3FN, ISOBIT_MULTIPLIES},
    {"e2m1 g64, bf16 under one", ISOBIT_E2M1, ISOBIT_ACT_NONE, 64, 1, 0, 4, 0, ISOBIT_BF16, ISOBIT_MULTIPLIES},
    {"mxfp4 by mxfp4", ISOBIT_E2M1, ISOBIT_ACT_E2M1, 32, 1, 32, 4, 0, ISOBIT_E8M0, ISOBIT_ALONE, ISOBIT_SCALES_POWERS},
    {"nvfp4 by nvfp4", ISOBIT_E2M1, ISOBIT_ACT_E2M1, 16, 1, 16, 4, 700.0f, ISOBIT_E4M3FN, ISOBIT_DIVIDES, ISOBIT_SCALES_UNDER},
    {"e2m1 by e2m1", ISOBIT_E2M1, ISOBIT_ACT_E2M1, 128, 1, 0, 4, 0},
    {"mxfp8", ISOBIT_E4M3FN, ISOBIT_ACT_NONE, 32, 1, 0, 8, 0, ISOBIT_E8M0},
    {"mxfp8 by mxfp8", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 32, 1, 32, 8, 0, ISOBIT_E8M0, ISOBIT_ALONE, ISOBIT_SCALES_POWERS},
    {"e5m2 g16", ISOBIT_E5M2, ISOBIT_ACT_NONE, 16, 1, 0, 8, 0},
};

inline const Case &case_of(int32_t format, int32_t activations) {
    for (const Case &c : CASES)
        if (c.format == format && c.activations == activations) return c;
    stop("no such case");
}

inline const Case &case_named(const std::string &name) {
    for (const Case &c : CASES)
        if (c.name == name) return c;
    stop("no such case");
}

// Groups of packed codes end at bytes, and those of rounded activations are whole.
inline bool fits(const Case &c, int64_t k) { return !c.group || (c.bits == 8 && !c.activation_group) || k % c.group == 0; }

// Value of a sign-exponent-mantissa code; NaN and infinities are given as the numbers that their bits would be.
inline double small_float(uint32_t code, int exponent_bits, int mantissa_bits) {
    const int exponent = static_cast<int>(code >> mantissa_bits & ((1u << exponent_bits) - 1)), bias = (1 << (exponent_bits - 1)) - 1;
    const int mantissa = static_cast<int>(code & ((1u << mantissa_bits) - 1)), hidden = exponent ? 1 << mantissa_bits : 0;
    const double size = std::ldexp(mantissa + hidden, (exponent ? exponent : 1) - bias - mantissa_bits);
    return code >> (exponent_bits + mantissa_bits) & 1 ? -size : size;
}

inline uint32_t code_at(const uint8_t *row, int64_t k, int bits) {
    uint32_t code = 0;
    for (int bit = 0; bit < bits; ++bit) {
        const int64_t at = k * bits + bit;
        code |= static_cast<uint32_t>(row[at / 8] >> at % 8 & 1) << bit;
    }
    return code;
}

inline double value_of(int32_t format, uint32_t code, int zero) {
    switch (format) {
        case ISOBIT_F32: return small_float(code, 8, 23);
        case ISOBIT_BF16: return small_float(code, 8, 7);
        case ISOBIT_F16: return small_float(code, 5, 10);
        case ISOBIT_E4M3FN: return small_float(code, 4, 3);
        case ISOBIT_E5M2: return small_float(code, 5, 2);
        case ISOBIT_INT8: return static_cast<int8_t>(code);
        case ISOBIT_INT4: return static_cast<int>(code) - 8;
        case ISOBIT_UINT4: return static_cast<int>(code) - zero;
        case ISOBIT_INT3: return static_cast<int>(code) - 4;
        case ISOBIT_E2M1: return small_float(code, 2, 1);
        case ISOBIT_E8M0: return std::ldexp(1, static_cast<int>(code) - 127);
        default: return static_cast<int>(code) - 2;
    }
}

inline double activation_value(int32_t activations, uint8_t code) {
    if (activations == ISOBIT_ACT_E2M1) return value_of(ISOBIT_E2M1, code, 0);
    return value_of(activations == ISOBIT_ACT_INT8 ? ISOBIT_INT8 : activations == ISOBIT_ACT_E5M2 ? ISOBIT_E5M2 : ISOBIT_E4M3FN, code, 0);
}

inline bool is_number(int32_t format, uint8_t code) {
    if (format == ISOBIT_E4M3FN) return (code & 0x7f) != 0x7f;
    return format != ISOBIT_E5M2 || (code & 0x7c) != 0x7c;
}

// One linear with random codes and scales of a random format, each of its parts in exact memory of its own.
struct Linear {
    const Case c;
    const int64_t row_bytes, groups, scale_rows;
    const int32_t scale_format;
    Values<uint8_t> codes, zeros, scales;
    Values<float> bias, over;
    isobit_linear w{};

    // `gap`: bytes between rows. `shift`: see Exact; that of scales and bias is another one.
    Linear(const Case &kind, int64_t n, int64_t k, int64_t gap = 0, size_t shift = 0)
        : c(kind), row_bytes((k * kind.bits + 7) / 8 + gap), groups(kind.group ? (k + kind.group - 1) / kind.group : 1),
          scale_rows(kind.block_rows ? (n + kind.block_rows - 1) / kind.block_rows : 1),
          scale_format(kind.scales ? kind.scales : std::array{ISOBIT_F32, ISOBIT_BF16, ISOBIT_F16}[next() % 65521 % 3]), codes(n * row_bytes - gap, shift),
          zeros(scale_rows * groups, shift), scales(scale_rows * groups * scale_bits() / 8, shift ? shift + 2 : 0),
          bias(n, shift ? shift + 1 : 0), over(n, shift ? shift + 3 : 0) {
        fill_codes(k);
        fill(bias);
        for (int64_t i = 0; i < n; ++i) over.put(i, (c.over_rule == ISOBIT_DIVIDES ? 3000.0f : 0.0003f) * (1 + (next() >> 8) * 0x1p-24f));
        for (int64_t i = 0; i < zeros.size(); ++i) zeros.put(i, static_cast<uint8_t>(next() >> 28)), put_scale(i);
        w.n = n, w.k = k, w.format = c.format, w.activations = c.activations;
        w.activation_group = static_cast<int32_t>(c.activation_group), w.input_scale = c.input_scale;
        w.group = c.group, w.block_rows = c.block_rows, w.row_bytes = row_bytes, w.scale_format = scale_format;
        w.codes = codes.data(), w.scales = c.bits <= 8 ? scales.data() : nullptr;
        w.zeros = c.format == ISOBIT_UINT4 ? zeros.data() : nullptr, w.bias = bias.data();
        w.over_rule = c.over_rule, w.over = c.over_rule ? over.data() : nullptr, w.over_each = 1, w.activation_scales = c.activation_scales;
    }

    double weight(int64_t row, int64_t k) const {
        const int64_t at = (w.block_rows ? row / w.block_rows * groups : 0) + (w.group ? k / w.group : 0);
        double scale = w.scales ? value_of(scale_format, code_at(scales.data(), at, scale_bits()), 0) : 1;
        const float above = over[w.over_each ? row : 0];
        if (c.over_rule) scale = static_cast<float>(c.over_rule == ISOBIT_MULTIPLIES ? scale * above : scale / above);
        return value_of(c.format, code_at(codes.data() + row * row_bytes, k, c.bits), zeros[at]) * scale;
    }

  private:
    int scale_bits() const { return scale_format == ISOBIT_F32 ? 32 : scale_format == ISOBIT_BF16 || scale_format == ISOBIT_F16 ? 16 : 8; }

    // From 2^-7 to 2^-6; powers of two from 2^-8 to 2^-5; and those of e4m3 from 8 to 120, which stand under a number.
    void put_scale(int64_t at) {
        const uint32_t random = next() >> 8;
        const uint32_t bits = scale_format == ISOBIT_F32      ? 0x3c000000 | random >> 1
                              : scale_format == ISOBIT_BF16   ? 0x3c00 | random >> 17
                              : scale_format == ISOBIT_E8M0   ? 119 + random % 4
                              : scale_format == ISOBIT_E4M3FN ? 0x50 + random % 32
                                                              : 0x2000 | random >> 14;
        std::memcpy(scales.bytes() + at * scale_bits() / 8, &bits, static_cast<size_t>(scale_bits() / 8));
    }

    // All bytes but NaN and infinities; wider floats of moderate size; between rows codes that are no numbers.
    void fill_codes(int64_t k) {
        const int64_t used = (k * c.bits + 7) / 8, size = c.bits / 8;
        for (int64_t i = 0; i < codes.size(); ++i) {
            uint8_t byte = static_cast<uint8_t>(next() >> 24);
            const int64_t in_row = i % row_bytes;
            if (!is_number(c.format, byte)) byte ^= c.format == ISOBIT_E5M2 ? 4 : 1;
            if (c.bits > 8 && in_row % size == size - 1) byte = static_cast<uint8_t>(0x3c | (byte & 0x81));
            codes.put(i, in_row < used ? byte : 0x7f);
        }
    }
};

}  // namespace test
