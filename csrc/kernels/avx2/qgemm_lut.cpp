#include "core/cpu_features.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// Bit planes through tables of 16 entries, T-MAC's look-up with fewer additions.
//
//   intrinsic                     what it does here                                        Zen 4    Skylake
//   _mm256_shuffle_epi8           vpshufb: 32 look-ups in one table                        0.5 cyc  1 cyc
//   _mm256_unpacklo/hi_epi8       puts a row's bytes of two planes side by side            0.33     1
//   _mm256_maddubs_epi16          adds the two, times their weights, to int16 in one step  0.5      0.5
//
// 32 bytes hold 8 columns of 32 rows of one plane (Layout::rows): a byte is a row, its low nibble the first four
// columns, its high nibble the next four. Rows that share a register stand in the order in which int16 sums are widened
// without a shuffle: rows 0..7 are the even words of the unpacklo half, rows 8..15 the odd ones, and so on.
//
// Two planes are unpacked before the look-ups: then a row's bytes of both planes, which look up in the same table, lie
// side by side, and maddubs weighs them 2 and 1. A plane without a partner is summed without unpacking (sum_plane).
//
// Entries are unsigned, 128 larger than those of the class `lut`, and sums start at what that counts too much. int16
// sums may wrap around on the way, since no result overflows: an act group of 128 columns has 32 look-ups of at most
// 127 a plane. Planes of weight 1, 2 and 4 together stay within 32 * 127 * 7 = 28448; of four planes each pair has a
// sum of its own, within 32 * 127 * 3.
//
// The layout brings 256 rows' codes of one act group before the next group's, so that its tables stay in the L1 cache
// while codes stream by. With all columns of 32 rows together the tables of 4096 columns, 16 KiB, and the codes drove
// each other out of it (docs/kernels.md).

