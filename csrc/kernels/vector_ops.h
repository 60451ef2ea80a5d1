#pragma once

#include <cstdint>

#include "core/cache_layout.h"
#include "kernels/kernel.h"

namespace tmac {

enum class ActivationFn : uint8_t { silu, gelu, gelu_tanh, relu, relu2 };  ///< gelu: with erf; relu2: relu squared
enum class FloatType : uint8_t { f32, f16, bf16 };

/// y[token, row] = sum over k of w[row, k] * x[token, k], for rows [row_begin, row_end) and tokens [0, m).
struct FloatRowsArgs {
    FloatType type;
    const void* weights;  ///< [n][k]
    int64_t k;
    const float* x;
    int64_t x_stride;  ///< floats from one token to the next
    float* y;          ///< y[token * ldy + row]
    int64_t ldy;
    int64_t row_begin;
    int64_t row_end;
    int32_t m;
};

/// One span of one key head, for the queries that read it: softmax over the positions [begin, end) of the span and the
/// sum of their values, not yet divided. Positions outside are never read.
struct AttendArgs {
    CacheType type;
    int32_t head_dim;
    const uint8_t* const* keys;             ///< [kSpanGroups] groups of the span; any pointer where no query reads
    const uint8_t* const* values;           ///< the same
    const float* const* key_scales;         ///< [kSpanGroups] -> [kKeyGroup]; i8 only
    const float* const* value_scales;       ///< the same
    const float* const* queries;            ///< [num_queries] -> [head_dim]; not for i8
    const uint8_t* const* rounded_queries;  ///< [num_queries], of round_query; i8 only
    int32_t num_queries;
    const int32_t* begin;  ///< [num_queries], in the span
    const int32_t* end;    ///< [num_queries]; at most begin: no position
    float scale;           ///< of the scores
    float softcap;         ///< 0: none
    float* partials;       ///< [num_queries][partial_stride]: partial_floats(head_dim) each
    int64_t partial_stride;
    const uint8_t* const* next_keys = nullptr;      ///< [kSpanGroups] of the call to come, to be fetched early; or null
    const float* const* next_key_scales = nullptr;  ///< the same; i8 only
    const float* const* next_value_scales = nullptr;
};

/// Floats of a partial result: acc[padded_dim], the largest score, the sum of the weights. No position: zeros, -inf, 0.
constexpr int64_t partial_floats(int32_t head_dim) { return round_up(head_dim, kKeyGroup) + 2; }

// A cache of i8 is multiplied by integers, in groups of 16 that have an instruction set's own form.
inline constexpr int32_t kMultiplierBytes = 32;    ///< of 16
inline constexpr int32_t kMostMultiplier = 32512;  ///< 127 * 256: two signed bytes hold it

/// The largest multiplier where `count` of them are added: their sum stays below 2^24, that of the products below 2^31.
constexpr int32_t most_multiplier(int32_t count) {
    constexpr int32_t kMostSum = 1 << 24;
    return kMostSum / count < kMostMultiplier ? kMostSum / count : kMostMultiplier;
}

/// Bytes that round_query writes: the multipliers, then a scale.
constexpr int64_t rounded_query_bytes(int32_t head_dim) {
    return round_up(head_dim, kKeyGroup) / kKeyGroup * kMultiplierBytes + 2 * int64_t{sizeof(float)};
}

struct NormOps {
    /// y = x / sqrt(mean(x^2) + eps) * weight; `weight` may be null. y may be x.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
    /// y = (x - mean) / sqrt(variance + eps) * weight + bias; `weight` and `bias` may be null. y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y);
};

struct ElementOps {
    void (*add)(float* x, const float* y, int64_t n);                       ///< x += y
    void (*add_scaled)(float* x, float factor, const float* y, int64_t n);  ///< x = fma(factor, y, x)
    void (*scale)(float* x, float factor, int64_t n);                       ///< x *= factor
    /// y = fn(gate) * up; `up` may be null. y may be gate or up.
    void (*activate)(ActivationFn fn, const float* gate, const float* up, int64_t n, float* y);
    void (*softcap)(float* x, float cap, int64_t n);  ///< x = cap * tanh(x / cap)
    /// Rotates the pairs (x[i], x[i + half]) by the angles of `cos` and `sin`, [half] each.
    void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
};

struct SoftmaxOps {
    float (*max)(const float* x, int64_t n);                       ///< NaN where an x is NaN; -inf for n = 0
    double (*sum_exp)(const float* x, float subtract, int64_t n);  ///< sum of exp(x - subtract)
    /// y = exp((x - subtract) * factor). y may be x.
    void (*exp)(const float* x, float subtract, float factor, int64_t n, float* y);
};

struct FloatRowsOps {
    void (*float_rows)(const FloatRowsArgs& args);
};

inline constexpr int32_t kFeedbackRows = 48;    ///< of a weight, whose columns are rounded together
inline constexpr int32_t kFeedbackColumns = 8;  ///< of a strip of the feedback
inline constexpr int32_t kFactorTile = 24;      ///< rows and columns of a tile of a factor

/// Grids of the rows of a tile, [kFeedbackRows] each: code = round(w * inverse + shift) in [0, top], which stands for
/// (code - subtract) * scale + add.
struct TileGrid {
    float scale[kFeedbackRows];
    float inverse[kFeedbackRows];
    float shift[kFeedbackRows];
    float subtract[kFeedbackRows];
    float add[kFeedbackRows];
};

/// What a search for grids may choose among.
struct GridSearchArgs {
    const float* targets;     ///< [count][kFeedbackRows]
    const float* importance;  ///< [count], not all 0
    int64_t count;
    float top;         ///< the largest code
    float fixed_zero;  ///< ZeroPoint::fixed
    ZeroPoint zero_point;
    bool halves;          ///< scales, offsets and real zeros are stored as f16, else f32
    int32_t starts;       ///< ZeroPoint::fixed: grids to start from at each end, at least 2
    float narrowest;      ///< part of the range that the last of them spans
    int32_t ends;         ///< else: places of either end of the range
    float end_step;       ///< from one to the next, in parts of the way to the mean
    int32_t refinements;  ///< by least squares
};

struct FeedbackOps {
    /// targets[c][row] = fma(errors[i][row], feedback[i][c], targets[c][row]) for i in [0, count) in order, for c in
    /// [0, columns), at most kFeedbackColumns. A row of `feedback` is kFeedbackColumns long, those of the others
    /// kFeedbackRows.
    void (*feed_back)(const float* errors, int64_t count, const float* feedback, float* targets, int32_t columns);
    /// Rounds columns [0, columns) of a tile in order, each fed back to those after it. In `errors` the weights come
    /// and what they lost goes out. feedback(i, c) is feedback[i * kFeedbackColumns + c].
    void (*round_columns)(const TileGrid& grid, float top, const float* feedback, int32_t columns, float* targets,
                          float* errors, float* codes);
    /// The scale and zero (offset) of every row, [kFeedbackRows] each, with the least error of all that the starts lead
    /// to. NaN where none can be stored.
    void (*search_grids)(const GridSearchArgs& args, float* scales, float* zeros);
    /// sums[c][row] -= left[i][row] * right[i][c] for i in [0, count) in order, each one fma; all are kFactorTile long.
    void (*subtract_products)(const double* left, const double* right, int64_t count, double* sums);
    /// x with x L^T = sums, column after column. diagonal[c][row] is L[row][c], with 1 / L[c][c] at [c][c]; all are
    /// kFactorTile long.
    void (*solve_columns)(const double* diagonal, double* sums);
};

struct AttentionOps {
    /// Stores a position's key (its value) as `lane` of a group of 16. `scale`: where its scale goes; i8 only.
    void (*store_key)(CacheType type, const float* k, int32_t head_dim, uint8_t* group, int32_t lane, float* scale);
    void (*store_value)(CacheType type, const float* v, int32_t head_dim, uint8_t* group, int32_t lane, float* scale);
    /// A query as `attend` takes it with a cache of i8.
    void (*round_query)(const float* q, int32_t head_dim, uint8_t* rounded);
    void (*attend)(const AttendArgs& args);
    /// Adds the partial result of a later span to that of the spans before it.
    void (*merge)(const float* from, float* into, int32_t head_dim);
    void (*finish)(const float* partial, int32_t head_dim, float* y);  ///< y[head_dim] = acc / sum of the weights
};

/// A grid on trial: code = round(w * inverse + shift), 0 to top, stands for (code - subtract) * scale + add.
struct GridRounding {
    float inverse;
    float shift;
    float top;
    float subtract;
    float scale;
    float add;
    float from;  ///< sums count codes from here
};

/// What the codes c of a grid, counted from GridRounding::from, and the weights w add up to.
struct GridSums {
    double error = 0;  ///< squared distance of the weights and what their codes stand for
    double c = 0;
    double cc = 0;
    double cw = 0;
};

struct GridOps {
    /// Sums over w[0, n), where column j counts `counts[j]` times; n is a multiple of 16. Sums of 32 columns are in
    /// f32.
    GridSums (*grid_sums)(const GridRounding& r, const float* w, const float* counts, int64_t n);
    /// The error alone, in one sum of sixteen lanes in f32.
    float (*grid_error)(const GridRounding& r, const float* w, const float* counts, int64_t n);
};

/// The float operations that multiply no packed codes, for one instruction set. Results have the same bits on every
/// one (docs/numerics.md). As a kernel, an operation allocates nothing, starts no thread and checks nothing.
struct VectorOps : NormOps, ElementOps, SoftmaxOps, FloatRowsOps, FeedbackOps, AttentionOps, GridOps {
    const char* name;  ///< that of the instruction set
    Isa isa;
    uint32_t features;  ///< CpuFeature bits that must be present
};

}  // namespace tmac
