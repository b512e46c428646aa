// Attention on every instruction set, against float64: prompts and single tokens, grouped heads, odd sizes, windows, caps, caches with
// room to spare, in exact memory and at odd addresses; and sequences of all kinds together, which must give the bits that each gives
// alone. Options: isas.h.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <memory>
#include <string>

#include "attentions.h"
#include "isas.h"
#include "kept.h"

using namespace test;

namespace {

const Shape SHAPES[] = {
    // batch, tokens, past, heads, kv_heads, dim, spare, window, norms
    {1, 1, 0, 1, 1, 2, 0, 0, 0},      {1, 1, 0, 4, 1, 64, 3, 0, 1},      {2, 1, 5, 8, 2, 80, 1, 0, 0},
    {1, 1, 63, 6, 6, 34, 0, 0, 1},     {2, 1, 64, 4, 2, 128, 7, 0, 1},    {1, 1, 20, 2, 1, 512, 0, 0, 1},
    {1, 1, 700, 4, 1, 64, 0, 0, 0},   {2, 1, 1100, 2, 2, 18, 9, 0, 1},   {1, 1, 700, 8, 1, 32, 5, 100, 0},
    {1, 1, 640, 8, 1, 32, 5, 64, 0},  {1, 1, 1201, 3, 1, 66, 0, 1, 0},  {1, 3, 61, 4, 2, 30, 0, 0, 1},
    {2, 5, 509, 4, 4, 16, 2, 0, 0},   {1, 16, 600, 2, 1, 48, 0, 70, 1},  {1, 17, 0, 4, 2, 64, 0, 0, 0},
    {2, 17, 47, 6, 2, 10, 3, 0, 1},    {1, 33, 0, 3, 1, 256, 0, 0, 0},   {1, 70, 131, 8, 2, 20, 1, 0, 1},
    {1, 130, 0, 4, 1, 32, 0, 0, 0},   {1, 130, 70, 2, 2, 6, 4, 40, 1},   {2, 100, 0, 2, 1, 64, 0, 64, 0},
    {1, 2, 3, 100, 1, 8, 0, 0, 0},    {1, 40, 201, 2, 1, 14, 0, 500, 1},  {1, 40, 500, 2, 2, 64, 0, 0, 0},
    {1, 90, 960, 3, 3, 70, 0, 90, 1},  {1, 1, 700, 4, 1, 64, 0, 0, 0, 2},  {2, 30, 41, 4, 2, 40, 0, 30, 1, 30},
    {1, 5, 90, 2, 2, 18, 0, 0, 0, 0.5f},
    // cap, chunk, rotated, interleaved, sinks, factors, plain
    {1, 1, 300, 4, 2, 64, 0, 0, 0, 0, 0, 32},             {2, 9, 60, 4, 2, 80, 1, 0, 1, 0, 0, 40, true},
    {1, 40, 30, 2, 1, 128, 0, 0, 0, 0, 0, 0, true},       {1, 3, 70, 6, 2, 34, 0, 0, 2, 0, 0, 0, true},
    {2, 5, 64, 4, 2, 48, 0, 0, 3, 0, 0, 6},               {1, 17, 20, 5, 1, 24, 0, 0, 3, 0, 0, 0, true},
    {1, 130, 70, 4, 2, 32, 3, 0, 2, 0, 50},               {1, 1, 1201, 3, 1, 66, 0, 0, 0, 0, 500},
    {1, 30, 500, 2, 1, 64, 0, 100, 0, 0, 128, 0, false, true},
    {1, 1, 700, 8, 1, 64, 0, 0, 0, 0, 0, 0, false, true}, {2, 40, 0, 4, 2, 18, 2, 7, 1, 0, 0, 10, false, true},
    {1, 20, 100, 4, 2, 40, 0, 0, 0, 0, 0, 0, false, false, true}, {1, 90, 0, 4, 1, 16, 0, 0, 2, 5, 32, 8, true, true, true},
    {1, 12, 65, 4, 2, 64, 0, 0, 0, 0, 0, 0, false, false, true, true}, {2, 1, 40, 3, 3, 96, 0, 0, 3, 0, 0, 0, false, true, false, true},
};

bool near(const std::vector<double> &exact, const Values<float> &values, int64_t at, double most) {
    double difference = 0, size = 0;
    for (size_t d = 0; d < exact.size(); ++d) {
        const double wrong = values[at + static_cast<int64_t>(d)] - exact[d];
        difference += wrong * wrong, size += exact[d] * exact[d];
    }
    return difference <= most * most * size;  // false for NaN
}

bool same_bits(const Values<float> &a, int64_t at, const Values<float> &b, int64_t from, int64_t count) {
    return !std::memcmp(a.bytes() + 4 * at, b.bytes() + 4 * from, static_cast<size_t>(4 * count));
}

// Queries and new keys are normed and rotated, new values copied, and all else in the cache and between tokens as it was.
bool prepares(const Attention &t, const Attention &before) {
    constexpr double MOST = 1e-6;
    for (int64_t row = 0; row < t.s.batch * t.s.tokens; ++row) {
        const int64_t sequence = row / t.s.tokens, token = row % t.s.tokens;
        for (int64_t head = 0; head < t.s.heads; ++head) {
            const int64_t at = t.query_at(row, head);
            if (!near(prepared(before, before.q, at, t.s.qk_norm ? &t.q_norm : nullptr, row, head, t.s.heads), t.q, at, MOST)) return std::puts("queries"), false;
        }
        for (int64_t head = 0; head < t.s.kv_heads; ++head) {
            const int64_t from = t.new_at(row, head), to = t.cached_at(sequence, head, t.s.past + token);
            if (!near(prepared(before, before.k, from, t.s.qk_norm ? &t.k_norm : nullptr, row, head, t.s.kv_heads), t.keys, to, MOST)) return std::puts("keys"), false;
            if (!same_bits(t.values, to, t.v, from, t.s.dim)) return std::puts("values"), false;
        }
    }
    for (int64_t i = 0; i < t.keys.size(); ++i) {
        const int64_t token = i / t.s.dim % t.capacity;
        if (token >= t.s.past && token < t.s.past + t.s.tokens) continue;
        if (!same_bits(t.keys, i, before.keys, i, 1) || !same_bits(t.values, i, before.values, i, 1)) return std::puts("the cache"), false;
    }
    for (int64_t i = 0; i < t.q.size(); ++i)
        if (i % t.a.ldq >= t.s.heads * t.s.dim && (!same_bits(t.q, i, before.q, i, 1) || !same_bits(t.out, i, before.out, i, 1)))
            return std::puts("between tokens"), false;
    return true;
}

// An error of a score is an error of its exponential, so larger scores may differ by more.
bool attends(const Attention &t) {
    for (int64_t row = 0, at = 0; row < t.s.batch * t.s.tokens; ++row)
        for (int64_t head = 0; head < t.s.heads; ++head, ++at) {
            if (at % every()) continue;
            double largest;
            const std::vector<double> exact = attended(t, row / t.s.tokens, row % t.s.tokens, head, largest);
            if (!near(exact, t.out, t.query_at(row, head), 2e-6 * (1 + largest)))
                return std::printf("sequence %d, token %d, head %d\n", int(row / t.s.tokens), int(row % t.s.tokens), int(head)), false;
        }
    return true;
}

// The same bits at odd addresses, with nothing between tokens, by other numbers of threads.
bool same_elsewhere(const Attention &t, uint32_t seed) {
    for (const int threads : {1, 5}) {
        state() = seed;
        Attention other(t.s, 0, static_cast<size_t>(threads % 4));
        isobit_cpu_set_threads(threads);
        const int failed = isobit_cpu_attention(&other.a);
        isobit_cpu_set_threads(2);
        if (failed || !other.keys.same(t.keys) || !other.values.same(t.values)) return std::puts("the cache elsewhere"), false;
        const int64_t length = t.s.heads * t.s.dim;
        for (int64_t row = 0; row < t.s.batch * t.s.tokens; ++row) {
            const int64_t at = row * t.a.ldq, there = row * other.a.ldq;
            if (!same_bits(t.out, at, other.out, there, length) || !same_bits(t.q, at, other.q, there, length))
                return std::printf("token %d elsewhere, %d threads\n", int(row), threads), false;
        }
    }
    return true;
}

// Tokens give the same bits in one call, one after the other, and some at a time.
bool same_in_parts(const Attention &t, uint32_t seed) {
    if (t.s.batch > 1) return true;
    for (const int64_t at_once : {1, 2, 18}) {
        state() = seed;
        Attention other(t.s, 3);
        for (int64_t at = 0; at < t.s.tokens; at += at_once) {
            isobit_attention a = other.a;
            const Sequences part({{std::min(at_once, t.s.tokens - at), t.s.past + at}}, t.capacity);
            a.sequences = part.arguments();
            a.q += at * a.ldq, a.k += at * a.ldk, a.v += at * a.ldv, a.out += at * a.ldo;
            if (a.cos) a.cos += at * t.s.angles(), a.sin += at * t.s.angles();
            if (a.factors) a.factors += at;
            if (isobit_cpu_attention(&a)) return false;
        }
        if (!other.keys.same(t.keys) || !other.out.same(t.out)) return std::printf("%d tokens at a time\n", int(at_once)), false;
    }
    return true;
}

bool right(const Shape &s) {
    const uint32_t seed = state();
    const Attention before(s, 3);
    state() = seed;
    Attention t(s, 3);
    return !isobit_cpu_attention(&t.a) && prepares(t, before) && attends(t) && same_elsewhere(t, seed) && same_in_parts(t, seed);
}

bool all_shapes() {
    for (const Shape &s : SHAPES)
        if (!right(s))
            return std::printf("batch %d, %d tokens behind %d, %d heads on %d of %d, window %d\n", int(s.batch), int(s.tokens),
                               int(s.past), int(s.heads), int(s.kv_heads), int(s.dim), int(s.window)),
                   false;
    return true;
}

// A NaN in a query stays in what that query gives; one in a new value reaches what sees it, and no other sequence.
bool nan_stays() {
    for (const Shape &s : {Shape{2, 1, 70, 4, 2, 24, 0, 0, 1}, Shape{2, 20, 50, 4, 2, 24, 1, 0, 0}}) {
        Attention query(s), value(s);
        const int64_t bad = s.tokens / 2, head = 1;
        query.q.put(query.query_at(bad, head) + 5, NAN);
        value.v.put(value.new_at(bad, 0) + 5, NAN);
        if (isobit_cpu_attention(&query.a) || isobit_cpu_attention(&value.a)) return false;
        for (int64_t i = 0; i < query.out.size(); ++i) {
            const int64_t row = i / query.a.ldq, in_row = i % query.a.ldq;
            if (std::isnan(query.out[i]) != (row == bad && in_row / s.dim == head)) return std::puts("NaN of a query"), false;
            const bool sees = row >= bad && row < s.tokens && in_row / s.dim < 2 && in_row % s.dim == 5;
            if (sees ? !std::isnan(value.out[i]) : row >= s.tokens && std::isnan(value.out[i])) return std::puts("NaN of a value"), false;
        }
    }
    return true;
}

// ---- mixtures ----

// Each sequence alone, in a cache in one piece; and all of them in one call, their caches in the blocks of one.
struct Mixture {
    const Shape heads;
    std::vector<std::unique_ptr<Attention>> alone;
    const Sequences sequences;
    Values<float> q, k, v, cos, sin, keys, values, out;
    isobit_attention a;

