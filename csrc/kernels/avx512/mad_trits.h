#pragma once

#include "core/trit_byte.h"
#include "kernels/avx512/mad_codes.h"

// Five ternary codes in a byte (core/trit_byte.h) as bytes for vpdpbusd. 64 bytes of Layout::trits are 20 columns of 16
// rows: byte 4r + i of row r has the columns i, i + 4, ..., i + 16. So a code vector has four neighbouring columns of
// each row, and activations stay in their natural order.
//
//     k      = byte >= 0xc0                     vpcmpub
//     fields = plain[byte], rest[byte] at k     vpermb, and again with a mask: it reads six bits of the index
//     fifth  = byte, fifth[byte] at k           vpermb with a mask; two top bits count
//
// Five code vectors are then one vpand each: nine instructions for 320 codes, and five products.

namespace tmac::avx512 {
namespace {

constinit const TritTables kTritTables = make_trit_tables();

struct Trits {
    static constexpr int kVectors = kTritsInByte;
    static constexpr int kColumns = 4 * kTritsInByte;
    static constexpr int kChunkBytes = 256;
    static constexpr int kLastBytes = kChunkBytes;
    static constexpr int kTileRows = 64;
    static constexpr int kRegions = 1;
    static constexpr int kStreamedTokens = 2;
    static constexpr int kShift = 0;
    static constexpr bool kRowsInTurn = true;

    __m512i fields;  ///< codes 0 to 3, two bits each
    __m512i fifth;   ///< code 4 in the two top bits
    __mmask64 rest;

    TMAC_ALWAYS_INLINE void load(const uint8_t* codes) {
        fifth = load_bytes(codes);
        TMAC_IN_ORDER(fifth);
    }
    TMAC_ALWAYS_INLINE void compare() {
        rest = _mm512_cmpge_epu8_mask(fifth, bytes_of(0xc0));
        TMAC_MASK_IN_ORDER(rest);
    }
    TMAC_ALWAYS_INLINE void look_up_plain() {
        fields = _mm512_permutexvar_epi8(fifth, _mm512_load_si512(kTritTables.plain));
        TMAC_IN_ORDER(fields);
    }
    TMAC_ALWAYS_INLINE void look_up_rest() {
        fields = _mm512_mask_permutexvar_epi8(fields, rest, fifth, _mm512_load_si512(kTritTables.rest));
        TMAC_IN_ORDER(fields);
    }
    TMAC_ALWAYS_INLINE void look_up_fifth() {
        fifth = _mm512_mask_permutexvar_epi8(fifth, rest, fifth, _mm512_load_si512(kTritTables.fifth));
        TMAC_IN_ORDER(fifth);
    }

    Trits() = default;
    TMAC_ALWAYS_INLINE Trits(const uint8_t* codes, const Regions& /*regions*/) : Trits(codes) {}
    TMAC_ALWAYS_INLINE explicit Trits(const uint8_t* codes) {
        const __m512i bytes = load_bytes(codes);
        rest = _mm512_cmpge_epu8_mask(bytes, bytes_of(0xc0));
        const __m512i plain = _mm512_permutexvar_epi8(bytes, _mm512_load_si512(kTritTables.plain));
        fields = _mm512_mask_permutexvar_epi8(plain, rest, bytes, _mm512_load_si512(kTritTables.rest));
        fifth = _mm512_mask_permutexvar_epi8(bytes, rest, bytes, _mm512_load_si512(kTritTables.fifth));
    }

    /// Codes of vector V, in the low bits of each byte.
    template <int V>
    TMAC_ALWAYS_INLINE __m512i code() const {
        const __m512i from = V < 4 ? fields : fifth;
        return _mm512_and_si512(kScale<V> == 0 ? from : _mm512_srli_epi16(from, kScale<V>), bytes_of(3));
    }

