#include "layout/code_stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "catch.h"
#include "random.h"

using namespace tmac;

namespace {

constexpr std::array<uint8_t, 8> kInOrder = {0, 1, 2, 3, 4, 5, 6, 7};
constexpr std::array<uint8_t, 8> kAwq = {0, 2, 4, 6, 1, 3, 5, 7};

/// The stream bit by bit, in 32-bit words.
std::vector<uint32_t> pack(const uint8_t* codes, int64_t count, int32_t bits) {
    std::vector<uint32_t> words(static_cast<size_t>((count * bits + 31) / 32));
    for (int64_t bit = 0; bit < count * bits; ++bit) {
        const uint32_t value = (codes[bit / bits] >> (bit % bits)) & 1U;
        words[static_cast<size_t>(bit / 32)] |= value << (bit % 32);
    }
    return words;
}

}  // namespace

TEST_CASE("a stream begins at the least significant bit and crosses bytes", "[code_stream]") {
    const std::vector<uint8_t> stream = {0b11'010'001, 0b1'101'100'0};  // 1, 2, 0b011, 4, 5, then one bit
    std::vector<uint8_t> codes(5);
    unpack_stream(stream.data(), 2, 3, 5, codes.data());
    CHECK(codes == std::vector<uint8_t>{1, 2, 3, 4, 5});
}

TEST_CASE("streams in rows, down columns and across give back their codes", "[code_stream]") {
    Random random(3);
    for (int32_t bits = 1; bits <= 8; ++bits) {
        for (const int64_t count : {1, 7, 8, 31, 32, 33, 63, 64, 65, 96, 200}) {
            for (const int64_t rows : {1, 2, 8, 15, 64, 70}) {
                const std::vector<uint8_t> codes = random.codes(rows * count, 1U << bits);
                const auto per_row = static_cast<int64_t>(pack(codes.data(), count, bits).size());
                std::vector<uint32_t> along(static_cast<size_t>(rows * per_row));
                std::vector<uint32_t> down(along.size());
                for (int64_t row = 0; row < rows; ++row) {
                    const std::vector<uint32_t> words = pack(codes.data() + row * count, count, bits);
                    for (int64_t word = 0; word < per_row; ++word) {
                        along[static_cast<size_t>(row * per_row + word)] = words[static_cast<size_t>(word)];
                        down[static_cast<size_t>(word * rows + row)] = words[static_cast<size_t>(word)];
                    }
                }
                CAPTURE(bits, count, rows);
                const int64_t nbytes = (count * bits + 7) / 8;  // not one more is read
                std::vector<uint8_t> exact(nbytes);
                std::vector<uint8_t> back(codes.size(), 99);
                for (int64_t row = 0; row < rows; ++row) {
                    std::memcpy(exact.data(), along.data() + row * per_row, exact.size());
                    unpack_stream(exact.data(), nbytes, bits, count, back.data() + row * count);
                }
                CHECK(back == codes);
                std::fill(back.begin(), back.end(), 99);
                const int64_t half = rows / 2;
                unpack_down({down.data(), per_row, rows}, bits, count, {0, half}, back.data());
                unpack_down({down.data(), per_row, rows}, bits, count, {half, rows}, back.data());
                CHECK(back == codes);
                if (count % 8 != 0) {
                    continue;
                }
                std::vector<uint8_t> transposed(codes.size(), 99);
                const WordsView words{along.data(), rows, per_row};
                unpack_across(words, bits, count, kInOrder, {0, std::min<int64_t>(32, count)}, transposed.data());
                unpack_across(words, bits, count, kInOrder, {32, std::max<int64_t>(32, count)}, transposed.data());
                bool same = true;
                for (int64_t at = 0; at < rows * count; ++at) {
                    same = same && codes[static_cast<size_t>(at)] ==
                                       transposed[static_cast<size_t>(at % count * rows + at / count)];
                }
                CHECK(same);
            }
        }
    }
}

TEST_CASE("the lanes say which column each of eight codes belongs to", "[code_stream]") {
    const uint32_t word = 0x76543210;  // code i is i
    std::vector<uint8_t> codes(8);
    unpack_across({&word, 1, 1}, 4, 8, kAwq, {0, 8}, codes.data());
    CHECK(codes == std::vector<uint8_t>{0, 4, 1, 5, 2, 6, 3, 7});
}
