// Attention of ragged batches over a cache in blocks: checks, and the division of work among threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "isobit_cpu.h"
#include "layer.h"
#include "pool.h"

namespace isobit {
namespace {

constexpr int64_t VALUES = 1 << 13;   // values a thread takes at a time: fewer are not worth waking it
constexpr int64_t PRODUCTS = 1 << 17; // the same for multiplications of attention
constexpr int64_t ROWS = 96;          // query rows of a piece: what is read of the keys serves all of them
constexpr int64_t CHUNK = 512;        // keys of a chunk: a token's sums are those of chunks, merged
constexpr int64_t FEW_TOKENS = 16;    // up to here a piece may be cut into its chunks, whose sums are then kept until all are there
constexpr int64_t SHARES = 8;         // it is, where it is more than one of so many shares of what each thread has to do
constexpr int64_t KEPT = 1 << 26;     // floats of sums from which on no more pieces are cut: 256 MiB

// The block of keys in which begins what a token sees.
int64_t first_key(const Sight &sight, int64_t position) { return sight.first(position) / KEYS * KEYS; }

}  // namespace

// ---- checks ----

const char *problem_of_sizes(const isobit_sequences &s) {
    if (s.count < 1 || s.tokens < 1 || s.table_stride < 1 || s.block < 1 || s.blocks < 1) return "sizes must be positive";
    if (s.tokens > std::numeric_limits<int32_t>::max() || s.table_stride > FARTHEST / s.count) return "sizes overflow";
    if (!s.starts || !s.lengths || !s.table || !s.slots) return "a null pointer";
    return nullptr;
}

namespace {

// New tokens that are stored, `position` the first one's.
const char *problem_of_slots(const isobit_sequences &s, int64_t sequence, int64_t position) {
    for (int64_t token = s.starts[sequence]; token < s.starts[sequence + 1]; ++token, ++position) {
        const int64_t block = s.table[sequence * s.table_stride + position / s.block];
        if (s.slots[token] != block * s.block + position % s.block) return "a slot is not where the table of blocks has its token";
    }
    return nullptr;
}

// The first position that a token sees through any of them.
int64_t first_of(const Sight *sights, int64_t count, int64_t position) {
    int64_t first = position;
    for (int64_t i = 0; i < count; ++i) first = std::min(first, first_key(sights[i], position));
    return first;
}

const char *problem_of_sequence(const isobit_sequences &s, int64_t sequence, const Sight *sights, int64_t count) {
    const int64_t fresh = int64_t{s.starts[sequence + 1]} - s.starts[sequence], length = s.lengths[sequence];
    if (!length) {
        const int64_t *slots = s.slots + s.starts[sequence];
        return std::all_of(slots, slots + fresh, [](int64_t slot) { return slot == -1; }) ? nullptr : "padding has a slot in the cache";
    }
    if (length < fresh) return "a sequence is shorter than its new tokens";
    if (!fresh) return nullptr;
    if ((length - 1) / s.block >= s.table_stride) return "the cache has no room for these tokens: the table has too few blocks";
    if (s.block % KEYS && length > s.block) return "a block of the cache is neither a multiple of 64 tokens nor all of a sequence";
    const int32_t *blocks = s.table + sequence * s.table_stride;
    for (int64_t i = first_of(sights, count, length - fresh) / s.block; i <= (length - 1) / s.block; ++i)
        if (blocks[i] < 0 || blocks[i] >= s.blocks) return "the table names a block that the cache does not have";
    return problem_of_slots(s, sequence, length - fresh);
}

// Whether two places of the table that new tokens are stored in are one block: threads would write to it at the same time.
bool stores_collide(const isobit_sequences &s) {
    static thread_local std::vector<int32_t> blocks;
    blocks.clear();
    for (int64_t i = 0; i < s.count; ++i) {
        const int64_t fresh = s.starts[i + 1] - s.starts[i], length = s.lengths[i];
        if (!length || !fresh) continue;
        const int32_t *of = s.table + i * s.table_stride;
        blocks.insert(blocks.end(), of + (length - fresh) / s.block, of + (length - 1) / s.block + 1);
    }
    std::sort(blocks.begin(), blocks.end());
    return std::adjacent_find(blocks.begin(), blocks.end()) != blocks.end();
}

const char *problem_of_heads(const isobit_heads &of, int64_t dim) {
    if (of.window < 0 || of.chunk < 0) return "sizes must be positive";
    if (of.rotated < 0 || of.rotated % 2 || of.rotated > dim) return "an even number of dimensions of a head is rotated, from 2 to all";
    if (!std::isfinite(of.scale)) return "the scale of scores is not a number";
    if (!(of.softcap >= 0) || std::isinf(of.softcap)) return "the cap of scores is not a positive number, nor 0 for none";
    if (of.qk_norm < ISOBIT_QK_NONE || of.qk_norm > ISOBIT_QK_WIDTH) return "unknown norm of queries and keys";
    if (!of.q_norm != !of.k_norm) return "there is a norm of queries or of keys only";
    if (!of.q_norm != (of.qk_norm == ISOBIT_QK_NONE)) return "norms of queries and keys have weights, and nothing else has";
    return nullptr;
}

}  // namespace

const char *problem(const isobit_cached &c, int64_t first, int64_t second) {
    if (!c.keys || !c.values) return "a null pointer";
    if (c.group < 0 || c.group % 16 || c.group > LARGEST) return "groups of a cache are multiples of 16 numbers";
    const bool codes = c.format == ISOBIT_E4M3FN || c.format == ISOBIT_E2M1;
    if (c.group ? !codes : c.format < ISOBIT_F32 || c.format > ISOBIT_INT8) return "unknown format of a cache";
    if (c.format == ISOBIT_E2M1 && (first % 2 || second % 2)) return "codes that share a byte are of an even number of dimensions";
    if (c.group && c.group_format != ISOBIT_E8M0 && c.group_format != ISOBIT_E4M3FN) return "unknown format of the scales of groups";
    if (!c.group != !c.key_groups || !c.group != !c.value_groups) return "a cache with groups has scales of them for keys and for values, and no other has";
    const bool one = c.group ? c.group_format == ISOBIT_E4M3FN : bits_of(c.format) == 8;
    if (one != (c.key_scales && c.value_scales) || !c.key_scales != !c.value_scales)
        return "a cache of codes has scales of keys and of values, and no other has";
    return nullptr;
}

const char *problem(const isobit_attention &a) {
    if (const char *why = problem_of_sizes(a.sequences)) return why;
    const isobit_sequences &s = a.sequences;
    if (a.heads < 1 || a.kv_heads < 1) return "sizes must be positive";
    if (a.heads % a.kv_heads) return "query heads are not a multiple of key-value heads";
    if (a.dim < 2 || a.dim % 2 || a.dim > LARGEST_HEAD) return "a head has an even number of dimensions, from 2 to 512";
    if (a.heads > LARGEST / a.dim || s.block > LARGEST / a.dim / a.kv_heads) return "sizes overflow";
    if (s.blocks > FARTHEST / (a.kv_heads * s.block * a.dim)) return "sizes overflow";
    const int64_t farthest = FARTHEST / s.tokens;
    if (a.ldq > farthest || a.ldk > farthest || a.ldv > farthest || a.ldo > farthest) return "sizes overflow";
    if (a.ldq < a.heads * a.dim || a.ldo < a.heads * a.dim || a.ldk < a.kv_heads * a.dim || a.ldv < a.kv_heads * a.dim)
        return "tokens overlap: a stride is shorter than the heads of a token";
    if (!a.q || !a.k || !a.v || !a.cos != !a.sin || !a.out) return "a null pointer";
    if (const char *why = problem(a.held, a.dim, a.dim)) return why;
    return problem_of_heads(a.of, a.dim);
}

const char *problem(const isobit_sequences &s, const Sight *sights, int64_t count) {
    if (s.starts[0] != 0 || s.starts[s.count] != s.tokens) return "the sequences do not begin at the first token or do not end at the last one";
    for (int64_t i = 0; i < s.count; ++i)
        if (s.starts[i + 1] < s.starts[i]) return "a sequence ends before it starts";
    for (int64_t i = 0; i < s.count; ++i)
        if (const char *why = problem_of_sequence(s, i, sights, count)) return why;
    return stores_collide(s) ? "two sequences store tokens in the same block of the cache" : nullptr;
}

namespace {

// ---- what comes before the scores ----

// The weights of the norm of one head; NULL where there are none.
const float *weight_of(const isobit_heads &of, const float *weights, int64_t head, int64_t dim) {
    return of.qk_norm == ISOBIT_QK_WIDTH ? weights + head * dim : weights;
}

// Queries normed and rotated in place; keys the same and values copied into the cache; what padding gives.
void prepare(const LayerIsa &isa, const isobit_attention &a) {
    const int64_t width = (a.heads + 2 * a.kv_heads) * a.dim, block = a.sequences.block, rotated = rotated_of(a.of, a.dim);
    const Kept values = values_of(a.held);
    const bool wide = a.of.qk_norm == ISOBIT_QK_WIDTH;
    parallel(a.sequences.tokens, std::max<int64_t>(1, VALUES / width), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const int64_t slot = a.sequences.slots[at];
            if (slot < 0) {
                std::memset(a.out + at * a.ldo, 0, static_cast<size_t>(a.heads * a.dim) * 4);
                continue;
            }
            const float *cos = a.cos ? a.cos + at * rotated : nullptr, *sin = a.cos ? a.sin + at * rotated : nullptr;
            float *const queries = a.q + at * a.ldq;
            const float *const keys = a.k + at * a.ldk;
            const float of_queries = wide ? isa.rms_factor(queries, a.of.eps, a.heads * a.dim) : 1;
            const float of_keys = wide ? isa.rms_factor(keys, a.of.eps, a.kv_heads * a.dim) : 1;
            for (int64_t head = 0; head < a.heads; ++head) {
                float *q = queries + head * a.dim;
                isa.prepare(a.of, q, weight_of(a.of, a.of.q_norm, head, a.dim), of_queries, cos, sin, a.dim, q);
            }
            for (int64_t head = 0; head < a.kv_heads; ++head) {
                const float *const weight = weight_of(a.of, a.of.k_norm, head, a.dim);
                const int64_t row = (slot / block * a.kv_heads + head) * block + slot % block;
                const float *k = keys + head * a.dim, *v = a.v + at * a.ldv + head * a.dim;
                if (a.held.format == ISOBIT_F32) {
                    isa.prepare(a.of, k, weight, of_keys, cos, sin, a.dim, static_cast<float *>(a.held.keys) + row * a.dim);
                    std::memcpy(values.row(row, a.dim), v, static_cast<size_t>(a.dim) * 4);
                    continue;
                }
                float prepared[LARGEST_HEAD];
                isa.prepare(a.of, k, weight, of_keys, cos, sin, a.dim, prepared);
                isa.put_cached(keys_of(a.held), prepared, a.dim, row);
                isa.put_cached(values, v, a.dim, row);
            }
        }
    });
}

