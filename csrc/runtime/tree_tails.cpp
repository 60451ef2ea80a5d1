#include "runtime/tree_tails.h"

#include <algorithm>

#include "runtime/cache_rows.h"

namespace tmac {

void TreeTails::find(const std::vector<int32_t>& parents, int64_t first_node, int64_t first) {
    paths_.clear();
    tail_begin_ = first / kKeyGroup * kKeyGroup;
    shared_ = static_cast<size_t>(first - tail_begin_);
    const auto skipped = static_cast<size_t>(first_node);
    for (size_t last = skipped; last < parents.size(); ++last) {
        std::vector<int64_t> slots;
        for (auto node = static_cast<int32_t>(last); node >= 0; node = parents[static_cast<size_t>(node)]) {
            slots.push_back(first + node);
        }
        const bool in_place = slots.back() == first && slots.front() - first + 1 == static_cast<int64_t>(slots.size());
        if (in_place) {
            continue;
        }
        for (int64_t position = first - 1; position >= tail_begin_; --position) {
            slots.push_back(position);
        }
        std::reverse(slots.begin(), slots.end());
        paths_.push_back({last - skipped, std::move(slots)});
    }
    tails_.resize(std::max(tails_.size(), paths_.size()));
}

void TreeTails::gather(const CacheLayout& layout, int32_t kv_heads, CachedPath* paths) {
    for (size_t i = 0; i < paths_.size(); ++i) {
        const TailPath& tail = paths_[i];
        CachedPath& path = paths[tail.row];
        const int64_t groups = (static_cast<int64_t>(tail.slots.size()) + kKeyGroup - 1) / kKeyGroup;
        std::vector<uint8_t>& bytes = tails_[i];
        bytes.resize(static_cast<size_t>(kv_heads * layout.head_bytes(groups)));
        for (int64_t head = 0; head < kv_heads; ++head) {
            uint8_t* to = bytes.data() + head * layout.head_bytes(groups);
            if (shared_ > 0) {
                const uint8_t* page = path.pages[tail_begin_ / kPagePositions];
                if (page != nullptr) {
                    copy_group(layout, page + head * layout.head_bytes(), {tail_begin_ % kPagePositions}, to,
                               {0, groups});
                }
            }
            for (size_t j = shared_; j < tail.slots.size(); ++j) {
                const int64_t slot = tail.slots[j];
                const uint8_t* page = path.pages[slot / kPagePositions];
                if (page != nullptr) {  // else a window has dropped it, and nobody attends to it
                    copy_row(layout, page + head * layout.head_bytes(), {slot % kPagePositions}, to,
                             {static_cast<int64_t>(j), groups});
                }
            }
        }
        path.tail = bytes.data();
        path.tail_begin = tail_begin_;
        path.tail_groups = groups;
    }
}

}  // namespace tmac
