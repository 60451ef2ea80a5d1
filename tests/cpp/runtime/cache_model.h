#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime/kv_cache.h"

// What stands for keys and values in the tests of the cache: every element of a position is a function of the
// position's token, the layer, the head and the element, so that a list of tokens says what a sequence must hold.

/// The bytes of one position of one head as the layout describes them, one piece at a time: `visit(piece, bytes,
/// what)`.
template <class Visit>
void visit_row(const tmac::CacheLayout& layout, uint8_t* head, int64_t position, const Visit& visit) {
    const int64_t group = position / tmac::kKeyGroup;
    const int64_t lane = position % tmac::kKeyGroup;
    const int64_t element = tmac::element_bytes(layout.type);
    uint32_t what = 0;
    for (int64_t d = 0; d < layout.head_dim; ++d) {
        visit(head + layout.key_offset(group) + layout.key_element(d, lane), element, what++);
    }
    for (int64_t d = 0; d < layout.head_dim; ++d) {
        visit(head + layout.value_offset(group) + layout.value_element(d, lane), element, what++);
    }
    if (layout.has_scales()) {
        visit(head + layout.key_scale_offset(group) + lane * 4, 4, what++);
        visit(head + layout.value_scale_offset(group) + lane * 4, 4, what++);
    }
}

inline uint32_t element_of(uint32_t token, int32_t layer, int32_t head, uint32_t what) {
    uint32_t x =
        token * 2654435761U + static_cast<uint32_t>(layer) * 40503U + static_cast<uint32_t>(head) * 2246822519U;
    x = (x ^ (x >> 15)) * 2654435769U + what * 668265263U;
    return x ^ (x >> 13);
}

inline void write_token(tmac::KvCache& cache, int64_t id, int64_t position, uint32_t token) {
    for (int32_t layer = 0; layer < static_cast<int32_t>(cache.layers().size()); ++layer) {
        uint8_t* head = cache.page(id, layer, position / tmac::kPagePositions);
        for (int32_t j = 0; j < cache.layers()[static_cast<size_t>(layer)].kv_heads; ++j) {
            visit_row(cache.layout(layer), head, position % tmac::kPagePositions,
                      [&](uint8_t* piece, int64_t bytes, uint32_t what) {
                          const uint32_t value = element_of(token, layer, j, what);
                          std::memcpy(piece, &value, static_cast<size_t>(bytes));
                      });
            head += cache.layout(layer).head_bytes();
        }
    }
}

/// Pages that were dropped hold no position; all others must hold their tokens.
inline bool holds_tokens(tmac::KvCache& cache, int64_t id, const std::vector<uint32_t>& tokens) {
    bool same = cache.length(id) == static_cast<int64_t>(tokens.size());
    for (int32_t layer = 0; same && layer < static_cast<int32_t>(cache.layers().size()); ++layer) {
        const uint8_t* const* pages = cache.pages(id, layer);
        for (size_t i = 0; i < tokens.size(); ++i) {
            const auto position = static_cast<int64_t>(i);
            const uint8_t* page = pages[position / tmac::kPagePositions];
            same = same && page == cache.page(id, layer, position / tmac::kPagePositions);
            if (page == nullptr || !same) {
                continue;
            }
            auto* head = const_cast<uint8_t*>(page);
            for (int32_t j = 0; j < cache.layers()[static_cast<size_t>(layer)].kv_heads; ++j) {
                visit_row(cache.layout(layer), head, position % tmac::kPagePositions,
                          [&](const uint8_t* piece, int64_t bytes, uint32_t what) {
                              const uint32_t value = element_of(tokens[i], layer, j, what);
                              same = same && std::memcmp(piece, &value, static_cast<size_t>(bytes)) == 0;
                          });
                head += cache.layout(layer).head_bytes();
            }
        }
    }
    return same;
}

/// Appends tokens `first`, `first` + 1, ...
inline void append(tmac::KvCache& cache, int64_t id, std::vector<uint32_t>& tokens, int64_t count, uint32_t first) {
    cache.reserve(id, count);
    for (int64_t i = 0; i < count; ++i) {
        write_token(cache, id, static_cast<int64_t>(tokens.size()), first + static_cast<uint32_t>(i));
        tokens.push_back(first + static_cast<uint32_t>(i));
    }
    cache.commit(id, count);
}
