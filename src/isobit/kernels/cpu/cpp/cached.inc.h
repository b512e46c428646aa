// What a cache holds of keys and values, in each of its formats (docs/numerics.md section 9); included by attention.inc.h. The
// instruction sets give Stored, whose functions load W numbers.

// Finite values beyond the largest half become that; infinities and NaN stay. Ties to even.
inline uint16_t to_f16(float value) {
    const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (size == 0x7f800000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7bffu);
    if (size < 0x38800000u) {  // 2^-14: added to a power of two whose last place is the smallest half
        const float shifted = from_bits(size) + 0.5f;
        return static_cast<uint16_t>(sign | (as_bits(shifted) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}

inline uint16_t to_bf16(float value) {
    const uint32_t bits = as_bits(value), size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    if (size < 0x7f800000u && size >= 0x7f7f8000u) return static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x7f7fu);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Codes of so many bits of values of a float format with `mantissa` bits and least normal 2^low. Integers alone: a loop that becomes vectors.
template <int mantissa, int low, int width = 8>
inline void float_codes(const float *values, int64_t count, uint8_t *codes) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = as_bits(values[i]), size = bits & 0x7fffffffu;
        const uint32_t normal = (size >> (23 - mantissa)) - ((127u + low - 1) << mantissa);
        const auto small = static_cast<uint32_t>(static_cast<int32_t>(from_bits(size) * static_cast<float>(1 << (mantissa - low))));
        codes[i] = static_cast<uint8_t>((bits >> 31 << (width - 1)) | (size < (127u + low) << 23 ? small : normal));
    }
}

// Codes of values that are numbers of a format.
inline void codes_of_values(int32_t format, const float *values, int64_t count, uint8_t *codes) {
    if (format == ISOBIT_E4M3FN) float_codes<3, -6>(values, count, codes);
    else if (format == ISOBIT_E5M2) float_codes<2, -14>(values, count, codes);
    else if (format == ISOBIT_E2M1) float_codes<1, 0, 4>(values, count, codes);
    else
        for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(static_cast<int8_t>(values[i]));
}

inline int32_t law_of(int32_t format) {
    return format == ISOBIT_E4M3FN ? ISOBIT_ACT_E4M3FN : format == ISOBIT_E5M2 ? ISOBIT_ACT_E5M2 : format == ISOBIT_E2M1 ? ISOBIT_ACT_E2M1 : ISOBIT_ACT_INT8;
}

// Rounds a head in groups; stores the code of each group's scale, and what stands above them.
inline void round_in_groups(const Kept &to, const Loose *x, int64_t dim, int64_t row, float *values) {
    const int32_t law = law_of(to.format);
    uint8_t *const codes = to.groups_at(row, dim);
    float above = 1;
    if (to.scales) {
        Loose *const scales = to.scales;
        above = scale_to(largest_of(law) * 448.0f, absmax(x, dim));
        scales[row] = above;
    }
    for (int64_t at = 0, g = 0; at < dim; at += to.group, ++g) {
        const int64_t count = smaller(to.group, dim - at);
        const float amax = absmax(x + at, count);
        float scale;
        if (to.group_format == ISOBIT_E8M0) {
            scale = amax <= 3.4028234663852886e38f ? power_scale(law, amax) : __builtin_nanf("");
            codes[g] = scale == scale ? static_cast<uint8_t>(as_bits(scale) >> 23) : 0xff;
        } else {
            scale = above == above ? few_bits(amax / largest_of(law) / above) : 0.125f;
            float_codes<3, -6>(&scale, 1, codes + g);
            scale = scale * above;
        }
        round_activations(law, x + at, count, scale, values + at);
    }
}

// The numbers of a head of a token to a row, as they are stored.
void put_cached(const Kept &to, const Loose *x, int64_t dim, int64_t row) {
    uint8_t *const bytes = to.row(row, dim);
    if (to.format == ISOBIT_BF16 || to.format == ISOBIT_F16) {
        for (int64_t i = 0; i < dim; ++i) {
            const uint16_t half = to.format == ISOBIT_BF16 ? to_bf16(x[i]) : to_f16(x[i]);
            __builtin_memcpy(bytes + 2 * i, &half, 2);
        }
        return;
    }
    float values[LARGEST_HEAD];
    if (to.group) {
        round_in_groups(to, x, dim, row, values);
    } else {
        Loose *const scales = to.scales;
        const float found = activation_scale(law_of(to.format), absmax(x, dim));
        scales[row] = found;
        round_activations(law_of(to.format), x, dim, found, values);
    }
    if (to.format != ISOBIT_E2M1) return codes_of_values(to.format, values, dim, bytes);
    uint8_t codes[LARGEST_HEAD];
    codes_of_values(to.format, values, dim, codes);
    for (int64_t i = 0; i < dim / 2; ++i) bytes[i] = static_cast<uint8_t>(codes[i] | codes[dim / 2 + i] << 4);
}

// `count` numbers, exact, codes without their scales. What lies `ahead` (in numbers) is prefetched.
template <int size, class Load>
inline void take_with(const uint8_t *from, int64_t count, int64_t ahead, float *out, Load load_one) {
    int64_t i = 0;
    for (; i + W <= count; i += W) {
        if (ahead && i * size % (4 * LINE) == 0) __builtin_prefetch(from + (i + ahead) * size);
        store(out + i, load_one(from + i * size));
    }
    if (i < count) {
        uint8_t rest[W * size] = {};
        __builtin_memcpy(rest, from + i * size, static_cast<size_t>((count - i) * size));
        float last[W];
        store(last, load_one(rest));
        __builtin_memcpy(out + i, last, static_cast<size_t>(count - i) * 4);
    }
}

inline void take_cached(int32_t format, const uint8_t *from, int64_t count, int64_t ahead, float *out) {
    if (format == ISOBIT_BF16) take_with<2>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::bf16(p); });
    else if (format == ISOBIT_F16) take_with<2>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::f16(p); });
    else if (format == ISOBIT_E4M3FN) take_with<1>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::e4m3(p); });
    else if (format == ISOBIT_E5M2) take_with<1>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::e5m2(p); });
    else take_with<1>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::int8(p); });
}