namespace tmac::avx2 {
namespace {

constexpr int32_t kHalfRows = 32;   ///< of which 8 columns stand in one register
constexpr int32_t kBlockRows = 64;  ///< two halves; row ranges are multiples of it
constexpr int32_t kStepColumns = 8;
constexpr int32_t kHalfBytes = 32;
constexpr int32_t kStepBytes = 2 * kHalfBytes;
constexpr int32_t kTableBytes = kStepColumns / kLutGroup * kLutEntries;  ///< both tables of a step
constexpr int32_t kUnroll = 4;  ///< steps: act groups are padded to a multiple of them

constexpr int kTokenBlock = 4;
constexpr int kWideTokens = 2;  ///< up to which the sums of 64 rows leave room for the rest in 16 registers

/// Bytes ahead in every plane, into the L1 cache.
template <int Bits>
constexpr int32_t kPrefetch = Bits == 1   ? 4096
                              : Bits == 2 ? 3072
                                          : 1024;

/// Bytes ahead of a single plane, into the L2 cache: the CPU does not run far enough ahead of one stream alone. With
/// act groups of 64 columns it cost more than it gained.
constexpr int32_t kFarPrefetch = 16384;
constexpr int32_t kLongSteps = 16;  ///< of an act group of 128 columns

/// int16 sums of bytes 0..7 and 8..15 of both lanes, for H halves and M tokens.
template <int H, int M>
struct Sums {
    __m256i of[H][M][2];
};

TMAC_ALWAYS_INLINE __m256i load_table(const int8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

TMAC_ALWAYS_INLINE __m256i load_codes(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

/// Asks for what the stream of `line` will need later.
template <int Bits>
TMAC_ALWAYS_INLINE void prefetch(const uint8_t* line) {
    TMAC_PREFETCH(line + kPrefetch<Bits>);
}

struct Indices {
    __m256i low;
    __m256i high;
};

TMAC_ALWAYS_INLINE Indices indices_of(__m256i bytes) {
    const __m256i mask_u8x32 = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(bytes, mask_u8x32), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask_u8x32)};
}

/// Where the codes and tables of an act group lie.
struct Span {
    const uint8_t* codes;  ///< of the first plane
    Regions regions;
    const int8_t* tables;
    int64_t table_stride;  ///< from one token's to the next
    int32_t steps;         ///< of 8 columns, a multiple of kUnroll
};

/// What a sum of an act group's look-ups in one plane counts too much.
TMAC_ALWAYS_INLINE int32_t surplus_of_plane(const Span& span) { return 128 * kStepColumns / kLutGroup * span.steps; }

template <int H, int M>
TMAC_ALWAYS_INLINE void start_at(Sums<H, M>& sums, __m256i first, __m256i second) {
    TMAC_UNROLL
    for (int i = 0; i < H * M; ++i) {
        sums.of[i / M][i % M][0] = first;
        sums.of[i / M][i % M][1] = second;
    }
}

/// Adds planes `Plane` and the next one, weighed 2 and 1. TMAC_KEEP: gcc would add look-ups of several steps to each
/// other first and spill them.
template <int Bits, bool Prefetch, int Plane, int H, int M>
TMAC_ALWAYS_INLINE void add_pair(const Span& span, Sums<H, M>& sums) {
    const __m256i weights_i8x32 = _mm256_set1_epi16(0x0102);
    const uint8_t* codes = span.regions.in(span.codes, Plane);
    const int64_t next_plane = span.regions.offsets[Plane + 1] - (Plane == 0 ? 0 : span.regions.offsets[Plane]);
    const int8_t* tables = span.tables;
    for (int32_t step = 0; step < span.steps; step += kUnroll) {
        TMAC_UNROLL
        for (int i = 0; i < kUnroll; ++i) {
            const uint8_t* high_planes = codes + i * kStepBytes;
            const uint8_t* low_planes = high_planes + next_plane;
            if constexpr (Prefetch) {
                prefetch<Bits>(high_planes);
                prefetch<Bits>(low_planes);
            }
            TMAC_UNROLL
            for (int half = 0; half < H; ++half) {
                const __m256i high_plane = load_codes(high_planes + half * kHalfBytes);
                const __m256i low_plane = load_codes(low_planes + half * kHalfBytes);
                const Indices at[2] = {indices_of(_mm256_unpacklo_epi8(high_plane, low_plane)),
                                       indices_of(_mm256_unpackhi_epi8(high_plane, low_plane))};
                TMAC_UNROLL
                for (int m = 0; m < M; ++m) {
                    const int8_t* table = tables + m * span.table_stride + i * kTableBytes;
                    const __m256i low_table = load_table(table);
                    const __m256i high_table = load_table(table + kLutEntries);
                    TMAC_UNROLL
                    for (int part = 0; part < 2; ++part) {
                        __m256i& sum = sums.of[half][m][part];
                        sum = _mm256_add_epi16(
                            sum, _mm256_maddubs_epi16(_mm256_shuffle_epi8(low_table, at[part].low), weights_i8x32));
                        TMAC_KEEP(sum);
                        sum = _mm256_add_epi16(
                            sum, _mm256_maddubs_epi16(_mm256_shuffle_epi8(high_table, at[part].high), weights_i8x32));
                        TMAC_KEEP(sum);
                    }
                }
            }
        }
        codes += kUnroll * kStepBytes;
        tables += kUnroll * kTableBytes;
    }
}

/// The sums of the topmost plane, which has no partner. They start at what all planes together count too much.
///
/// Look-ups are added as they are, two rows to a word, and those of the odd bytes once more by themselves: without
/// these the even bytes' are left. That takes no shuffles, which run on fewer units than additions.
template <int Bits, bool Prefetch, int H, int M>
TMAC_ALWAYS_INLINE void sum_plane(const Span& span, Sums<H, M>& sums) {
    const __m256i odd_i8x32 = _mm256_set1_epi16(0x0100);
    const int32_t surplus = (surplus_of_plane(span) * ((1 << Bits) - 1)) >> (Bits - 1);
    start_at(sums, _mm256_set1_epi16(static_cast<int16_t>(-257 * surplus)),
             _mm256_set1_epi16(static_cast<int16_t>(-surplus)));
    const uint8_t* codes = span.codes;
    const int8_t* tables = span.tables;
    for (int32_t step = 0; step < span.steps; step += kUnroll) {
        TMAC_UNROLL
        for (int i = 0; i < kUnroll; ++i) {
            if constexpr (Prefetch) {
                prefetch<Bits>(codes + i * kStepBytes);
                if (Bits == 1 && span.steps == kLongSteps) {
                    _mm_prefetch(reinterpret_cast<const char*>(codes + i * kStepBytes + kFarPrefetch), _MM_HINT_T1);
                }
            }
            TMAC_UNROLL
            for (int half = 0; half < H; ++half) {
                const Indices at = indices_of(load_codes(codes + i * kStepBytes + half * kHalfBytes));
                TMAC_UNROLL
                for (int m = 0; m < M; ++m) {
                    const int8_t* table = tables + m * span.table_stride + i * kTableBytes;
                    const __m256i low_u8x32 = _mm256_shuffle_epi8(load_table(table), at.low);
                    const __m256i high_u8x32 = _mm256_shuffle_epi8(load_table(table + kLutEntries), at.high);
                    __m256i& both = sums.of[half][m][0];
                    __m256i& odd = sums.of[half][m][1];
                    both = _mm256_add_epi16(both, low_u8x32);
                    TMAC_KEEP(both);
                    odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(low_u8x32, odd_i8x32));
                    TMAC_KEEP(odd);
                    both = _mm256_add_epi16(both, high_u8x32);
                    TMAC_KEEP(both);
                    odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(high_u8x32, odd_i8x32));
                    TMAC_KEEP(odd);
                }
            }
        }
        codes += kUnroll * kStepBytes;
        tables += kUnroll * kTableBytes;
    }
    TMAC_UNROLL
    for (int i = 0; i < H * M; ++i) {
        __m256i(&sum)[2] = sums.of[i / M][i % M];
        const __m256i even = _mm256_sub_epi16(sum[0], _mm256_slli_epi16(sum[1], 8));
        const __m256i odd = sum[1];
        sum[0] = _mm256_slli_epi16(_mm256_unpacklo_epi16(even, odd), Bits - 1);
        sum[1] = _mm256_slli_epi16(_mm256_unpackhi_epi16(even, odd), Bits - 1);
    }
}

