// A few small decoder layers for the native tests, and runs of them.
#pragma once

#include <memory>
#include <vector>

#include "attentions.h"
#include "linears.h"

namespace test {

// Layers of different formats, heads and windows, and all that a layer may have: norms of queries and keys, norms behind its parts
// or there alone, LayerNorm, biases, caps, sinks, chunks, heads that are rotated in part, by neighbours or not at all, MLPs without a gate or
// with a limit, parts side by side, and a factor.
struct Stack {
    static constexpr int64_t hidden = 96;
    std::vector<isobit_layer> layers;

    Stack() {
        add(ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 4, 2, 32, 160, 0);
        norm_heads(ISOBIT_QK_HEAD, 32, 32);
        isobit_layer *l = &add(ISOBIT_INT4, ISOBIT_ACT_NONE, 6, 1, 16, 64, 50);
        l->after_attention = norm(), l->after_mlp = norm(), l->of.softcap = 3, l->activation = ISOBIT_GELU_TANH;
        l = &add(ISOBIT_BF16, ISOBIT_ACT_NONE, 2, 2, 48, 100, 0);
        l->of.rotated = 16, l->of.interleaved = 1, l->before_attention = l->before_mlp = {}, l->after_attention = norm(), l->after_mlp = norm();
        norm_heads(ISOBIT_QK_WIDTH, 96, 96);
        l = &add(ISOBIT_INT8, ISOBIT_ACT_INT8, 4, 4, 24, 72, 0);
        l->side_by_side = 1, l->before_attention = norm(ISOBIT_LAYER, true), l->gate = nullptr, l->activation = ISOBIT_GELU, l->of.sinks = values(4);
        l = &add(ISOBIT_BF16, ISOBIT_ACT_NONE, 4, 2, 24, 72, 0);
        l->limit = 0.7f, l->factor = 0.25f, l->of.chunk = 20;
        norm_heads(ISOBIT_QK_HEAD_BEHIND, 24, 24);
        l = &add(ISOBIT_BF16, ISOBIT_ACT_NONE, 4, 2, 16, 40, 0);
        l->side_by_side = 1, l->before_attention = l->before_mlp = {}, l->activation = ISOBIT_RELU2, l->factor = 2;
    }
    Stack(const Stack &) = delete;
    Stack &operator=(const Stack &) = delete;

    // Values of one layer's keys in a cache with room for `capacity` tokens.
    int64_t cache_of(int64_t batch, int64_t capacity) const {
        int64_t most = 0;
        for (const isobit_layer &l : layers) most = std::max(most, l.kv_heads * l.dim);
        return batch * capacity * most;
    }

  private:
    std::vector<std::unique_ptr<Linear>> linears_;
    std::vector<std::unique_ptr<Values<float>>> norms_;

    const isobit_linear *linear(const Case &c, int64_t n, int64_t k) {
        linears_.push_back(std::make_unique<Linear>(c, n, k));
        return &linears_.back()->w;
    }
    const float *values(int64_t size) {
        norms_.push_back(std::make_unique<Values<float>>(size));
        fill(*norms_.back());
        return norms_.back()->data();
    }
    isobit_norm norm(int32_t kind = ISOBIT_RMS, bool bias = false) {
        const float *const weight = values(hidden);
        return {weight, bias ? values(hidden) : nullptr, 1e-5f, kind};
    }
    void norm_heads(int32_t kind, int64_t queries, int64_t keys) {
        isobit_heads &of = layers.back().of;
        of.qk_norm = kind, of.q_norm = values(queries), of.k_norm = values(keys);
    }
    isobit_layer &add(int32_t format, int32_t activations, int64_t heads, int64_t kv_heads, int64_t dim, int64_t inner, int64_t window) {
        const Case &c = case_of(format, activations);
        isobit_layer l{};
        l.heads = heads, l.kv_heads = kv_heads, l.dim = dim, l.of.window = window, l.of.scale = 0.2f, l.of.eps = 1e-5f, l.factor = 1;
        l.q = linear(c, heads * dim, hidden), l.k = linear(c, kv_heads * dim, hidden), l.v = linear(c, kv_heads * dim, hidden);
        l.o = linear(c, hidden, heads * dim), l.gate = linear(c, inner, hidden), l.up = linear(c, inner, hidden);
        l.down = linear(c, hidden, inner), l.before_attention = norm(), l.before_mlp = norm();
        l.places = static_cast<int64_t>(layers.size());
        layers.push_back(l);
        return layers.back();
    }
};

// One step through a stack: random residual stream and cache.
struct Run {
    const Stack &stack;
    const int64_t rows, capacity, stride;
    Sequences sequences;
    Values<float> x, cos, sin, factors, keys, values;
    std::vector<isobit_places> places;
    isobit_step step{};

