// Few rows of activations by decoded weights: bound by memory, so codes are read once, in order, and prefetched.

constexpr int64_t AHEAD = 1024;  // bytes: the next page is asked for before the hardware would

// Adds the products of `count` codes to C accumulators for each of M rows of activations, taking turns block by block.
template <class D, int M, int C>
inline void accumulate(const uint8_t *codes, int64_t count, const float *x, int64_t ldx, F acc[M][C]) {
    constexpr int VECTORS = D::codes / W;
    constexpr int64_t bytes = D::codes * D::bits / 8;
    constexpr int AT_ONCE = C > VECTORS ? C / VECTORS : 1;  // blocks before an accumulator comes again
    F weights[VECTORS];
    const auto add = [&](const float *at, int first) {
        for (int v = 0; v < VECTORS; ++v)
            for (int m = 0; m < M; ++m) acc[m][(first + v) % C] += weights[v] * load(at + m * ldx + v * W);
    };
    int64_t k = 0;
    for (; k + AT_ONCE * D::codes <= count; k += AT_ONCE * D::codes) {
        for (int64_t line = 0; line < AT_ONCE * bytes; line += 64) __builtin_prefetch(codes + AHEAD + line);
        for (int b = 0; b < AT_ONCE; ++b, codes += bytes) {
            D::block(codes, weights);
            add(x + k + b * D::codes, b * VECTORS);
        }
    }
    for (; k + D::codes <= count; k += D::codes, codes += bytes) {
        D::block(codes, weights);
        add(x + k, 0);
    }
    if (k < count) {
        tail_block<D>(codes, count - k, weights);
        add(x + k, 0);
    }
}

// One row of weights by M rows of activations: the sums, with the scales of the weights.
template <class D, int M>
inline void row_sums(const isobit_linear &w, const Layout &l, const uint8_t *codes, const RowScales &s, const float *x,
                     int64_t ldx, float out[M]) {
    if (l.one_scale) {
        constexpr int C = 4;  // enough to hide the latency of a fused multiply-add; the same for every M
        F acc[M][C] = {};
        if (l.shifted)
            for (int m = 0; m < M; ++m) acc[m][0] = load(x + m * ldx + l.width) * splat(-s.one_zero);
        accumulate<D, M, C>(codes, w.k, x, ldx, acc);
        for (int m = 0; m < M; ++m) {
            for (int c = 1; c < C; ++c) acc[m][0] += acc[m][c];
            out[m] = sum(acc[m][0]) * s.one_scale;
        }
        return;
    }
    F total[M] = {};
    for (int64_t span = 0; span < l.spans; ++span) {
        const int64_t count = smaller(l.span, w.k - span * l.span);
        F acc[M][1] = {};
        if (l.shifted) {
            const F zeros = lanes_of(l, s.zeros, span);
            for (int m = 0; m < M; ++m) acc[m][0] = load(x + m * ldx + l.width + span * W) * -zeros;
        }
        accumulate<D, M, 1>(codes + span * l.span_bytes, count, x + span * l.padded_span, ldx, acc);
        const F scales = lanes_of(l, s.scales, span);
        for (int m = 0; m < M; ++m) total[m] += acc[m][0] * scales;
    }
    for (int m = 0; m < M; ++m) out[m] = sum(total[m]);
}

// Rows of activations that one decoding serves: as many as leave registers for the rest.
constexpr int ROWS_AT_ONCE = W >= 16 ? 4 : 2;

template <class D>
void few_floats(const isobit_linear &w, const Layout &l, const float *x, const float *act_scales, int64_t m, int64_t begin,
                int64_t end, float *y, int64_t ldy) {
    const Output out{w, act_scales, y, ldy};
    ScaleReader reader(w, l, D::offset, D::factor);
    const int64_t ldx = l.row_size / 4;
    for (int64_t row = begin; row < end; ++row) {
        const uint8_t *codes = codes_of(w, row);
        const RowScales s = reader.read(row, 0, l.groups);
        float sums[4];
        int64_t at = 0;
        const auto put = [&](int count) {
            for (int i = 0; i < count; ++i) out.put(at + i, row, sums[i]);
            at += count;
        };
        // Every M adds in the same order, so that what a row gives does not depend on how many there are.
        if constexpr (ROWS_AT_ONCE >= 4)
            while (m - at >= 4) row_sums<D, 4>(w, l, codes, s, x + at * ldx, ldx, sums), put(4);
        while (m - at >= 2) row_sums<D, 2>(w, l, codes, s, x + at * ldx, ldx, sums), put(2);
        if (m - at >= 1) row_sums<D, 1>(w, l, codes, s, x + at * ldx, ldx, sums), put(1);
    }
}
