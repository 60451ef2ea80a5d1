#include "runtime/kv_cache.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "runtime/cache_rows.h"
#include "runtime/kv_cache_parts.h"

namespace tmac {
namespace {

constexpr int64_t kMaxExtent = 1 << 16;               ///< of layers, heads and head_dim
constexpr int64_t kMaxPagesBytes = int64_t{1} << 40;  ///< of one page of every group: no product of sizes overflows

}  // namespace

KvCache::KvCache(CacheType type, std::vector<CacheLayer> layers, int64_t max_positions)
    : type_(type), layers_(std::move(layers)), max_positions_(max_positions) {
    TMAC_CHECK(max_positions >= 0, "max_positions must not be negative, it is ", max_positions);
    const auto num_layers = static_cast<int64_t>(layers_.size());
    TMAC_CHECK(num_layers >= 1 && num_layers <= kMaxExtent, "a KV cache has 1 to ", kMaxExtent, " layers, not ",
               num_layers);
    std::vector<std::pair<int64_t, std::vector<int32_t>>> windows;
    std::vector<int64_t> page_bytes;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const CacheLayer& layer = layers_[i];
        TMAC_CHECK(layer.kv_heads >= 1 && layer.kv_heads <= kMaxExtent && layer.head_dim >= 1 &&
                       layer.head_dim <= kMaxExtent && layer.window >= 0,
                   "layer ", i, " of the KV cache: ", layer.kv_heads, " key heads of ", layer.head_dim,
                   " with a window of ", layer.window);
        const auto same = std::find_if(windows.begin(), windows.end(),
                                       [&](const auto& group) { return group.first == layer.window; });
        const auto group = static_cast<size_t>(same - windows.begin());
        if (same == windows.end()) {
            windows.emplace_back(layer.window, std::vector<int32_t>());
            page_bytes.push_back(0);
        }
        windows[group].second.push_back(static_cast<int32_t>(i));
        layouts_.push_back({.type = type, .head_dim = layer.head_dim});
        group_of_.push_back(group);
        offset_of_.push_back(page_bytes[group]);
        page_bytes[group] += layer.kv_heads * layouts_[i].head_bytes();
    }
    const int64_t pages_bytes = std::accumulate(page_bytes.begin(), page_bytes.end(), int64_t{0});
    TMAC_CHECK(pages_bytes <= kMaxPagesBytes, "a page of ", kPagePositions, " positions would have ", pages_bytes,
               " bytes");
    for (size_t i = 0; i < windows.size(); ++i) {
        groups_.push_back({.window = windows[i].first,
                           .layers = std::move(windows[i].second),
                           .pool = PagePool(page_bytes[i], pages_of(max_positions))});
    }
}

KvCache::~KvCache() = default;

KvCache::Sequence& KvCache::sequence(int64_t id) const {
    const auto found = sequences_.find(id);
    TMAC_CHECK(found != sequences_.end(), "the KV cache has no sequence ", id);
    return *found->second;
}

void KvCache::check_layer(int32_t layer) const {
    TMAC_CHECK(layer >= 0 && static_cast<size_t>(layer) < layers_.size(), "the KV cache has ", layers_.size(),
               " layers, there is no layer ", layer);
}

const CacheLayout& KvCache::layout(int32_t layer) const {
    check_layer(layer);
    return layouts_[static_cast<size_t>(layer)];
}

int64_t KvCache::insert(std::unique_ptr<Sequence> sequence) {
    sequences_.emplace(next_id_, std::move(sequence));
    return next_id_++;
}

int64_t KvCache::create() { return insert(std::make_unique<Sequence>(groups_.size(), layers_.size())); }

int64_t KvCache::fork(int64_t id, int64_t length) {
    const Sequence& from = sequence(id);
    TMAC_CHECK(length >= 0 && length <= from.length, "a fork at ", length, " of a sequence of ", from.length,
               " positions");
    TMAC_CHECK(holds(from, length), "a fork at ", length, ": a sliding window has dropped positions that it needs");
    auto made = std::make_unique<Sequence>(groups_.size(), layers_.size());
    const int64_t count = pages_of(length);
    made->length = length;
    made->reserved = length;
    for (size_t i = 0; i < layers_.size(); ++i) {
        made->pointers[i].assign(from.pointers[i].begin(), from.pointers[i].begin() + count);
    }
    for (size_t i = 0; i < groups_.size(); ++i) {
        made->tables[i].first = std::min(from.tables[i].first, count);
        made->tables[i].pages.assign(from.tables[i].pages.begin(), from.tables[i].pages.begin() + count);
    }
    const Sequence& fork = *made;
    const int64_t fork_id = insert(std::move(made));
    for (const Sequence::Table& table : fork.tables) {
        std::for_each(table.pages.begin() + table.first, table.pages.end(), PagePool::share);
    }
    return fork_id;
}

