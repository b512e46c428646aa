// Attention, over a vector F of W floats; included by the isa_*.cpp files behind layer.inc.h. Sums have a fixed order, which depends on
// the heads and on where keys stand in a sequence, never on threads, on blocks of the cache, or on what else is computed with them.

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_VECTORS = 4;  // 32 registers: 6 x 4 sums, 4 vectors of the right side, and the left side
#else
constexpr int TILE_VECTORS = 2;
#endif
constexpr int TILE_ROWS = 6;
constexpr int LINE = 16;  // floats of a cache line

// C[M, V * W] = C * factor + A[M, length] B[length, V * W]; factor NULL: C = A B. What lies `ahead` of B is prefetched.
template <int M, int V>
inline void tile(const float *a, int64_t lda, const float *b, int64_t ldb, int64_t length, int64_t ahead, const float *factor,
                 float *c, int64_t ldc) {
    F acc[M][V];
    unroll<M>([&](auto m) {
        unroll<V>([&](auto v) { acc[m][v] = factor ? load(c + m * ldc + v * W) * splat(factor[m]) : F{}; });
    });
    for (int64_t l = 0; l < length; ++l) {
        F right[V];
        unroll<V>([&](auto v) { right[v] = load(b + l * ldb + v * W); });
        if (ahead)
            for (int at = 0; at < V * W; at += LINE) __builtin_prefetch(b + l * ldb + at + ahead);
        unroll<M>([&](auto m) {
            const F left = splat(a[m * lda + l]);
            unroll<V>([&](auto v) { acc[m][v] += left * right[v]; });
        });
    }
    unroll<M>([&](auto m) { unroll<V>([&](auto v) { store(c + m * ldc + v * W, acc[m][v]); }); });
}

// Calls f(integral_constant n) for a number n from 1 to `most`.
template <int most, class Function>
inline void with_number(int64_t n, Function f) {
    if constexpr (most > 1)
        if (n < most) return with_number<most - 1>(n, f);
    f(std::integral_constant<int, most>{});
}

// The same for any number of rows, and of columns in whole vectors.
inline void product(const float *a, int64_t lda, int64_t rows, const float *b, int64_t ldb, int64_t columns, int64_t length,
                    int64_t ahead, const float *factor, float *c, int64_t ldc) {
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t column = 0; column < columns; column += TILE_VECTORS * W)
        with_number<TILE_VECTORS>((columns - column) / W, [&](auto vectors) {
            for (int64_t i = 0; i < tiles; ++i) {
                const int64_t row = rows * i / tiles, next = rows * (i + 1) / tiles;
                with_number<TILE_ROWS>(next - row, [&](auto height) {
                    tile<height(), vectors()>(a + row * lda, lda, b + column, ldb, length, i ? 0 : ahead,
                                              factor ? factor + row : nullptr, c + row * ldc + column, ldc);
                });
            }
        });
}

// Of W lanes the one that comes at place i where sum() adds them up: with its half first, and so on.
constexpr int lane_at(int i) {
    int lane = 0;
    for (int bit = 1, half = W / 2; half; bit *= 2, half /= 2) lane += i & bit ? half : 0;
    return lane;
}

