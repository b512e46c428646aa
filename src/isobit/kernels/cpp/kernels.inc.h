// The kernels, written once over a vector of W floats and compiled for each instruction set by the isa_*.cpp files.
//
// The including file defines, in its own anonymous namespace: W; the type F (W floats, a GCC vector type); and for each
// format a decoder with `bits`, `offset` (what a code is above its value), `factor` (a power of two that turns what is decoded
// into values), `scaled`, and
//     static void block(const uint8_t *codes, F out[BLOCK / W])
// which decodes 32 codes in the decoder's order: as stored, or (`split`) the 16 even ones before the 16 odd ones.
// It also defines Int8Dot. Products contract to fused multiply-adds; sums are float32 in a fixed order, so that a result
// depends neither on the number of threads nor on the other rows of a call.

constexpr int VECTORS = BLOCK / W;

inline F load(const float *p) {
    F value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

inline void store(float *p, F value) { __builtin_memcpy(p, &value, sizeof value); }

inline F splat(float value) { return value - F{}; }

inline float sum(F value) {
    float total = 0;
    for (int i = 0; i < W; ++i) total += value[i];
    return total;
}

// Decodes the last, incomplete block of a group from a copy: nothing behind the codes is read.
template <class D>
inline void tail_block(const uint8_t *codes, int64_t count, F out[VECTORS]) {
    uint8_t copy[BLOCK * 4] = {};
    __builtin_memcpy(copy, codes, static_cast<size_t>((count * D::bits + 7) / 8));
    D::block(copy, out);
}

// ---------------------------------------------------------------------- activations

template <class D>
void arrange_as(const Layout &l, const float *x, int64_t m, int64_t ldx, int64_t k, float *out) {
    for (int64_t row = 0; row < m; ++row)
        for (int64_t g = 0; g < l.groups; ++g) {
            const float *from = x + row * ldx + g * l.group;
            float *to = out + row * l.width + g * l.padded_group;
            const int64_t count = l.group < k - g * l.group ? l.group : k - g * l.group;
            if constexpr (!D::split) {
                __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
                for (int64_t i = count; i < l.padded_group; ++i) to[i] = 0;
            } else {
                for (int64_t i = 0; i < l.padded_group; ++i) {
                    const int64_t in_block = i % BLOCK;
                    const int64_t source = i - in_block + (in_block < 16 ? 2 * in_block : 2 * (in_block - 16) + 1);
                    to[i] = source < count ? from[source] : 0;
                }
            }
        }
}

float absmax(const float *x, int64_t n) {
    float largest = 0;
    bool nan = false;
    for (int64_t i = 0; i < n; ++i) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
        nan |= x[i] != x[i];
    }
    return nan ? __builtin_nanf("") : largest;
}

// Nearest value of a float format with `mantissa` bits, smallest normal exponent `low`, ties to even; |q| is in range.
// Above 2^low the cut is at a fixed bit of the float32, below it at a fixed power of two.
template <int mantissa, int low>
inline float nearest(float q) {
    constexpr int cut = 23 - mantissa;
    uint32_t bits;
    __builtin_memcpy(&bits, &q, 4);
    const uint32_t sign = bits & 0x80000000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + ((1u << (cut - 1)) - 1) + ((magnitude >> cut) & 1)) & ~((1u << cut) - 1);
    float plain, small;
    __builtin_memcpy(&plain, &magnitude, 4);
    constexpr float magic = static_cast<float>(1 << 23) * (1.0f / static_cast<float>(1 << (mantissa - low)));
    small = (plain + magic) - magic;
    uint32_t small_bits;
    __builtin_memcpy(&small_bits, &small, 4);
    const float edge = 1.0f / static_cast<float>(1 << -low);
    const uint32_t chosen = (plain < edge ? small_bits : normal) | sign;
    float out;
    __builtin_memcpy(&out, &chosen, 4);
    return out;
}