void KvCache::release(int64_t id) {
    cut(sequence(id), 0);
    sequences_.erase(id);
}

int64_t KvCache::length(int64_t id) const { return sequence(id).length; }

int64_t KvCache::reserved(int64_t id) const { return sequence(id).reserved; }

bool KvCache::holds(const Sequence& sequence, int64_t length) const {
    if (length == 0) {
        return true;
    }
    for (size_t i = 0; i < groups_.size(); ++i) {
        if (sequence.tables[i].first > groups_[i].first_needed(length, 0)) {
            return false;
        }
    }
    return true;
}

bool KvCache::holds(int64_t id, int64_t length) const {
    const Sequence& found = sequence(id);
    TMAC_CHECK(length >= 0 && length <= found.length, "a sequence of ", found.length, " positions cannot be cut to ",
               length);
    return holds(found, length);
}

bool KvCache::truncate(int64_t id, int64_t length) {
    if (!holds(id, length)) {
        return false;
    }
    Sequence& found = sequence(id);
    cut(found, pages_of(length));
    found.length = length;
    found.reserved = length;
    return true;
}

void KvCache::commit(int64_t id, int64_t count) {
    Sequence& found = sequence(id);
    TMAC_CHECK(count >= 0 && count <= found.reserved - found.length, "of a sequence ", found.reserved - found.length,
               " positions are reserved, ", count, " cannot be committed");
    found.length += count;
    found.reserved = found.length;
    cut(found, pages_of(found.length));
    drop_before_windows(found);
}

void KvCache::keep(int64_t id, const std::vector<int64_t>& slots) {
    Sequence& found = sequence(id);
    int64_t last = -1;
    for (const int64_t slot : slots) {
        TMAC_CHECK(slot > last && slot < found.reserved - found.length, "slot ", slot, " after slot ", last, " of ",
                   found.reserved - found.length, " reserved positions: slots ascend and are reserved");
        last = slot;
    }
    const auto first_head = [&](size_t layer, int64_t position) {
        Page* page = found.tables[group_of_[layer]].pages[static_cast<size_t>(position / kPagePositions)];
        return page->data + offset_of_[layer];
    };
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
        for (size_t i = 0; i < slots.size(); ++i) {
            const int64_t from = found.length + slots[i];
            const int64_t to = found.length + static_cast<int64_t>(i);
            if (from == to) {
                continue;
            }
            const uint8_t* source = first_head(layer, from);
            uint8_t* target = first_head(layer, to);
            for (int32_t head = 0; head < layers_[layer].kv_heads; ++head) {
                copy_row(layouts_[layer], source, {from % kPagePositions}, target, {to % kPagePositions});
                source += layouts_[layer].head_bytes();
                target += layouts_[layer].head_bytes();
            }
        }
    }
    commit(id, static_cast<int64_t>(slots.size()));
}

const uint8_t* const* KvCache::pages(int64_t id, int32_t layer) const {
    check_layer(layer);
    return sequence(id).pointers[static_cast<size_t>(layer)].data();
}

int64_t KvCache::num_pages(int64_t id) const { return static_cast<int64_t>(sequence(id).tables[0].pages.size()); }

uint8_t* KvCache::page(int64_t id, int32_t layer, int64_t index) {
    check_layer(layer);
    const auto i = static_cast<size_t>(layer);
    const std::vector<Page*>& pages = sequence(id).tables[group_of_[i]].pages;
    TMAC_CHECK(index >= 0 && static_cast<size_t>(index) < pages.size(), "a sequence with ", pages.size(),
               " pages has no page ", index);
    Page* page = pages[static_cast<size_t>(index)];
    return page == nullptr ? nullptr : page->data + offset_of_[i];
}

int64_t KvCache::bytes() const {
    int64_t sum = 0;
    for (const Group& group : groups_) {
        sum += group.pool.bytes();
    }
    return sum;
}

int64_t KvCache::used_bytes() const {
    int64_t sum = 0;
    for (const Group& group : groups_) {
        sum += group.pool.used() * group.pool.page_bytes();
    }
    return sum;
}

int64_t KvCache::held_positions() const {
    int64_t most = 0;
    for (const Group& group : groups_) {
        most = std::max(most, group.pool.used());
    }
    return most * kPagePositions;
}

void KvCache::trim() {
    for (Group& group : groups_) {
        group.pool.trim();
    }
}

}  // namespace tmac
