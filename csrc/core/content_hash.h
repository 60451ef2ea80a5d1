#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tmac {

/// 64 bits that tell whether bytes of a file are those that were written: about as fast as memory on one core. It
/// finds damage; it is no protection against intent.
///
/// Eight lanes take a word of eight bytes each in turn: x = (lane ^ word) * (2^21 + 1), x ^= x >> 30, lane = x * (2^13
/// + 1). Every step is a bijection of the lane, so that no change of one word is lost, and only adds and shifts, which
/// every CPU does for several lanes at once. Words are of the machine's byte order.
class ContentHash {
public:
    /// The bytes that follow; cut as one likes, the result is that of all of them in one piece.
    void update(const uint8_t* data, size_t size);

    /// Of everything so far.
    uint64_t digest() const;

private:
    static constexpr size_t kLanes = 8;
    static constexpr size_t kBlock = kLanes * sizeof(uint64_t);

    void take(const uint8_t* block);

    std::array<uint64_t, kLanes> lanes_{1, 2, 3, 4, 5, 6, 7, 8};
    std::array<uint8_t, kBlock> rest_{};  ///< bytes that are no whole block yet
    size_t rest_size_ = 0;
    uint64_t size_ = 0;
};

}  // namespace tmac
