#include "ops/attention.h"

#include <algorithm>

#include "core/check.h"
#include "core/thread_pool.h"

namespace tmac {

namespace {

constexpr int64_t kBlockQueries = 64;  ///< that go through a span of a key head together, while it is in the L2 cache
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kSmallWork = 1 << 17;  ///< products of a query and a key's element that are not worth a second thread

int64_t first_span(const CachedPath& path) { return path.begin / kSpanPositions; }
int64_t last_span(const CachedPath& path) { return (path.end + kSpanPositions - 1) / kSpanPositions; }
bool reads_span(const CachedPath& path, int64_t span) { return first_span(path) <= span && span < last_span(path); }

/// Where the groups of one span and key head lie.
struct SpanPointers {
    const uint8_t* keys[kSpanGroups] = {};
    const uint8_t* values[kSpanGroups] = {};
    const float* key_scales[kSpanGroups] = {};
    const float* value_scales[kSpanGroups] = {};

    /// `piece`: of `groups` groups, of which `group` becomes the span's number `to`.
    void set(const CacheLayout& layout, int64_t to, const uint8_t* piece, int64_t group, int64_t groups) {
        keys[to] = piece + layout.key_offset(group);
        values[to] = piece + layout.value_offset(group, groups);
        if (layout.has_scales()) {
            key_scales[to] = reinterpret_cast<const float*>(piece + layout.key_scale_offset(group, groups));
            value_scales[to] = reinterpret_cast<const float*>(piece + layout.value_scale_offset(group, groups));
        }
    }
};

/// Consecutive rows that read the same pages.
struct RowBlock {
    int64_t begin;
    int64_t end;
    int64_t first_span;
    int64_t last_span;
};

void check(const AttentionInput& input) {
    TMAC_CHECK(input.head_dim > 0 && input.kv_heads > 0 && input.heads > 0 && input.heads % input.kv_heads == 0,
               "[attend] ", input.heads, " heads of ", input.head_dim, " with ", input.kv_heads, " key heads");
    TMAC_CHECK(input.layout.head_dim == input.head_dim, "[attend] head_dim=", input.head_dim, ", but the cache has ",
               input.layout.head_dim);
    for (int64_t row = 0; row < input.rows; ++row) {
        const CachedPath& path = input.paths[row];
        TMAC_CHECK(0 <= path.begin && path.begin < path.end, "[attend] row ", row, " attends to positions ", path.begin,
                   " to ", path.end);
        TMAC_CHECK(path.tail == nullptr ||
                       (path.tail_begin % kKeyGroup == 0 && path.end <= path.tail_begin + path.tail_groups * kKeyGroup),
                   "[attend] row ", row, " has a tail of ", path.tail_groups, " groups from position ", path.tail_begin,
                   " and attends up to ", path.end);
    }
}

std::vector<RowBlock> make_blocks(const AttentionInput& input) {
    const int64_t most = std::max<int64_t>(1, kBlockQueries / (input.heads / input.kv_heads));
    std::vector<RowBlock> blocks;
    for (int64_t row = 0; row < input.rows; ++row) {
        const CachedPath& path = input.paths[row];
        if (row == 0 || path.pages != input.paths[row - 1].pages || row - blocks.back().begin == most) {
            blocks.push_back({row, row, first_span(path), last_span(path)});
        }
        RowBlock& block = blocks.back();
        block.end = row + 1;
        block.first_span = std::min(block.first_span, first_span(path));
        block.last_span = std::max(block.last_span, last_span(path));
    }
    return blocks;
}

}  // namespace

/// One call of `attend`.
class AttentionPass {
public:
    AttentionPass(const AttentionInput& input, int num_threads, AttentionScratch& scratch)
        : input_(input), scratch_(scratch), ops_(*scratch.ops_), blocks_(make_blocks(input)) {
        const int threads = num_threads == 0 ? get_num_threads() : num_threads;
        int64_t work = 0;
        for (int64_t row = 0; row < input.rows; ++row) {
            work += (input.paths[row].end - input.paths[row].begin) * input.heads * input.head_dim;
        }
        threads_ = work < kSmallWork ? 1 : threads;
        const auto items = static_cast<int64_t>(blocks_.size()) * input.kv_heads;
        by_span_ = threads_ > 1 && items < kItemsPerThread * threads_;
        reserve();
    }

    void run() {
        if (input_.layout.type == CacheType::i8) {
            round_queries();
        }
        if (by_span_) {
            run_by_span();
        } else {
            run_by_head();
        }
    }

private:
    /// Queries of consecutive rows that read the same memory in a span, and the buffers of their call.
    struct Call {
        const float* queries[kBlockQueries];
        const uint8_t* rounded[kBlockQueries];
        int32_t begin[kBlockQueries];
        int32_t end[kBlockQueries];
        int32_t count = 0;
    };

    const float* query_at(int64_t row, int64_t head) const {
        return input_.queries + row * input_.row_stride + head * input_.head_stride;
    }
    uint8_t* rounded_at(int64_t row, int64_t head) {
        return scratch_.rounded_.data() + (row * input_.heads + head) * rounded_query_bytes(input_.head_dim);
    }