    Mixture(const Shape &shape, const std::vector<Sequence> &all, int64_t block, const std::vector<int32_t> &order)
        : heads(shape), alone(each(shape, all)), sequences(all, block, order), q(rows(shape.heads)), k(rows(shape.kv_heads)),
          v(rows(shape.kv_heads)), cos(rows(1) / shape.dim * shape.angles()), sin(cos.size()), keys(cache()), values(cache()), out(rows(shape.heads)), a(alone[0]->a) {
        fill_with(keys, NAN), fill_with(values, NAN), fill_with(out, NAN);
        for (int64_t i = 0; i < sequences.count(); ++i) {
            const Attention &one = *alone[static_cast<size_t>(i)];
            const int64_t row = sequences.starts[i];
            copy(q, row * shape.heads, one.q), copy(k, row * shape.kv_heads, one.k), copy(v, row * shape.kv_heads, one.v);
            std::memcpy(cos.bytes() + 4 * row * shape.angles(), one.cos.bytes(), one.cos.byte_count());
            std::memcpy(sin.bytes() + 4 * row * shape.angles(), one.sin.bytes(), one.sin.byte_count());
            for (int64_t at = 0; at < one.s.past; ++at) move_token(i, at, [&](int64_t here, int64_t there) {
                std::memcpy(keys.bytes() + 4 * here, one.keys.bytes() + 4 * there, bytes(1));
                std::memcpy(values.bytes() + 4 * here, one.values.bytes() + 4 * there, bytes(1));
                return true;
            });
        }
        const Attention &first = *alone[0];  // whose norms all use
        for (const auto &one : alone) one->a.of.q_norm = first.a.of.q_norm, one->a.of.k_norm = first.a.of.k_norm, one->a.of.sinks = first.a.of.sinks, one->a.of.scale = 0.3f;
        a.sequences = sequences.arguments(), a.of.scale = 0.3f;
        a.q = q.data(), a.k = k.data(), a.v = v.data(), a.cos = cos.data(), a.sin = sin.data();
        a.held.keys = keys.data(), a.held.values = values.data(), a.out = out.data();
    }

