#pragma once

#include <cstdint>

#include "core/cache_layout.h"

namespace tmac {

/// One position of a page: where a key head's groups are, and its place in them.
struct CacheRow {
    uint8_t* head;
    int32_t position;  ///< in the page
};

/// Copies key, value and scales of one position of one head to another place, which may be in the same page.
void copy_row(const CacheLayout& layout, CacheRow from, CacheRow to);

/// Zeroes positions [first, kPagePositions) of a head, and what is past head_dim of all its values.
void clear_rows(const CacheLayout& layout, uint8_t* head, int32_t first);

}  // namespace tmac
