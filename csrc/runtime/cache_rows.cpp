#include "runtime/cache_rows.h"

#include <cstring>

namespace tmac {
namespace {

/// Byte offsets of a position in the piece of its head.
class RowOffsets {
public:
    RowOffsets(const CacheLayout& layout, CachePlace place)
        : layout_(layout),
          lane_(place.position % kKeyGroup),
          keys_(layout.key_offset(place.position / kKeyGroup)),
          values_(layout.value_offset(place.position / kKeyGroup, place.groups)),
          key_scales_(layout.key_scale_offset(place.position / kKeyGroup, place.groups)),
          value_scales_(layout.value_scale_offset(place.position / kKeyGroup, place.groups)) {}

    int64_t key(int64_t column) const { return keys_ + layout_.key_element(column, lane_); }
    int64_t value(int64_t column) const { return values_ + layout_.value_element(column, lane_); }
    int64_t key_scale() const { return key_scales_ + lane_ * int64_t{sizeof(float)}; }
    int64_t value_scale() const { return value_scales_ + lane_ * int64_t{sizeof(float)}; }

private:
    const CacheLayout& layout_;
    int64_t lane_;
    int64_t keys_;
    int64_t values_;
    int64_t key_scales_;
    int64_t value_scales_;
};

template <int64_t kBytes>
void copy_elements(const CacheLayout& layout, const uint8_t* source, const RowOffsets& from, uint8_t* target,
                   const RowOffsets& to) {
    for (int64_t column = 0; column < layout.head_dim; ++column) {
        std::memcpy(target + to.key(column), source + from.key(column), kBytes);
    }
    if constexpr (kBytes > 1) {  // a position's values lie in one piece
        std::memcpy(target + to.value(0), source + from.value(0), static_cast<size_t>(layout.padded_dim() * kBytes));
        return;
    }
    for (int64_t column = 0; column < layout.padded_dim(); ++column) {
        std::memcpy(target + to.value(column), source + from.value(column), kBytes);
    }
}

}  // namespace

void copy_row(const CacheLayout& layout, const uint8_t* source, CachePlace from, uint8_t* target, CachePlace to) {
    const RowOffsets source_row(layout, from);
    const RowOffsets target_row(layout, to);
    switch (layout.type) {
        case CacheType::f32:
            return copy_elements<4>(layout, source, source_row, target, target_row);
        case CacheType::f16:
            return copy_elements<2>(layout, source, source_row, target, target_row);
        case CacheType::i8:
            copy_elements<1>(layout, source, source_row, target, target_row);
            std::memcpy(target + target_row.key_scale(), source + source_row.key_scale(), sizeof(float));
            std::memcpy(target + target_row.value_scale(), source + source_row.value_scale(), sizeof(float));
            break;
    }
}

void copy_group(const CacheLayout& layout, const uint8_t* source, CachePlace from, uint8_t* target, CachePlace to) {
    const int64_t group = from.position / kKeyGroup;
    const int64_t to_group = to.position / kKeyGroup;
    const auto copy = [&](int64_t to_offset, int64_t from_offset, int64_t bytes) {
        std::memcpy(target + to_offset, source + from_offset, static_cast<size_t>(bytes));
    };
    copy(layout.key_offset(to_group), layout.key_offset(group), layout.key_group_bytes());
    copy(layout.value_offset(to_group, to.groups), layout.value_offset(group, from.groups), layout.value_group_bytes());
    copy(layout.key_scale_offset(to_group, to.groups), layout.key_scale_offset(group, from.groups),
         layout.scale_group_bytes());
    copy(layout.value_scale_offset(to_group, to.groups), layout.value_scale_offset(group, from.groups),
         layout.scale_group_bytes());
}

void clear_rows(const CacheLayout& layout, uint8_t* head, int32_t first) {
    const auto bytes = static_cast<size_t>(element_bytes(layout.type));
    for (int32_t position = 0; position < kPagePositions; ++position) {
        const RowOffsets row(layout, {position});
        const int64_t kept = position < first ? layout.head_dim : 0;
        for (int64_t column = kept; column < layout.key_columns(); ++column) {
            std::memset(head + row.key(column), 0, bytes);
        }
        for (int64_t column = kept; column < layout.padded_dim(); ++column) {
            std::memset(head + row.value(column), 0, bytes);
        }
        if (layout.has_scales() && position >= first) {
            std::memset(head + row.key_scale(), 0, sizeof(float));
            std::memset(head + row.value_scale(), 0, sizeof(float));
        }
    }
}

}  // namespace tmac