// ---- how an attention is cut ----

// Chunks of keys begin at the same positions whatever is asked for, so that a token's result does not depend on what comes with it.
int64_t chunks_of(const Piece &p) { return (p.end - 1) / CHUNK - p.begin / CHUNK + 1; }

Piece chunk_of(Piece p, int64_t number) {
    const int64_t begin = (p.begin / CHUNK + number) * CHUNK;
    p.begin = std::max(p.begin, begin), p.end = std::min(p.end, begin + CHUNK);
    return p;
}

// What a thread takes: a piece with all its keys, or one chunk of it.
struct Task {
    Piece piece;
    int64_t work;  // multiplications of its scores
    int64_t cut;   // of which Cut it is a chunk; -1: of none
    int64_t at;    // where its sums then are
};

// A piece whose chunks are tasks; whoever finishes the last one merges them.
struct Cut {
    Piece piece;
    int64_t at;    // where the sums of the first chunk are
    int64_t left;  // chunks that are not finished
};

struct Plan {
    int64_t group, padded, dim;
    std::vector<Task> tasks;     // the heaviest first, so that the last ones to be finished are short
    std::vector<int64_t> ends;   // of what a thread takes at a time
    std::vector<Cut> cuts;
    int64_t kept = 0;            // floats for the sums of all chunks that are tasks
    std::vector<Task> whole;     // not cut yet

