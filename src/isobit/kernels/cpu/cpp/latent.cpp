// Latent attention (MLA): what is cached of a token is one short vector that all heads share, and a part of its key that is rotated.
// Queries are taken to the latents and what is found is taken from them to the heads' values, for one token as for a prompt, so that a
// token gives the same bits however many come with it.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "grouped.h"
#include "isobit_cpu.h"
#include "layer.h"
#include "pool.h"

namespace isobit {
namespace {

constexpr int64_t VALUES = 1 << 13;   // values a thread takes at a time: fewer are not worth waking it
constexpr int64_t AT_ONCE = 1 << 22;  // floats of queries in front of the latents, 16 MiB: longer prompts go by parts of their tokens

const char *problem_of_heads(const isobit_grouped &w, int64_t heads, int64_t n, int64_t k) {
    if (const char *why = problem(w)) return why;
    if (w.experts != heads || w.of.n != n || w.of.k != k) return "a matrix of latents does not fit the heads";
    return w.of.activations ? "what goes to latents and from them is not rounded" : nullptr;
}

}  // namespace

const char *problem(const isobit_latent &l, int64_t heads, int64_t value) {
    const int64_t rank = l.keys.of.n;
    if (l.rotated < 2 || l.rotated % 2 || l.plain < 1) return "a query has dimensions without a position, and an even number with one";
    if (rank < 1 || rank > LARGEST_HEAD || l.rotated > LARGEST_HEAD) return "a latent has up to 512 dimensions, and so has the rotated part";
    if (l.plain > LARGEST / heads - l.rotated || value > LARGEST / heads) return "sizes overflow";
    if (const char *why = problem_of_heads(l.keys, heads, rank, l.plain)) return why;
    if (const char *why = problem_of_heads(l.values, heads, value, rank)) return why;
    if (!l.kv_norm.weight) return "latents have a norm";
    return problem(l.kv_norm);
}

const char *problem(const isobit_latent_attention &a) {
    if (!a.of || a.heads < 1 || a.value < 1 || a.heads > LARGEST) return "a null pointer, or no heads";
    const isobit_sequences &s = a.sequences;
    if (const char *why = problem_of_sizes(s)) return why;
    if (const char *why = problem(*a.of, a.heads, a.value)) return why;
    const int64_t rank = a.of->keys.of.n, query = a.of->plain + a.of->rotated;
    if (s.tokens > std::numeric_limits<int32_t>::max() / a.heads) return "sizes overflow";
    if (s.block > LARGEST / LARGEST_HEAD || s.blocks > FARTHEST / (s.block * LARGEST_HEAD)) return "sizes overflow";
    const int64_t farthest = FARTHEST / s.tokens;
    if (a.ldkv > farthest || a.ldo > farthest || a.heads * query > farthest) return "sizes overflow";
    if (a.ldkv < rank + a.of->rotated || a.ldo < a.heads * a.value) return "tokens overlap: a stride is shorter than what a token has";
    if (!a.q || !a.kv || !a.cos || !a.sin || !a.out) return "a null pointer";
    if (!std::isfinite(a.scale)) return "the scale of scores is not a number";
    return problem(a.held, rank, a.of->rotated);
}

namespace {

// Rotates; neighbours come out as halves.
void turn(const LayerIsa &isa, const isobit_latent_attention &a, int64_t token, const float *x, float *out) {
    const int64_t rotated = a.of->rotated, half = rotated / 2;
    const Loose *const from = x;
    float halves[LARGEST_HEAD];
    const isobit_heads plainly{};
    for (int64_t i = 0; a.interleaved && i < half; ++i) halves[i] = from[2 * i], halves[half + i] = from[2 * i + 1];
    isa.prepare(plainly, a.interleaved ? halves : x, nullptr, 1, a.cos + token * rotated, a.sin + token * rotated, rotated, out);
}

// Numbers of one token to their place in a cache.
void put(const LayerIsa &isa, const Kept &to, const float *x, int64_t dim, int64_t slot) {
    if (to.format == ISOBIT_F32) std::memcpy(to.row(slot, dim), x, static_cast<size_t>(dim) * 4);
    else isa.put_cached(to, x, dim, slot);
}

// Queries rotated in place; latents normed, keys rotated, and both put into the cache.
void prepare(const LayerIsa &isa, const isobit_latent_attention &a) {
    const isobit_latent &l = *a.of;
    const int64_t rank = l.keys.of.n, query = l.plain + l.rotated;
    parallel(a.sequences.tokens, std::max<int64_t>(1, VALUES / (a.heads * l.rotated + rank)), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const int64_t slot = a.sequences.slots[at];
            if (slot < 0) continue;
            for (int64_t head = 0; head < a.heads; ++head) {
                float *const part = a.q + (at * a.heads + head) * query + l.plain;
                turn(isa, a, at, part, part);
            }
            float numbers[LARGEST_HEAD];
            isa.norm(&l.kv_norm, a.kv + at * a.ldkv, nullptr, 1, rank, nullptr, numbers);
            put(isa, keys_of(a.held), numbers, rank, slot);
            turn(isa, a, at, a.kv + at * a.ldkv + rank, numbers);
            put(isa, values_of(a.held), numbers, l.rotated, slot);
        }
    });
}