// Scores of M queries with columns of keys [dim, KEYS], added up as dot_products() below does: what belongs to a lane there, and
// then the lanes.
template <int M>
inline void scores_by_lanes(const float *queries, const float *keys, int64_t dim, float *scores) {
    constexpr int V = TILE_VECTORS;
    const int64_t whole = dim / W * W;
    const auto add = [&](F (&acc)[M][V], int64_t d, int64_t column) ISOBIT_LAMBDA {
        F right[V];
        unroll<V>([&](auto v) ISOBIT_LAMBDA { right[v] = load(keys + d * KEYS + column + v * W); });
        unroll<M>([&](auto m) ISOBIT_LAMBDA {
            const F left = splat(queries[m * dim + d]);
            unroll<V>([&](auto v) ISOBIT_LAMBDA { acc[m][v] += left * right[v]; });
        });
    };
    for (int64_t column = 0; column < KEYS; column += V * W) {
        F levels[W][M][V];  // sums of 1, 2, 4 ... lanes that wait for as many more
        F acc[M][V];
        for (int i = 0; i < W; ++i) {
            unroll<M>([&](auto m) ISOBIT_LAMBDA { unroll<V>([&](auto v) ISOBIT_LAMBDA { acc[m][v] = F{}; }); });
            for (int64_t d = lane_at(i); d < whole; d += W) add(acc, d, column);
            int level = 0;
            for (; i >> level & 1; ++level)
                unroll<M>([&](auto m) ISOBIT_LAMBDA { unroll<V>([&](auto v) ISOBIT_LAMBDA { acc[m][v] += levels[level][m][v]; }); });
            unroll<M>([&](auto m) ISOBIT_LAMBDA { unroll<V>([&](auto v) ISOBIT_LAMBDA { levels[level][m][v] = acc[m][v]; }); });
        }
        for (int64_t d = whole; d < dim; ++d) add(acc, d, column);
        unroll<M>([&](auto m) ISOBIT_LAMBDA {
            unroll<V>([&](auto v) ISOBIT_LAMBDA { store(scores + m * KEYS + column + v * W, acc[m][v]); });
        });
    }
}

// Keys [count, dim] to columns [dim, KEYS]; the columns of keys that are not there are zero. What lies `ahead` is prefetched.
inline void transpose_keys(const Loose *keys, int64_t count, int64_t dim, int64_t ahead, float *out) {
    for (int64_t j = 0; j < KEYS; j += W) {
        int64_t d = 0;
        for (; d + W <= dim; d += W) {
            F block[W];
            if (j + W <= count)
                unroll<W>([&](auto i) {
                    block[i] = load(keys + (j + i) * dim + d);
                    if (d % LINE == 0) __builtin_prefetch(keys + (j + i) * dim + d + ahead);
                });
            else for (int64_t i = 0; i < W; ++i) block[i] = j + i < count ? load(keys + (j + i) * dim + d) : F{};
            transpose(block);
            unroll<W>([&](auto i) { store(out + (d + i) * KEYS + j, block[i]); });
        }
        for (; d < dim; ++d)
            for (int64_t i = 0; i < W; ++i) out[d * KEYS + j + i] = j + i < count ? keys[(j + i) * dim + d] : 0;
    }
}

#include "cached.inc.h"

inline F larger(F a, F b) { return a > b ? a : b; }

template <int half = W / 2, int... lane>
inline F upper_half(F value, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(value, value, (lane % half + half)...);
}

template <int half = W / 2>
inline float largest_lane(F value) {
    const F folded = larger(value, upper_half<half>(value, std::make_integer_sequence<int, W>{}));
    if constexpr (half > 1) return largest_lane<half / 2>(folded);
    else return folded[0];
}

// Scores of one query with the keys as they lie: for one or two queries transposing would take longer. A lane adds up every W-th
// dimension.
inline void dot_products(const float *query, const float *keys, int64_t count, int64_t dim, int64_t ahead, float *scores) {
    for (int64_t j = 0; j < KEYS; j += W) {
        F acc[W] = {};
        const Loose *at = keys + j * dim;
        int64_t d = 0;
        if (j + W <= count) {
            for (; d + W <= dim; d += W) {
                const F part = load(query + d);
                unroll<W>([&](auto i) {
                    acc[i] += load(at + i * dim + d) * part;
                    if (d % LINE == 0) __builtin_prefetch(at + i * dim + d + ahead);
                });
            }
        } else {
            for (; d + W <= dim; d += W)
                for (int64_t i = 0; j + i < count; ++i) acc[i] += load(at + i * dim + d) * load(query + d);
        }
        store(scores + j, sums_of(acc));
        for (; d < dim; ++d)
            for (int64_t i = 0; i < W && j + i < count; ++i) scores[j + i] += at[i * dim + d] * query[d];
    }
}

