// Whole decoder layers in one call, made of the functions of the C interface.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "grouped.h"
#include "isobit_cpu.h"
#include "layer.h"

namespace isobit {
namespace {

// What a layer needs besides the residual stream; rows of the widest layer.
struct Scratch {
    float *normed, *delta, *q, *k, *v, *mixed, *gate, *up, *experts, *weights, *low;
    int32_t *ids;
};

// Outputs of an MLP's first linears; 0 where there is none.
int64_t inner_of(const isobit_layer &l) { return l.up ? l.up->n : 0; }

const char *problem_of_mlp(const isobit_layer &l, int64_t hidden) {
    if (!l.up != !l.down || (!l.up && (l.gate || !l.mixture))) return "a null pointer";
    if (l.mixture) {
        const isobit_mixture &m = *l.mixture;
        if (const char *why = problem(m.router, hidden)) return why;
        if (const char *why = problem(m.experts, hidden)) return why;
        if (m.router.weight->n != m.experts.up.experts) return "a router is of another number of experts";
        if (m.shared_gate && !l.up) return "a gate of no MLP";
    }
    if (!l.up) return nullptr;
    if (l.up->k != hidden || (l.gate && l.gate->k != hidden)) return "a linear does not take the residual stream";
    if (l.down->n != hidden) return "a linear does not give the residual stream";
    if ((l.gate && l.gate->n != l.up->n) || l.down->k != l.up->n) return "the linears of an MLP do not fit each other";
    return nullptr;
}

// Dimensions of a head's value in latent attention; those of all heads come out.
int64_t value_of(const isobit_layer &l) { return l.latent->values.of.n; }

const char *problem_of_latent(const isobit_layer &l, int64_t hidden) {
    const isobit_latent &of = *l.latent;
    if (!l.q || !l.k || !l.o || l.v) return "a null pointer, or a linear for values beside latents";
    if (l.heads < 1 || l.heads > LARGEST || l.kv_heads != 1 || l.dim != of.keys.of.n) return "sizes of latent attention: one head in the cache, as wide as latents";
    if (value_of(l) < 1) return "sizes must be positive";
    if (const char *why = problem(of, l.heads, value_of(l))) return why;
    if (l.k->k != hidden || (of.q_a ? of.q_a : l.q)->k != hidden) return "a linear does not take the residual stream";
    if (of.q_a && (of.q_a->n != l.q->k || !of.q_norm.weight)) return "what queries are made of does not fit";
    if (const char *why = of.q_a ? problem(of.q_norm) : nullptr) return why;
    if (l.o->n != hidden) return "a linear does not give the residual stream";
    if (l.q->n != l.heads * (of.plain + of.rotated) || l.k->n != l.dim + of.rotated || l.o->k != l.heads * value_of(l))
        return "the linears of an attention do not fit its heads";
    return nullptr;
}

const char *problem_of_shapes(const isobit_layer &l, int64_t hidden) {
    if (l.latent) {
        const char *const why = problem_of_latent(l, hidden);
        return why ? why : problem_of_mlp(l, hidden);
    }
    if (!l.q || !l.k || !l.v || !l.o) return "a null pointer";
    if (l.heads < 1 || l.kv_heads < 1 || l.dim < 1) return "sizes must be positive";
    if (l.heads > LARGEST / l.dim || l.kv_heads > LARGEST / l.dim) return "sizes overflow";
    if (l.q->k != hidden || l.k->k != hidden || l.v->k != hidden) return "a linear does not take the residual stream";
    if (l.o->n != hidden) return "a linear does not give the residual stream";
    if (l.q->n != l.heads * l.dim || l.o->k != l.q->n || l.k->n != l.kv_heads * l.dim || l.v->n != l.k->n)
        return "the linears of an attention do not fit its heads";
    return problem_of_mlp(l, hidden);
}

// Memory for `rows` rows; it is given back with `memory`, since that of a long prompt is large.
Scratch scratch_for(const isobit_layer *layers, int64_t count, int64_t rows, Buffer &memory) {
    const int64_t hidden = layers[0].o->n;
    int64_t heads = 0, shared = 0, inner = 0, active = 0, low = 0;
    for (int64_t i = 0; i < count; ++i) {
        heads = std::max({heads, layers[i].q->n, layers[i].o->k});
        if (layers[i].latent && layers[i].latent->q_a) low = std::max(low, layers[i].latent->q_a->n);
        shared = layers[i].k->n > shared ? layers[i].k->n : shared;
        inner = inner_of(layers[i]) > inner ? inner_of(layers[i]) : inner;
        if (layers[i].mixture) active = std::max(active, layers[i].mixture->router.active);
    }
    constexpr int PARTS = 12;
    const int64_t sizes[PARTS] = {hidden, hidden, heads, shared, shared, heads, inner, inner, active ? hidden : 0, active, low, active};
    int64_t total = 0;
    for (int64_t size : sizes) total += round_up(rows * size, 16);
    float *p[PARTS], *next = memory.floats(total);
    for (int i = 0; i < PARTS; ++i) p[i] = next, next += round_up(rows * sizes[i], 16);
    return {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], reinterpret_cast<int32_t *>(p[11])};
}

// What a layer keeps.
isobit_cached held_of(const isobit_step &step, int64_t layer, int64_t first, int64_t second) {
    const int64_t rows = layer * step.cache_stride;
    return together(keys_of(step.held).from(rows, first), values_of(step.held).from(rows, second));
}

isobit_attention attention_of(const isobit_layer &l, const isobit_step &step, int64_t layer, const Scratch &s) {
    const isobit_places &places = step.places[l.places];
    isobit_attention a{};
    a.sequences = step.sequences, a.of = l.of;
    a.heads = l.heads, a.kv_heads = l.kv_heads, a.dim = l.dim;
    a.ldq = a.ldo = l.q->n, a.ldk = a.ldv = l.k->n;
    a.cos = places.cos, a.sin = places.sin, a.factors = places.factors;
    a.q = s.q, a.k = s.k, a.v = s.v, a.out = s.mixed;
    a.held = held_of(step, layer, l.dim, l.dim);
    return a;
}

isobit_latent_attention latent_of(const isobit_layer &l, const isobit_step &step, int64_t layer, const Scratch &s) {
    const isobit_places &places = step.places[l.places];
    isobit_latent_attention a{};
    a.sequences = step.sequences, a.of = l.latent, a.heads = l.heads, a.value = value_of(l);
    a.ldkv = l.k->n, a.ldo = l.o->k, a.cos = places.cos, a.sin = places.sin, a.q = s.q, a.kv = s.k, a.out = s.mixed;
    a.scale = l.of.scale, a.interleaved = l.of.interleaved;
    a.held = held_of(step, layer, l.dim, l.latent->rotated);
    return a;
}

const char *problem_of_norms(const isobit_layer &l) {
    for (const isobit_norm *norm : {&l.before_attention, &l.before_mlp, &l.after_attention, &l.after_mlp})
        if (const char *why = problem(*norm)) return why;
    return std::isfinite(l.factor) ? nullptr : "the factor of what is added is not a number";
}

// Why one of the calls that a layer is made of would be refused. `x` stands for the memory between them, which is not there yet.
const char *problem_of_calls(const isobit_layer &l, const isobit_step &step, int64_t layer, float *x) {
    const int64_t rows = step.sequences.tokens;
    if (const char *why = l.up ? problem_of_gate(l.activation, l.limit, l.gate) : nullptr) return why;
    if (const char *why = problem_of_norms(l)) return why;
    const isobit_linear *const linears[] = {l.q, l.k, l.v, l.o, l.up, l.down, l.gate, l.latent ? l.latent->q_a : nullptr};
    for (const isobit_linear *w : linears)
        if (const char *why = w ? problem(*w, x, rows, w->k, x, w->n) : nullptr) return why;
    if (l.places < 0 || l.places >= step.kinds_of_places) return "a layer asks for positions that the step does not have";
    const isobit_places &places = step.places[l.places];
    const int64_t rotated = l.latent ? l.latent->rotated : rotated_of(l.of, l.dim);
    if (places.cos && places.rotated != rotated) return "the angles of a step are not those of a layer's heads";
    const Scratch memory{x, x, x, x, x, x, x, x, x, x, x, nullptr};
    return l.latent ? problem(latent_of(l, step, layer, memory)) : problem(attention_of(l, step, layer, memory));
}

// How far back the layers see: each way once.
std::vector<Sight> sights_of(const isobit_layer *layers, int64_t count) {
    std::vector<Sight> found;
    for (int64_t i = 0; i < count; ++i)
        if (const Sight sight = layers[i].latent ? Sight{} : sight_of(layers[i].of); std::find(found.begin(), found.end(), sight) == found.end()) found.push_back(sight);
    return found;
}

// x = norm(x), where there is one.
int normed(const isobit_norm &norm, int64_t rows, int64_t hidden, float *x) {
    return norm.weight ? isobit_cpu_norm(&norm, x, nullptr, 1, rows, hidden, nullptr, x) : 0;
}

// The residual stream and what is still to be added to it.
struct Stream {
    float *x;
    const float *delta;  // NULL: nothing
    float factor;
    int64_t rows, hidden;

