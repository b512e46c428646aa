// The parts of a decoder layer beside its linears: checks, and the division of work among threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <vector>

#include "isobit_cpu.h"
#include "layer.h"
#include "pool.h"

namespace isobit {
namespace {

const LayerIsa *const LAYERS[] = {
#ifdef ISOBIT_AVX512
    &avx512_layer,
#endif
#ifdef ISOBIT_AVX2
    &avx2_layer,
#endif
#ifdef ISOBIT_NEON
    &neon_layer,
#endif
    &portable_layer,
};

// That of the instruction set in use.
const LayerIsa &current_layer() {
    const char *name = isobit_cpu_isa();
    for (const LayerIsa *layer : LAYERS)
        if (!std::strcmp(layer->name, name)) return *layer;
    return portable_layer;
}

constexpr int64_t VALUES = 1 << 13;   // values a thread takes at a time: fewer are not worth waking it
constexpr int64_t PRODUCTS = 1 << 17; // the same for multiplications of attention
constexpr int64_t ROWS = 96;          // query rows of a piece: what is read of the keys serves all of them
constexpr int64_t FEW_TOKENS = 16;    // up to here chunks of keys are shared out among threads, beyond the queries are enough
constexpr int64_t CHUNK = 512;        // keys of a chunk: a token's sums are those of chunks, merged

}  // namespace

const char *problem(const isobit_attention &a) {
    if (a.batch < 1 || a.tokens < 1 || a.past < 0 || a.heads < 1 || a.kv_heads < 1 || a.window < 0) return "sizes must be positive";
    if (a.heads % a.kv_heads) return "query heads are not a multiple of key-value heads";
    if (a.dim < 2 || a.dim % 2 || a.dim > LARGEST_HEAD) return "a head has an even number of dimensions, from 2 to 512";
    if (a.past > LARGEST || a.tokens > LARGEST || a.past + a.tokens > a.capacity) return "the cache has no room for these tokens";
    if (a.heads > LARGEST / a.dim || a.capacity > LARGEST / a.dim / a.kv_heads || a.batch > LARGEST / a.tokens) return "sizes overflow";
    if (a.batch > FARTHEST / (a.kv_heads * a.capacity * a.dim)) return "sizes overflow";
    const int64_t farthest = FARTHEST / (a.batch * a.tokens);
    if (a.ldq > farthest || a.ldk > farthest || a.ldv > farthest || a.ldo > farthest) return "sizes overflow";
    if (a.ldq < a.heads * a.dim || a.ldo < a.heads * a.dim || a.ldk < a.kv_heads * a.dim || a.ldv < a.kv_heads * a.dim)
        return "tokens overlap: a stride is shorter than the heads of a token";
    if (!a.q || !a.k || !a.v || !a.cos || !a.sin || !a.keys || !a.values || !a.out) return "a null pointer";
    if (!a.q_norm != !a.k_norm) return "there is a norm of queries or of keys only";
    return nullptr;
}

namespace {

// Queries rotated in place; keys rotated and values copied into the cache.
void prepare(const LayerIsa &isa, const isobit_attention &a) {
    const int64_t row = (a.heads + 2 * a.kv_heads) * a.dim;
    parallel(a.batch * a.tokens, std::max<int64_t>(1, VALUES / row), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const int64_t sequence = at / a.tokens, token = at % a.tokens;
            const float *cos = a.cos + token * a.dim, *sin = a.sin + token * a.dim;
            for (int64_t head = 0; head < a.heads; ++head) {
                float *q = a.q + at * a.ldq + head * a.dim;
                isa.rotate(q, a.q_norm, a.eps, cos, sin, a.dim, q);
            }
            for (int64_t head = 0; head < a.kv_heads; ++head) {
                const int64_t to = ((sequence * a.kv_heads + head) * a.capacity + a.past + token) * a.dim;
                isa.rotate(a.k + at * a.ldk + head * a.dim, a.k_norm, a.eps, cos, sin, a.dim, a.keys + to);
                std::memcpy(a.values + to, a.v + at * a.ldv + head * a.dim, static_cast<size_t>(a.dim) * 4);
            }
        }
    });
}

// How an attention is cut: blocks of tokens, and chunks of keys, which begin at the same keys whatever is asked for, so that a token's
// result does not depend on how many tokens come with it.
struct Plan {
    int64_t group, tokens, blocks, first, chunks, rows, padded;

    explicit Plan(const LayerIsa &isa, const isobit_attention &a) {
        group = a.heads / a.kv_heads;
        tokens = std::max<int64_t>(1, std::min(a.tokens, ROWS / group));
        blocks = (a.tokens + tokens - 1) / tokens;
        first = first_key(a, 0) / CHUNK;
        chunks = (a.past + a.tokens + CHUNK - 1) / CHUNK - first;
        rows = tokens * group;
        padded = isa.padded_dim(a.dim);
    }

    // The block of keys that the window of a token begins in.
    static int64_t first_key(const isobit_attention &a, int64_t token) {
        const int64_t begin = a.window ? a.past + token + 1 - a.window : 0;
        return begin > 0 ? begin / KEYS * KEYS : 0;
    }

    // A block of tokens of the heads of one key-value head, with all keys; later tokens, which see more keys, come first.
    Piece piece(const isobit_attention &a, int64_t at) const {
        Piece p;
        const int64_t block = blocks - 1 - at / (a.batch * a.kv_heads), head = at % (a.batch * a.kv_heads);
        p.sequence = head / a.kv_heads, p.kv_head = head % a.kv_heads;
        p.first = block * tokens, p.tokens = std::min(tokens, a.tokens - p.first);
        p.begin = first_key(a, p.first);
        p.end = a.past + p.first + p.tokens;
        return p;
    }

