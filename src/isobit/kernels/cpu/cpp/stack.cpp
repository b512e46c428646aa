// Whole decoder layers in one call, made of the functions of the C interface.
#include "isobit_cpu.h"
#include "layer.h"

namespace isobit {
namespace {

// What a layer needs besides the residual stream; rows of the widest layer.
struct Scratch {
    float *normed, *delta, *q, *k, *v, *mixed, *gate, *up;
};

const char *problem_of_shapes(const isobit_layer &l, int64_t hidden) {
    if (!l.q || !l.k || !l.v || !l.o || !l.gate || !l.up || !l.down || !l.input_norm || !l.post_norm) return "a null pointer";
    if (l.heads < 1 || l.kv_heads < 1 || l.dim < 1) return "sizes must be positive";
    if (l.heads > LARGEST / l.dim || l.kv_heads > LARGEST / l.dim) return "sizes overflow";
    if (l.q->k != hidden || l.k->k != hidden || l.v->k != hidden || l.gate->k != hidden || l.up->k != hidden)
        return "a linear does not take the residual stream";
    if (l.o->n != hidden || l.down->n != hidden) return "a linear does not give the residual stream";
    if (l.q->n != l.heads * l.dim || l.o->k != l.q->n || l.k->n != l.kv_heads * l.dim || l.v->n != l.k->n)
        return "the linears of an attention do not fit its heads";
    if (l.up->n != l.gate->n || l.down->k != l.gate->n) return "the linears of an MLP do not fit each other";
    return nullptr;
}

// Memory for `rows` rows; it is given back with `memory`, since that of a long prompt is large.
Scratch scratch_for(const isobit_layer *layers, int64_t count, int64_t rows, Buffer &memory) {
    const int64_t hidden = layers[0].o->n;
    int64_t heads = 0, shared = 0, inner = 0;
    for (int64_t i = 0; i < count; ++i) {
        heads = layers[i].q->n > heads ? layers[i].q->n : heads;
        shared = layers[i].k->n > shared ? layers[i].k->n : shared;
        inner = layers[i].gate->n > inner ? layers[i].gate->n : inner;
    }
    const int64_t sizes[] = {hidden, hidden, heads, shared, shared, heads, inner, inner};
    int64_t total = 0;
    for (int64_t size : sizes) total += round_up(rows * size, 16);
    float *parts[8], *next = memory.floats(total);
    for (int i = 0; i < 8; ++i) parts[i] = next, next += round_up(rows * sizes[i], 16);
    return {parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7]};
}

isobit_attention attention_of(const isobit_layer &l, const isobit_step &step, int64_t layer, const Scratch &s) {
    isobit_attention a{};
    a.sequences = step.sequences;
    a.heads = l.heads, a.kv_heads = l.kv_heads, a.dim = l.dim, a.window = l.window;
    a.ldq = a.ldo = l.q->n, a.ldk = a.ldv = l.k->n;
    a.scale = l.scale, a.softcap = l.softcap, a.eps = l.eps;
    a.cos = step.cos, a.sin = step.sin, a.q_norm = l.q_norm, a.k_norm = l.k_norm;
    a.q = s.q, a.k = s.k, a.v = s.v, a.out = s.mixed;
    const int64_t numbers = layer * step.cache_stride, bytes = numbers * bits_of(step.cache_format) / 8;
    a.cache_format = step.cache_format;
    a.keys = static_cast<uint8_t *>(step.keys) + bytes, a.values = static_cast<uint8_t *>(step.values) + bytes;
    a.key_scales = step.key_scales ? step.key_scales + numbers / l.dim : nullptr;
    a.value_scales = step.value_scales ? step.value_scales + numbers / l.dim : nullptr;
    return a;
}

// Why one of the calls that a layer is made of would be refused. `x` stands for the memory between them, which is not there yet.
const char *problem_of_calls(const isobit_layer &l, const isobit_step &step, int64_t layer, float *x) {
    const int64_t rows = step.sequences.tokens;
    if (l.activation != ISOBIT_SILU && l.activation != ISOBIT_GELU_TANH) return "unknown activation of a gate";
    const isobit_linear *const linears[] = {l.q, l.k, l.v, l.o, l.gate, l.up, l.down};
    for (const isobit_linear *w : linears)
        if (const char *why = problem(*w, x, rows, w->k, x, w->n)) return why;
    return problem(attention_of(l, step, layer, {x, x, x, x, x, x, x, x}));
}

// The widest window of the layers: 0 where one of them sees all.
int64_t widest(const isobit_layer *layers, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (!layers[i].window) return 0;
        most = layers[i].window > most ? layers[i].window : most;
    }
    return most;
}