// Scores of one row to exp(score - largest), and their sum; only scores from `begin` to `end` count. Updates largest, and
// says by how much it rose: earlier sums are to be multiplied by the exponential of that.
inline float soften(float *scores, int64_t begin, int64_t end, float &largest, float &total) {
    for (int64_t j = 0; j < begin; ++j) scores[j] = -INFINITY;
    for (int64_t j = end; j < KEYS; ++j) scores[j] = -INFINITY;
    F top = splat(largest);
    for (int64_t j = 0; j < KEYS; j += W) top = larger(top, load(scores + j));
    const float highest = largest_lane(top);
    // Nothing seen yet: any finite number keeps exp(-inf - highest) at zero, and NaN at NaN.
    const float base = highest == -INFINITY ? 0.0f : highest;
    F sums = {};
    for (int64_t j = 0; j < KEYS; j += W) {
        const F part = exponential(load(scores + j) - splat(base));
        store(scores + j, part);
        sums += part;
    }
    total = sum(sums);
    const float rise = largest == highest ? 0.0f : largest - base;
    largest = highest;
    return rise;
}

int64_t padded_dim(int64_t dim) { return round_up(dim, W); }

// Memory of one piece.
struct Workspace {
    float *queries, *keys, *values, *scores, *factors, *totals, *taken;

    Workspace(int64_t rows, int64_t dim) {
        static thread_local Buffer buffer;
        const int64_t padded = padded_dim(dim);
        queries = buffer.floats(rows * dim + KEYS * dim + KEYS * padded + rows * KEYS + 2 * round_up(rows, 16) + KEYS * dim + 5 * 16);
        keys = queries + round_up(rows * dim, 16);
        values = keys + KEYS * dim;
        scores = values + round_up(KEYS * padded, 16);
        factors = scores + rows * KEYS;
        totals = factors + round_up(rows, 16);
        taken = totals + round_up(rows, 16);
    }
};

// Scores of rows of queries with one block of keys. How the products of a score are added up depends on the heads alone: where one
// token has no more than two rows, as it is best for those.
inline void put_scores(const float *queries, int64_t rows, int64_t group, const float *keys, int64_t count, int64_t dim, int64_t ahead,
                       const Workspace &space) {
    if (rows <= 2) {
        for (int64_t i = 0; i < rows; ++i) dot_products(queries + i * dim, keys, count, dim, ahead, space.scores + i * KEYS);
        return;
    }
    transpose_keys(keys, count, dim, ahead, space.keys);
    if (group > 2) return product(queries, dim, rows, space.keys, KEYS, KEYS, dim, 0, nullptr, space.scores, KEYS);
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t row = rows * i / tiles, next = rows * (i + 1) / tiles;
        with_number<TILE_ROWS>(next - row, [&](auto height) {
            scores_by_lanes<height()>(queries + row * dim, space.keys, dim, space.scores + row * KEYS);
        });
    }
}

// softcap * tanh(score / softcap). Not inlined: every score takes the same instructions.
__attribute__((noinline)) void cap(float *scores, int64_t count, float softcap) {
    map(scores, count, scores, [&](F score) ISOBIT_LAMBDA { return splat(softcap) * tangent(score / splat(softcap)); });
}

// Which keys the token at a position sees: from `begin` to `end`.
struct Seen {
    int64_t begin, end;
    Seen(const isobit_heads &of, int64_t position) : begin(sight_of(of).first(position)), end(position + 1) {}
};

// KEYS keys of one head: at position `first` of the sequence, from row `at` of the cache on, and how many rows behind them the next ones
// lie there.
struct Keys {
    int64_t first, at, ahead;
};

