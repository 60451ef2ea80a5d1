#include "ops/read_pass.h"

#include <atomic>
#include <cstring>

#include "core/portable.h"
#include "core/thread_pool.h"

namespace tmac {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 4096;  ///< prefetch distance that reached one core's full rate
constexpr int64_t kStreams = 4;

uint64_t read_range(const uint8_t* data, int64_t lines) {
    uint64_t lanes[kStreams][8] = {};
    const int64_t per_stream = lines / kStreams;
    for (int64_t i = 0; i < per_stream; ++i) {
        for (int64_t s = 0; s < kStreams; ++s) {
            const uint8_t* line = data + (s * per_stream + i) * kLine;
            TMAC_PREFETCH(line + kAhead);
            uint64_t words[8];
            std::memcpy(words, line, sizeof(words));
            for (int64_t j = 0; j < 8; ++j) {
                lanes[s][j] ^= words[j];
            }
        }
    }
    uint64_t result = 0;
    for (auto& stream : lanes) {
        for (const uint64_t lane : stream) {
            result ^= lane;
        }
    }
    for (const uint8_t* tail = data + per_stream * kStreams * kLine; tail < data + lines * kLine; tail += 8) {
        uint64_t word = 0;
        std::memcpy(&word, tail, 8);
        result ^= word;
    }
    return result;
}

}  // namespace

uint64_t read_pass(const uint8_t* data, int64_t bytes, int num_threads) {
    std::atomic<uint64_t> result{0};
    parallel_for(bytes / kLine, 1, num_threads, [&](Range range) {
        result.fetch_xor(read_range(data + range.begin * kLine, range.end - range.begin));
    });
    for (int64_t at = bytes / kLine * kLine; at < bytes; ++at) {
        result.fetch_xor(data[at]);
    }
    return result.load();
}

}  // namespace tmac