/// Sums of rows 8 Quarter... of a half as int32.
template <int Quarter>
TMAC_ALWAYS_INLINE __m256i widen(const __m256i (&sums_i16x16)[2]) {
    const __m256i sum = sums_i16x16[Quarter / 2];
    return Quarter % 2 == 0 ? _mm256_madd_epi16(sum, _mm256_set1_epi32(1)) : _mm256_srai_epi32(sum, 16);
}

/// Some rows of a band, times one act group. Results stay in `y`, [token][y_stride] from the first row on, until the
/// band's last act group.
struct Piece {
    Span span;  ///< of the first 64 rows and the first token
    float* y;
    int64_t y_stride;
    int64_t rows;       ///< a multiple of 64
    GroupPlace values;  ///< of the first row
    int32_t group;
};

/// Group values of any kind of these levels.
template <bool Coefficient, Levels Known>
struct AnyTerms {
    static constexpr bool kHasCoefficient = Coefficient;
    const Epilogue<Floats>& epilogue;

    TMAC_ALWAYS_INLINE GroupTerms<Floats> load(const GroupPlace& place) const { return epilogue.load<Known>(place); }
};

/// f16 scales and a zero point that the spec fixes: the same without a branch for each register.
template <bool Coefficient>
struct FixedTerms {
    static constexpr bool kHasCoefficient = Coefficient;
    const uint16_t* scales;
    __m256 offset;

    TMAC_ALWAYS_INLINE explicit FixedTerms(const Epilogue<Floats>& epilogue)
        : scales(static_cast<const uint16_t*>(epilogue.args.scales)),
          offset(_mm256_sub_ps(_mm256_set1_ps(epilogue.centre), _mm256_set1_ps(epilogue.args.spec->fixed_zero))) {}

