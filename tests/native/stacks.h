// A few small decoder layers for the native tests, and runs of them.
#pragma once

#include <memory>
#include <vector>

#include "attentions.h"
#include "linears.h"

namespace test {

// Layers of different formats, heads and windows, one with norms of queries and keys, one with norms behind its parts and a cap.
struct Stack {
    static constexpr int64_t hidden = 96;
    std::vector<isobit_layer> layers;

    Stack() {
        add(ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 4, 2, 32, 160, 0, true);
        add(ISOBIT_INT4, ISOBIT_ACT_NONE, 6, 1, 16, 64, 50, false);
        add(ISOBIT_BF16, ISOBIT_ACT_NONE, 2, 2, 48, 100, 0, false);
        isobit_layer &l = layers[1];
        l.after_attention = norm(hidden), l.after_mlp = norm(hidden), l.softcap = 3, l.activation = ISOBIT_GELU_TANH;
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
    const float *norm(int64_t size) {
        norms_.push_back(std::make_unique<Values<float>>(size));
        fill(*norms_.back());
        return norms_.back()->data();
    }
    void add(int32_t format, int32_t activations, int64_t heads, int64_t kv_heads, int64_t dim, int64_t inner, int64_t window, bool norms) {
        const Case &c = case_of(format, activations);
        isobit_layer l{};
        l.heads = heads, l.kv_heads = kv_heads, l.dim = dim, l.window = window, l.scale = 0.2f, l.eps = 1e-5f;
        l.q = linear(c, heads * dim, hidden), l.k = linear(c, kv_heads * dim, hidden), l.v = linear(c, kv_heads * dim, hidden);
        l.o = linear(c, hidden, heads * dim), l.gate = linear(c, inner, hidden), l.up = linear(c, inner, hidden);
        l.down = linear(c, hidden, inner), l.input_norm = norm(hidden), l.post_norm = norm(hidden);
        l.q_norm = norms ? norm(dim) : nullptr, l.k_norm = norms ? norm(dim) : nullptr;
        layers.push_back(l);
    }
};

// One step through a stack: random residual stream and cache.
struct Run {
    const Stack &stack;
    const int64_t rows, capacity, stride;
    Sequences sequences;
    Values<float> x, cos, sin, keys, values;
    isobit_step step{};

    Run(const Stack &of, int64_t batch, int64_t tokens, int64_t past, bool shared_cache)
        : stack(of), rows(batch * tokens), capacity(past + tokens + 1), stride(shared_cache ? 0 : of.cache_of(batch, capacity)),
          sequences(std::vector<Sequence>(static_cast<size_t>(batch), {tokens, past}), capacity), x(rows * Stack::hidden), cos(rows * DIM),
          sin(rows * DIM), keys(all_keys(batch)), values(all_keys(batch)) {
        for (Values<float> *part : {&x, &cos, &sin, &keys, &values}) fill(*part);
        step.sequences = sequences.arguments(), step.cache_stride = stride;
        step.cos = cos.data(), step.sin = sin.data(), step.keys = keys.data(), step.values = values.data();
    }

    // The calls that isobit_cpu_layers promises, each alone.
    bool call_by_call() {
        std::vector<float> normed(size(Stack::hidden)), delta(size(Stack::hidden));
        for (size_t i = 0; i < stack.layers.size(); ++i) {
            const isobit_layer &l = stack.layers[i];
            float *const from = i ? delta.data() : nullptr;
            if (isobit_cpu_rms_norm(x.data(), from, l.input_norm, l.eps, rows, Stack::hidden, i ? x.data() : nullptr, normed.data())) return false;
            if (!attend(l, static_cast<int64_t>(i), normed, delta)) return false;
            if (isobit_cpu_rms_norm(x.data(), delta.data(), l.post_norm, l.eps, rows, Stack::hidden, x.data(), normed.data())) return false;
            if (!gate(l, normed, delta)) return false;
        }
        return !isobit_cpu_rms_norm(x.data(), delta.data(), nullptr, 0, rows, Stack::hidden, x.data(), nullptr);
    }

  private:
    static constexpr int64_t DIM = 48;  // the largest head

    int64_t all_keys(int64_t batch) const {
        return stack.cache_of(batch, capacity) * (stride ? static_cast<int64_t>(stack.layers.size()) : 1);
    }
    size_t size(int64_t width) const { return static_cast<size_t>(rows * width); }

    bool product(const isobit_linear *w, const std::vector<float> &from, std::vector<float> &to) const {
        to.resize(size(w->n));
        return !isobit_cpu_linear(w, from.data(), rows, w->k, to.data(), w->n);
    }
    bool norm(const float *weight, float eps, std::vector<float> &of) const {
        const std::vector<float> before = of;
        return !weight || !isobit_cpu_rms_norm(before.data(), nullptr, weight, eps, rows, Stack::hidden, nullptr, of.data());
    }
    bool attend(const isobit_layer &l, int64_t layer, const std::vector<float> &normed, std::vector<float> &delta) {
        std::vector<float> q, k, v, mixed(size(l.q->n));
        if (!product(l.q, normed, q) || !product(l.k, normed, k) || !product(l.v, normed, v)) return false;
        isobit_attention a{};
        a.sequences = step.sequences, a.window = l.window;
        a.heads = l.heads, a.kv_heads = l.kv_heads, a.dim = l.dim, a.scale = l.scale, a.softcap = l.softcap, a.eps = l.eps;
        a.ldq = a.ldo = l.q->n, a.ldk = a.ldv = l.k->n;
        a.cos = step.cos, a.sin = step.sin, a.q_norm = l.q_norm, a.k_norm = l.k_norm;
        a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = mixed.data();
        a.keys = static_cast<float *>(step.keys) + layer * stride, a.values = static_cast<float *>(step.values) + layer * stride;
        return !isobit_cpu_attention(&a) && product(l.o, mixed, delta) && norm(l.after_attention, l.eps, delta);
    }
    bool gate(const isobit_layer &l, const std::vector<float> &normed, std::vector<float> &delta) const {
        std::vector<float> gates, ups;
        if (!product(l.gate, normed, gates) || !product(l.up, normed, ups)) return false;
        if (isobit_cpu_gate(l.activation, gates.data(), ups.data(), rows, l.gate->n, l.gate->n, gates.data())) return false;
        return product(l.down, gates, delta) && norm(l.after_mlp, l.eps, delta);
    }
};

}  // namespace test