// Tokens from `first` on, `count` of them.
struct Part {
    int64_t first, count;
};

// Which of all sequences' tokens are in a part: starts and lengths as if these were the only new ones.
isobit_sequences within(const isobit_sequences &s, const Part &part, std::vector<int32_t> &memory) {
    memory.resize(static_cast<size_t>(2 * s.count + 1));
    int32_t *const starts = memory.data(), *const lengths = starts + s.count + 1;
    const auto place = [&](int64_t token) { return static_cast<int32_t>(std::clamp<int64_t>(token - part.first, 0, part.count)); };
    for (int64_t i = 0; i <= s.count; ++i) starts[i] = place(s.starts[i]);
    for (int64_t i = 0; i < s.count; ++i)
        lengths[i] = s.lengths[i] ? s.lengths[i] - static_cast<int32_t>(s.starts[i + 1] - part.first - starts[i + 1]) : 0;
    isobit_sequences of = s;
    of.tokens = part.count, of.starts = starts, of.lengths = lengths, of.slots = s.slots + part.first;
    return of;
}

// A product of each head's rows, which lie [tokens, heads] at x, by its matrix: to y [heads, tokens].
void by_head(const isobit_grouped &w, int64_t heads, int64_t tokens, const float *x, int64_t ldx, float *y) {
    std::vector<int32_t> rows(static_cast<size_t>(heads * tokens));
    std::vector<Group> groups;
    for (int64_t head = 0; head < heads; ++head) {
        groups.push_back({head, head * tokens, tokens});
        for (int64_t t = 0; t < tokens; ++t) rows[static_cast<size_t>(head * tokens + t)] = static_cast<int32_t>(t * heads + head);
    }
    const isobit_grouped *const all[] = {&w};
    float *const to[] = {y};
    const int64_t ldy[] = {w.of.n};
    grouped(all, 1, groups, {x, ldx, rows.data(), heads * tokens}, to, ldy);
}

// Into how many parts heads are divided for the threads, where there are few tokens.
int64_t divisions(int64_t heads, int64_t tokens) {
    int64_t parts = 1;
    while (parts < heads && parts * tokens < threads()) {
        ++parts;
        while (heads % parts) ++parts;
    }
    return parts;
}

void attend(const isobit_latent_attention &a, const Part &part, Buffer &memory, std::vector<int32_t> &sequences) {
    const isobit_latent &l = *a.of;
    const int64_t rank = l.keys.of.n, query = l.plain + l.rotated, rows = a.heads * part.count;
    const float *const q = a.q + part.first * a.heads * query;
    float *const queries = memory.floats(2 * round_up(rows * rank, 16) + rows * a.value), *const found = queries + round_up(rows * rank, 16);
    float *const out = a.out + part.first * a.ldo, *const made = part.count == 1 ? out : found + round_up(rows * rank, 16);
    by_head(l.keys, a.heads, part.count, q, query, queries);
    isobit_attention over{};
    over.sequences = within(a.sequences, part, sequences);
    over.of.scale = a.scale, over.heads = a.heads, over.kv_heads = divisions(a.heads, part.count), over.dim = rank;
    over.ldo = a.heads * rank, over.q = queries, over.out = found;
    over.held = a.held;
    attention(over, {q + l.plain, a.heads * query, query, l.rotated, values_of(a.held)});
    by_head(l.values, a.heads, part.count, found, rank, made);
    for (int64_t t = 0; t < part.count; ++t) {
        if (over.sequences.slots[t] < 0) std::memset(out + t * a.ldo, 0, static_cast<size_t>(a.heads * a.value) * 4);
        else if (made != out)
            for (int64_t head = 0; head < a.heads; ++head)
                std::memcpy(out + t * a.ldo + head * a.value, made + (head * part.count + t) * a.value, static_cast<size_t>(a.value) * 4);
    }
}

}  // namespace

void latent(const isobit_latent_attention &a) {
    static thread_local Buffer memory;
    static thread_local std::vector<int32_t> sequences;
    prepare(current_layer(), a);
    const int64_t tokens = a.sequences.tokens, most = std::max<int64_t>(16, AT_ONCE / (a.heads * a.of->keys.of.n));
    for (int64_t first = 0; first < tokens; first += most) attend(a, {first, std::min(most, tokens - first)}, memory, sequences);
}

}  // namespace isobit

using namespace isobit;

extern "C" __attribute__((visibility("default"))) int isobit_cpu_latent(const isobit_latent_attention *a) {
    if (!a) return fail("a null pointer");
    return guarded([&] {
        const char *why = problem(*a);
        const Sight all{};
        if (!why) why = problem(a->sequences, &all, 1);
        if (why) return fail(why);
        latent(*a);
        return 0;
    });
}
