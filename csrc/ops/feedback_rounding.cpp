#include "ops/feedback_rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "core/half.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "kernels/vector_ops.h"

// A tile of 48 rows goes through all columns at once. Its columns are cut into blocks, those into groups, and those
// into strips: before a piece is cut further, the errors of all columns before it have been fed back to it. What has
// been rounded is read once for each block, mostly, not once for each strip.

namespace tmac {
namespace {

constexpr int64_t kRows = kFeedbackRows;
constexpr int64_t kStrip = kFeedbackColumns;
constexpr int64_t kBlock = 256;  ///< columns
constexpr int64_t kPanel = 32;
constexpr int64_t kTogether = 8;  ///< tiles for which a part of the feedback is read once
constexpr int64_t kNear = 128;    ///< columns whose errors stay in the first cache while strips pass by

void store_value(std::vector<uint8_t>& values, GroupType type, int64_t index, float value) {
    uint8_t* to = values.data() + index * element_bytes(type);
    if (type == GroupType::u8) {
        *to = static_cast<uint8_t>(value);
    } else if (type == GroupType::f16) {
        const uint16_t half = f32_to_f16(value);
        std::memcpy(to, &half, sizeof(half));
    } else {
        std::memcpy(to, &value, sizeof(value));
    }
}

QuantizedRows allocate(int64_t n, int64_t k, const QuantSpec& spec) {
    QuantizedRows out{};
    out.scale_type = scale_type_of(spec.scale_format);
    if (spec.zero_point != ZeroPoint::fixed) {
        out.zero_type = spec.zero_point == ZeroPoint::integer ? GroupType::u8 : out.scale_type;
    }
    const int64_t values = n * num_groups(spec, k);
    out.codes.resize(static_cast<size_t>(n * k));
    out.scales.resize(static_cast<size_t>(values * element_bytes(out.scale_type)));
    out.zeros.resize(static_cast<size_t>(values * element_bytes(out.zero_type)));
    return out;
}

/// 48 rows of a weight on their way.
struct Tile {
    std::vector<float> errors;   ///< [k][kRows]: the weights, and what they lost once they are rounded
    std::vector<float> targets;  ///< the same: the weights with the errors before them
    TileGrid grid{};
    int64_t row = 0;
    int64_t count = 0;  ///< rows that there are; the last one is repeated
};

class TileRounding {
public:
    TileRounding(const QuantSpec& spec, const FeedbackView& feedback, QuantizedRows& out)
        : spec_(spec), feedback_(feedback), out_(out), ops_(vector_ops()), k_(feedback.k) {
        group_ = spec.group_size == -1 ? k_ : std::min<int64_t>(spec.group_size, k_);
        top_ = spec.codebook == Codebook::ternary ? 2.0F : static_cast<float>((1 << spec.bits) - 1);
        const int64_t block = group_ >= kBlock ? kBlock : kBlock / group_ * group_;
        for (const int64_t size : {std::max(block, group_), group_, std::min(block, group_), kPanel, kStrip}) {
            if (sizes_.empty() || size < sizes_.back()) {
                sizes_.push_back(size);
            }
        }
    }

    /// Rows [begin, end), at most kTogether tiles.
    void run(const float* weight, int64_t begin, int64_t end) {
        tiles_.resize(static_cast<size_t>((end - begin + kRows - 1) / kRows));
        for (Tile& tile : tiles_) {
            tile.row = begin;
            tile.count = std::min(kRows, end - begin);
            load(weight, tile);
            begin += kRows;
        }
        visit(0, k_, 0);
    }

private:
    void load(const float* weight, Tile& tile) const {
        tile.errors.resize(static_cast<size_t>(k_ * kRows));
        for (int64_t r = 0; r < tile.count; ++r) {
            const float* from = weight + (tile.row + r) * k_;
            TMAC_CHECK(std::all_of(from, from + k_, [](float value) { return std::isfinite(value); }),
                       "[round_with_feedback] row ", tile.row + r, " of the weight holds a NaN or an infinity");
        }
        constexpr int64_t kColumns = 16;  // whose places stay in the first cache
        for (int64_t begin = 0; begin < k_; begin += kColumns) {
            for (int64_t r = 0; r < kRows; ++r) {
                const float* from = weight + (tile.row + std::min(r, tile.count - 1)) * k_;
                for (int64_t j = begin; j < std::min(k_, begin + kColumns); ++j) {
                    tile.errors[static_cast<size_t>(j * kRows + r)] = from[feedback_.order[j]];
                }
            }
        }
        tile.targets = tile.errors;
    }

    const float* strip(int64_t from, int64_t column) const {
        return feedback_.strips + (column / kStrip * k_ + from) * kStrip + column % kStrip;
    }

    /// Columns [begin, end), which know the errors of all before them, cut into pieces of sizes_[level].
    void visit(int64_t begin, int64_t end, size_t level) {
        for (int64_t at = begin; at < end;) {
            const bool strips = level + 1 == sizes_.size();
            const int64_t limit = strips ? std::min(end, at / kStrip * kStrip + kStrip) : end;  // of a strip of U
            const int64_t next = std::min(limit, at + sizes_[level]);
            feed(begin, at, next);
            for (Tile& tile : tiles_) {
                if (sizes_[level] == group_) {
                    search(tile, at, next);
                }
                if (strips) {
                    round(tile, at, next);
                }
            }
            if (!strips) {
                visit(at, next, level + 1);
            }
            at = next;
        }
    }

