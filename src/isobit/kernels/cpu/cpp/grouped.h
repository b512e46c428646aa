// Linears of several experts in one call.
#pragma once

#include <vector>

#include "kernels.h"

namespace isobit {

// Rows that one expert takes: `count` of them, one behind the other from `first` on.
struct Group {
    int64_t expert, first, count;
};

// Where rows come from: x of each, or of the one that `row` names.
struct Rows {
    const float *x;
    int64_t ldx;
    const int32_t *row;  // NULL: they lie one behind the other
    int64_t count;       // of x
};

// Why such linears are refused; NULL if they are not.
const char *problem(const isobit_grouped &w);
// The linear of one expert.
isobit_linear linear_of(const isobit_grouped &w, int64_t expert);

// y[i] of each row: the linears of its expert, rows ldy[i] apart. All have the same k, and have been looked at. Throws std::bad_alloc.
void grouped(const isobit_grouped *const *w, int64_t count, const std::vector<Group> &groups, const Rows &rows, float *const *y,
             const int64_t *ldy);

// What is wrong with a mixture or a router for a residual stream of this width; NULL if nothing is. Defined in experts.cpp.
const char *problem(const isobit_experts &e, int64_t hidden);
const char *problem(const isobit_router &r, int64_t hidden);

}  // namespace isobit
