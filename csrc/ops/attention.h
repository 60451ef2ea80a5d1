#pragma once

#include <cstdint>
#include <vector>

#include "core/cache_layout.h"
#include "kernels/registry.h"

namespace tmac {

/// What one row attends to: positions [begin, end), at least one. Rows that give the same `pages` and follow each other
/// are computed together.
struct CachedPath {
    const uint8_t* const*
        pages;  ///< page i holds positions [64 i, 64 i + 64): this layer's first key head; null: dropped
    int64_t begin;
    int64_t end;
    /// Token trees: what this row reads instead of the pages from position tail_begin (a multiple of 16) on, gathered
    /// into pieces of `tail_groups` groups (CacheLayout), one piece for each key head; or null.
    const uint8_t* tail;
    int64_t tail_begin;
    int64_t tail_groups;
};

struct AttentionInput {
    const float* queries;  ///< of row r and head h: head_dim floats at r * row_stride + h * head_stride
    int64_t row_stride;
    int64_t head_stride;
    int32_t heads;
    int32_t kv_heads;  ///< divides `heads`; neighbouring heads share one
    int32_t head_dim;
    float scale;    ///< of the scores
    float softcap;  ///< 0: none
    CacheLayout layout;
    const CachedPath* paths;  ///< [rows]
    int64_t rows;
};

/// Partial results of the rows of one `attend`. Buffers grow and are used again.
class AttentionScratch {
public:
    explicit AttentionScratch(const VectorOps& ops = vector_ops()) : ops_(&ops) {}

private:
    friend class AttentionPass;
    friend void attention_row(const AttentionScratch& scratch, int64_t row, float* y);

    const float* part(int64_t row, int32_t head, int64_t index) const {
        const auto at = static_cast<size_t>(row);
        return partials_.data() + ((first_part_[at] + head * parts_[at]) + index) * stride_;
    }

    const VectorOps* ops_;
    int32_t heads_ = 0;
    int32_t head_dim_ = 0;
    int64_t stride_ = 0;
    std::vector<int64_t> first_part_;  ///< [rows], counted in partial results; a row has parts_ for each head
    std::vector<int64_t> parts_;       ///< [rows]
    std::vector<float> partials_;
    std::vector<uint8_t> rounded_;  ///< [rows][heads]: the queries, for a cache of i8
};

/// Attention of every row over its part of a layer's cache, in one parallel region. A row's result does not depend on
/// the other rows, nor on the number of threads (0: get_num_threads()). Throws std::invalid_argument.
void attend(const AttentionInput& input, int num_threads, AttentionScratch& scratch);

/// The result of one row: y[heads * head_dim]. May be called by several threads at once.
void attention_row(const AttentionScratch& scratch, int64_t row, float* y);

}  // namespace tmac