    int64_t partial_size(const Piece &p) const { return p.tokens * group * (padded + 2); }
    Partial partial(float *memory, const Piece &p) const {
        const int64_t rows = p.tokens * group;
        return {memory, memory + rows * padded, memory + rows * (padded + 1)};
    }

    void make(const LayerIsa &isa, const isobit_attention &a) {
        group = a.heads / a.kv_heads, padded = isa.padded_dim(a.dim), dim = a.dim;
        tasks.clear(), ends.clear(), cuts.clear(), whole.clear(), kept = 0;
        int64_t total = 0;
        for (int64_t i = 0; i < a.sequences.count; ++i) add_sequence(a, i);
        for (const Task &t : whole) total += t.work;
        const int64_t shares = threads() > 1 ? threads() * SHARES : 0;
        for (const Task &t : whole)
            if (shares && t.work > total / shares && t.piece.tokens <= FEW_TOKENS && chunks_of(t.piece) > 1 && kept < KEPT) add_chunks(t.piece);
            else tasks.push_back(t);
        const auto heavier = [](const Task &x, const Task &y) { return x.work > y.work; };
        if (!std::is_sorted(tasks.begin(), tasks.end(), heavier)) std::sort(tasks.begin(), tasks.end(), heavier);
        gather();
    }

  private:
    int64_t work_of(const Piece &p) const { return p.tokens * group * (p.end - p.begin) * dim; }

