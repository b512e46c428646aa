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

template <class Function>
inline void gate_with(Function act, const Loose *gate, const Loose *up, int64_t count, Loose *y) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(y + i, act(load(gate + i)) * load(up + i));
    if (i < count) {
        float rest[W] = {};
        map(gate + i, count - i, rest, act);
        for (int64_t j = i; j < count; ++j) y[j] = rest[j - i] * up[j];
    }
}

void gate_all(int32_t activation, const Loose *gate, const Loose *up, int64_t count, Loose *y) {
    if (activation == ISOBIT_GELU_TANH) gate_with([](F v) ISOBIT_LAMBDA { return gelu_tanh(v); }, gate, up, count, y);
    else gate_with([](F v) ISOBIT_LAMBDA { return silu(v); }, gate, up, count, y);
}

// ---- norm and rotation ----

inline float sum_of_squares(const Loose *x, int64_t k) {
    F acc[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= k; i += 4 * W)
        for (int j = 0; j < 4; ++j) acc[j] += load(x + i + j * W) * load(x + i + j * W);
    for (; i + W <= k; i += W) acc[0] += load(x + i) * load(x + i);
    float total = sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
    for (; i < k; ++i) total += x[i] * x[i];
    return total;
}

inline void normalize(const Loose *x, const Loose *weight, float eps, int64_t k, Loose *y) {
    const float factor = 1.0f / std::sqrt(sum_of_squares(x, k) / static_cast<float>(k) + eps);
    int64_t i = 0;
    for (; i + W <= k; i += W) store(y + i, load(x + i) * splat(factor) * load(weight + i));
    for (; i < k; ++i) y[i] = x[i] * factor * weight[i];
}

void norm_row(const Loose *x, const Loose *delta, const Loose *weight, float eps, int64_t k, Loose *sum, Loose *y) {
    if (delta) {
        int64_t i = 0;
        for (; i + W <= k; i += W) store(sum + i, load(x + i) + load(delta + i));
        for (; i < k; ++i) sum[i] = x[i] + delta[i];
        x = sum;
    }
    if (y) normalize(x, weight, eps, k, y);
}

void rotate_head(const Loose *x, const Loose *weight, float eps, const Loose *cos, const Loose *sin, int64_t dim, Loose *out) {
    float normed[LARGEST_HEAD];
    if (weight) {
        normalize(x, weight, eps, dim, normed);
        x = normed;
    }
    const int64_t half = dim / 2;
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