    // Whether outputs and caches are those of the sequences alone, which have run.
    bool same() const {
        for (int64_t i = 0; i < sequences.count(); ++i) {
            const Attention &one = *alone[static_cast<size_t>(i)];
            const int64_t row = sequences.starts[i] * heads.heads * heads.dim;
            if (!same_bits(out, row, one.out, 0, one.out.size()) || !same_bits(q, row, one.q, 0, one.q.size()))
                return std::printf("sequence %d, %d tokens behind %d\n", int(i), int(one.s.tokens), int(one.s.past)), false;
            for (int64_t at = 0; at < one.s.past + one.s.tokens; ++at) {
                const bool good = move_token(i, at, [&](int64_t here, int64_t there) {
                    return same_bits(keys, here, one.keys, there, heads.dim) && same_bits(values, here, one.values, there, heads.dim);
                });
                if (!good) return std::printf("the cache of sequence %d\n", int(i)), false;
            }
        }
        return true;
    }

  private:
    static std::vector<std::unique_ptr<Attention>> each(const Shape &shape, const std::vector<Sequence> &all) {
        std::vector<std::unique_ptr<Attention>> made;
        for (const auto &[fresh, past] : all) {
            Shape one = shape;
            one.batch = 1, one.tokens = fresh, one.past = past;
            made.push_back(std::make_unique<Attention>(one));
        }
        return made;
    }
    size_t bytes(int64_t count) const { return static_cast<size_t>(4 * count * heads.dim); }
    int64_t rows(int64_t count) const { return sequences.tokens() * count * heads.dim; }
    int64_t cache() const { return sequences.blocks * heads.kv_heads * sequences.block * heads.dim; }
    void copy(Values<float> &to, int64_t at, const Values<float> &from) const {
        std::memcpy(to.bytes() + bytes(at), from.bytes(), from.byte_count());
    }
    // f(where a token's head is in the cache of all, where it is in its own), for each head.
    template <class Function>
    bool move_token(int64_t sequence, int64_t position, Function f) const {
        const int64_t place = sequences.place(sequence, position), block = sequences.block;
        bool good = true;
        for (int64_t head = 0; head < heads.kv_heads; ++head)
            good = f(((place / block * heads.kv_heads + head) * block + place % block) * heads.dim,
                     alone[static_cast<size_t>(sequence)]->cached_at(0, head, position)) && good;
        return good;
    }
};

// A prompt, pieces of prompts and single tokens, on both sides of what is cut.
const std::vector<Sequence> ALL = {{1, 699}, {130, 0}, {5, 0}, {1, 0}, {1, 63}, {1, 64}, {3, 600}, {16, 1030}, {17, 500}, {1, 1100}, {40, 90}};

bool mixtures() {
    const Shape kinds[] = {
        {0, 0, 0, 2, 2, 64, 0, 0, 0}, {0, 0, 0, 4, 2, 80, 0, 0, 1},         {0, 0, 0, 4, 1, 128, 0, 100, 0},
        {0, 0, 0, 8, 1, 18, 0, 0, 1},  {0, 0, 0, 2, 1, 256, 0, 300, 0, 20},
        {0, 0, 0, 4, 2, 24, 0, 0, 3, 0, 100, 16, true, true},
    };
    const int64_t taken = Sequences(ALL, 64).blocks;
    std::vector<int32_t> shuffled;  // 37 is prime to the number of blocks, two of which nobody has
    for (int64_t i = 0; i < taken + 2; ++i) shuffled.push_back(static_cast<int32_t>(i * 37 % (taken + 2)));
    for (const Shape &kind : kinds)
        for (const bool paged : {true, false}) {
            Mixture m(kind, ALL, paged ? 64 : 1101, paged ? shuffled : std::vector<int32_t>());
            for (const auto &one : m.alone)
                if (isobit_cpu_attention(&one->a)) return false;
            const std::vector<uint8_t> before(m.q.bytes(), m.q.bytes() + m.q.byte_count());
            for (const int threads : {1, 2, 5}) {
                std::memcpy(m.q.bytes(), before.data(), before.size());
                isobit_cpu_set_threads(threads);
                const int failed = isobit_cpu_attention(&m.a);
                isobit_cpu_set_threads(2);
                if (failed || !m.same())
                    return std::printf("%d heads on %d of %d, %s, %d threads\n", int(kind.heads), int(kind.kv_heads), int(kind.dim),
                                       paged ? "blocks" : "one piece", threads),
                           false;
            }
        }
    return true;
}

// Padding is not stored and gives zeros, and a sequence without new tokens, whose blocks nobody knows, is left alone.
bool padding() {
    const Shape shape{3, 2, 70, 4, 2, 24, 0, 0, 1};
    const uint32_t seed = state();
    Attention whole(shape);
    state() = seed;
    Attention padded(shape);
    if (isobit_cpu_attention(&whole.a)) return false;
    padded.sequences.lengths.put(1, 0);
    for (const int64_t token : {2, 3}) padded.sequences.slots.put(token, -1);
    const Values<float> &keys = padded.keys;
    const float before = keys[padded.cached_at(1, 0, 70)];
    if (isobit_cpu_attention(&padded.a)) return false;
    const int64_t row = 4 * 24;
    for (int64_t i = 0; i < padded.out.size(); ++i) {
        const bool empty = i / row == 2 || i / row == 3;
        if (empty ? padded.out[i] != 0 : !same_bits(padded.out, i, whole.out, i, 1)) return std::puts("what padding gives"), false;
    }
    if (!std::isnan(before) || !std::isnan(keys[padded.cached_at(1, 0, 70)])) return std::puts("padding was stored"), false;
    state() = seed;
    Attention idle(shape);
    const Values<int32_t> &table = idle.sequences.table;
    idle.sequences.starts.put(2, 2), idle.sequences.starts.put(3, 4), idle.sequences.table.put(1, 1000000);  // of four tokens, two sequences
    for (const int64_t token : {2, 3}) idle.sequences.slots.put(token, idle.sequences.slots[token + 2]);
    idle.a.sequences.tokens = 4;
    for (int64_t i = 0; i < 2 * row; ++i) idle.q.put(2 * row + i, idle.q[4 * row + i]);
    for (int64_t i = 0; i < 2 * 48; ++i) idle.k.put(2 * 48 + i, idle.k[4 * 48 + i]), idle.v.put(2 * 48 + i, idle.v[4 * 48 + i]);
    for (int64_t i = 0; i < 2 * 24; ++i) idle.cos.put(2 * 24 + i, idle.cos[4 * 24 + i]), idle.sin.put(2 * 24 + i, idle.sin[4 * 24 + i]);
    if (isobit_cpu_attention(&idle.a) || table[1] != 1000000) return std::puts("a sequence without new tokens"), false;
    return same_bits(idle.out, 0, whole.out, 0, 2 * row) && same_bits(idle.out, 2 * row, whole.out, 4 * row, 2 * row);
}

// What lies before a window is not looked at: its blocks may be anybody's by now.
bool forgotten() {
    const Shape shape{1, 2, 700, 2, 1, 32, 0, 100, 0};
    Mixture m(shape, {{2, 700}, {1, 300}}, 64, {});
    for (const auto &one : m.alone)
        if (isobit_cpu_attention(&one->a)) return false;
    Values<int32_t> table(m.sequences.table.size());
    std::memcpy(table.bytes(), m.sequences.table.bytes(), table.byte_count());
    for (int64_t at = 0; at < 9; ++at) table.put(at, at % 2 ? -1 : 1000000);  // tokens 601 and later are seen, of block 9
    m.a.sequences.table = table.data();
    if (isobit_cpu_attention(&m.a)) return false;
    const int64_t row = 2 * 32;
    return same_bits(m.out, 0, m.alone[0]->out, 0, 2 * row) && same_bits(m.out, 2 * row, m.alone[1]->out, 0, row);
}

// Every format of a cache: what is stored of new tokens, and what is read of all, at odd addresses as well.
bool formats() {
    const Shape shapes[] = {{1, 3, 130, 4, 2, 64, 0, 0, 1}, {1, 1, 700, 2, 2, 80, 5, 0, 0}, {2, 20, 50, 3, 1, 22, 1, 40, 0}, {1, 2, 70, 2, 1, 512, 0, 0, 0}};
    for (const Form &form : FORMS)
        for (const Shape &s : shapes) {
            const uint32_t seed = state();
            for (const size_t shift : {0, 3}) {
                state() = seed;
                Attention t(s, 0, shift), before(s, 0, shift);
                const int64_t rows = s.batch * s.kv_heads * t.capacity;
                KeptPart keys(form, rows, s.dim, shift), values(form, rows, s.dim, shift);
                t.a.held = held_in(keys, values);
                if (isobit_cpu_attention(&t.a)) return false;
                for (int64_t i = 0; i < t.keys.size(); ++i)
                    t.keys.put(i, static_cast<float>(keys.at(i / s.dim, i % s.dim))), t.values.put(i, static_cast<float>(values.at(i / s.dim, i % s.dim)));
                bool good = attends(t);
                for (int64_t row = 0; row < s.batch * s.tokens; ++row)
                    for (int64_t head = 0; head < s.kv_heads; ++head) {
                        const int64_t from = t.new_at(row, head), to = t.cached_at(row / s.tokens, head, s.past + row % s.tokens);
                        std::vector<double> value;
                        for (int64_t d = 0; d < s.dim; ++d) value.push_back(t.v[from + d]);
                        good = good && near(value, t.values, to, form.bits() == 4 ? 0.2 : 0.06);
                    }
                if (!good) return std::printf("format %d, groups of %d, dim %d, shift %d\n", form.format, int(form.group), int(s.dim), int(shift)), false;
            }
        }
    return true;
}

const Check CHECKS[] = {
    {"formats", formats},
    {"all shapes", all_shapes}, {"NaN", nan_stays}, {"mixtures", mixtures}, {"padding", padding}, {"forgotten blocks", forgotten},
};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return run_all(isa, "attention", CHECKS); });
}
