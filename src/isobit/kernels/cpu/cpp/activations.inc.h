// Activations: their law (docs/numerics.md section 3) and their layout for float products.

// The integer below orders magnitudes as the floats do, NaN above infinity; and integer maxima can be vectorized.
float absmax(const Loose *x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    float value;
    __builtin_memcpy(&value, &largest, 4);
    return value;
}

ISOBIT_INLINE F choose(I which, F yes, F no) { return as_floats((which & as_ints(yes)) | (~which & as_ints(no))); }

// Nearest values of a float format with `mantissa` bits, smallest normal exponent `low`, ties to even; |q| is in range.
// Above 2^low the cut is at a fixed bit of the float32, below it at a fixed power of two.
template <int mantissa, int low>
ISOBIT_INLINE F nearest(F q) {
    constexpr int cut = 23 - mantissa;
    constexpr float magic = static_cast<float>(1 << 23) * (1.0f / static_cast<float>(1 << (mantissa - low))), edge = 1.0f / static_cast<float>(1 << -low);
    const I bits = as_ints(q), sign = bits & splat(INT32_MIN), magnitude = bits & splat(INT32_MAX);
    const I normal = (magnitude + splat((1 << (cut - 1)) - 1) + ((magnitude >> cut) & splat(1))) & splat(-(1 << cut));
    const F plain = as_floats(magnitude), small = (plain + splat(magic)) - splat(magic);
    return as_floats(as_ints(choose(plain < splat(edge), small, as_floats(normal))) | sign);
}

template <class Round>
ISOBIT_INLINE void round_with(const Loose *x, int64_t n, float scale, float limit, float *out, Round round) {
    const F all = splat(scale), most = splat(limit), least = splat(-limit);
    map(x, n, out, [&](F values) ISOBIT_LAMBDA {
        F q = values / all;
        q = choose(q < least, least, q);
        return round(choose(q > most, most, q));
    });
}

void round_activations(int32_t activations, const Loose *x, int64_t n, float scale, float *out) {
    if (scale != scale) {
        for (int64_t i = 0; i < n; ++i) out[i] = 0;
        return;
    }
    if (activations == ISOBIT_ACT_E4M3FN) round_with(x, n, scale, 448.0f, out, [](F q) ISOBIT_LAMBDA { return nearest<3, -6>(q); });
    else if (activations == ISOBIT_ACT_E2M1) round_with(x, n, scale, 6.0f, out, [](F q) ISOBIT_LAMBDA { return nearest<1, 0>(q); });
    else if (activations == ISOBIT_ACT_E5M2) round_with(x, n, scale, 57344.0f, out, [](F q) ISOBIT_LAMBDA { return nearest<2, -14>(q); });
    else
        round_with(x, n, scale, 127.0f, out, [](F q) ISOBIT_LAMBDA {
            const F magic = splat(12582912.0f);  // 1.5 * 2^23: the sum has no fraction left
            return (q + magic) - magic;
        });
}

// For each decoded value of a block, which code it is.
template <class D>
struct Sources {
    int32_t at[D::codes];
    constexpr Sources() : at{} {
        for (int i = 0; i < D::codes; ++i) at[i] = D::source(i);
    }
};

// Values in the order in which codes are decoded, spans padded with zeros to whole blocks.
template <class D>
void arrange_floats(const Layout &l, const Loose *values, int64_t k, float *out) {
    static constexpr Sources<D> sources;
    for (int64_t s = 0; s < l.spans; ++s) {
        const Loose *from = values + s * l.span;
        float *to = out + s * l.padded_span;
        const int64_t count = smaller(l.span, k - s * l.span), whole = count / D::codes * D::codes;
        for (int64_t at = 0; at < whole; at += D::codes)
            for (int i = 0; i < D::codes; ++i) to[at + i] = from[at + sources.at[i]] * D::power;
        for (int64_t at = whole; at < l.padded_span; at += D::codes)
            for (int i = 0; i < D::codes; ++i)
                to[at + i] = at + sources.at[i] < count ? from[at + sources.at[i]] * D::power : 0;
    }
}