    /// The same where they stand: codes << kScale<V>.
    template <int V>
    static constexpr int kScale = V < 4 ? 2 * V : 6;
    template <int V>
    TMAC_ALWAYS_INLINE __m512i scaled() const {
        return _mm512_and_si512(V < 4 ? fields : fifth, bytes_of(3 << kScale<V>));
    }
    static constexpr int kScales = 4;
};

// A few tokens: rows one after the other, because tables and masks leave no room for the codes of four, and the next
// row's unpacking between the products of this one. The look-ups and the products want the same execution port of Zen
// 4, which hands out ports in the order of the program: this order takes 8.8 cycles for 320 codes, one row after the
// other 9.6. Every index of a sum is a constant of a template, and the loop stands in a function of its own: gcc kept
// the sums of an unrolled loop in memory as well, and spilled in it what the epilogue had no register for.

template <int V, bool Split>
TMAC_ALWAYS_INLINE __m512i code_now(const Trits& codes) {
    __m512i bytes = Split ? codes.template scaled<V>() : codes.template code<V>();
    TMAC_IN_ORDER(bytes);
    return bytes;
}

template <int V, class Sums, int... Token>
TMAC_ALWAYS_INLINE void multiply_vector(__m512i codes, const int8_t* q, Sums* sums,
                                        std::integer_sequence<int, Token...>) {
    constexpr int kTokens = sizeof...(Token);
    (sums[Token].template add<V>(codes, broadcast_four(q + 4 * (V * kTokens + Token))), ...);
}

/// Multiplies `codes` with M tokens and unpacks the next ones.
template <class Sums, int M>
TMAC_ALWAYS_INLINE void multiply_row(Trits& codes, const uint8_t* next, const int8_t* q, Sums (&sums)[M]) {
    constexpr std::make_integer_sequence<int, M> kEveryToken;
    Trits unpacked;
    TMAC_OPAQUE(q);
    unpacked.load(next);
    const __m512i second = code_now<1, Sums::kSplit>(codes);
    const __m512i first = code_now<0, Sums::kSplit>(codes);
    multiply_vector<0>(first, q, sums, kEveryToken);
    unpacked.compare();
    multiply_vector<1>(second, q, sums, kEveryToken);
    unpacked.look_up_plain();
    const __m512i third = code_now<2, Sums::kSplit>(codes);
    const __m512i fourth = code_now<3, Sums::kSplit>(codes);
    multiply_vector<2>(third, q, sums, kEveryToken);
    unpacked.look_up_rest();
    multiply_vector<3>(fourth, q, sums, kEveryToken);
    unpacked.look_up_fifth();
    multiply_vector<4>(code_now<4, Sums::kSplit>(codes), q, sums, kEveryToken);
    codes = unpacked;
}

template <class Sums, int R, int M, int... Row, int... Sum>
TMAC_NOINLINE void multiply_rows_in_turn(const uint8_t* rows, const int8_t* q, int32_t chunks, Sums (&out)[R][M],
                                         std::integer_sequence<int, Row...>, std::integer_sequence<int, Sum...>) {
    constexpr int kCount = Sums::kCount;
    constexpr int kPrefetch = 4096;
    Sums sums[R][M];
    ((sums[Sum / kCount / M][Sum / kCount % M].by_scale[Sum % kCount] =
          out[Sum / kCount / M][Sum / kCount % M].by_scale[Sum % kCount]),
     ...);
    Trits codes(rows);
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
        const uint8_t* next = chunk + 1 < chunks ? rows + Trits::kChunkBytes : rows;
        ((TMAC_PREFETCH(rows + Row * 64 + kPrefetch),
          multiply_row(codes, Row + 1 < R ? rows + (Row + 1) * 64 : next, q, sums[Row])),
         ...);
        rows = next;
        q += M * Trits::kColumns;
    }
    ((out[Sum / kCount / M][Sum / kCount % M].by_scale[Sum % kCount] =
          sums[Sum / kCount / M][Sum / kCount % M].by_scale[Sum % kCount]),
     ...);
}

/// `chunks` chunks of R * 16 rows that lie side by side, times M tokens.
template <class Sums, int R, int M>
TMAC_ALWAYS_INLINE void multiply_rows_in_turn(const uint8_t* rows, const int8_t* q, int32_t chunks,
                                              Sums (&sums)[R][M]) {
    multiply_rows_in_turn(rows, q, chunks, sums, std::make_integer_sequence<int, R>(),
                          std::make_integer_sequence<int, R * M * Sums::kCount>());
}

}  // namespace
}  // namespace tmac::avx512