    void round_queries() {
        const auto bytes = static_cast<size_t>(input_.rows * input_.heads * rounded_query_bytes(input_.head_dim));
        if (scratch_.rounded_.size() < bytes) {
            scratch_.rounded_.resize(bytes);
        }
        parallel_for(input_.rows, 1, threads_, [&](Range range) {
            for (int64_t row = range.begin; row < range.end; ++row) {
                for (int64_t head = 0; head < input_.heads; ++head) {
                    ops_.round_query(query_at(row, head), input_.head_dim, rounded_at(row, head));
                }
            }
        });
    }

    int64_t group_heads() const { return input_.heads / input_.kv_heads; }

    void reserve() {
        scratch_.heads_ = input_.heads;
        scratch_.head_dim_ = input_.head_dim;
        scratch_.stride_ = round_up(partial_floats(input_.head_dim), kKeyGroup);
        scratch_.first_part_.clear();
        scratch_.parts_.clear();
        int64_t parts = 0;
        for (int64_t row = 0; row < input_.rows; ++row) {
            const CachedPath& path = input_.paths[row];
            scratch_.first_part_.push_back(parts);
            scratch_.parts_.push_back(by_span_ ? last_span(path) - first_span(path) : 1);
            parts += scratch_.parts_.back() * input_.heads;
        }
        const auto floats = static_cast<size_t>(parts * scratch_.stride_);
        if (scratch_.partials_.size() < floats) {
            scratch_.partials_.resize(floats);
        }
    }

    float* part(int64_t row, int64_t head, int64_t index) {
        return const_cast<float*>(scratch_.part(row, static_cast<int32_t>(head), index));
    }

    /// What is computed together: one span of a key head for one block of rows.
    struct Item {
        const RowBlock* block;
        int64_t kv_head;
        int64_t span;
    };

    /// One item is one span of a key head: its partial results stay apart until attention_row.
    void run_by_span() {
        std::vector<int64_t> first_item;
        int64_t items = 0;
        for (const RowBlock& block : blocks_) {
            first_item.push_back(items);
            items += (block.last_span - block.first_span) * input_.kv_heads;
        }
        const auto item_of = [&](int64_t index) {
            const auto above = std::upper_bound(first_item.begin(), first_item.end(), index);
            const auto at = static_cast<size_t>(above - first_item.begin()) - 1;
            const RowBlock& block = blocks_[at];
            const int64_t spans = block.last_span - block.first_span;
            const int64_t in_block = index - first_item[at];
            return Item{&block, in_block / spans, block.first_span + in_block % spans};
        };
        parallel_for(items, 1, threads_, [&](Range range) {
            std::vector<float> partials(static_cast<size_t>(kBlockQueries * scratch_.stride_));
            for (int64_t index = range.begin; index < range.end; ++index) {
                const Item item = item_of(index);
                run_item(item, index + 1 < range.end ? item_of(index + 1) : item, partials);
            }
        });
    }

    /// The spans of a key head follow each other and are merged on the way.
    void run_by_head() {
        const auto blocks = static_cast<int64_t>(blocks_.size());
        parallel_for(blocks * input_.kv_heads, 1, threads_, [&](Range range) {
            std::vector<float> partials(static_cast<size_t>(kBlockQueries * scratch_.stride_));
            for (int64_t index = range.begin; index < range.end; ++index) {
                const RowBlock& block = blocks_[static_cast<size_t>(index % blocks)];
                const RowBlock& next = blocks_[static_cast<size_t>((index + 1) % blocks)];
                const int64_t next_head = std::min((index + 1) / blocks, int64_t{input_.kv_heads} - 1);
                for (int64_t span = block.first_span; span < block.last_span; ++span) {
                    const Item item{&block, index / blocks, span};
                    const bool last = span + 1 == block.last_span;
                    run_item(item,
                             last ? Item{&next, next_head, next.first_span} : Item{&block, item.kv_head, span + 1},
                             partials);
                }
            }
        });
    }

    /// The tail that a row reads in a span, or null.
    const uint8_t* tail_in(const CachedPath& path, int64_t span) const {
        return path.tail_begin < (span + 1) * kSpanPositions ? path.tail : nullptr;
    }

    /// `next`: the item to come, whose first keys are asked for early.
    void run_item(const Item& item, const Item& next, std::vector<float>& partials) {
        const auto [block_of_rows, kv_head, span] = item;
        const RowBlock& block = *block_of_rows;
        const SpanPointers next_pointers =
            pointers_of(next.block->begin, next.block->begin + 1, next.kv_head, next.span);
        for (int64_t row = block.begin; row < block.end;) {
            const CachedPath& path = input_.paths[row];
            if (!reads_span(path, span)) {
                ++row;
                continue;
            }
            int64_t end = row + 1;
            while (end < block.end && reads_span(input_.paths[end], span) &&
                   tail_in(input_.paths[end], span) == tail_in(path, span)) {
                ++end;
            }
            run_rows(row, end, kv_head, span, next_pointers, partials);
            row = end;
        }
    }

