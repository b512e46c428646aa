// Latent attention over a cache of latents, for queries that have been taken to them: every head reads the same numbers of a token, as its
// key beside a part that is rotated, and as its value. Included by the isa_*.cpp files behind attention.inc.h. How a row's sums are made
// depends on the sizes and on where keys stand in a sequence alone.

// Memory of the rotated part of one piece.
struct TurnedSpace {
    float *queries, *columns, *scores, *taken;

    TurnedSpace(int64_t rows, int64_t rotated) {
        static thread_local Buffer buffer;
        queries = buffer.floats(round_up(rows * rotated, 16) + rows * KEYS + 2 * KEYS * rotated);
        columns = queries + round_up(rows * rotated, 16);
        scores = columns + KEYS * rotated;
        taken = scores + rows * KEYS;
    }
};

// Scores of rows with KEYS keys that lie one behind the other.
inline void scores_with(const float *queries, int64_t rows, const float *keys, int64_t count, int64_t dim, float *columns, float *scores) {
    transpose_keys(keys, count, dim, 0, columns);
    product(queries, dim, rows, columns, KEYS, KEYS, dim, 0, nullptr, scores, KEYS);
}

void attend_latents(const isobit_attention &a, const Latents &l, const Piece &p, const Partial &out) {
    const int64_t group = a.heads / a.kv_heads, all = p.tokens * group, rank = a.dim, padded = padded_dim(rank);
    const Workspace space(all, rank);
    const TurnedSpace turned(all, l.rotated);
    for (int64_t row = 0; row < all; ++row) {
        const int64_t head = p.kv_head * group + row % group, token = p.row + row / group;
        const float *from = a.q + (head * a.sequences.tokens + token) * rank;
        const Loose *rotated = l.turned + token * l.token + head * l.head;
        for (int64_t d = 0; d < rank; ++d) space.queries[row * rank + d] = from[d] * a.of.scale;
        for (int64_t d = 0; d < l.rotated; ++d) turned.queries[row * l.rotated + d] = rotated[d] * a.of.scale;
        for (int64_t d = 0; d < padded; ++d) out.out[row * padded + d] = 0;
        out.largest[row] = -INFINITY;
        out.total[row] = 0;
    }
    const isobit_sequences &s = a.sequences;
    const Kept held = keys_of(a.held);
    for (int64_t first = p.begin; first < p.end; first += KEYS) {
        const int64_t slot = int64_t{s.table[p.sequence * s.table_stride + first / s.block]} * s.block + first % s.block;
        const int64_t count = smaller(KEYS, p.end - first), begin = first > p.position ? first - p.position : 0;  // tokens from there on see some
        if (begin >= p.tokens) continue;
        const int64_t row = begin * group, rows = all - row;
        const float *latents = rows_of(held, slot, count, rank, 0, space.taken);
        const float *const keys = rows_of(l.keys, slot, count, l.rotated, 0, turned.taken);
        scores_with(space.queries + row * rank, rows, latents, count, rank, space.keys, space.scores);
        scores_with(turned.queries + row * l.rotated, rows, keys, count, l.rotated, turned.columns, turned.scores);
        if (held.scales) put_scales(held.scales + slot, count, rows, space.scores), put_scales(l.keys.scales + slot, count, rows, turned.scores);
        for (int64_t i = 0; i < rows * KEYS; i += W) store(space.scores + i, load(space.scores + i) + load(turned.scores + i));
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t to = smaller(p.position + begin + i / group + 1 - first, count);
            space.factors[i] = soften(space.scores + i * KEYS, 0, to, out.largest[row + i], space.totals[i]);
        }
        exp_all(space.factors, rows, space.factors);
        for (int64_t i = 0; i < rows; ++i) out.total[row + i] = out.total[row + i] * space.factors[i] + space.totals[i];
        if (held.scales) put_scales(held.scales + slot, count, rows, space.scores);
        int64_t stride = rank;
        if (padded != rank) {
            for (int64_t j = 0; j < count; ++j) {
                __builtin_memcpy(space.values + j * padded, latents + j * rank, static_cast<size_t>(rank) * 4);
                for (int64_t d = rank; d < padded; ++d) space.values[j * padded + d] = 0;
            }
            latents = space.values, stride = padded;
        }
        product(space.scores, KEYS, rows, latents, stride, padded, count, 0, space.factors, out.out + row * padded, padded);
    }
}
