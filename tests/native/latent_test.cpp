// Latent attention on every instruction set, in exact memory and at odd addresses: against float64, sequences together and alone, tokens at
// once and one by one, every format of a cache, layers in one call and call by call; and what is refused. Options: isas.h.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "attentions.h"
#include "isas.h"
#include "kept.h"
#include "linears.h"

using namespace test;

namespace {

struct Sizes {
    int64_t heads, plain, rotated, value, rank;
    bool interleaved;
    int64_t query() const { return plain + rotated; }
};

const Sizes SIZES[] = {{1, 8, 2, 3, 5, true}, {3, 6, 4, 5, 7, false}, {4, 32, 16, 24, 48, true}, {6, 16, 64, 32, 512, true}};

// The matrices of all heads: those that take queries to latents, and values from them.
struct Matrices {
    const Sizes s;
    Linear keys, values;
    Values<float> norm;
    isobit_latent of{};

    Matrices(const Sizes &sizes, int32_t format, size_t shift)
        : s(sizes), keys(case_of(format, ISOBIT_ACT_NONE), s.heads * s.rank, s.plain, 0, shift),
          values(case_of(format, ISOBIT_ACT_NONE), s.heads * s.value, s.rank, 0, shift), norm(s.rank, shift) {
        fill(norm);
        const auto put = [&](isobit_grouped &to, const Linear &from, int64_t n) {
            to.of = from.w, to.of.n = n, to.of.bias = nullptr, to.of.alike = 1, to.experts = s.heads, to.stride = n;
            if (!to.of.block_rows) to.of.block_rows = 1;
        };
        put(of.keys, keys, s.rank), put(of.values, values, s.value);
        of.kv_norm = {norm.data(), nullptr, 1e-6f, ISOBIT_RMS}, of.plain = s.plain, of.rotated = s.rotated;
    }
};

// One call: new tokens behind what the cache has.
struct Call {
    const Matrices &m;
    const Sizes &s;
    Sequences sequences;
    const int64_t rows, places;
    Values<float> q, kv, cos, sin, out;
    KeptPart latents, keys;
    isobit_latent_attention a{};