    TMAC_ALWAYS_INLINE GroupTerms<Floats> load(const GroupPlace& place) const {
        const __m256 scale = Floats::widen(scales + place.value);
        return {scale, _mm256_mul_ps(scale, offset)};
    }
};

/// Where the results of some rows belong, and the first token's terms.
struct Target {
    float* y;
    int64_t y_stride;
    const float* act_scale;
    const float* act_sum;
    int64_t groups;
    GroupPlace values;
};

/// Adds an act group to the results of rows 8 Quarter... of a half.
template <int Bits, int Half, int Quarter, int H, int M, class Terms>
TMAC_ALWAYS_INLINE void add_quarter(const Terms& group_terms, const Target& target, const Sums<H, M>& sums,
                                    const Sums<H, M>& high) {
    constexpr int kAt = Half * kHalfRows + Quarter * kLanes;
    const GroupTerms<Floats> terms = group_terms.load(target.values + kAt);
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        __m256i isum_i32x8 = widen<Quarter>(sums.of[Half][m]);
        if constexpr (Bits == 4) {
            isum_i32x8 = _mm256_add_epi32(isum_i32x8, _mm256_slli_epi32(widen<Quarter>(high.of[Half][m]), 2));
        }
        float* y = target.y + m * target.y_stride + kAt;
        _mm256_store_ps(y, Epilogue<Floats>::add_known<Terms::kHasCoefficient>(
                               terms, isum_i32x8, target.act_scale[m * target.groups],
                               target.act_sum[m * target.groups], _mm256_load_ps(y)));
    }
}

template <int Bits, int Half, int H, int M, class Terms>
TMAC_ALWAYS_INLINE void add_half(const Terms& group_terms, const Target& target, const Sums<H, M>& sums,
                                 const Sums<H, M>& high) {
    add_quarter<Bits, Half, 0>(group_terms, target, sums, high);
    add_quarter<Bits, Half, 1>(group_terms, target, sums, high);
    add_quarter<Bits, Half, 2>(group_terms, target, sums, high);
    add_quarter<Bits, Half, 3>(group_terms, target, sums, high);
}

/// H halves, from `row` of the piece on, times M tokens.
template <int Bits, bool Prefetch, int H, int M, class Terms>
TMAC_ALWAYS_INLINE void multiply_halves(const QgemmArgs& args, const Terms& group_terms, const Piece& piece,
                                        int64_t row, int32_t token) {
    Span span = piece.span;
    span.codes += row / kBlockRows * span.steps * kStepBytes + row % kBlockRows;
    span.tables += token * span.table_stride;
    Sums<H, M> sums;
    Sums<H, M> high;
    const __m256i surplus_of_pair = _mm256_set1_epi16(static_cast<int16_t>(-3 * surplus_of_plane(span)));
    if constexpr (Bits == 4) {
        start_at(high, surplus_of_pair, surplus_of_pair);
        add_pair<Bits, Prefetch, 0>(span, high);
    }
    if constexpr (Bits % 2 == 0) {
        start_at(sums, surplus_of_pair, surplus_of_pair);
    } else {
        sum_plane<Bits, Prefetch>(span, sums);
    }
    if constexpr (Bits > 1) {
        add_pair<Bits, Prefetch, Bits - 2>(span, sums);
    }
    const int64_t groups = args.num_act_groups;
    const int64_t first_term = token * groups + piece.group;
    const Target target{piece.y + token * piece.y_stride + row,
                        piece.y_stride,
                        args.act_scale + first_term,
                        args.act_sum + first_term,
                        groups,
                        piece.values + row};
    add_half<Bits, 0>(group_terms, target, sums, high);
    if constexpr (H == 2) {
        add_half<Bits, 1>(group_terms, target, sums, high);
    }
}

template <int Bits, class Terms>
TMAC_NOINLINE void multiply_token(const QgemmArgs& args, const Terms& terms, const Piece& piece) {
    const Terms local = terms;  // what is copied stands in registers, known not to change when results are stored
    for (int64_t row = 0; row < piece.rows; row += kBlockRows) {
        multiply_halves<Bits, true, 2, 1>(args, local, piece, row, 0);
    }
}

