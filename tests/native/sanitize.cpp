// Runs every format on every instruction set over odd sizes, with buffers of exactly the bytes that are needed, so that
// AddressSanitizer and UndefinedBehaviorSanitizer see every read and write that does not belong: `make sanitize`.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "isobit_cpu.h"

namespace {

struct Case {
    int32_t format, activations;
    int64_t group, block_rows, activation_group;
    int bits;
};

const Case CASES[] = {
    {ISOBIT_F32, ISOBIT_ACT_NONE, 0, 0, 0, 32},        {ISOBIT_BF16, ISOBIT_ACT_NONE, 0, 0, 0, 16},
    {ISOBIT_F16, ISOBIT_ACT_NONE, 0, 0, 0, 16},        {ISOBIT_E4M3FN, ISOBIT_ACT_NONE, 0, 1, 0, 8},
    {ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 0, 0, 0, 8},    {ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 128, 128, 128, 8},
    {ISOBIT_E5M2, ISOBIT_ACT_E5M2, 0, 1, 0, 8},        {ISOBIT_INT8, ISOBIT_ACT_NONE, 0, 1, 0, 8},
    {ISOBIT_INT8, ISOBIT_ACT_NONE, 64, 1, 0, 8},       {ISOBIT_INT8, ISOBIT_ACT_INT8, 0, 1, 0, 8},
    {ISOBIT_INT4, ISOBIT_ACT_NONE, 0, 1, 0, 4},        {ISOBIT_INT4, ISOBIT_ACT_NONE, 128, 1, 0, 4},
    {ISOBIT_INT4, ISOBIT_ACT_NONE, 32, 1, 0, 4},       {ISOBIT_INT4, ISOBIT_ACT_NONE, 40, 1, 0, 4},
    {ISOBIT_INT4, ISOBIT_ACT_INT8, 128, 1, 0, 4},      {ISOBIT_UINT4, ISOBIT_ACT_NONE, 128, 1, 0, 4},
    {ISOBIT_UINT4, ISOBIT_ACT_NONE, 32, 1, 0, 4},      {ISOBIT_INT3, ISOBIT_ACT_NONE, 40, 1, 0, 3},
    {ISOBIT_INT3, ISOBIT_ACT_NONE, 32, 1, 0, 3},       {ISOBIT_INT2, ISOBIT_ACT_NONE, 32, 1, 0, 2},
};

uint32_t state = 1;
uint32_t next() { return state = state * 1664525u + 1013904223u; }

// Codes of finite values: no NaN of e4m3, no infinity of e5m2, small exponents of the wider formats.
void fill(const Case &c, std::vector<uint8_t> &codes) {
    for (auto &byte : codes) byte = static_cast<uint8_t>(next() >> 24) & (c.bits == 8 && c.format != ISOBIT_INT8 ? 0xb7 : 0xff);
    if (c.bits == 16)
        for (size_t i = 1; i < codes.size(); i += 2) codes[i] = 0x3c;
    if (c.bits == 32)
        for (size_t i = 3; i < codes.size(); i += 4) codes[i] = 0x3c;
}

bool run(const Case &c, int64_t n, int64_t k, int64_t m) {
    // Rows end at a byte, which is less than a checkpoint's words of 32 bits.
    const int64_t row_bytes = (k * c.bits + 7) / 8, groups = c.group ? (k + c.group - 1) / c.group : 1;
    const int64_t scale_rows = c.block_rows ? (n + c.block_rows - 1) / c.block_rows : 1;
    std::vector<uint8_t> codes(static_cast<size_t>(n * row_bytes)), zeros(static_cast<size_t>(scale_rows * groups), 7);
    fill(c, codes);
    std::vector<uint16_t> scales(static_cast<size_t>(scale_rows * groups), 0x3c00);  // bfloat16 2^-7
    std::vector<float> x(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n), NAN), bias(static_cast<size_t>(n), 1.0f);
    for (auto &value : x) value = static_cast<float>(static_cast<int32_t>(next())) / 2147483648.0f;
    isobit_linear w{};
    w.n = n, w.k = k, w.format = c.format, w.activations = c.activations, w.activation_group = c.activation_group;
    w.group = c.group, w.block_rows = c.block_rows, w.row_bytes = row_bytes, w.scale_format = ISOBIT_BF16;
    w.codes = codes.data(), w.scales = c.bits <= 8 ? scales.data() : nullptr;
    w.zeros = c.format == ISOBIT_UINT4 ? zeros.data() : nullptr, w.bias = bias.data();
    if (isobit_cpu_linear(&w, x.data(), m, k, y.data(), n)) {
        std::printf("refused: %s\n", isobit_cpu_error());
        return false;
    }
    for (float value : y)
        if (!std::isfinite(value)) {
            std::printf("not finite\n");
            return false;
        }
    return true;
}

}  // namespace

int main() {
    isobit_cpu_set_threads(2);
    std::stringstream names(isobit_cpu_isas());
    int runs = 0;
    for (std::string isa; std::getline(names, isa, ',');) {
        if (isobit_cpu_use_isa(isa.c_str())) return 1;
        for (const Case &c : CASES)
            for (int64_t n : {1, 3, 37, 150})
                for (int64_t k : {1, 7, 31, 33, 130, 360}) {
                    if (c.group && c.group != 128 && k % 8) continue;  // groups of packed codes end at bytes
                    for (int64_t m : {1, 2, 5, 17, 30}) {
                        if (!run(c, n, k, m)) {
                            std::printf("%s: format %d, activations %d, group %d: %d x %d, %d rows\n", isa.c_str(), c.format,
                                        c.activations, static_cast<int>(c.group), static_cast<int>(n), static_cast<int>(k),
                                        static_cast<int>(m));
                            return 1;
                        }
                        ++runs;
                    }
                }
    }
    std::printf("%d linears on %s: no read or write that does not belong\n", runs, isobit_cpu_isas());
    return 0;
}
