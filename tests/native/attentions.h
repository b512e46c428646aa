// Attentions for the native tests, each of their parts in exact memory of its own, and what they are in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "exact.h"
#include "isobit_cpu.h"

namespace test {

// Where sequences are, in exact memory: new tokens behind what is in the cache.
struct Sequence {
    int64_t fresh, past;
};

struct Sequences {
    const std::vector<Sequence> of;
    const int64_t block, blocks, stride;
    Values<int32_t> starts, lengths, table;
    Values<int64_t> slots;

    // `order` of the blocks that are taken; empty: one behind the other.
    Sequences(const std::vector<Sequence> &all, int64_t tokens_of_a_block, const std::vector<int32_t> &order = {})
        : of(all), block(tokens_of_a_block), blocks(order.empty() ? taken() : static_cast<int64_t>(order.size())), stride(longest()),
          starts(count() + 1), lengths(count()), table(count() * stride), slots(tokens()) {
        int32_t token = 0;
        int64_t next = 0;
        starts.put(0, 0);
        for (int64_t i = 0; i < count(); ++i) {
            const auto [fresh, past] = of[static_cast<size_t>(i)];
            lengths.put(i, static_cast<int32_t>(past + fresh));
            for (int64_t at = 0; at < stride; ++at, next += at <= blocks_of(i)) {
                const int32_t number = order.empty() ? static_cast<int32_t>(next) : order[static_cast<size_t>(next % blocks)];
                table.put(i * stride + at, at < blocks_of(i) ? number : -1);
            }
            for (int64_t at = past; at < past + fresh; ++at, ++token) slots.put(token, place(i, at));
            starts.put(i + 1, token);
        }
    }

    int64_t count() const { return static_cast<int64_t>(of.size()); }
    int64_t tokens() const {
        int64_t sum = 0;
        for (const Sequence &one : of) sum += one.fresh;
        return sum;
    }
    // Where a position is: number of its block * block + place.
    int64_t place(int64_t sequence, int64_t position) const {
        return table[sequence * stride + position / block] * block + position % block;
    }
    isobit_sequences arguments() const {
        return {count(), tokens(), starts.data(), lengths.data(), table.data(), stride, slots.data(), block, blocks};
    }

  private:
    int64_t blocks_of(int64_t i) const { return (of[static_cast<size_t>(i)].past + of[static_cast<size_t>(i)].fresh + block - 1) / block; }
    int64_t taken() const {
        int64_t sum = 0;
        for (int64_t i = 0; i < count(); ++i) sum += blocks_of(i);
        return sum;
    }
    int64_t longest() const {
        int64_t most = 1;
        for (int64_t i = 0; i < count(); ++i) most = std::max(most, blocks_of(i));
        return most;
    }
};

struct Shape {
    int64_t batch, tokens, past, heads, kv_heads, dim, spare, window;  // spare: room in the cache behind the new tokens
    int32_t qk_norm;
    float softcap = 0;
    int64_t chunk = 0, rotated = 0;  // see isobit_heads
    bool interleaved = false, sinks = false, factors = false, plain = false;  // plain: nothing is rotated

    int64_t angles() const { return rotated ? rotated : dim; }
    int64_t wide(int64_t all) const { return qk_norm == ISOBIT_QK_WIDTH ? all : 1; }
    std::vector<Sequence> sequences() const { return std::vector<Sequence>(static_cast<size_t>(batch), {tokens, past}); }
};

// Random values; NaN between tokens, where the new tokens go in the cache, and behind them.
struct Attention {
    const Shape s;
    const int64_t rows, capacity;
    Sequences sequences;
    Values<float> q, k, v, cos, sin, q_norm, k_norm, sinks, factors, keys, values, out;
    isobit_attention a{};

    // `gap`: values between tokens. `shift`: see Exact.
    explicit Attention(const Shape &shape, int64_t gap = 0, size_t shift = 0)
        : s(shape), rows(s.batch * s.tokens), capacity(s.past + s.tokens + s.spare), sequences(s.sequences(), capacity),
          q(between(s.heads, gap), shift), k(between(s.kv_heads, gap), shift), v(between(s.kv_heads, gap), shift),
          cos(rows * s.angles(), shift), sin(rows * s.angles(), shift), q_norm(s.dim * s.wide(s.heads), shift),
          k_norm(s.dim * s.wide(s.kv_heads), shift), sinks(s.heads, shift), factors(rows, shift),
          keys(cache_size(), shift), values(cache_size(), shift), out(between(s.heads, gap), shift) {
        a.sequences = sequences.arguments(), a.of.window = s.window, a.of.chunk = s.chunk;
        a.heads = s.heads, a.kv_heads = s.kv_heads, a.dim = s.dim;
        a.ldq = a.ldo = s.heads * s.dim + gap, a.ldk = a.ldv = s.kv_heads * s.dim + gap;
        a.of.scale = s.past % 2 ? 4.0f : 1 / std::sqrt(static_cast<float>(s.dim)), a.of.softcap = s.softcap, a.of.eps = 1e-5f;
        a.of.rotated = s.rotated, a.of.interleaved = s.interleaved, a.of.qk_norm = s.qk_norm;
        for (Values<float> *part : {&cos, &sin, &q_norm, &k_norm, &sinks, &factors}) fill(*part);
        fill_tokens(q, a.ldq, s.heads), fill_tokens(k, a.ldk, s.kv_heads), fill_tokens(v, a.ldv, s.kv_heads);
        for (int64_t i = 0; i < keys.size(); ++i) {
            const bool old = i / s.dim % capacity < s.past;
            keys.put(i, old ? uniform() : NAN), values.put(i, old ? uniform() : NAN);
        }
        fill_with(out, -0.0f);
        a.cos = s.plain ? nullptr : cos.data(), a.sin = s.plain ? nullptr : sin.data(), a.q = q.data(), a.k = k.data(), a.v = v.data();
        a.of.q_norm = s.qk_norm ? q_norm.data() : nullptr, a.of.k_norm = s.qk_norm ? k_norm.data() : nullptr;
        a.of.sinks = s.sinks ? sinks.data() : nullptr, a.factors = s.factors ? factors.data() : nullptr;
        a.held.keys = keys.data(), a.held.values = values.data(), a.out = out.data();
    }

