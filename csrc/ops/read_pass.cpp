#include "ops/read_pass.h"

#include <atomic>
#include <cstring>

#include "core/check.h"
#include "core/portable.h"
#include "core/thread_pool.h"

namespace tmac {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 4096;  ///< prefetch distance of several streams

uint64_t load(const uint8_t* data) {
    uint64_t word = 0;
    std::memcpy(&word, data, sizeof(word));
    return word;
}

/// Lines of `Streams` equal parts, read side by side. One stream leaves the prefetching to the CPU. The sums of all
/// streams stay in registers: kept in memory, they would be what is measured.
template <int Streams>
uint64_t read_range(const uint8_t* data, int64_t lines) {
    constexpr int kSums = Streams == 1 ? 8 : 2;
    uint64_t sums[Streams][kSums] = {};
    const int64_t part = lines / Streams * kLine;
    for (int64_t at = 0; at < part; at += kLine) {
        for (int s = 0; s < Streams; ++s) {
            const uint8_t* line = data + s * part + at;
            if constexpr (Streams > 1) {
                TMAC_PREFETCH(line + kAhead);
            }
            for (int word = 0; word < 8; ++word) {
                sums[s][word % kSums] ^= load(line + 8 * word);
            }
        }
    }
    uint64_t result = 0;
    for (const auto& stream : sums) {
        for (const uint64_t sum : stream) {
            result ^= sum;
        }
    }
    for (const uint8_t* tail = data + Streams * part; tail < data + lines * kLine; tail += sizeof(uint64_t)) {
        result ^= load(tail);
    }
    return result;
}

}  // namespace

uint64_t read_pass(const uint8_t* data, int64_t bytes, int streams, int num_threads) {
    TMAC_CHECK(streams == 1 || streams == 4, "[read_pass] streams must be 1 or 4, got ", streams);
    const auto read = streams == 1 ? read_range<1> : read_range<4>;
    std::atomic<uint64_t> result{0};
    parallel_for(bytes / kLine, 1, num_threads,
                 [&](Range range) { result.fetch_xor(read(data + range.begin * kLine, range.end - range.begin)); });
    for (int64_t at = bytes / kLine * kLine; at < bytes; ++at) {
        result.fetch_xor(data[at]);
    }
    return result.load();
}

}  // namespace tmac