template <class Round>
inline void round_with(const float *x, int64_t n, float scale, float limit, float *out, Round round) {
    for (int64_t i = 0; i < n; ++i) {
        float q = x[i] / scale;
        q = q < -limit ? -limit : q;
        q = q > limit ? limit : q;
        out[i] = round(q);
    }
}

void round_activations(int32_t activations, const float *x, int64_t n, float scale, float *out) {
    if (scale != scale) {
        for (int64_t i = 0; i < n; ++i) out[i] = 0;
        return;
    }
    if (activations == ISOBIT_ACT_E4M3FN) round_with(x, n, scale, 448.0f, out, nearest<3, -6>);
    else if (activations == ISOBIT_ACT_E5M2) round_with(x, n, scale, 57344.0f, out, nearest<2, -14>);
    else
        round_with(x, n, scale, 127.0f, out, [](float q) {
            const float magic = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction left
            return (q + magic) - magic;
        });
}

// ---------------------------------------------------------------------- few rows of activations

struct Scales {
    const float *row;
    const uint8_t *zeros;
    int64_t per_row;
};

inline Scales scales_of(const isobit_linear &w, const Layout &l, int64_t row) {
    const int64_t columns = w.group ? l.groups : 1;
    const int64_t at = w.block_rows ? row / w.block_rows * columns : 0;
    return {w.scales + at, w.zeros ? w.zeros + at : nullptr, columns};
}

// Accumulators per row of activations: enough of them to hide the latency of a fused multiply-add.
template <int M>
constexpr int CHAINS = M == 1 ? 4 : M == 2 ? 2 : 1;

// Adds the products of `count` codes to acc. Block b, vector v goes to chain (b * VECTORS + v) % CHAINS.
template <class D, int M>
inline void span(const uint8_t *codes, int64_t count, const float *x, int64_t ldx, F acc[M][CHAINS<M>]) {
    constexpr int64_t bytes = BLOCK * D::bits / 8;
    constexpr int AT_ONCE = CHAINS<M> > VECTORS ? CHAINS<M> / VECTORS : 1;  // blocks before a chain comes again
    F weights[VECTORS];
    const auto add = [&](const float *at, int first) {
        for (int v = 0; v < VECTORS; ++v)
            for (int m = 0; m < M; ++m) acc[m][(first + v) % CHAINS<M>] += weights[v] * load(at + m * ldx + v * W);
    };
    int64_t k = 0;
    for (; k + AT_ONCE * BLOCK <= count; k += AT_ONCE * BLOCK)
        for (int b = 0; b < AT_ONCE; ++b, codes += bytes) {
            D::block(codes, weights);
            add(x + k + b * BLOCK, b * VECTORS);
        }
    for (; k + BLOCK <= count; k += BLOCK, codes += bytes) {
        D::block(codes, weights);
        add(x + k, 0);
    }
    if (k < count) {
        tail_block<D>(codes, count - k, weights);
        add(x + k, 0);
    }
}

// What the zero points add up to: sum over groups of scale * zero * (sum of the group's activations).
template <class D>
inline float shift_of(const Scales &s, const float *sums, int64_t groups) {
    float total = 0;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = s.per_row == 1 ? 0 : g;
        total += s.row[at] * (s.zeros ? static_cast<float>(s.zeros[at]) : static_cast<float>(D::offset)) * sums[g];
    }
    return total;
}