    // Adds it, and gives what a part reads then: the norm, in `to`, or the stream itself where there is none.
    int read(const isobit_norm &norm, float *to, const float *&from) {
        from = norm.weight ? to : x;
        if (!norm.weight && !delta) return 0;
        const float *const added = delta;
        delta = nullptr;
        return isobit_cpu_norm(&norm, x, added, factor, rows, hidden, added ? x : nullptr, norm.weight ? to : nullptr);
    }
};

// Latent attention up to what its heads give.
int mix_latents(const isobit_layer &l, const isobit_step &step, int64_t i, const float *x, const Scratch &s) {
    const isobit_linear *const q_a = l.latent->q_a, *const first[] = {q_a ? q_a : l.q, l.k};
    float *const outputs[] = {q_a ? s.low : s.q, s.k};
    const int64_t strides[] = {first[0]->n, l.k->n}, rows = step.sequences.tokens;
    if (const int failed = isobit_cpu_linears(first, 2, x, rows, l.k->k, outputs, strides)) return failed;
    if (q_a) {
        if (const int failed = normed(l.latent->q_norm, rows, q_a->n, s.low)) return failed;
        if (const int failed = isobit_cpu_linear(l.q, s.low, rows, l.q->k, s.q, l.q->n)) return failed;
    }
    latent(latent_of(l, step, i, s));  // its arguments have been looked at
    return 0;
}

int mix(const isobit_layer &l, const isobit_step &step, int64_t i, const float *x, const Scratch &s) {
    const isobit_linear *const projections[] = {l.q, l.k, l.v};
    float *const outputs[] = {s.q, s.k, s.v};
    const int64_t strides[] = {l.q->n, l.k->n, l.v->n};
    if (const int failed = isobit_cpu_linears(projections, 3, x, step.sequences.tokens, l.q->k, outputs, strides)) return failed;
    attention(attention_of(l, step, i, s));  // its arguments have been looked at
    return 0;
}

int attend(const isobit_layer &l, const isobit_step &step, int64_t i, const float *x, const Scratch &s) {
    const int64_t rows = step.sequences.tokens;
    if (const int failed = (l.latent ? mix_latents : mix)(l, step, i, x, s)) return failed;
    if (const int failed = isobit_cpu_linear(l.o, s.mixed, rows, l.o->k, s.delta, l.o->n)) return failed;
    return normed(l.after_attention, rows, l.o->n, s.delta);
}

int mlp(const isobit_layer &l, int64_t rows, const float *x, const Scratch &s) {
    const isobit_linear *const projections[] = {l.up, l.gate};
    float *const outputs[] = {s.up, s.gate};
    const int64_t inner = l.up->n, strides[] = {inner, inner};
    if (const int failed = isobit_cpu_linears(projections, l.gate ? 2 : 1, x, rows, l.up->k, outputs, strides)) return failed;
    const float *const gate = l.gate ? s.gate : s.up, *const up = l.gate ? s.up : nullptr;
    if (const int failed = isobit_cpu_gate(l.activation, l.limit, gate, up, rows, inner, inner, s.gate)) return failed;
    return isobit_cpu_linear(l.down, s.gate, rows, inner, s.delta, l.down->n);
}

// What experts give, and behind that the MLP of all tokens.
int mixture(const isobit_layer &l, int64_t rows, const float *x, const Scratch &s) {
    const isobit_mixture &m = *l.mixture;
    const int64_t hidden = l.o->n;
    float *const result = l.up ? s.experts : s.delta;
    if (const int failed = isobit_cpu_route(&m.router, x, rows, hidden, s.ids, s.weights)) return failed;
    if (const int failed = isobit_cpu_experts(&m.experts, x, rows, hidden, s.ids, s.weights, m.router.active, result, nullptr)) return failed;
    if (!l.up) return 0;
    if (const int failed = mlp(l, rows, x, s)) return failed;
    if (const int failed = m.shared_gate ? isobit_cpu_gate_by(x, m.shared_gate, rows, hidden, s.delta, hidden) : 0) return failed;
    return isobit_cpu_norm(nullptr, result, s.delta, 1, rows, hidden, s.delta, nullptr);
}

int run_layer(const isobit_layer &l, const isobit_step &step, int64_t i, const Scratch &s, Stream &stream) {
    const float *from;
    if (const int failed = stream.read(l.before_attention, s.normed, from)) return failed;
    if (l.side_by_side && from == stream.x) {  // the MLP is to read it as it is now
        std::memcpy(s.normed, from, static_cast<size_t>(stream.rows * stream.hidden) * 4);
        from = s.normed;
    }
    if (const int failed = attend(l, step, i, from, s)) return failed;
    stream.delta = s.delta, stream.factor = l.factor;
    const float *mlp_from = from;
    const isobit_norm none{};
    if (const int failed = stream.read(l.side_by_side ? none : l.before_mlp, s.normed, mlp_from)) return failed;
    if (const int failed = (l.mixture ? mixture : mlp)(l, stream.rows, l.side_by_side ? from : mlp_from, s)) return failed;
    if (const int failed = normed(l.after_mlp, stream.rows, stream.hidden, s.delta)) return failed;
    stream.delta = s.delta;
    return 0;
}

int run(const isobit_layer *layers, int64_t count, const isobit_step &step, float *x) {
    Buffer memory;
    Stream stream{x, nullptr, 1, step.sequences.tokens, layers[0].o->n};
    const Scratch s = scratch_for(layers, count, stream.rows, memory);
    for (int64_t i = 0; i < count; ++i)
        if (const int failed = run_layer(layers[i], step, i, s, stream)) return failed;
    const float *end;
    return stream.read(isobit_norm{}, nullptr, end);
}

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" __attribute__((visibility("default"))) int isobit_cpu_layers(const isobit_layer *layers, int64_t count,
                                                                        const isobit_step *step, float *x) {
    if (!layers || !step || !x || count < 1) return fail("a null pointer, or no layers");
    const isobit_sequences &of = step->sequences;
    if (of.tokens < 1 || step->cache_stride < 0) return fail("sizes must be positive");
    if (!step->places) return fail("a null pointer");
    for (int64_t i = 0; i < count; ++i) {
        if (!layers[i].o) return fail("a null pointer");
        if (!layers[i].latent != !layers[0].latent) return fail("layers with latent attention and without it keep different things");
        if (const char *why = problem_of_shapes(layers[i], layers[0].o->n)) return fail(why);
    }
    if (of.tokens > LARGEST / layers[0].o->n) return fail("sizes overflow");
    if (step->cache_stride > FARTHEST / LARGEST_HEAD / count) return fail("sizes overflow");
    for (int64_t i = 0; i < count; ++i)
        if (const char *why = problem_of_calls(layers[i], *step, i, x)) return fail(why);
    return guarded([&] {
        const std::vector<Sight> sights = sights_of(layers, count);
        if (const char *why = problem(of, sights.data(), static_cast<int64_t>(sights.size()))) return fail(why);
        return run(layers, count, *step, x);
    });
}
