#pragma once

#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/page_pool.h"

// What the files of KvCache share.

namespace tmac {

struct KvCache::Group {
    int64_t window;
    std::vector<int32_t> layers;  ///< in the order in which they lie in a page
    PagePool pool;

    /// The first page that a sequence needs to go on from `length`, with `spare` positions more than it attends to.
    int64_t first_needed(int64_t length, int64_t spare) const {
        const int64_t first = window == 0 ? 0 : length - window + 1 - spare;
        return first < 0 ? 0 : first / kPagePositions;
    }
};

struct KvCache::Sequence {
    struct Table {
        int64_t first = 0;         ///< pages before it have been dropped
        std::vector<Page*> pages;  ///< null where dropped
    };

    int64_t length = 0;
    int64_t reserved = 0;                               ///< positions, from the first one on
    std::vector<Table> tables;                          ///< [groups], all of one size
    std::vector<std::vector<const uint8_t*>> pointers;  ///< [layers][pages]

    Sequence(size_t num_groups, size_t num_layers) : tables(num_groups), pointers(num_layers) {}
};

constexpr int64_t pages_of(int64_t positions) {
    return positions / kPagePositions + (positions % kPagePositions != 0 ? 1 : 0);
}

}  // namespace tmac