    Run(const Stack &of, int64_t batch, int64_t tokens, int64_t past, bool shared_cache)
        : stack(of), rows(batch * tokens), capacity(past + tokens + 1), stride(shared_cache ? 0 : of.cache_of(batch, capacity) / LEAST),
          sequences(std::vector<Sequence>(static_cast<size_t>(batch), {tokens, past}), capacity), x(rows * Stack::hidden), cos(rows * DIM),
          sin(rows * DIM), factors(rows), keys(all_keys(batch)), values(all_keys(batch)) {
        for (Values<float> *part : {&x, &cos, &sin, &factors, &keys, &values}) fill(*part);
        // The last layer rotates nothing, and the one before it has factors.
        for (const isobit_layer &l : of.layers) places.push_back({cos.data(), sin.data(), nullptr, l.of.rotated ? l.of.rotated : l.dim});
        places.back() = {nullptr, nullptr, nullptr, 0}, places[places.size() - 2].factors = factors.data();
        step.sequences = sequences.arguments(), step.cache_stride = stride;
        step.places = places.data(), step.kinds_of_places = static_cast<int64_t>(places.size());
        step.held.keys = keys.data(), step.held.values = values.data();
    }

    // The calls that isobit_cpu_layers promises, each alone.
    bool call_by_call() {
        for (size_t i = 0; i < stack.layers.size(); ++i) {
            const isobit_layer &l = stack.layers[i];
            std::vector<float> first = stream(), second, delta(size(Stack::hidden));
            if (!norm(l.before_attention, first) || !attend(l, static_cast<int64_t>(i), first, delta) || !add(l, delta)) return false;
            second = l.side_by_side ? first : stream();
            if (!l.side_by_side && !norm(l.before_mlp, second)) return false;
            if (!mlp(l, second, delta) || !add(l, delta)) return false;
        }
        return true;
    }

  private:
    static constexpr int64_t DIM = 48, LEAST = 2;  // the largest head, and less than the smallest one

    int64_t all_keys(int64_t batch) const {
        return stride ? stride * DIM * static_cast<int64_t>(stack.layers.size()) : stack.cache_of(batch, capacity);
    }
    size_t size(int64_t width) const { return static_cast<size_t>(rows * width); }

    bool product(const isobit_linear *w, const std::vector<float> &from, std::vector<float> &to) const {
        to.resize(size(w->n));
        return !isobit_cpu_linear(w, from.data(), rows, w->k, to.data(), w->n);
    }
    std::vector<float> stream() const {
        std::vector<float> now(size(Stack::hidden));
        std::memcpy(now.data(), x.bytes(), x.byte_count());
        return now;
    }
    bool add(const isobit_layer &l, const std::vector<float> &delta) {
        return !isobit_cpu_norm(nullptr, x.data(), delta.data(), l.factor, rows, Stack::hidden, x.data(), nullptr);
    }
    bool norm(const isobit_norm &by, std::vector<float> &of) const {
        const std::vector<float> before = of;
        return !by.weight || !isobit_cpu_norm(&by, before.data(), nullptr, 1, rows, Stack::hidden, nullptr, of.data());
    }
    bool attend(const isobit_layer &l, int64_t layer, const std::vector<float> &normed, std::vector<float> &delta) {
        std::vector<float> q, k, v, mixed(size(l.q->n));
        if (!product(l.q, normed, q) || !product(l.k, normed, k) || !product(l.v, normed, v)) return false;
        const isobit_places &at = places[static_cast<size_t>(layer)];
        isobit_attention a{};
        a.sequences = step.sequences, a.of = l.of;
        a.heads = l.heads, a.kv_heads = l.kv_heads, a.dim = l.dim;
        a.ldq = a.ldo = l.q->n, a.ldk = a.ldv = l.k->n;
        a.cos = at.cos, a.sin = at.sin, a.factors = at.factors;
        a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = mixed.data();
        a.held.keys = static_cast<float *>(step.held.keys) + layer * stride * l.dim;
        a.held.values = static_cast<float *>(step.held.values) + layer * stride * l.dim;
        return !isobit_cpu_attention(&a) && product(l.o, mixed, delta) && norm(l.after_attention, delta);
    }
    bool mlp(const isobit_layer &l, const std::vector<float> &normed, std::vector<float> &delta) const {
        std::vector<float> gates, ups;
        if (!product(l.up, normed, ups) || (l.gate && !product(l.gate, normed, gates))) return false;
        const int64_t inner = l.up->n;
        const float *const gate = l.gate ? gates.data() : ups.data(), *const up = l.gate ? ups.data() : nullptr;
        std::vector<float> made(size(inner));
        if (isobit_cpu_gate(l.activation, l.limit, gate, up, rows, inner, inner, made.data())) return false;
        return product(l.down, made, delta) && norm(l.after_mlp, delta);
    }
};

}  // namespace test