template <class D, int M>
void gemv_rows(const isobit_linear &w, const Layout &l, const float *x, const float *sums, const float *act_scales,
               int64_t begin, int64_t end, float *y, int64_t ldy) {
    const bool one_scale = !D::scaled || w.group == 0;  // of a row: applied to its sum
    for (int64_t row = begin; row < end; ++row) {
        const uint8_t *codes = static_cast<const uint8_t *>(w.codes) + row * w.row_bytes;
        const Scales s = D::scaled ? scales_of(w, l, row) : Scales{nullptr, nullptr, 1};
        F total[M][CHAINS<M>] = {};
        if (one_scale) {
            span<D, M>(codes, w.k, x, l.width, total);
        } else {
            for (int64_t g = 0; g < l.groups; ++g) {
                const int64_t count = l.group < w.k - g * l.group ? l.group : w.k - g * l.group;
                F acc[M][CHAINS<M>] = {};
                span<D, M>(codes + g * l.group_bytes, count, x + g * l.padded_group, l.width, acc);
                const F scale = splat(s.row[g]);
                for (int m = 0; m < M; ++m)
                    for (int c = 0; c < CHAINS<M>; ++c) total[m][c] += acc[m][c] * scale;
            }
        }
        for (int m = 0; m < M; ++m) {
            for (int c = 1; c < CHAINS<M>; ++c) total[m][0] += total[m][c];
            float value = sum(total[m][0]) * D::factor;
            if (D::scaled && one_scale) value *= s.row[0];
            if (D::offset || s.zeros) value -= shift_of<D>(s, sums + m * l.groups, l.groups);
            if (act_scales) value *= act_scales[m];
            y[m * ldy + row] = w.bias ? value + w.bias[row] : value;
        }
    }
}

template <class D>
void gemv_as(const isobit_linear &w, const Layout &l, const float *x, const float *sums, const float *act_scales, int64_t m,
             int64_t begin, int64_t end, float *y, int64_t ldy) {
    // A few weight rows at a time, so that they are still in the first cache for the next rows of activations.
    constexpr int64_t ROWS = 4;
    for (int64_t row = begin; row < end; row += ROWS) {
        const int64_t last = row + ROWS < end ? row + ROWS : end;
        for (int64_t at = 0; at < m;) {
            const float *xs = x + at * l.width, *scales = act_scales ? act_scales + at : nullptr;
            const float *ss = sums ? sums + at * l.groups : nullptr;
            float *ys = y + at * ldy;
            const int64_t left = m - at;
            if (left >= 4) gemv_rows<D, 4>(w, l, xs, ss, scales, row, last, ys, ldy), at += 4;
            else if (left >= 2) gemv_rows<D, 2>(w, l, xs, ss, scales, row, last, ys, ldy), at += 2;
            else gemv_rows<D, 1>(w, l, xs, ss, scales, row, last, ys, ldy), at += 1;
        }
    }
}

// ---------------------------------------------------------------------- many rows of activations

constexpr int NR = 2 * W;          // outputs of a panel
constexpr int PANELS = 4;          // panels that one pass over the activations serves
constexpr int KC = W >= 16 ? 128 : 256;  // a panel of KC x NR floats fits in half of the first cache
constexpr int MR = W >= 16 ? 12 : W >= 8 ? 6 : 4;

template <int R>
inline void tile(const float *x, int64_t ldx, const float *panel, int64_t depth, float *c) {
    F acc[R][2];
    for (int i = 0; i < R; ++i) acc[i][0] = load(c + i * NR), acc[i][1] = load(c + i * NR + W);
    for (int64_t k = 0; k < depth; ++k) {
        const F first = load(panel + k * NR), second = load(panel + k * NR + W);
        for (int i = 0; i < R; ++i) {
            const F a = splat(x[i * ldx + k]);
            acc[i][0] += a * first;
            acc[i][1] += a * second;
        }
    }
    for (int i = 0; i < R; ++i) store(c + i * NR, acc[i][0]), store(c + i * NR + W, acc[i][1]);
}

template <int R>
inline void tile_rest(int rows, const float *x, int64_t ldx, const float *panel, int64_t depth, float *c) {
    if constexpr (R > 0) {
        if (rows == R) tile<R>(x, ldx, panel, depth, c);
        else tile_rest<R - 1>(rows, x, ldx, panel, depth, c);
    }
}