// x = norm(x), where there is one.
int normed(const float *weight, float eps, int64_t rows, int64_t hidden, float *x) {
    return weight ? isobit_cpu_rms_norm(x, nullptr, weight, eps, rows, hidden, nullptr, x) : 0;
}

int attend(const isobit_layer &l, const isobit_step &step, int64_t i, const Scratch &s) {
    const isobit_linear *const projections[] = {l.q, l.k, l.v};
    float *const outputs[] = {s.q, s.k, s.v};
    const int64_t strides[] = {l.q->n, l.k->n, l.v->n}, rows = step.sequences.tokens;
    if (const int failed = isobit_cpu_linears(projections, 3, s.normed, rows, l.q->k, outputs, strides)) return failed;
    attention(attention_of(l, step, i, s));  // its arguments have been looked at
    if (const int failed = isobit_cpu_linear(l.o, s.mixed, rows, l.o->k, s.delta, l.o->n)) return failed;
    return normed(l.after_attention, l.eps, rows, l.o->n, s.delta);
}

int gated(const isobit_layer &l, int64_t rows, const Scratch &s) {
    const isobit_linear *const projections[] = {l.gate, l.up};
    float *const outputs[] = {s.gate, s.up};
    const int64_t inner = l.gate->n, strides[] = {inner, inner};
    if (const int failed = isobit_cpu_linears(projections, 2, s.normed, rows, l.gate->k, outputs, strides)) return failed;
    if (const int failed = isobit_cpu_gate(l.activation, s.gate, s.up, rows, inner, inner, s.gate)) return failed;
    if (const int failed = isobit_cpu_linear(l.down, s.gate, rows, inner, s.delta, l.down->n)) return failed;
    return normed(l.after_mlp, l.eps, rows, l.down->n, s.delta);
}

int run(const isobit_layer *layers, int64_t count, const isobit_step &step, float *x) {
    Buffer memory;
    const int64_t hidden = layers[0].o->n, rows = step.sequences.tokens;
    const Scratch s = scratch_for(layers, count, rows, memory);
    const float *delta = nullptr;  // what the layer before still has to add
    for (int64_t i = 0; i < count; ++i) {
        const isobit_layer &l = layers[i];
        if (const int failed = isobit_cpu_rms_norm(x, delta, l.input_norm, l.eps, rows, hidden, delta ? x : nullptr, s.normed)) return failed;
        if (const int failed = attend(l, step, i, s)) return failed;
        if (const int failed = isobit_cpu_rms_norm(x, s.delta, l.post_norm, l.eps, rows, hidden, x, s.normed)) return failed;
        if (const int failed = gated(l, rows, s)) return failed;
        delta = s.delta;
    }
    return isobit_cpu_rms_norm(x, delta, nullptr, 0, rows, hidden, x, nullptr);
}

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" __attribute__((visibility("default"))) int isobit_cpu_layers(const isobit_layer *layers, int64_t count,
                                                                        const isobit_step *step, float *x) {
    if (!layers || !step || !x || count < 1) return fail("a null pointer, or no layers");
    const isobit_sequences &of = step->sequences;
    if (of.tokens < 1 || step->cache_stride < 0) return fail("sizes must be positive");
    for (int64_t i = 0; i < count; ++i) {
        if (!layers[i].o) return fail("a null pointer");
        if (const char *why = problem_of_shapes(layers[i], layers[0].o->n)) return fail(why);
    }
    if (of.tokens > LARGEST / layers[0].o->n) return fail("sizes overflow");
    if (step->cache_stride > FARTHEST / count) return fail("sizes overflow");
    for (int64_t i = 0; i < count; ++i)
        if (const char *why = problem_of_calls(layers[i], *step, i, x)) return fail(why);
    return guarded([&] {
        if (const char *why = problem(of, widest(layers, count))) return fail(why);
        return run(layers, count, *step, x);
    });
}