    /// The errors of columns [from, until) to the targets [until, end).
    void feed(int64_t from, int64_t until, int64_t end) {
        for (int64_t near = from; near < until; near += kNear) {
            const int64_t count = std::min(kNear, until - near);
            for (Tile& tile : tiles_) {
                for (int64_t column = until; column < end;) {
                    const int64_t next = std::min(end, column / kStrip * kStrip + kStrip);
                    ops_.feed_back(tile.errors.data() + near * kRows, count, strip(near, column),
                                   tile.targets.data() + column * kRows, static_cast<int32_t>(next - column));
                    column = next;
                }
            }
        }
    }

    void search(Tile& tile, int64_t begin, int64_t end) {
        struct Starts {
            int32_t count;
            float narrowest;
            int32_t ends;
            float end_step;
        };
        static constexpr Starts kStarts[] = {
            {8, 0.3F, 6, 0.16F},  {8, 0.3F, 6, 0.16F},   {8, 0.3F, 6, 0.13F},
            {8, 0.5F, 5, 0.1F},   {7, 0.65F, 4, 0.08F},  {6, 0.8F, 3, 0.06F},
            {4, 0.9F, 3, 0.025F}, {4, 0.95F, 3, 0.012F}, {4, 0.97F, 3, 0.006F}};  // by bits
        const Starts& starts = kStarts[spec_.bits];
        const GridSearchArgs args{tile.targets.data() + begin * kRows,
                                  feedback_.pivots + begin,
                                  end - begin,
                                  top_,
                                  spec_.fixed_zero,
                                  spec_.zero_point,
                                  spec_.scale_format == ScaleFormat::f16,
                                  starts.count,
                                  starts.narrowest,
                                  starts.ends,
                                  starts.end_step,
                                  3};
        float zeros[kRows];
        TileGrid& grid = tile.grid;
        ops_.search_grids(args, grid.scale, zeros);
        const int64_t group = begin / group_;
        const int64_t groups = num_groups(spec_, k_);
        const bool offsets = spec_.zero_point == ZeroPoint::offset;
        for (int64_t r = 0; r < kRows; ++r) {
            const float scale = grid.scale[r];
            TMAC_CHECK(std::isfinite(scale) && std::isfinite(zeros[r]), "[round_with_feedback] the scale of row ",
                       tile.row + r, ", group ", group, " does not fit ",
                       out_.scale_type == GroupType::f16 ? "f16: use scale_format='f32'" : "f32");
            grid.inverse[r] = scale == 0.0F ? 0.0F : 1.0F / scale;
            grid.shift[r] = offsets ? -zeros[r] * grid.inverse[r] : zeros[r];
            grid.subtract[r] = offsets ? 0.0F : zeros[r];
            grid.add[r] = offsets ? zeros[r] : 0.0F;
            if (r < tile.count) {
                const int64_t index = (tile.row + r) * groups + group;
                store_value(out_.scales, out_.scale_type, index, scale);
                if (out_.zero_type != GroupType::none) {
                    store_value(out_.zeros, out_.zero_type, index, zeros[r]);
                }
            }
        }
    }

    void round(Tile& tile, int64_t begin, int64_t end) {
        float codes[kStrip * kRows];
        ops_.round_columns(tile.grid, top_, strip(begin, begin), static_cast<int32_t>(end - begin),
                           tile.targets.data() + begin * kRows, tile.errors.data() + begin * kRows, codes);
        for (int64_t r = 0; r < tile.count; ++r) {
            uint8_t* to = out_.codes.data() + (tile.row + r) * k_;
            for (int64_t j = 0; j < end - begin; ++j) {
                to[feedback_.order[begin + j]] = static_cast<uint8_t>(static_cast<int32_t>(codes[j * kRows + r]));
            }
        }
    }

    const QuantSpec& spec_;
    const FeedbackView& feedback_;
    QuantizedRows& out_;
    const VectorOps& ops_;
    int64_t k_;
    int64_t group_ = 0;
    float top_ = 0;
    std::vector<int64_t> sizes_;  ///< of pieces, falling
    std::vector<Tile> tiles_;
};

}  // namespace

QuantizedRows round_with_feedback(const float* weight, int64_t n, const FeedbackView& feedback, const QuantSpec& spec,
                                  int num_threads) {
    validate(spec);
    if (spec.scale_format == ScaleFormat::two_level) {
        throw UnsupportedSpec("[round_with_feedback] writes f16 or f32 scales, not scale_format='two_level'");
    }
    QuantizedRows out = allocate(n, feedback.k, spec);
    parallel_for((n + kRows - 1) / kRows, 1, num_threads, [&](Range tiles) {
        TileRounding rounding(spec, feedback, out);
        for (int64_t first = tiles.begin; first < tiles.end; first += kTogether) {
            rounding.run(weight, first * kRows, std::min(n, std::min(tiles.end, first + kTogether) * kRows));
        }
    });
    return out;
}

}  // namespace tmac
