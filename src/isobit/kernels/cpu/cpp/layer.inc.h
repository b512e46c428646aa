// The parts of a decoder layer beside its linears and its attention (attention.inc.h), over a vector F of W floats; included by the
// isa_*.cpp files behind kernels.inc.h. Everything is float32. Sums have a fixed order, which depends on shapes only, never on threads.

// ---- exponential ----

// exp(x) within 1 ulp where the result is a normal number, and correctly subnormal, zero and infinite beyond. NaN stays.
// Cody and Waite's reduction to |r| <= ln(2) / 2 and a polynomial with the coefficients of Cephes' expf.
inline F exponential(F x) {
    x = x < splat(-104.0f) ? splat(-104.0f) : x;
    x = x > splat(89.0f) ? splat(89.0f) : x;
    const F magic = splat(12582912.0f);  // 1.5 * 2^23: the sum has no fraction left
    const F shifted = x * splat(1.44269504088896341f) + magic, n = shifted - magic;
    const F r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
    F p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * (r * r) + r + splat(1.0f);
#ifdef __AVX512F__
    return as_f(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
    // 2^n in two factors: n reaches from -150 to 128.
    const I exponent = as_ints(shifted) - as_ints(magic), half = exponent >> 1;
    const F first = as_floats((half + 127) << 23), second = as_floats((exponent - half + 127) << 23);
    return p * first * second;
#endif
}

void exp_all(const float *x, int64_t count, float *y) { map(x, count, y, [](F v) { return exponential(v); }); }

// tanh(x) within 2 ulp; NaN stays. Near zero, where the exponential would leave few digits, a polynomial with the coefficients of
// Cephes' tanhf.
inline F tangent(F x) {
    const F size = x < F{} ? -x : x, square = x * x;
    F p = splat(-5.70498872745e-3f);
    p = p * square + splat(2.06390887954e-2f);
    p = p * square + splat(-5.37397155531e-2f);
    p = p * square + splat(1.33314422036e-1f);
    p = p * square + splat(-3.33332819422e-1f);
    const F far = splat(1.0f) - splat(2.0f) / (exponential(size + size) + splat(1.0f));
    return size < splat(0.625f) ? p * square * x + x : x < F{} ? -far : far;
}

// ---- gated activations ----

inline F silu(F x) { return x / (splat(1.0f) + exponential(-x)); }

// x * (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (x + 0.044715 x^3), without the difference of almost equal numbers at negative x.
inline F gelu_tanh(F x) {
    const F twice = x * (splat(1.5957691216057308f) + splat(1.5957691216057308f * 0.044715f) * (x * x));
    return x / (splat(1.0f) + exponential(-twice));
}

// x * (1 + erf(x / sqrt(2))) / 2 by erfc(z) = t * exp(p(t) - z^2), t = 1 / (1 + z / 2), z >= 0: the same digits in both tails. The
// polynomial is fitted to erfc on 0 <= z <= 10.5, around the middle of t; its error is 5e-8.
inline F gelu(F x) {
    const F size = x < F{} ? -x : x, z = size * splat(0.70710678118654752f);
    const F t = splat(1.0f) / (splat(1.0f) + z * splat(0.5f)), u = t - splat(0.58f);
    F p = splat(1.48791149e-1f);
    p = p * u + splat(7.48425648e-2f);
    p = p * u + splat(-2.48481378e-1f);
    p = p * u + splat(-3.71767171e-2f);
    p = p * u + splat(2.96171337e-1f);
    p = p * u + splat(-4.02328745e-2f);
    p = p * u + splat(-4.06901002e-1f);
    p = p * u + splat(9.47767124e-2f);
    p = p * u + splat(1.36811888f);
    p = p * u + splat(-5.63156843e-1f);
    const F tail = splat(0.5f) * t * exponential(p - z * z);
    return x * (x < F{} ? tail : splat(1.0f) - tail);
}

inline F relu2(F x) { return x < F{} ? x * splat(0.0f) : x * x; }

// y = act(gate, up); one vector for what is left, whose other lanes are zero.
template <class Function>
inline void gate_with(const Loose *gate, const Loose *up, int64_t count, Loose *y, Function act) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(y + i, act(load(gate + i), load(up + i)));
    if (i < count) {
        float rest[2][W] = {};
        for (int64_t j = i; j < count; ++j) rest[0][j - i] = gate[j], rest[1][j - i] = up[j];
        store(rest[0], act(load(rest[0]), load(rest[1])));
        for (int64_t j = i; j < count; ++j) y[j] = rest[0][j - i];
    }
}