template <int Bits, int M, class Terms>
TMAC_NOINLINE void multiply_tokens(const QgemmArgs& args, const Terms& terms, const Piece& piece, int64_t row,
                                   int32_t token) {
    if constexpr (M <= kWideTokens) {
        multiply_halves<Bits, true, 2, M>(args, terms, piece, row, token);
    } else {
        multiply_halves<Bits, true, 1, M>(args, terms, piece, row, token);
        multiply_halves<Bits, false, 1, M>(args, terms, piece, row + kHalfRows, token);
    }
}

template <int Bits, class Terms>
void multiply_piece(const QgemmArgs& args, const Terms& terms, const Piece& piece) {
    if (args.m == 1) {
        multiply_token<Bits>(args, terms, piece);
        return;
    }
    for (int64_t row = 0; row < piece.rows; row += kBlockRows) {
        for_each_even_block<kTokenBlock>(
            args.m, [&]<int M>(int32_t token) { multiply_tokens<Bits, M>(args, terms, piece, row, token); });
    }
}

/// Rows [row, row_end) of one band.
template <int Bits, class Terms>
void multiply_band(const QgemmArgs& args, const Terms& terms, int64_t row, int64_t row_end, float* y) {
    const int64_t rows = (row_end - row + kBlockRows - 1) / kBlockRows * kBlockRows;
    std::memset(y, 0, static_cast<size_t>(args.m * rows) * sizeof(float));
    const BandPlace place(args.n, row);
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const ActGroup& group = args.act_groups[g];
        const Span span{args.codes + place.codes(args.padded_k, group), Regions(args),
                        static_cast<const int8_t*>(args.act) + int64_t{group.padded_begin} / kStepColumns * kTableBytes,
                        args.act_stride, group.padded_count / kStepColumns};
        multiply_piece<Bits>(args, terms, {span, y, rows, rows, place_in_band(args, place, group), g});
    }
    for (int32_t token = 0; token < args.m; ++token) {
        for (int64_t at = 0; at < rows; at += kLanes) {
            store_rows(args.y + token * args.ldy, row + at, row_end, _mm256_load_ps(y + token * rows + at));
        }
    }
}

template <int Bits, class Terms>
void multiply_bands(const QgemmArgs& args, const Terms& terms) {
    alignas(64) float y[kMaxLutTokens * kBandRows];
    for_each_band(args, [&](int64_t row, int64_t row_end) { multiply_band<Bits>(args, terms, row, row_end, y); });
}

template <int Bits>
void multiply_two_level(const QgemmArgs& args, const Epilogue<Floats>& epilogue) {
    if (args.spec->zero_point == ZeroPoint::offset) {
        multiply_bands<Bits>(args, TwoLevelTerms<Floats, true>(args, epilogue.centre));
    } else if (epilogue.has_coefficient) {
        multiply_bands<Bits>(args, TwoLevelTerms<Floats, false>(args, epilogue.centre));
    } else {
        multiply_bands<Bits>(args, AnyTerms<false, Levels::two>{epilogue});
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    if (args.scale_type == GroupType::i8) {
        multiply_two_level<Bits>(args, epilogue);
    } else if (args.scale_type == GroupType::f16 && args.spec->zero_point == ZeroPoint::fixed) {
        epilogue.has_coefficient ? multiply_bands<Bits>(args, FixedTerms<true>(epilogue))
                                 : multiply_bands<Bits>(args, FixedTerms<false>(epilogue));
    } else {
        epilogue.has_coefficient ? multiply_bands<Bits>(args, AnyTerms<true, Levels::one>{epilogue})
                                 : multiply_bands<Bits>(args, AnyTerms<false, Levels::one>{epilogue});
    }
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c;

#define TMAC_ROW(suffix, bits, codebook)                                                                      \
    Kernel {                                                                                                  \
        "qgemm_lut_" suffix "_avx2", bits, codebook, kGroup, Method::lut, Layout::rows, bit_of(Layout::rows), \
            kFeatures, qgemm<bits>, unsigned_lut_ctor                                                         \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx2