    // Later tokens, which see more keys, come first.
    void add_sequence(const isobit_attention &a, int64_t sequence) {
        const int64_t start = a.sequences.starts[sequence], fresh = a.sequences.starts[sequence + 1] - start;
        const int64_t past = a.sequences.lengths[sequence] - fresh, most = std::max<int64_t>(1, ROWS / group);
        if (!a.sequences.lengths[sequence]) return;
        for (int64_t first = (fresh - 1) / most * most; fresh && first >= 0; first -= most)
            for (int64_t head = 0; head < a.kv_heads; ++head) {
                Piece p{sequence, head, start + first, std::min(most, fresh - first), past + first, 0, 0};
                p.begin = first_key(sight_of(a.of), p.position), p.end = p.position + p.tokens;
                whole.push_back({p, work_of(p), -1, 0});
            }
    }

    void add_chunks(const Piece &p) {
        const int64_t chunks = chunks_of(p), cut = static_cast<int64_t>(cuts.size());
        cuts.push_back({p, kept, chunks});
        for (int64_t i = 0; i < chunks; ++i, kept += partial_size(p)) {
            const Piece chunk = chunk_of(p, i);
            tasks.push_back({chunk, work_of(chunk), cut, kept});
        }
    }

    // Tasks that are not worth waking a thread go together.
    void gather() {
        int64_t work = 0;
        for (size_t i = 0; i < tasks.size(); ++i) {
            if (i && work + tasks[i].work > PRODUCTS) ends.push_back(static_cast<int64_t>(i)), work = 0;
            work += tasks[i].work;
        }
        ends.push_back(static_cast<int64_t>(tasks.size()));
    }
};

// ---- running it ----

// Merges the sums of the chunks of a piece, which lie one behind the other.
void merge_chunks(const LayerIsa &isa, const isobit_attention &a, const Plan &plan, const Piece &p, float *sums) {
    static thread_local std::vector<Partial> parts;
    parts.clear();
    for (int64_t i = 0; i < chunks_of(p); ++i) parts.push_back(plan.partial(sums + i * plan.partial_size(p), p));
    for (int64_t row = 0; row < p.tokens * plan.group; ++row) {
        const int64_t head = p.kv_head * plan.group + row % plan.group;
        float *const out = a.out + (p.row + row / plan.group) * a.ldo + head * a.dim;
        isa.merge(parts.data(), static_cast<int64_t>(parts.size()), row, a.dim, a.of.sinks ? a.of.sinks + head : nullptr, out);
    }
}

// Sums of a piece or a chunk of it.
void sums_of(const LayerIsa &isa, const isobit_attention &a, const Latents *latents, const Piece &p, const Partial &sums) {
    if (latents) isa.attend_latents(a, *latents, p, sums);
    else isa.attend(a, p, sums);
}

void attend_whole(const LayerIsa &isa, const isobit_attention &a, const Latents *latents, const Plan &plan, const Piece &p) {
    static thread_local Buffer own;
    const int64_t chunks = chunks_of(p), size = plan.partial_size(p);
    float *sums = own.floats(chunks * size);
    for (int64_t i = 0; i < chunks; ++i) sums_of(isa, a, latents, chunk_of(p, i), plan.partial(sums + i * size, p));
    merge_chunks(isa, a, plan, p, sums);
}

void attend_all(const LayerIsa &isa, const isobit_attention &a, const Latents *latents) {
    static thread_local Plan kept;
    static thread_local Buffer shared;
    Plan &plan = kept;
    plan.make(isa, a);
    if (plan.tasks.empty()) return;  // nothing but padding
    float *const sums = shared.floats(plan.kept);
    parallel(static_cast<int64_t>(plan.ends.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin ? plan.ends[static_cast<size_t>(begin - 1)] : 0; at < plan.ends[static_cast<size_t>(end - 1)]; ++at) {
            const Task &t = plan.tasks[static_cast<size_t>(at)];
            if (t.cut < 0) {
                attend_whole(isa, a, latents, plan, t.piece);
                continue;
            }
            sums_of(isa, a, latents, t.piece, plan.partial(sums + t.at, t.piece));
            Cut &cut = plan.cuts[static_cast<size_t>(t.cut)];
            if (__atomic_sub_fetch(&cut.left, 1, __ATOMIC_ACQ_REL) == 0) merge_chunks(isa, a, plan, cut.piece, sums + cut.at);
        }
    });
}

}  // namespace

void attention(const isobit_attention &a) {
    const LayerIsa &isa = current_layer();
    prepare(isa, a);
    attend_all(isa, a, nullptr);
}

void attention(const isobit_attention &a, const Latents &l) { attend_all(current_layer(), a, &l); }

}  // namespace isobit

using namespace isobit;

extern "C" __attribute__((visibility("default"))) int isobit_cpu_attention(const isobit_attention *a) {
    if (!a) return fail("a null pointer");
    return guarded([&] {
        const char *why = problem(*a);
        const Sight sight = why ? Sight{} : sight_of(a->of);
        if (!why) why = problem(a->sequences, &sight, 1);
        if (why) return fail(why);
        attention(*a);
        return 0;
    });
}