// Decodes `depth` arranged columns from `column` on of NR rows into panel[depth][NR]; rows from `end` on become zero.
template <class D>
void decode_panel(const isobit_linear &w, const Layout &l, int64_t row, int64_t end, int64_t column, int64_t depth,
                  float *panel) {
    constexpr int64_t bytes = BLOCK * D::bits / 8;
    alignas(64) float values[NR][BLOCK];
    for (int64_t at = 0; at < depth; at += BLOCK) {
        const int64_t g = (column + at) / l.padded_group, in_group = (column + at) % l.padded_group;
        const int64_t count = (l.group < w.k - g * l.group ? l.group : w.k - g * l.group) - in_group;
        for (int r = 0; r < NR; ++r) {
            F block[VECTORS] = {};
            if (row + r < end && count > 0) {
                const uint8_t *codes = static_cast<const uint8_t *>(w.codes) + (row + r) * w.row_bytes +
                                       g * l.group_bytes + in_group / BLOCK * bytes;
                if (count >= BLOCK) D::block(codes, block);
                else tail_block<D>(codes, count, block);
                if constexpr (D::scaled) {
                    const Scales s = scales_of(w, l, row + r);
                    const float scale = s.row[s.per_row == 1 ? 0 : g] * D::factor;
                    const float zero = s.zeros ? s.zeros[s.per_row == 1 ? 0 : g] : D::offset;
                    for (int v = 0; v < VECTORS; ++v) block[v] = (block[v] - splat(zero)) * splat(scale);
                }
            }
            for (int v = 0; v < VECTORS; ++v) store(&values[r][v * W], block[v]);
        }
        for (int64_t j = 0; j < BLOCK; ++j)
            for (int r = 0; r < NR; ++r) panel[(at + j) * NR + r] = values[r][j];
    }
}

template <class D>
void gemm_as(const isobit_linear &w, const Layout &l, const float *x, const float *act_scales, int64_t m, int64_t begin,
             int64_t end, float *y, int64_t ldy) {
    static thread_local std::vector<float> storage;
    const int64_t panel_size = KC * NR, c_size = m * NR;
    storage.resize(static_cast<size_t>(PANELS * (panel_size + c_size)));
    float *panels = storage.data(), *c = panels + PANELS * panel_size;
    for (int64_t row = begin; row < end; row += PANELS * NR) {
        const int64_t left = (end - row + NR - 1) / NR;
        const int count = left < PANELS ? static_cast<int>(left) : PANELS;
        __builtin_memset(c, 0, static_cast<size_t>(count * c_size) * sizeof(float));
        for (int64_t column = 0; column < l.width; column += KC) {
            const int64_t depth = KC < l.width - column ? KC : l.width - column;
            for (int p = 0; p < count; ++p)
                decode_panel<D>(w, l, row + p * NR, end, column, depth, panels + p * panel_size);
            for (int64_t at = 0; at < m; at += MR)
                for (int p = 0; p < count; ++p) {
                    const float *xs = x + at * l.width + column;
                    float *cs = c + p * c_size + at * NR;
                    if (m - at >= MR) tile<MR>(xs, l.width, panels + p * panel_size, depth, cs);
                    else tile_rest<MR - 1>(static_cast<int>(m - at), xs, l.width, panels + p * panel_size, depth, cs);
                }
        }
        for (int64_t i = 0; i < m; ++i)
            for (int64_t n = row; n < end && n < row + count * NR; ++n) {
                float value = c[(n - row) / NR * c_size + i * NR + (n - row) % NR];
                if (act_scales) value *= act_scales[i];
                y[i * ldy + n] = w.bias ? value + w.bias[n] : value;
            }
    }
}

// ---------------------------------------------------------------------- int8 by int8, exact

template <int R, int M>
inline void int8_tile(const isobit_linear &w, const int8_t *x, const float *act_scales, int64_t row, float *y,
                      int64_t ldy) {
    const int8_t *codes = static_cast<const int8_t *>(w.codes) + row * w.row_bytes;
    int64_t totals[R][M] = {};
    // In runs that cannot overflow 32 bits.
    for (int64_t begin = 0; begin < w.k; begin += Int8Dot::LONGEST) {
        const int64_t count = Int8Dot::LONGEST < w.k - begin ? Int8Dot::LONGEST : w.k - begin;
        Int8Dot::tile<R, M>(codes + begin, w.row_bytes, x + begin, w.k, count, totals);
    }
    for (int r = 0; r < R; ++r) {
        const float scale = w.scales[w.block_rows ? (row + r) / w.block_rows : 0];
        for (int m = 0; m < M; ++m) {
            const float value = static_cast<float>(totals[r][m]) * scale * act_scales[m];
            y[m * ldy + row + r] = w.bias ? value + w.bias[row + r] : value;
        }
    }
}