    Call(const Matrices &of, const std::vector<Sequence> &all, int64_t block, const Form &form, size_t shift = 0, int64_t gap = 0)
        : m(of), s(of.s), sequences(all, block), rows(sequences.tokens()), places(sequences.blocks * block),
          q(rows * s.heads * s.query(), shift),
          kv(rows * (s.rank + s.rotated + gap) - gap, shift), cos(rows * s.rotated, shift), sin(rows * s.rotated, shift),
          out(rows * (s.heads * s.value + gap) - gap, shift), latents(form, places, s.rank, shift),
          keys(form, places, s.rotated, shift) {
        for (Values<float> *part : {&q, &kv, &cos, &sin}) fill(*part);
        fill_with(out, NAN);
        a.sequences = sequences.arguments(), a.of = &m.of, a.heads = s.heads, a.value = s.value;
        a.ldkv = s.rank + s.rotated + gap, a.ldo = s.heads * s.value + gap, a.cos = cos.data(), a.sin = sin.data();
        a.q = q.data(), a.kv = kv.data(), a.held = held_in(latents, keys), a.out = out.data();
        a.scale = 0.3f, a.interleaved = s.interleaved;
    }
};

// What a head of a token gives, of queries and of the cache as the call has left them.
std::vector<double> exact(const Call &c, const std::vector<double> &latents, const std::vector<double> &keys, int64_t sequence, int64_t token,
                          int64_t head) {
    const Sizes &s = c.s;
    const int64_t row = c.sequences.starts[sequence] + token, position = c.sequences.of[static_cast<size_t>(sequence)].past + token;
    const auto query = [&](int64_t d) { return static_cast<double>(c.q[(row * s.heads + head) * s.query() + d]); };
    std::vector<double> wide(static_cast<size_t>(s.rank)), scores, found(wide), out(static_cast<size_t>(s.value));
    for (int64_t r = 0; r < s.rank; ++r)
        for (int64_t d = 0; d < s.plain; ++d) wide[static_cast<size_t>(r)] += c.m.keys.weight(head * s.rank + r, d) * query(d);
    for (int64_t key = 0; key <= position; ++key) {
        const int64_t place = c.sequences.place(sequence, key);
        double score = 0;
        for (int64_t r = 0; r < s.rank; ++r) score += wide[static_cast<size_t>(r)] * latents[static_cast<size_t>(place * s.rank + r)];
        for (int64_t d = 0; d < s.rotated; ++d) score += query(s.plain + d) * keys[static_cast<size_t>(place * s.rotated + d)];
        scores.push_back(score * static_cast<double>(c.a.scale));
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double &score : scores) total += score = std::exp(score - highest);
    for (int64_t key = 0; key <= position; ++key)
        for (int64_t r = 0; r < s.rank; ++r)
            found[static_cast<size_t>(r)] += scores[static_cast<size_t>(key)] / total * latents[static_cast<size_t>(c.sequences.place(sequence, key) * s.rank + r)];
    for (int64_t v = 0; v < s.value; ++v)
        for (int64_t r = 0; r < s.rank; ++r) out[static_cast<size_t>(v)] += c.m.values.weight(head * s.value + v, r) * found[static_cast<size_t>(r)];
    return out;
}

bool near(const Call &c) {
    const std::vector<double> latents = c.latents.all(), keys = c.keys.all();
    for (int64_t i = 0; i < c.sequences.count(); ++i)
        for (int64_t token = 0; token < c.sequences.of[static_cast<size_t>(i)].fresh; token += every() * 3 - 2)
            for (int64_t head = 0; head < c.s.heads; ++head) {
                const std::vector<double> wanted = exact(c, latents, keys, i, token, head);
                double wrong = 0, size = 0;
                for (int64_t v = 0; v < c.s.value; ++v) {
                    const double is = c.out[(c.sequences.starts[i] + token) * c.a.ldo + head * c.s.value + v], should = wanted[static_cast<size_t>(v)];
                    wrong += (is - should) * (is - should), size += should * should;
                }
                if (!(wrong <= 1e-10 * size)) return std::printf("token %d of sequence %d: error %g\n", int(token), int(i), std::sqrt(wrong / size)), false;
            }
    return true;
}

const std::vector<Sequence> ALL = {{1, 130}, {70, 3}, {1, 0}, {9, 60}};

bool values() {
    for (const Sizes &s : SIZES)
        for (const int32_t weights : {ISOBIT_F32, ISOBIT_BF16})
            for (const Form &form : FORMS)
                for (const size_t shift : {0, 3}) {
                    if ((form.format == ISOBIT_E2M1 && s.rank % 2) || (weights != ISOBIT_F32 && form.format != ISOBIT_F32)) continue;
                    const Matrices m(s, weights, shift);
                    Call c(m, ALL, 64, form, shift, shift ? 5 : 0);
                    if (isobit_cpu_latent(&c.a) || !near(c)) return std::printf("%d heads, rank %d, format %d, groups of %d\n", int(s.heads), int(s.rank), form.format, int(form.group)), false;
                }
    return true;
}

// The same queries, latents and cache: alone, and on any number of threads.
bool same_bits() {
    for (const Sizes &s : SIZES) {
        const Matrices m(s, ISOBIT_F32, 0);
        const uint32_t seed = state();
        Call together(m, ALL, 192, FORMS[5]);
        if (isobit_cpu_latent(&together.a)) return false;
        for (const int threads : {1, 5}) {
            state() = seed;
            Call again(m, ALL, 192, FORMS[5]);
            isobit_cpu_set_threads(threads);
            const int failed = isobit_cpu_latent(&again.a);
            isobit_cpu_set_threads(2);
            if (failed || !again.out.same(together.out) || !again.latents.numbers.same(together.latents.numbers)) return std::printf("%d threads\n", threads), false;
        }
        // One token at a time, in the cache as it was.
        state() = seed;
        Call single(m, ALL, 192, FORMS[5]);
        Values<float> out(together.out.size());
        for (int64_t i = 0; i < single.sequences.count(); ++i)
            for (int64_t token = 0; token < ALL[static_cast<size_t>(i)].fresh; ++token) {
                const int64_t row = single.sequences.starts[i] + token;
                const int32_t starts[] = {0, 1}, length = static_cast<int32_t>(ALL[static_cast<size_t>(i)].past + token + 1);
                const int64_t slot = single.sequences.slots[row];
                isobit_latent_attention a = single.a;
                a.sequences.count = a.sequences.tokens = 1, a.sequences.starts = starts, a.sequences.lengths = &length, a.sequences.slots = &slot;
                a.sequences.table = single.sequences.table.data() + i * single.sequences.stride;
                a.q += row * s.heads * s.query(), a.kv += row * a.ldkv, a.cos += row * s.rotated, a.sin += row * s.rotated;
                a.out = out.data() + row * a.ldo;
                if (isobit_cpu_latent(&a)) return false;
            }
        if (!out.same(together.out)) return std::puts("one by one"), false;
    }
    return true;
}

// Two layers of latent attention in one call, one with a short vector of queries, and the calls that they are made of.
bool layers() {
    constexpr int64_t hidden = 64, inner = 96, low = 24, rows = 5, past = 66, capacity = 72;
    const Sizes s{4, 32, 16, 24, 48, true};
    const Case &plain = case_of(ISOBIT_BF16, ISOBIT_ACT_NONE), &rounded = case_of(ISOBIT_INT8, ISOBIT_ACT_INT8);
    const Matrices m(s, ISOBIT_F32, 0);
    const Linear q(rounded, s.heads * s.query(), hidden), q_a(plain, low, hidden), q_b(plain, s.heads * s.query(), low), kv(rounded, s.rank + s.rotated, hidden);
    const Linear kv_plain(plain, s.rank + s.rotated, hidden), o(plain, hidden, s.heads * s.value), up(plain, inner, hidden), down(plain, hidden, inner);
    Values<float> weight(hidden), q_norm(low), cos(rows * s.rotated), sin(rows * s.rotated), x(rows * hidden), wanted(rows * hidden);
    Values<float> latents(2 * capacity * s.rank), keys(2 * capacity * s.rotated), latents_by_hand(latents.size()), keys_by_hand(keys.size());
    for (Values<float> *part : {&weight, &q_norm, &cos, &sin, &x, &latents, &keys}) fill(*part);
    std::memcpy(latents_by_hand.bytes(), latents.bytes(), latents.byte_count()), std::memcpy(keys_by_hand.bytes(), keys.bytes(), keys.byte_count());
    std::memcpy(wanted.bytes(), x.bytes(), x.byte_count());
    isobit_latent second = m.of;
    second.q_a = &q_a.w, second.q_norm = {q_norm.data(), nullptr, 1e-6f, ISOBIT_RMS};
    isobit_layer all[2] = {};
    for (int i = 0; i < 2; ++i) {
        isobit_layer &l = all[i];
        l.q = i ? &q_b.w : &q.w, l.k = i ? &kv_plain.w : &kv.w, l.o = &o.w, l.up = &up.w, l.down = &down.w, l.activation = ISOBIT_GELU;
        l.before_attention = l.before_mlp = {weight.data(), nullptr, 1e-5f, ISOBIT_RMS}, l.factor = 1;
        l.heads = s.heads, l.kv_heads = 1, l.dim = s.rank, l.of.scale = 0.2f, l.of.interleaved = 1, l.latent = i ? &second : &m.of;
    }
    const Sequences sequences({{rows, past}}, capacity);
    const isobit_places places{cos.data(), sin.data(), nullptr, s.rotated};
    isobit_step step{};
    step.sequences = sequences.arguments(), step.places = &places, step.kinds_of_places = 1, step.cache_stride = capacity;
    step.held.keys = latents.data(), step.held.values = keys.data();
    if (isobit_cpu_layers(all, 2, &step, x.data())) return false;
    for (int i = 0; i < 2; ++i) {
        const isobit_layer &l = all[i];
        Values<float> normed(rows * hidden), queries(rows * l.q->n), short_ones(rows * low), made(rows * l.k->n), mixed(rows * o.w.k), delta(rows * hidden);
        Values<float> wide(rows * inner);
        if (isobit_cpu_norm(&l.before_attention, wanted.data(), nullptr, 1, rows, hidden, nullptr, normed.data())) return false;
        if (isobit_cpu_linear(l.k, normed.data(), rows, hidden, made.data(), l.k->n)) return false;
        if (i && (isobit_cpu_linear(&q_a.w, normed.data(), rows, hidden, short_ones.data(), low) ||
                  isobit_cpu_norm(&second.q_norm, short_ones.data(), nullptr, 1, rows, low, nullptr, short_ones.data())))
            return false;
        if (isobit_cpu_linear(l.q, i ? short_ones.data() : normed.data(), rows, l.q->k, queries.data(), l.q->n)) return false;
        isobit_latent_attention a{};
        a.sequences = step.sequences, a.of = l.latent, a.heads = s.heads, a.value = s.value, a.ldkv = l.k->n, a.ldo = o.w.k;
        a.cos = cos.data(), a.sin = sin.data(), a.q = queries.data(), a.kv = made.data(), a.out = mixed.data(), a.scale = 0.2f, a.interleaved = 1;
        a.held.keys = latents_by_hand.data() + i * capacity * s.rank, a.held.values = keys_by_hand.data() + i * capacity * s.rotated;
        if (isobit_cpu_latent(&a) || isobit_cpu_linear(&o.w, mixed.data(), rows, o.w.k, delta.data(), hidden)) return false;
        if (isobit_cpu_norm(&l.before_mlp, wanted.data(), delta.data(), 1, rows, hidden, wanted.data(), normed.data())) return false;
        if (isobit_cpu_linear(&up.w, normed.data(), rows, hidden, wide.data(), inner)) return false;
        if (isobit_cpu_gate(ISOBIT_GELU, 0, wide.data(), nullptr, rows, inner, inner, wide.data())) return false;
        if (isobit_cpu_linear(&down.w, wide.data(), rows, inner, delta.data(), hidden)) return false;
        if (isobit_cpu_norm(nullptr, wanted.data(), delta.data(), 1, rows, hidden, wanted.data(), nullptr)) return false;
    }
    if (!x.same(wanted) || !latents.same(latents_by_hand) || !keys.same(keys_by_hand)) return false;
    // What does not fit is refused, and nothing is written.
    const auto refused = [&](const char *what, auto spoil) {
        isobit_layer wrong[2] = {all[0], all[1]};
        isobit_latent of = second;
        wrong[1].latent = &of;
        spoil(wrong[1], of);
        if (isobit_cpu_layers(wrong, 2, &step, x.data()) == 0) return std::printf("%s: accepted\n", what), false;
        return x.same(wanted) && latents.same(latents_by_hand);
    };
    return refused("values beside latents", [&](isobit_layer &l, isobit_latent &) { l.v = &kv.w; }) &&
           refused("a cache of other latents", [](isobit_layer &l, isobit_latent &) { l.dim = 32; }) &&
           refused("two heads in the cache", [](isobit_layer &l, isobit_latent &) { l.kv_heads = 2; }) &&
           refused("no latent attention", [](isobit_layer &l, isobit_latent &) { l.latent = nullptr; }) &&
           refused("no norm of queries", [](isobit_layer &, isobit_latent &of) { of.q_norm = {}; }) &&
           refused("no norm of latents", [](isobit_layer &, isobit_latent &of) { of.kv_norm = {}; }) &&
           refused("another number of heads", [](isobit_layer &, isobit_latent &of) { of.values.experts = 3; }) &&
           refused("another rank", [](isobit_layer &, isobit_latent &of) { of.values.of.k = 40; }) &&
           refused("an odd number is rotated", [](isobit_layer &, isobit_latent &of) { of.rotated = 15; }) &&
           refused("rounded queries", [](isobit_layer &, isobit_latent &of) { of.keys.of.activations = ISOBIT_ACT_INT8; });
}

// One call that is spoiled in one place.
bool refusals() {
    const Matrices m(SIZES[2], ISOBIT_F32, 0);
    Call c(m, {{3, 4}, {2, 0}}, 7, FORMS[8]);
    const Values<float> &out = c.out;
    bool good = true;
    const auto refused = [&](const char *what, auto spoil) {
        isobit_latent_attention a = c.a;
        isobit_latent of = m.of;
        a.of = &of;
        spoil(a, of);
        if (isobit_cpu_latent(&a) == 0) good = false, std::printf("%s: accepted\n", what);
    };
    refused("no latents", [](isobit_latent_attention &a, isobit_latent &) { a.of = nullptr; });
    refused("no heads", [](isobit_latent_attention &a, isobit_latent &) { a.heads = 0; });
    refused("huge heads", [](isobit_latent_attention &a, isobit_latent &) { a.heads = int64_t{1} << 62; });
    refused("another number of heads", [](isobit_latent_attention &a, isobit_latent &) { a.heads = 3; });
    refused("no values", [](isobit_latent_attention &a, isobit_latent &) { a.value = 0; });
    refused("other values", [](isobit_latent_attention &a, isobit_latent &) { a.value = 8; });
    refused("no q", [](isobit_latent_attention &a, isobit_latent &) { a.q = nullptr; });
    refused("no kv", [](isobit_latent_attention &a, isobit_latent &) { a.kv = nullptr; });
    refused("no cosines", [](isobit_latent_attention &a, isobit_latent &) { a.cos = nullptr; });
    refused("no cache", [](isobit_latent_attention &a, isobit_latent &) { a.held.keys = nullptr; });
    refused("no keys", [](isobit_latent_attention &a, isobit_latent &) { a.held.values = nullptr; });
    refused("no scales", [](isobit_latent_attention &a, isobit_latent &) { a.held.key_scales = a.held.value_scales = nullptr; });
    refused("scales of latents alone", [](isobit_latent_attention &a, isobit_latent &) { a.held.value_scales = nullptr; });
    refused("scales of floats", [](isobit_latent_attention &a, isobit_latent &) { a.held.format = ISOBIT_F32; });
    refused("no such format", [](isobit_latent_attention &a, isobit_latent &) { a.held.format = ISOBIT_INT4; });
    refused("groups of no such format", [](isobit_latent_attention &a, isobit_latent &) { a.held.format = ISOBIT_INT8; });
    refused("e2m1 without groups", [](isobit_latent_attention &a, isobit_latent &) { a.held.group = 0, a.held.key_groups = a.held.value_groups = nullptr; });
    refused("groups of 24", [](isobit_latent_attention &a, isobit_latent &) { a.held.group = 24; });
    refused("groups of -16", [](isobit_latent_attention &a, isobit_latent &) { a.held.group = -16; });
    refused("huge groups", [](isobit_latent_attention &a, isobit_latent &) { a.held.group = INT64_MAX - 15; });
    refused("no groups of keys", [](isobit_latent_attention &a, isobit_latent &) { a.held.key_groups = nullptr; });
    refused("no groups of values", [](isobit_latent_attention &a, isobit_latent &) { a.held.value_groups = nullptr; });
    refused("no format of groups", [](isobit_latent_attention &a, isobit_latent &) { a.held.group_format = ISOBIT_F32; });
    refused("powers of two under others", [](isobit_latent_attention &a, isobit_latent &) { a.held.group_format = ISOBIT_E8M0; });
    refused("short tokens", [](isobit_latent_attention &a, isobit_latent &) { --a.ldkv; });
    refused("short results", [](isobit_latent_attention &a, isobit_latent &) { --a.ldo; });
    refused("far tokens", [](isobit_latent_attention &a, isobit_latent &) { a.ldkv = int64_t{1} << 62; });
    refused("a scale that is no number", [](isobit_latent_attention &a, isobit_latent &) { a.scale = NAN; });
    refused("no tokens", [](isobit_latent_attention &a, isobit_latent &) { a.sequences.tokens = 0; });
    refused("blocks that are too small", [](isobit_latent_attention &a, isobit_latent &) { a.sequences.block = 3; });
    refused("fewer blocks", [](isobit_latent_attention &a, isobit_latent &) { a.sequences.blocks = 1; });
    refused("nothing without a position", [](isobit_latent_attention &, isobit_latent &of) { of.plain = 0; });
    refused("nothing with one", [](isobit_latent_attention &, isobit_latent &of) { of.rotated = 0; });
    refused("too wide a latent", [](isobit_latent_attention &, isobit_latent &of) { of.keys.of.n = of.values.of.k = of.kv_norm.kind = 514; });
    refused("no matrices", [](isobit_latent_attention &, isobit_latent &of) { of.keys.of.codes = nullptr; });
    for (int64_t i = 0; i < out.size(); ++i) good = std::isnan(out[i]) && good;
    return good && isobit_cpu_latent(nullptr) != 0 && !isobit_cpu_latent(&c.a);
}

const Check CHECKS[] = {{"values", values}, {"the same bits", same_bits}, {"layers", layers}, {"what is refused", refusals}};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return run_all(isa, "latent attention", CHECKS); });
}
