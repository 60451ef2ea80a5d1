#pragma once

#include <cstdint>
#include <vector>

#include "core/cache_layout.h"
#include "ops/attention.h"

namespace tmac {

/// Token trees: the rows of a path do not lie one after the other in the cache. From the group of 16 positions on in
/// which the tree begins, the keys and values of every path are copied together, so that attention reads them as if
/// the path were a plain sequence.
class TreeTails {
public:
    /// The slots of each row's path, from the first position that is not in its place on: rows whose path lies in its
    /// place have none. Row 0 is node `first_node`; `first`: position of the tree's root nodes.
    void find(const std::vector<int32_t>& parents, int64_t first_node, int64_t first);

    bool empty() const { return paths_.empty(); }

    /// Copies one layer's tails and points the paths of the rows at them.
    void gather(const CacheLayout& layout, int32_t kv_heads, CachedPath* paths);

private:
    struct TailPath {
        size_t row;
        std::vector<int64_t> slots;  ///< of positions tail_begin, tail_begin + 1, ...
    };

    int64_t tail_begin_ = 0;
    size_t shared_ = 0;  ///< positions that every path begins with: of the sequence
    std::vector<TailPath> paths_;
    std::vector<std::vector<uint8_t>> tails_;
};

}  // namespace tmac