// Scores of the rows of a piece with a few keys, softened, and their sums of values.
inline void attend_keys(const isobit_attention &a, const Piece &p, const Workspace &space, const Keys &k, const Partial &out) {
    const int64_t group = a.heads / a.kv_heads, count = smaller(KEYS, p.end - k.first), padded = padded_dim(a.dim);
    // Tokens that see any of these keys.
    int64_t begin = 0, end = p.tokens;
    while (begin < end && Seen(a.of, p.position + begin).end <= k.first) ++begin;
    while (begin < end && Seen(a.of, p.position + end - 1).begin >= k.first + count) --end;
    if (begin == end) return;
    const int64_t row = begin * group, rows = (end - begin) * group;
    const Kept of_keys = keys_of(a.held), of_values = values_of(a.held);
    const int64_t ahead = a.held.format == ISOBIT_F32 ? k.ahead * a.dim : 0;  // else what is stored has been asked for already
    const float *const keys = rows_of(of_keys, k.at, count, a.dim, k.ahead, space.taken);
    put_scores(space.queries + row * a.dim, rows, group, keys, count, a.dim, ahead, space);
    if (of_keys.scales) put_scales(of_keys.scales + k.at, count, rows, space.scores);
    if (a.of.softcap > 0) cap(space.scores, rows * KEYS, a.of.softcap);
    for (int64_t i = 0; i < rows; ++i) {
        const Seen seen(a.of, p.position + begin + i / group);
        const int64_t from = seen.begin > k.first ? seen.begin - k.first : 0, to = smaller(seen.end - k.first, count);
        space.factors[i] = soften(space.scores + i * KEYS, from, to, out.largest[row + i], space.totals[i]);
    }
    exp_all(space.factors, rows, space.factors);
    for (int64_t i = 0; i < rows; ++i) out.total[row + i] = out.total[row + i] * space.factors[i] + space.totals[i];
    if (of_values.scales) put_scales(of_values.scales + k.at, count, rows, space.scores);
    const float *values = rows_of(of_values, k.at, count, a.dim, k.ahead, space.taken);
    int64_t stride = a.dim;
    if (padded != a.dim) {
        for (int64_t j = 0; j < count; ++j) {
            __builtin_memcpy(space.values + j * padded, values + j * a.dim, static_cast<size_t>(a.dim) * 4);
            for (int64_t d = a.dim; d < padded; ++d) space.values[j * padded + d] = 0;
        }
        values = space.values;
        stride = padded;
    }
    product(space.scores, KEYS, rows, values, stride, padded, count, ahead, space.factors, out.out + row * padded, padded);
}

// The row of the cache that has the key at a position. Positions from there to the next multiple of KEYS follow it: a block ends there, or is
// the only one.
inline int64_t place_of(const isobit_attention &a, const Piece &p, int64_t position) {
    const isobit_sequences &s = a.sequences;
    const int64_t block = s.table[p.sequence * s.table_stride + position / s.block];
    return (block * a.kv_heads + p.kv_head) * s.block + position % s.block;
}

void attend(const isobit_attention &a, const Piece &p, const Partial &out) {
    const int64_t group = a.heads / a.kv_heads, rows = p.tokens * group, padded = padded_dim(a.dim);
    const Workspace space(rows, a.dim);
    const Loose *const factors = a.factors;
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t head = p.kv_head * group + row % group;
        const Loose *from = a.q + (p.row + row / group) * a.ldq + head * a.dim;
        const float factor = factors ? a.of.scale * factors[p.row + row / group] : a.of.scale;
        for (int64_t d = 0; d < a.dim; ++d) space.queries[row * a.dim + d] = from[d] * factor;
        for (int64_t d = 0; d < padded; ++d) out.out[row * padded + d] = 0;
        out.largest[row] = -INFINITY;
        out.total[row] = 0;
    }
    int64_t at = place_of(a, p, p.begin);
    for (int64_t first = p.begin; first < p.end; first += KEYS) {
        const int64_t next = first + KEYS < p.end ? place_of(a, p, first + KEYS) : at + KEYS;
        attend_keys(a, p, space, {first, at, next - at}, out);
        at = next;
    }
}

void merge(const Partial *parts, int64_t count, int64_t row, int64_t dim, const Loose *sink, Loose *out) {
    float highest = sink ? *sink : -INFINITY;
    for (int64_t i = 0; i < count; ++i) highest = parts[i].largest[row] > highest ? parts[i].largest[row] : highest;
    float total = sink ? exponential(splat(*sink - highest))[0] : 0;
    const int64_t padded = padded_dim(dim);
    for (int64_t d = 0; d < dim; ++d) out[d] = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float factor = parts[i].largest[row] == highest ? 1.0f : exponential(splat(parts[i].largest[row] - highest))[0];
        const float *from = parts[i].out + row * padded;
        total += parts[i].total[row] * factor;
        for (int64_t d = 0; d < dim; ++d) out[d] += from[d] * factor;
    }
    const float inverse = 1.0f / total;
    for (int64_t d = 0; d < dim; ++d) out[d] *= inverse;
}
