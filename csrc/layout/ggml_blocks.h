#pragma once

#include <cstdint>
#include <string_view>

#include "core/range.h"

namespace tmac {

/// Where the parts of blocks go, each part of all blocks together: [blocks][codes], [blocks][subs], ..., [blocks]. Null
/// where the type has none.
struct GgmlParts {
    uint8_t* codes;
    int8_t* sub_scales;
    int8_t* sub_offsets;
    uint16_t* scales;
    uint16_t* offsets;
};

/// What one block of a type of ggml holds.
struct GgmlBlock {
    std::string_view name;
    int32_t bytes;
    int32_t codes;     ///< elements
    int32_t subs;      ///< sub-scales, i8; 0 where a block has one scale
    bool sub_offsets;  ///< and as many sub-offsets
    int32_t halves;    ///< f16 values: a scale, or a scale and an offset (of the sub-values, where there are any)
    void (*split)(const GgmlBlock& type, const uint8_t* blocks, Range range, const GgmlParts& parts);
};

/// The type, or null where it has no exact form as codes.
const GgmlBlock* find_ggml_block(std::string_view name);

/// Takes blocks apart, without rounding.
void split_blocks(const GgmlBlock& type, const uint8_t* blocks, Range range, const GgmlParts& parts);

}  // namespace tmac