constexpr int64_t RUN = 16;                          // numbers of a head of which groups are made: vectors of W are within one
constexpr int64_t MOST_RUNS = LARGEST_HEAD / RUN;

// Scales of groups; NaN where a code says so. Loops that become vectors.
inline void take_scales(int32_t format, const uint8_t *codes, int64_t count, float *scales) {
    if (format == ISOBIT_E8M0) {
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t code = codes[i];
            scales[i] = from_bits(code == 0 ? 0x00400000u : code == 0xff ? 0x7fc00000u : code << 23);
        }
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t code = codes[i], size = code & 0x7fu;
        scales[i] = from_bits((code & 0x80u) << 24 | (size == 0x7f ? 0x7fc00000u : size << 20)) * 0x1p120f;
    }
}

// The scale of each RUN of a head's numbers.
struct Runs {
    const float *scales;  // of its groups
    const uint8_t *group; // that a run belongs to

    ISOBIT_INLINE float at(int64_t number) const { return scales[group[number / RUN]]; }
};

// One head of 8-bit codes, each by the scale of its group.
inline void take_row_e4m3(const uint8_t *from, const Runs &runs, int64_t dim, float *out) {
    int64_t d = 0;
    for (; d + W <= dim; d += W) store(out + d, Stored::e4m3(from + d) * splat(runs.at(d)));
    if (d == dim) return;
    take_with<1>(from + d, dim - d, 0, out + d, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::e4m3(p); });
    for (; d < dim; ++d) out[d] *= runs.at(d);
}

// One head of codes that share bytes, in whole runs of both its halves, or in any number.
inline void take_row_e2m1(const uint8_t *from, const Runs &runs, int64_t dim, float *out) {
    const int64_t half = dim / 2;
    for (int64_t at = 0; at < half; at += W) {
        F low, high;
        Stored::e2m1(from + at, low, high);
        store(out + at, low * splat(runs.at(at)));
        store(out + half + at, high * splat(runs.at(half + at)));
    }
}

inline void take_odd_row_e2m1(const uint8_t *from, const Runs &runs, int64_t dim, float *out) {
    const int64_t half = dim / 2;
    for (int64_t at = 0; at < half; at += W) {
        const int64_t count = smaller(W, half - at);
        uint8_t bytes[W] = {};
        float low[W], high[W];
        __builtin_memcpy(bytes, from + at, static_cast<size_t>(count));
        F first, second;
        Stored::e2m1(bytes, first, second);
        store(low, first), store(high, second);
        for (int64_t i = 0; i < count; ++i) {
            out[at + i] = low[i] * runs.at(at + i);
            out[half + at + i] = high[i] * runs.at(half + at + i);
        }
    }
}

// `count` rows, at most KEYS, with scales of groups, exact but for what stands above those. What lies so many rows `ahead` is prefetched.
inline void take_grouped(const Kept &of, int64_t row, int64_t count, int64_t dim, int64_t ahead, float *out) {
    const int64_t bytes = of.row_bytes(dim), groups = of.groups_of(dim);
    const uint8_t *const from = of.row(row, dim), *const codes = of.groups_at(row, dim);
    float scales[KEYS * MOST_RUNS];
    uint8_t group[MOST_RUNS];
    for (int64_t g = 0, run = 0; run < (dim + RUN - 1) / RUN; ++g)
        for (int64_t end = run + of.group / RUN; run < smaller(end, MOST_RUNS); ++run) group[run] = static_cast<uint8_t>(g);
    if (ahead) {
        for (int64_t at = 0; at < count * bytes; at += 4 * LINE) __builtin_prefetch(from + ahead * bytes + at);
        for (int64_t at = 0; at < count * groups; at += 4 * LINE) __builtin_prefetch(codes + ahead * groups + at);
    }
    take_scales(of.group_format, codes, count * groups, scales);
    const auto each = [&](auto take) ISOBIT_LAMBDA {
        for (int64_t j = 0; j < count; ++j) take(from + j * bytes, Runs{scales + j * groups, group}, dim, out + j * dim);
    };
    if (of.format == ISOBIT_E4M3FN) each([](auto... a) ISOBIT_LAMBDA { take_row_e4m3(a...); });
    else if (dim % (2 * RUN) == 0) each([](auto... a) ISOBIT_LAMBDA { take_row_e2m1(a...); });
    else each([](auto... a) ISOBIT_LAMBDA { take_odd_row_e2m1(a...); });
}

// Rows of a cache as floats, without the scales that each of them has: where they lie, or taken from what is stored to `memory`.
inline const float *rows_of(const Kept &of, int64_t row, int64_t count, int64_t dim, int64_t ahead, float *memory) {
    if (of.format == ISOBIT_F32) return static_cast<const float *>(of.numbers) + row * dim;
    if (of.group) take_grouped(of, row, count, dim, ahead, memory);
    else take_cached(of.format, of.row(row, dim), count * dim, ahead * dim, memory);
    return memory;
}

// Rows of scores or of weights of `count` keys, times the scale of each key.
inline void put_scales(const Loose *scales, int64_t count, int64_t rows, float *scores) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t j = 0; j < count; ++j) scores[row * KEYS + j] *= scales[j];
}
