// Many rows of rounded activations by 8-bit weights as floats, in the very sums that few.inc.h makes for few: a lane adds up every
// W-th value of a row, and the lanes come together at the end. So a row's result is the same bits in a prompt and alone. Rows of
// weights are decoded once for as many rows of activations as the second cache about holds, a part of k at a time, in the order in
// which they are decoded; nothing is transposed.

// Rows of weights by rows of activations whose sums stay in registers. W rows of weights are decoded at a time, so that what is
// read of the activations serves as many.
template <bool grouped>
struct ChainTile {
#if defined(__AVX512F__)
    static constexpr int N = 4, M = grouped ? 3 : 4;
#elif defined(__AVX2__)
    static constexpr int N = 4, M = 3;
#elif defined(__aarch64__)
    static constexpr int N = 2, M = 3;
#else
    static constexpr int N = 2, M = 1;
#endif
};

constexpr int64_t CHAIN_STEPS = W == 8 ? 64 : 32;              // vectors of a row of weights that are decoded at a time
constexpr int64_t CHAIN_BYTES = W == 8 ? 1 << 20 : 640 << 10;  // of activations at a time

// Vectors from `begin` on, `steps` of them, of N rows of weights: to panel[vector][N].
template <class D, int N>
inline void decode_chains(const isobit_linear &w, const Layout &l, const uint8_t *const (&rows)[N], int64_t begin, int64_t steps, float *panel) {
    constexpr int VECTORS = D::codes / W;
    constexpr int64_t BYTES = static_cast<int64_t>(D::codes) * D::bits / 8;
    int64_t span = begin * W / l.padded_span, in_span = begin * W - span * l.padded_span;
    while (steps > 0) {
        const int64_t left = smaller(l.span, w.k - span * l.span), from = span * l.span_bytes;
        for (; steps > 0 && in_span < l.padded_span; in_span += D::codes, steps -= VECTORS, panel += VECTORS * N * W)
            unroll<N>([&](auto n) ISOBIT_LAMBDA {
                const uint8_t *at = rows[n] + from + in_span * D::bits / 8;
                uint8_t copy[BYTES];
                if (__builtin_expect(left - in_span < D::codes, 0)) {
                    __builtin_memset(copy, 0, BYTES);
                    if (left > in_span) __builtin_memcpy(copy, at, static_cast<size_t>((left - in_span) * D::bits / 8));
                    at = copy;
                }
                F weights[VECTORS];
                D::block(at, weights);
                unroll<VECTORS>([&](auto v) ISOBIT_LAMBDA { store(panel + (v * N + n) * W, weights[v]); });
            });
        in_span = 0, ++span;
    }
}

// Adds the products of `steps` vectors.
template <class D, int N, int M, int C>
ISOBIT_INLINE void add_chains(F (&acc)[N][M][C], const float *panel, const float *x, int64_t ldx, int64_t steps) {
    for (int64_t s = 0; s < steps; s += C, panel += C * N * W, x += C * W)
        unroll<C>([&](auto c) ISOBIT_LAMBDA {
            F values[M];
            unroll<M>([&](auto m) ISOBIT_LAMBDA { values[m] = load(x + m * ldx + c * W); });
            unroll<N>([&](auto n) ISOBIT_LAMBDA {
                const F weights = load(panel + (c * N + n) * W);
                unroll<M>([&](auto m) ISOBIT_LAMBDA { acc[n][m][c] += weights * values[m]; });
            });
        });
}

template <int C>
ISOBIT_INLINE F together(const F (&acc)[C]) {
    F value = acc[0];
    for (int c = 1; c < C; ++c) value += acc[c];
    return value;
}

// A part of k of a tile: M rows of activations. sums[M][N][C]: so far.
struct ChainPart {
    const float *panel;
    int64_t begin, steps, span_steps;  // the part's first vector, how many vectors it has, and how many a span
    const float *scales;               // [spans of the part][N][W], of the weights; NULL: one scale for all
};

// Not inlined, like the next: constants of decoders would take the registers of the sums.
template <class D, int N, int M>
__attribute__((noinline)) void add_alone(const ChainPart &p, const float *x, int64_t ldx, float *sums) {
    constexpr int C = CHAINS;
    F acc[N][M][C];
    unroll<N>([&](auto n) ISOBIT_LAMBDA {
        unroll<M>([&](auto m) ISOBIT_LAMBDA { unroll<C>([&](auto c) ISOBIT_LAMBDA { acc[n][m][c] = load(sums + ((m * N + n) * C + c) * W); }); });
    });
    add_chains<D, N, M, C>(acc, p.panel, x + p.begin * W, ldx, p.steps);
    unroll<N>([&](auto n) ISOBIT_LAMBDA {
        unroll<M>([&](auto m) ISOBIT_LAMBDA { unroll<C>([&](auto c) ISOBIT_LAMBDA { store(sums + ((m * N + n) * C + c) * W, acc[n][m][c]); }); });
    });
}

template <class D, int N, int M>
__attribute__((noinline)) void add_spans(const ChainPart &p, const float *x, int64_t ldx, float *sums) {
    constexpr int C = SPAN_CHAINS;
    F total[N][M];
    unroll<N>([&](auto n) ISOBIT_LAMBDA { unroll<M>([&](auto m) ISOBIT_LAMBDA { total[n][m] = load(sums + (m * N + n) * W); }); });
    for (int64_t at = 0; at < p.steps; at += p.span_steps) {
        F acc[N][M][C] = {};
        add_chains<D, N, M, C>(acc, p.panel + at * N * W, x + (p.begin + at) * W, ldx, p.span_steps);
        const int64_t part = at / p.span_steps;
        unroll<M>([&](auto m) ISOBIT_LAMBDA {
            unroll<N>([&](auto n) ISOBIT_LAMBDA { total[n][m] += together(acc[n][m]) * load(p.scales + (part * N + n) * W); });
        });
    }
    unroll<N>([&](auto n) ISOBIT_LAMBDA { unroll<M>([&](auto m) ISOBIT_LAMBDA { store(sums + (m * N + n) * W, total[n][m]); }); });
}

