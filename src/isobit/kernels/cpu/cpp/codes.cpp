// Codes that the vector decoders do not decode: NaN of e4m3, NaN and infinities of e5m2. Asked once for each weight, before it
// is used, so it must read as fast as memory gives.
#include <atomic>
#include <exception>

#include "isobit_cpu.h"
#include "kernels.h"
#include "layer.h"
#include "pool.h"

namespace isobit {
namespace {

constexpr int64_t BLOCK = 1 << 14;  // bytes looked at before the answer is looked at
constexpr int64_t PIECE = 1 << 18;  // bytes a thread takes at a time

// Whether a byte, but for its sign, is `first` or above. A loop without exits, so that it becomes vectors everywhere.
bool reaches(const uint8_t *codes, int64_t count, uint8_t first) {
    uint8_t found = 0;
    for (int64_t i = 0; i < count; ++i) found |= static_cast<uint8_t>((codes[i] & 0x7f) >= first);
    return found;
}

bool row_reaches(const uint8_t *codes, int64_t count, uint8_t first) {
    for (int64_t at = 0; at < count; at += BLOCK)
        if (reaches(codes + at, smaller(BLOCK, count - at), first)) return true;
    return false;
}

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" __attribute__((visibility("default"))) int isobit_cpu_has_nan(int32_t format, const void *codes, int64_t rows,
                                                                         int64_t row_bytes, int64_t k) {
    if (format != ISOBIT_E4M3FN && format != ISOBIT_E5M2) return fail("only 8-bit floats have codes that are no numbers");
    if (!codes || rows < 0 || k < 1 || row_bytes < k || (rows && row_bytes > FARTHEST / rows)) return fail("an argument is out of range");
    const uint8_t first = format == ISOBIT_E4M3FN ? 0x7f : 0x7c, *from = static_cast<const uint8_t *>(codes);
    try {
        std::atomic<bool> found{false};
        const int64_t grain = PIECE / k + 1;
        parallel(rows, grain, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end && !found.load(std::memory_order_relaxed); ++row)
                if (row_reaches(from + row * row_bytes, k, first)) found.store(true, std::memory_order_relaxed);
        });
        return found.load();
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}
