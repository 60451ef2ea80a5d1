#include <algorithm>
#include <cstring>
#include <string>

#include "core/check.h"
#include "runtime/kv_cache.h"
#include "runtime/kv_cache_parts.h"

// The page tables: who takes pages and gives them back.

namespace tmac {
namespace {

template <class T>
void make_room(std::vector<T>& entries, int64_t size) {
    if (entries.capacity() < static_cast<size_t>(size)) {
        entries.reserve(std::max(static_cast<size_t>(size), 2 * entries.capacity()));
    }
}

std::string full_message(int64_t held, int64_t limit, int64_t length, int64_t wanted, int64_t pages) {
    return "the KV cache is full: it holds " + std::to_string(held) + " of " + std::to_string(limit) +
           " positions (whole pages of " + std::to_string(kPagePositions) + "); a sequence of " +
           std::to_string(length) + " positions wants " + std::to_string(wanted) + " more, which takes " +
           std::to_string(pages) + (pages == 1 ? " page" : " pages");
}

}  // namespace

/// Pages of a group that a sequence needs and has not for `count` positions more.
int64_t KvCache::pages_to_take(const Sequence& sequence, size_t group, int64_t count) const {
    const std::vector<Page*>& pages = sequence.tables[group].pages;
    const auto held = static_cast<int64_t>(pages.size());
    const int64_t added = std::max<int64_t>(pages_of(sequence.length + count) - held, 0);
    const bool shared = count > 0 && sequence.length % kPagePositions != 0 &&
                        pages[static_cast<size_t>(sequence.length / kPagePositions)]->references > 1;
    return added + (shared ? 1 : 0);
}

void KvCache::reserve(Sequence& sequence, int64_t count) {
    TMAC_CHECK(count >= 0 && count <= kMaxSequenceLength - sequence.length, "a sequence of ", sequence.length,
               " positions cannot grow by ", count, ": the longest has ", kMaxSequenceLength);
    const int64_t num_pages = pages_of(sequence.length + count);
    for (size_t i = 0; i < groups_.size(); ++i) {
        const int64_t wanted = pages_to_take(sequence, i, count);
        if (!groups_[i].pool.may_take(wanted)) {
            throw CacheFull(
                full_message(groups_[i].pool.used() * kPagePositions, max_positions_, sequence.length, count, wanted));
        }
    }
    for (size_t i = 0; i < groups_.size(); ++i) {
        groups_[i].pool.prepare(pages_to_take(sequence, i, count));
        make_room(sequence.tables[i].pages, num_pages);
    }
    for (std::vector<const uint8_t*>& pointers : sequence.pointers) {
        make_room(pointers, num_pages);
    }
    // From here on nothing fails.
    for (size_t i = 0; i < groups_.size(); ++i) {
        if (count > 0) {
            own_last_page(sequence, i);
        }
        for (auto index = static_cast<int64_t>(sequence.tables[i].pages.size()); index < num_pages; ++index) {
            place(sequence, i, index, groups_[i].pool.take());
        }
    }
    sequence.reserved = std::max(sequence.reserved, sequence.length + count);
}

void KvCache::reserve(int64_t id, int64_t count) { reserve(sequence(id), count); }

void KvCache::place(Sequence& sequence, size_t group, int64_t index, Page* page) noexcept {
    const auto put = [&](auto& entries, auto value) {
        if (static_cast<size_t>(index) == entries.size()) {
            entries.push_back(value);  // reserve() has made room
        } else {
            entries[static_cast<size_t>(index)] = value;
        }
    };
    put(sequence.tables[group].pages, page);
    for (const int32_t layer : groups_[group].layers) {
        const auto i = static_cast<size_t>(layer);
        put(sequence.pointers[i], page == nullptr ? nullptr : static_cast<const uint8_t*>(page->data + offset_of_[i]));
    }
}

/// The page that the next position goes to, if it has positions already, as this sequence's alone.
void KvCache::own_last_page(Sequence& sequence, size_t group) noexcept {
    if (sequence.length % kPagePositions == 0) {
        return;
    }
    PagePool& pool = groups_[group].pool;
    const int64_t index = sequence.length / kPagePositions;
    Page* shared = sequence.tables[group].pages[static_cast<size_t>(index)];
    if (shared->references > 1) {
        Page* own = pool.take();
        std::memcpy(own->data, shared->data, static_cast<size_t>(pool.page_bytes()));
        pool.drop(shared);
        place(sequence, group, index, own);
    }
}

/// Gives pages from `num_pages` on back.
void KvCache::cut(Sequence& sequence, int64_t num_pages) noexcept {
    for (size_t i = 0; i < groups_.size(); ++i) {
        std::vector<Page*>& pages = sequence.tables[i].pages;
        while (static_cast<int64_t>(pages.size()) > num_pages) {
            if (pages.back() != nullptr) {
                groups_[i].pool.drop(pages.back());
            }
            pages.pop_back();
        }
        sequence.tables[i].first = std::min(sequence.tables[i].first, num_pages);
    }
    for (std::vector<const uint8_t*>& pointers : sequence.pointers) {
        pointers.resize(std::min(pointers.size(), static_cast<size_t>(num_pages)));
    }
}

void KvCache::drop_before_windows(Sequence& sequence) noexcept {
    for (size_t i = 0; i < groups_.size(); ++i) {
        Sequence::Table& table = sequence.tables[i];
        const int64_t first = groups_[i].first_needed(sequence.length, kRollbackPositions);
        for (; table.first < first; ++table.first) {
            groups_[i].pool.drop(table.pages[static_cast<size_t>(table.first)]);
            place(sequence, i, table.first, nullptr);
        }
    }
}

}  // namespace tmac