    int64_t query_at(int64_t row, int64_t head) const { return row * a.ldq + head * s.dim; }
    int64_t new_at(int64_t row, int64_t head) const { return row * a.ldk + head * s.dim; }
    int64_t cached_at(int64_t sequence, int64_t head, int64_t token) const {
        return ((sequence * s.kv_heads + head) * capacity + token) * s.dim;
    }
    // The first key that a token sees; the last one is its own.
    int64_t first_seen(int64_t token) const {
        const int64_t position = s.past + token, own = s.chunk ? position - position % s.chunk : 0;
        return s.window ? std::max(own, position + 1 - s.window) : own;
    }

  private:
    int64_t between(int64_t heads, int64_t gap) const { return (s.batch * s.tokens - 1) * (heads * s.dim + gap) + heads * s.dim; }
    int64_t cache_size() const { return s.batch * s.kv_heads * capacity * s.dim; }
    void fill_tokens(Values<float> &rows, int64_t apart, int64_t heads) const {
        for (int64_t i = 0; i < rows.size(); ++i) rows.put(i, i % apart < heads * s.dim ? uniform() : NAN);
    }
};

// A head of a token as the attention uses it: normed (or not: `weight` NULL) and rotated. `all`: heads of the token.
inline std::vector<double> prepared(const Attention &t, const Values<float> &x, int64_t at, const Values<float> *weight, int64_t row, int64_t head,
                                    int64_t all) {
    const int64_t dim = t.s.dim, rotated = t.s.plain ? 0 : t.s.angles(), half = rotated / 2;
    const bool wide = t.s.qk_norm == ISOBIT_QK_WIDTH;
    std::vector<double> out;
    for (int64_t d = 0; d < dim; ++d) out.push_back(x[at + d]);
    const auto norm = [&] {
        double squares = 0;
        if (wide)
            for (int64_t d = 0; d < all * dim; ++d) squares += static_cast<double>(x[at - head * dim + d]) * x[at - head * dim + d];
        else
            for (const double value : out) squares += value * value;
        const double factor = 1 / std::sqrt(squares / static_cast<double>(wide ? all * dim : dim) + t.a.of.eps);
        for (int64_t d = 0; d < dim; ++d) out[static_cast<size_t>(d)] *= factor * (*weight)[wide ? head * dim + d : d];
    };
    if (weight && t.s.qk_norm != ISOBIT_QK_HEAD_BEHIND) norm();
    for (int64_t pair = 0; pair < half; ++pair) {
        const auto first = static_cast<size_t>(t.s.interleaved ? 2 * pair : pair), second = static_cast<size_t>(t.s.interleaved ? first + 1 : pair + half);
        const int64_t angle = row * rotated + pair, other = t.s.interleaved ? angle : angle + half;
        const double a = out[first], b = out[second];
        out[first] = a * t.cos[angle] - b * t.sin[angle], out[second] = b * t.cos[other] + a * t.sin[other];
    }
    if (weight && t.s.qk_norm == ISOBIT_QK_HEAD_BEHIND) norm();
    return out;
}

// What a query gives over the keys it sees, from the queries and the cache as the call has left them, and the largest score.
inline std::vector<double> attended(const Attention &t, int64_t sequence, int64_t token, int64_t head, double &largest) {
    const int64_t dim = t.s.dim, query = t.query_at(sequence * t.s.tokens + token, head), kv_head = head / (t.s.heads / t.s.kv_heads);
    const int64_t first = t.first_seen(token), last = t.s.past + token;
    std::vector<double> scores, out(static_cast<size_t>(dim), 0);
    for (int64_t key = first; key <= last; ++key) {
        double score = 0;
        for (int64_t d = 0; d < dim; ++d) score += static_cast<double>(t.q[query + d]) * t.keys[t.cached_at(sequence, kv_head, key) + d];
        score *= t.a.of.scale * (t.s.factors ? static_cast<double>(t.factors[sequence * t.s.tokens + token]) : 1);
        scores.push_back(t.s.softcap ? t.s.softcap * std::tanh(score / t.s.softcap) : score);
    }
    const double sink = t.s.sinks ? static_cast<double>(t.sinks[head]) : -1e30;
    const double highest = std::max(sink, *std::max_element(scores.begin(), scores.end()));
    double total = std::exp(sink - highest);
    largest = 0;
    for (double &score : scores) largest = std::max(largest, std::fabs(score)), score = std::exp(score - highest), total += score;
    for (int64_t key = first; key <= last; ++key)
        for (int64_t d = 0; d < dim; ++d)
            out[static_cast<size_t>(d)] += scores[static_cast<size_t>(key - first)] / total * t.values[t.cached_at(sequence, kv_head, key) + d];
    return out;
}

}  // namespace test
