#include "runtime/cache_rows.h"

#include <cstring>

namespace tmac {
namespace {

/// Byte offsets of a position in the groups of its head.
struct RowOffsets {
    int64_t key;        ///< of its first element; the next is kKeyGroup elements on
    int64_t value;      ///< padded_dim elements
    int64_t key_scale;  ///< i8 only
    int64_t value_scale;

    RowOffsets(const CacheLayout& layout, int32_t position) {
        const int32_t group = position / kKeyGroup;
        const int32_t lane = position % kKeyGroup;
        const int64_t element = element_bytes(layout.type);
        key = layout.key_offset(group) + lane * element;
        value = layout.value_offset(group) + lane * layout.padded_dim() * element;
        key_scale = layout.key_scale_offset(group) + lane * int64_t{sizeof(float)};
        value_scale = layout.value_scale_offset(group) + lane * int64_t{sizeof(float)};
    }
};

template <int64_t kBytes>
void copy_column(const uint8_t* from, uint8_t* to, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
        std::memcpy(to + i * kKeyGroup * kBytes, from + i * kKeyGroup * kBytes, kBytes);
    }
}

}  // namespace

void copy_row(const CacheLayout& layout, CacheRow from, CacheRow to) {
    const RowOffsets source(layout, from.position);
    const RowOffsets target(layout, to.position);
    switch (layout.type) {
        case CacheType::f32:
            copy_column<4>(from.head + source.key, to.head + target.key, layout.head_dim);
            break;
        case CacheType::f16:
            copy_column<2>(from.head + source.key, to.head + target.key, layout.head_dim);
            break;
        case CacheType::i8:
            copy_column<1>(from.head + source.key, to.head + target.key, layout.head_dim);
            std::memcpy(to.head + target.key_scale, from.head + source.key_scale, sizeof(float));
            std::memcpy(to.head + target.value_scale, from.head + source.value_scale, sizeof(float));
            break;
    }
    const int64_t value_bytes = layout.padded_dim() * element_bytes(layout.type);
    std::memcpy(to.head + target.value, from.head + source.value, static_cast<size_t>(value_bytes));
}

void clear_rows(const CacheLayout& layout, uint8_t* head, int32_t first) {
    const int64_t element = element_bytes(layout.type);
    for (int32_t position = 0; position < kPagePositions; ++position) {
        const RowOffsets row(layout, position);
        const int64_t kept = position < first ? layout.head_dim : 0;
        std::memset(head + row.value + kept * element, 0, static_cast<size_t>((layout.padded_dim() - kept) * element));
        if (position < first) {
            continue;
        }
        for (int64_t i = 0; i < layout.head_dim; ++i) {
            std::memset(head + row.key + i * kKeyGroup * element, 0, static_cast<size_t>(element));
        }
        if (layout.has_scales()) {
            std::memset(head + row.key_scale, 0, sizeof(float));
            std::memset(head + row.value_scale, 0, sizeof(float));
        }
    }
}

}  // namespace tmac
