#include "runtime/tree_tails.h"

#include <algorithm>
#include <cstring>

namespace tmac {
namespace {

/// Where a position's key and value lie in one key head of a piece of groups.
struct Lane {
    const CacheLayout& layout;
    int64_t groups;  ///< of the piece
    int64_t index;   ///< position in the piece

    int64_t group() const { return index / kKeyGroup; }
    int64_t lane() const { return index % kKeyGroup; }
    int64_t key(int64_t column) const {
        return layout.key_offset(group()) + (column * kKeyGroup + lane()) * element_bytes(layout.type);
    }
    int64_t value() const {
        return layout.value_offset(group(), groups) + lane() * layout.padded_dim() * element_bytes(layout.type);
    }
    int64_t key_scale() const { return layout.key_scale_offset(group(), groups) + lane() * int64_t{sizeof(float)}; }
    int64_t value_scale() const { return layout.value_scale_offset(group(), groups) + lane() * int64_t{sizeof(float)}; }
};

void copy_position(const uint8_t* from, const Lane& source, uint8_t* to, const Lane& target) {
    const CacheLayout& layout = source.layout;
    const auto bytes = static_cast<size_t>(element_bytes(layout.type));
    for (int64_t column = 0; column < layout.head_dim; ++column) {
        std::memcpy(to + target.key(column), from + source.key(column), bytes);
    }
    std::memcpy(to + target.value(), from + source.value(), static_cast<size_t>(layout.padded_dim()) * bytes);
    if (layout.has_scales()) {
        std::memcpy(to + target.key_scale(), from + source.key_scale(), sizeof(float));
        std::memcpy(to + target.value_scale(), from + source.value_scale(), sizeof(float));
    }
}

}  // namespace

void TreeTails::find(const std::vector<int32_t>& parents, int64_t first) {
    paths_.clear();
    tail_begin_ = first / kKeyGroup * kKeyGroup;
    for (size_t row = 0; row < parents.size(); ++row) {
        std::vector<int64_t> slots;
        for (auto node = static_cast<int32_t>(row); node >= 0; node = parents[static_cast<size_t>(node)]) {
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
        paths_.push_back({row, std::move(slots)});
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
            for (size_t j = 0; j < tail.slots.size(); ++j) {
                const int64_t slot = tail.slots[j];
                const uint8_t* page = path.pages[slot / kPagePositions];
                if (page != nullptr) {  // else a window has dropped it, and nobody attends to it
                    copy_position(page + head * layout.head_bytes(), {layout, kPageGroups, slot % kPagePositions}, to,
                                  {layout, groups, static_cast<int64_t>(j)});
                }
            }
        }
        path.tail = bytes.data();
        path.tail_begin = tail_begin_;
        path.tail_groups = groups;
    }
}

}  // namespace tmac