    SpanPointers pointers_of(int64_t row, int64_t row_end, int64_t kv_head, int64_t span) const {
        const CachedPath& first = input_.paths[row];
        int64_t begin = first.begin;
        int64_t end = first.end;
        for (int64_t other = row + 1; other < row_end; ++other) {
            begin = std::min(begin, input_.paths[other].begin);
            end = std::max(end, input_.paths[other].end);
        }
        const int64_t first_group = span * kSpanGroups;
        const int64_t group_begin = std::max(first_group, begin / kKeyGroup);
        const int64_t group_end = std::min(first_group + kSpanGroups, (end + kKeyGroup - 1) / kKeyGroup);
        const uint8_t* tail = tail_in(first, span);
        SpanPointers pointers;
        for (int64_t group = group_begin; group < group_end; ++group) {
            const int64_t in_tail = group - first.tail_begin / kKeyGroup;
            if (tail != nullptr && in_tail >= 0) {
                pointers.set(input_.layout, group - first_group,
                             tail + kv_head * input_.layout.head_bytes(first.tail_groups), in_tail, first.tail_groups);
            } else if (const uint8_t* page = first.pages[group / kPageGroups]; page != nullptr) {
                pointers.set(input_.layout, group - first_group, page + kv_head * input_.layout.head_bytes(),
                             group % kPageGroups, kPageGroups);
            }
        }
        return pointers;
    }

    /// All query heads of a key head, for rows that read the same memory.
    void run_rows(int64_t row, int64_t row_end, int64_t kv_head, int64_t span, const SpanPointers& next,
                  std::vector<float>& partials) {
        const SpanPointers pointers = pointers_of(row, row_end, kv_head, span);
        const int64_t queries = (row_end - row) * group_heads();
        for (int64_t first = 0; first < queries; first += kBlockQueries) {
            run_call(row, kv_head, span, first, std::min(queries, first + kBlockQueries), pointers, next, partials);
        }
    }

    /// Queries [first, last), counted from the first head of `first_row`.
    void run_call(int64_t first_row, int64_t kv_head, int64_t span, int64_t first, int64_t last,
                  const SpanPointers& pointers, const SpanPointers& next, std::vector<float>& partials) {
        Call call;
        for (int64_t query = first; query < last; ++query) {
            const int64_t row = first_row + query / group_heads();
            const int64_t head = kv_head * group_heads() + query % group_heads();
            const CachedPath& path = input_.paths[row];
            const int64_t start = span * kSpanPositions;
            call.queries[call.count] = query_at(row, head);
            call.rounded[call.count] = input_.layout.type == CacheType::i8 ? rounded_at(row, head) : nullptr;
            call.begin[call.count] = static_cast<int32_t>(std::max<int64_t>(path.begin - start, 0));
            call.end[call.count] = static_cast<int32_t>(std::min<int64_t>(path.end - start, kSpanPositions));
            ++call.count;
        }
        ops_.attend({input_.layout.type, input_.head_dim, pointers.keys, pointers.values, pointers.key_scales,
                     pointers.value_scales, call.queries, call.rounded, call.count, call.begin, call.end, input_.scale,
                     input_.softcap, partials.data(), scratch_.stride_, next.keys, next.key_scales, next.value_scales});
        for (int64_t query = first; query < last; ++query) {
            const int64_t row = first_row + query / group_heads();
            keep(row, kv_head * group_heads() + query % group_heads(), span,
                 partials.data() + (query - first) * scratch_.stride_);
        }
    }

    /// A partial result becomes a part of its own, or part of the one.
    void keep(int64_t row, int64_t head, int64_t span, const float* partial) {
        const int64_t index = span - first_span(input_.paths[row]);
        if (by_span_ || index == 0) {
            std::copy_n(partial, partial_floats(input_.head_dim), part(row, head, by_span_ ? index : 0));
        } else {
            ops_.merge(partial, part(row, head, 0), input_.head_dim);
        }
    }

    const AttentionInput& input_;
    AttentionScratch& scratch_;
    const VectorOps& ops_;
    std::vector<RowBlock> blocks_;
    int threads_ = 1;
    bool by_span_ = false;
};

void attend(const AttentionInput& input, int num_threads, AttentionScratch& scratch) {
    check(input);
    AttentionPass(input, num_threads, scratch).run();
}

void attention_row(const AttentionScratch& scratch, int64_t row, float* y) {
    TMAC_CHECK(row >= 0 && row < static_cast<int64_t>(scratch.parts_.size()), "[attention_row] row ", row, " of ",
               scratch.parts_.size());
    const VectorOps& ops = *scratch.ops_;
    std::vector<float> merged(static_cast<size_t>(scratch.stride_));
    for (int32_t head = 0; head < scratch.heads_; ++head) {
        std::copy_n(scratch.part(row, head, 0), scratch.stride_, merged.data());
        for (int64_t index = 1; index < scratch.parts_[static_cast<size_t>(row)]; ++index) {
            ops.merge(scratch.part(row, head, index), merged.data(), scratch.head_dim_);
        }
        ops.finish(merged.data(), scratch.head_dim_, y + int64_t{head} * scratch.head_dim_);
    }
}

}  // namespace tmac