template <class D, int N, int M>
inline void chain_rows(const ChainPart &p, int64_t rows, const float *x, int64_t ldx, float *sums) {
    if constexpr (M > 0) {
        if (rows < M) return chain_rows<D, N, M - 1>(p, rows, x, ldx, sums);
        if (p.scales) add_spans<D, N, M>(p, x, ldx, sums);
        else add_alone<D, N, M>(p, x, ldx, sums);
    }
}

// Folds the sums of W rows of weights, N after N, by m rows of activations, scales them and puts them where they go.
template <class D, int N, int C>
inline void finish_chains(const Layout &l, int64_t at, int64_t m, int64_t row, int count, const RowScales *s, const float *sums, int64_t apart, const Output &out) {
    float scales[W], bias[W] = {};
    for (int n = 0; n < W; ++n) scales[n] = l.one_scale ? s[n].one_scale : 1;
    for (int n = 0; n < count; ++n) bias[n] = out.bias(row + n);
    for (int64_t i = 0; i < m; ++i) {
        F vectors[W];
        unroll<W>([&](auto n) ISOBIT_LAMBDA {
            F chains[C];
            unroll<C>([&](auto c) ISOBIT_LAMBDA { chains[c] = load(sums + n / N * apart + ((i * N + n % N) * C + c) * W); });
            vectors[n] = together(chains);
        });
        F value = sums_of(vectors);
        if (l.one_scale) value *= load(scales);
        if (out.act_scales) value *= splat(out.act_scales[at + i]);
        value = rounded(value) + load(bias);
        Loose *y = out.y + (at + i) * out.ldy + row;
        if (count == W) store(y, value);
        else __builtin_memcpy(y, &value, static_cast<size_t>(count) * 4);
    }
}

// How many rows of activations at a time: as even parts as can be.
inline int64_t rows_of_block(int64_t m, int64_t row_size, int tile) {
    const int64_t most = CHAIN_BYTES / row_size, at_once = round_up(most < 4 * tile ? 4 * tile : most, tile);
    const int64_t blocks = (m + at_once - 1) / at_once;
    return round_up((m + blocks - 1) / blocks, tile);
}

template <class D, bool grouped>
void many_chains_of(const isobit_linear &w, const Layout &l, const void *laid, int64_t m, int64_t begin, int64_t end, const Output &out) {
    static thread_local Buffer storage;
    constexpr int N = ChainTile<grouped>::N, M = ChainTile<grouped>::M, C = grouped ? 1 : CHAINS, PARTS = W / N;
    const float *x = static_cast<const float *>(laid);
    const int64_t ldx = l.row_size / 4, span_steps = l.padded_span / W, steps = l.spans * span_steps;
    const int64_t spans = grouped ? (span_steps < CHAIN_STEPS ? CHAIN_STEPS / span_steps : 1) : 0;
    const int64_t deep = grouped ? spans * span_steps : CHAIN_STEPS, at_once = rows_of_block(m, l.row_size, M);
    const int64_t panel_size = deep * N * W, apart = at_once * N * C * W;
    float *panels = storage.floats(PARTS * (panel_size + apart + spans * N * W));
    float *sums = panels + PARTS * panel_size, *scales = sums + PARTS * apart;
    ScaleReaders<W> readers(w, l, 0, D::factor);
    for (int64_t at = 0; at < m; at += at_once)
        for (int64_t row = begin; row < end; row += W) {
            const int64_t rows = smaller(at_once, m - at);
            RowScales s[W];
            for (int n = 0; n < W; ++n) s[n] = readers.all[n].read(smaller(row + n, end - 1), 0, l.groups);
            __builtin_memset(sums, 0, static_cast<size_t>(PARTS * apart) * 4);
            for (int64_t step = 0; step < steps; step += deep) {
                const int64_t count = smaller(deep, steps - step);
                for (int part = 0; part < PARTS; ++part) {
                    const uint8_t *codes[N];
                    for (int n = 0; n < N; ++n) codes[n] = codes_of(w, smaller(row + part * N + n, end - 1));
                    decode_chains<D, N>(w, l, codes, step, count, panels + part * panel_size);
                    for (int64_t p = 0; p < (grouped ? count / span_steps : 0); ++p)
                        for (int n = 0; n < N; ++n)
                            store(scales + ((part * spans + p) * N + n) * W, lanes_of(s[part * N + n].scales, step / span_steps + p, l.per_span, l.lanes));
                }
                for (int64_t i = 0; i < rows; i += M)
                    for (int part = 0; part < PARTS; ++part) {
                        const ChainPart p{panels + part * panel_size, step, count, span_steps, grouped ? scales + part * spans * N * W : nullptr};
                        chain_rows<D, N, M>(p, rows - i, x + (at + i) * ldx, ldx, sums + part * apart + i * N * C * W);
                    }
            }
            finish_chains<D, N, C>(l, at, rows, row, static_cast<int>(smaller(W, end - row)), s, sums, apart, out);
        }
}

template <class D>
inline void many_chains(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end, const Output &out) {
    if (l.one_scale) many_chains_of<D, false>(w, l, rows, m, begin, end, out);
    else many_chains_of<D, true>(w, l, rows, m, begin, end, out);
}
