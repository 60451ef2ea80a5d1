#pragma once

#include "kernels/avx512/mad_codes.h"

// A few tokens at a time: codes are unpacked in registers, right before they are multiplied. The CPU prefetches these
// few even streams by itself; prefetching by hand as well cost 10 to 25 % (docs/kernels.md).

namespace tmac::avx512 {
namespace {

/// Integer sums of 16 rows and one token. One or two tokens have registers to spare: codes are only masked, not shifted
/// down, and those at different places of a byte have sums of their own.
template <class Codes, int M>
struct Sums {
    static constexpr bool kSplit = M <= 2;
    static constexpr int kCount = kSplit ? Codes::kScales : 1;
    __m512i by_scale[kCount];

    TMAC_ALWAYS_INLINE void start(__m512i value) {
        by_scale[0] = value;
        for (int i = 1; i < kCount; ++i) {
            by_scale[i] = _mm512_setzero_si512();
        }
    }

    template <int V>
    TMAC_ALWAYS_INLINE void add(__m512i codes, __m512i q) {
        constexpr int kAt = kSplit ? V / (Codes::kVectors / Codes::kScales) : 0;
        by_scale[kAt] = _mm512_dpbusd_epi32(by_scale[kAt], codes, q);
    }

    TMAC_ALWAYS_INLINE __m512i total() const {
        __m512i sum = by_scale[0];
        constexpr int kStep = 8 / Codes::kScales;
        TMAC_UNROLL
        for (int i = 1; i < kCount; ++i) {
            sum = _mm512_add_epi32(sum, _mm512_srai_epi32(by_scale[i], i * kStep));
        }
        return Codes::kShift == 0 ? sum : _mm512_srai_epi32(sum, Codes::kShift);
    }
};

/// One chunk: the code vectors of R * 16 rows, each times M tokens. A broadcast of activations serves all rows.
template <class Codes, int R, int M, int... V>
TMAC_ALWAYS_INLINE void multiply_chunk(const Codes (&codes)[R], const int8_t* q, Sums<Codes, M> (&sums)[R][M],
                                       std::integer_sequence<int, V...>) {
    const auto step = [&]<int Vector>() {
        __m512i bytes[R];
        TMAC_UNROLL
        for (int r = 0; r < R; ++r) {
            bytes[r] = Sums<Codes, M>::kSplit ? codes[r].template scaled<Vector>() : codes[r].template code<Vector>();
        }
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512i four = broadcast_four(q + 4 * (Vector * M + m));
            TMAC_UNROLL
            for (int r = 0; r < R; ++r) {
                sums[r][m].template add<Vector>(bytes[r], four);
            }
        }
    };
    (step.template operator()<V>(), ...);
}

/// Rows [row, row + 16 R) times M tokens.
template <class Codes, int Bits, bool HasCoefficient, int R, int M>
void multiply_small(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, int32_t token) {
    const uint8_t* codes[R];
    __m512 y[R][M];
    TMAC_UNROLL
    for (int r = 0; r < R; ++r) {
        codes[r] = codes_of_rows<Codes>(args, row + r * kLanes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            y[r][m] = _mm512_setzero_ps();
        }
    }
    const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    int64_t at = 0;
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        Sums<Codes, M> sums[R][M];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512i start = start_of_sum<Codes, Bits>(args, first_group + int64_t{m} * args.num_act_groups + g);
            TMAC_UNROLL
            for (int r = 0; r < R; ++r) {
                sums[r][m].start(start);
            }
        }
        const int32_t chunks = args.act_groups[g].padded_count / Codes::kColumns;
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
            const auto unpacked = [&]<int... Row>(std::integer_sequence<int, Row...>) {
                const Codes loaded[R] = {Codes(codes[Row] + at, args.region_stride)...};
                multiply_chunk<Codes, R, M>(loaded, q, sums, std::make_integer_sequence<int, Codes::kVectors>());
            };
            unpacked(std::make_integer_sequence<int, R>());
            at += Codes::kChunkBytes;
            q += M * Codes::kColumns;
        }
        TMAC_UNROLL
        for (int r = 0; r < R; ++r) {
            const GroupTerms<Floats> terms =
                epilogue.load(values_of_rows<Codes>(args, row + r * kLanes, args.act_groups[g].weight_group));
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t index = first_group + int64_t{m} * args.num_act_groups + g;
                y[r][m] = Epilogue<Floats>::add_known<HasCoefficient>(terms, sums[r][m].total(), args.act_scale[index],
                                                                      args.act_sum[index], y[r][m]);
            }
        }
    }
    TMAC_UNROLL
    for (int r = 0; r < R; ++r) {
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            store_rows(args.y + (token + m) * args.ldy, row + r * kLanes, args.row_end, y[r][m]);
        }
    }
}

/// All rows times M tokens.
template <class Codes, int Bits, int M, bool HasCoefficient>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int32_t token) {
    int64_t row = args.row_begin;
    for (; row + kLanes < args.row_end; row += 2 * kLanes) {
        multiply_small<Codes, Bits, HasCoefficient, 2, M>(args, epilogue, row, token);
    }
    if (row < args.row_end) {
        multiply_small<Codes, Bits, HasCoefficient, 1, M>(args, epilogue, row, token);
    }
}

template <class Codes, int Bits, int M>
void small_rows(const QgemmArgs& args, int32_t token) {
    const Epilogue<Floats> epilogue(args, static_cast<float>(1 << (Bits - 1)));
    epilogue.has_coefficient ? multiply_rows<Codes, Bits, M, true>(args, epilogue, token)
                             : multiply_rows<Codes, Bits, M, false>(args, epilogue, token);
}

template <class Codes, int Bits>
void qgemm_small(const QgemmArgs& args) {
    for_each_block(args.m, [&]<int M>(int32_t token) { small_rows<Codes, Bits, M>(args, token); });
}

}  // namespace
}  // namespace tmac::avx512
