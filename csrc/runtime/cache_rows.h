#pragma once

#include <cstdint>

#include "core/cache_layout.h"

namespace tmac {

/// Where a position is in a piece of groups (CacheLayout), a page for instance.
struct CachePlace {
    int64_t position;
    int64_t groups = kPageGroups;  ///< of the piece
};

/// Copies key, value and scales of one position of one head to another place, which may be in the same piece. `source`
/// and `target`: the head's piece.
void copy_row(const CacheLayout& layout, const uint8_t* source, CachePlace from, uint8_t* target, CachePlace to);

/// Copies the group that a position is in, of one head, to the group of another position in another piece.
void copy_group(const CacheLayout& layout, const uint8_t* source, CachePlace from, uint8_t* target, CachePlace to);

/// Zeroes the bytes of positions [first, kPagePositions) of a head's page, and what is past head_dim in all others.
void clear_rows(const CacheLayout& layout, uint8_t* head, int32_t first);

}  // namespace tmac