    // Its part in one chunk; false if it has none.
    bool part(Piece &p, int64_t chunk) const {
        p.begin = std::max(p.begin, (first + chunk) * CHUNK);
        p.end = std::min(p.end, (first + chunk + 1) * CHUNK);
        return p.begin < p.end;
    }

    int64_t partial_size() const { return rows * (padded + 2); }
    Partial partial(float *memory, int64_t at) const {
        float *out = memory + at * partial_size();
        return {out, out + rows * padded, out + rows * (padded + 1)};
    }
};

// Merges the parts of a piece that lie one after the other.
void finish(const LayerIsa &isa, const isobit_attention &a, const Plan &plan, const Piece &p, const Partial *parts, int64_t count) {
    for (int64_t row = 0; row < p.tokens * plan.group; ++row) {
        const int64_t token = p.sequence * a.tokens + p.first + row / plan.group;
        const int64_t head = p.kv_head * plan.group + row % plan.group;
        isa.merge(parts, count, row, a.dim, a.out + token * a.ldo + head * a.dim);
    }
}

// Whole pieces: each thread attends to chunk after chunk and merges them.
void attend_whole(const LayerIsa &isa, const isobit_attention &a, const Plan &plan) {
    const int64_t work = plan.rows * (a.past + a.tokens) * a.dim;
    parallel(a.batch * a.kv_heads * plan.blocks, std::max<int64_t>(1, PRODUCTS / work), [&](int64_t begin, int64_t end) {
        static thread_local Buffer own;
        static thread_local std::vector<Partial> parts;
        float *memory = own.floats(plan.chunks * plan.partial_size());
        for (int64_t at = begin; at < end; ++at) {
            parts.clear();
            for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
                Piece p = plan.piece(a, at);
                if (!plan.part(p, chunk)) continue;
                parts.push_back(plan.partial(memory, chunk));
                isa.attend(a, p, parts.back());
            }
            finish(isa, a, plan, plan.piece(a, at), parts.data(), static_cast<int64_t>(parts.size()));
        }
    });
}

// Few tokens, whose pieces are not enough for all threads: chunks are attended to on their own.
void attend_chunks(const LayerIsa &isa, const isobit_attention &a, const Plan &plan) {
    static thread_local Buffer shared;
    static thread_local std::vector<Partial> kept;
    std::vector<Partial> &parts = kept;
    const int64_t pieces = a.batch * a.kv_heads * plan.blocks, work = plan.rows * CHUNK * a.dim;
    float *memory = shared.floats(pieces * plan.chunks * plan.partial_size());
    parallel(pieces * plan.chunks, std::max<int64_t>(1, PRODUCTS / work), [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            Piece p = plan.piece(a, at / plan.chunks);
            if (plan.part(p, at % plan.chunks)) isa.attend(a, p, plan.partial(memory, at));
        }
    });
    for (int64_t at = 0; at < pieces; ++at) {
        parts.clear();
        for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
            Piece p = plan.piece(a, at);
            if (plan.part(p, chunk)) parts.push_back(plan.partial(memory, at * plan.chunks + chunk));
        }
        finish(isa, a, plan, plan.piece(a, at), parts.data(), static_cast<int64_t>(parts.size()));
    }
}

void run_attention(const LayerIsa &isa, const isobit_attention &a) {
    const Plan plan(isa, a);
    if (a.tokens <= FEW_TOKENS && plan.chunks > 1) attend_chunks(isa, a, plan);
    else attend_whole(isa, a, plan);
}

// Runs `body` and turns what it throws into an error code.
template <class Body>
int guarded(Body body) {
    try {
        body();
        return 0;
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" {

#define ISOBIT_EXPORT __attribute__((visibility("default")))

ISOBIT_EXPORT int isobit_cpu_rms_norm(const float *x, const float *delta, const float *weight, float eps, int64_t rows,
                                      int64_t k, float *sum, float *y) {
    if (!x || rows < 0 || k < 1 || rows > LARGEST / k) return fail("an argument is out of range");
    if ((delta && !sum) || (y && !weight) || (!y && !delta)) return fail("a null pointer");
    const LayerIsa &isa = current_layer();
    return guarded([&] {
        parallel(rows, std::max<int64_t>(1, VALUES / k), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                isa.norm(x + row * k, delta ? delta + row * k : nullptr, weight, eps, k, sum ? sum + row * k : nullptr,
                         y ? y + row * k : nullptr);
        });
    });
}

ISOBIT_EXPORT int isobit_cpu_silu_mul(const float *gate, const float *up, int64_t rows, int64_t k, int64_t ldx, float *y) {
    if (!gate || !up || !y || rows < 0 || k < 1 || ldx < k || rows > LARGEST / ldx) return fail("an argument is out of range");
    const LayerIsa &isa = current_layer();
    return guarded([&] {
        parallel(rows, std::max<int64_t>(1, VALUES / k), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) isa.gate(gate + row * ldx, up + row * ldx, k, y + row * k);
        });
    });
}

ISOBIT_EXPORT int isobit_cpu_exp(const float *x, int64_t count, float *y) {
    if (!x || !y || count < 0) return fail("an argument is out of range");
    current_layer().exp(x, count, y);
    return 0;
}

ISOBIT_EXPORT int isobit_cpu_attention(const isobit_attention *a) {
    if (!a) return fail("a null pointer");
    if (const char *why = problem(*a)) return fail(why);
    const LayerIsa &isa = current_layer();
    return guarded([&] {
        prepare(isa, *a);
        run_attention(isa, *a);
    });
}

}  // extern "C"