// Calls f with the function of an activation.
template <class Function>
inline void with_activation(int32_t activation, Function f) {
    switch (activation) {
        case ISOBIT_GELU_TANH: return f([](F v) ISOBIT_LAMBDA { return gelu_tanh(v); });
        case ISOBIT_GELU: return f([](F v) ISOBIT_LAMBDA { return gelu(v); });
        case ISOBIT_RELU2: return f([](F v) ISOBIT_LAMBDA { return relu2(v); });
        default: return f([](F v) ISOBIT_LAMBDA { return silu(v); });
    }
}

void gate_all(int32_t activation, float limit, const Loose *gate, const Loose *up, int64_t count, Loose *y) {
    if (!up) return with_activation(activation, [&](auto act) { map(gate, count, y, act); });
    if (limit == 0)
        return with_activation(activation, [&](auto act) {
            gate_with(gate, up, count, y, [&](F g, F u) ISOBIT_LAMBDA { return act(g) * u; });
        });
    const F most = splat(limit), least = splat(-limit);
    gate_with(gate, up, count, y, [&](F g, F u) ISOBIT_LAMBDA {
        g = g > most ? most : g, u = u > most ? most : u < least ? least : u;
        return (u + splat(1.0f)) * (g / (splat(1.0f) + exponential(splat(-1.702f) * g)));
    });
}

// ---- norm and rotation ----

// Sum of f(x) over k numbers, in an order that depends on k alone.
template <class Function>
inline float sum_of(const Loose *x, int64_t k, Function f) {
    F acc[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= k; i += 4 * W)
        for (int j = 0; j < 4; ++j) acc[j] += f(load(x + i + j * W));
    for (; i + W <= k; i += W) acc[0] += f(load(x + i));
    float total = sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
    for (; i < k; ++i) total += f(splat(x[i]))[0];
    return total;
}

float rms_factor(const Loose *x, float eps, int64_t k) {
    return 1.0f / std::sqrt(sum_of(x, k, [](F v) ISOBIT_LAMBDA { return v * v; }) / static_cast<float>(k) + eps);
}

// y = x * factor * weight; y may be x.
inline void scale_by(const Loose *x, const Loose *weight, float factor, int64_t k, Loose *y) {
    int64_t i = 0;
    for (; i + W <= k; i += W) store(y + i, load(x + i) * splat(factor) * load(weight + i));
    for (; i < k; ++i) y[i] = x[i] * factor * weight[i];
}

// The norm that takes the mean away, or has a bias.
inline void normalize_centred(const isobit_norm &norm, const Loose *x, int64_t k, Loose *y) {
    const Loose *const weight = norm.weight, *const bias = norm.bias;
    const float size = static_cast<float>(k), mean = norm.kind == ISOBIT_LAYER ? sum_of(x, k, [](F v) ISOBIT_LAMBDA { return v; }) / size : 0.0f;
    const F middle = splat(mean);
    const float squares = sum_of(x, k, [&](F v) ISOBIT_LAMBDA { return (v - middle) * (v - middle); });
    const float factor = 1.0f / std::sqrt(squares / size + norm.eps);
    int64_t i = 0;
    for (; i + W <= k; i += W) {
        const F value = (load(x + i) - middle) * splat(factor) * load(weight + i);
        store(y + i, bias ? value + load(bias + i) : value);
    }
    for (; i < k; ++i) {
        const float value = (x[i] - mean) * factor * weight[i];
        y[i] = bias ? value + bias[i] : value;
    }
}