template <int R>
inline void int8_rows(const isobit_linear &w, const int8_t *x, const float *act_scales, int64_t m, int64_t row, float *y,
                      int64_t ldy) {
    int64_t at = 0;
    for (; at + 4 <= m; at += 4) int8_tile<R, 4>(w, x + at * w.k, act_scales + at, row, y + at * ldy, ldy);
    for (; at < m; ++at) int8_tile<R, 1>(w, x + at * w.k, act_scales + at, row, y + at * ldy, ldy);
}

void int8_linear(const isobit_linear &w, const int8_t *x, const float *act_scales, int64_t m, int64_t begin, int64_t end,
                 float *y, int64_t ldy) {
    int64_t row = begin;
    if (m > 1)
        for (; row + 4 <= end; row += 4) int8_rows<4>(w, x, act_scales, m, row, y, ldy);
    for (; row < end; ++row) int8_rows<1>(w, x, act_scales, m, row, y, ldy);
}

// ---------------------------------------------------------------------- memory

uint64_t read_all(const void *data, int64_t bytes) {
    const char *p = static_cast<const char *>(data);
    F acc[8] = {};
    int64_t at = 0;
    typedef uint32_t U __attribute__((vector_size(sizeof(F))));
    U bits[8] = {};
    (void)acc;
    for (; at + 8 * static_cast<int64_t>(sizeof(U)) <= bytes; at += 8 * sizeof(U))
        for (int i = 0; i < 8; ++i) {
            U value;
            __builtin_memcpy(&value, p + at + i * sizeof(U), sizeof value);
            bits[i] ^= value;
        }
    uint64_t total = 0;
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < W; ++j) total += bits[i][j];
    for (; at < bytes; ++at) total += static_cast<unsigned char>(p[at]);
    return total;
}

// ---------------------------------------------------------------------- the table

// Calls `f` with the decoder of a format.
template <class Function>
inline void with_decoder(int32_t format, Function f) {
    switch (format) {
        case ISOBIT_F32: return f(DecodeF32{});
        case ISOBIT_BF16: return f(DecodeBf16{});
        case ISOBIT_F16: return f(DecodeF16{});
        case ISOBIT_E4M3FN: return f(DecodeE4m3{});
        case ISOBIT_E5M2: return f(DecodeE5m2{});
        case ISOBIT_INT8: return f(DecodeInt8{});
        case ISOBIT_INT4: return f(DecodeInt4<8>{});
        case ISOBIT_UINT4: return f(DecodeInt4<0>{});
        case ISOBIT_INT3: return f(DecodeInt3{});
        case ISOBIT_INT2: return f(DecodeInt2{});
    }
}

void arrange(int32_t format, const Layout &l, const float *x, int64_t m, int64_t ldx, int64_t k, float *out) {
    with_decoder(format, [&](auto d) { arrange_as<decltype(d)>(l, x, m, ldx, k, out); });
}

void gemv(const isobit_linear &w, const Layout &l, const float *x, const float *sums, const float *act_scales, int64_t m,
          int64_t begin, int64_t end, float *y, int64_t ldy) {
    with_decoder(w.format, [&](auto d) { gemv_as<decltype(d)>(w, l, x, sums, act_scales, m, begin, end, y, ldy); });
}

void gemm(const isobit_linear &w, const Layout &l, const float *x, const float *act_scales, int64_t m, int64_t begin,
          int64_t end, float *y, int64_t ldy) {
    with_decoder(w.format, [&](auto d) { gemm_as<decltype(d)>(w, l, x, act_scales, m, begin, end, y, ldy); });
}