void norm_row(const isobit_norm *norm, const Loose *x, const Loose *delta, float factor, int64_t k, Loose *sum, Loose *y) {
    if (delta) {
        int64_t i = 0;
        for (; i + W <= k; i += W) store(sum + i, load(x + i) + rounded(load(delta + i) * splat(factor)));
        for (; i < k; ++i) sum[i] = x[i] + rounded(delta[i] * factor);
        x = sum;
    }
    if (!y) return;
    if (norm->kind == ISOBIT_LAYER || norm->bias) normalize_centred(*norm, x, k, y);
    else scale_by(x, norm->weight, rms_factor(x, norm->eps, k), k, y);
}

// Halves of the first `rotated` dimensions; out may be x.
inline void rotate_halves(const Loose *x, const Loose *cos, const Loose *sin, int64_t rotated, Loose *out) {
    const int64_t half = rotated / 2;
    int64_t i = 0;
    for (; i + W <= half; i += W) {
        const F first = load(x + i), second = load(x + half + i);
        store(out + i, first * load(cos + i) - second * load(sin + i));
        store(out + half + i, second * load(cos + half + i) + first * load(sin + half + i));
    }
    for (; i < half; ++i) {
        const float first = x[i], second = x[half + i];
        out[i] = first * cos[i] - second * sin[i];
        out[half + i] = second * cos[half + i] + first * sin[half + i];
    }
}

// Every second lane of a and b, from `first` on; and lanes of both in turn, those of the lower or the upper half.
template <int first, int... lane>
ISOBIT_INLINE F every_second(F a, F b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (2 * lane + first)...);
}
template <int first, int... lane>
ISOBIT_INLINE F in_turn(F a, F b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (first + lane / 2 + lane % 2 * W)...);
}

// Neighbours of the first `rotated` dimensions; out may be x.
inline void rotate_neighbours(const Loose *x, const Loose *cos, const Loose *sin, int64_t rotated, Loose *out) {
    constexpr std::make_integer_sequence<int, W> lanes;
    const int64_t pairs = rotated / 2;
    int64_t i = 0;
    for (; i + W <= pairs; i += W) {
        const F low = load(x + 2 * i), high = load(x + 2 * i + W), c = load(cos + i), s = load(sin + i);
        const F first = every_second<0>(low, high, lanes), second = every_second<1>(low, high, lanes);
        const F a = first * c - second * s, b = second * c + first * s;
        store(out + 2 * i, in_turn<0>(a, b, lanes));
        store(out + 2 * i + W, in_turn<W / 2>(a, b, lanes));
    }
    for (; i < pairs; ++i) {
        const float first = x[2 * i], second = x[2 * i + 1];
        out[2 * i] = first * cos[i] - second * sin[i];
        out[2 * i + 1] = second * cos[i] + first * sin[i];
    }
}

void prepare_head(const isobit_heads &of, const Loose *x, const Loose *weight, float factor, const Loose *cos, const Loose *sin, int64_t dim,
                  Loose *out) {
    float normed[LARGEST_HEAD];
    if (of.qk_norm == ISOBIT_QK_HEAD || of.qk_norm == ISOBIT_QK_WIDTH) {
        scale_by(x, weight, of.qk_norm == ISOBIT_QK_HEAD ? rms_factor(x, of.eps, dim) : factor, dim, normed);
        x = normed;
    }
    const int64_t rotated = cos ? rotated_of(of, dim) : 0;
    if (rotated && of.interleaved) rotate_neighbours(x, cos, sin, rotated, out);
    else if (rotated) rotate_halves(x, cos, sin, rotated, out);
    if (rotated < dim && x != out) __builtin_memcpy(out + rotated, x + rotated, static_cast<size_t>(dim - rotated) * 4);
    if (of.qk_norm == ISOBIT_QK_HEAD_BEHIND) scale_by(out, weight, rms_factor(out, of.eps, dim), dim, out);
}
