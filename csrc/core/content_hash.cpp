#include "core/content_hash.h"

#include <algorithm>
#include <cstring>

namespace tmac {
namespace {

uint64_t step(uint64_t lane, uint64_t word) {
    uint64_t x = lane ^ word;
    x += x << 21;
    x ^= x >> 30;
    return x + (x << 13);
}

}  // namespace

void ContentHash::take(const uint8_t* block) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
        uint64_t word = 0;
        std::memcpy(&word, block + lane * sizeof(word), sizeof(word));
        lanes_[lane] = step(lanes_[lane], word);
    }
}

void ContentHash::update(const uint8_t* data, size_t size) {
    if (size == 0) {  // no bytes may lie at a null pointer
        return;
    }
    size_ += size;
    if (rest_size_ > 0) {
        const size_t taken = std::min(size, kBlock - rest_size_);
        std::memcpy(rest_.data() + rest_size_, data, taken);
        rest_size_ += taken;
        data += taken;
        size -= taken;
        if (rest_size_ < kBlock) {
            return;
        }
        take(rest_.data());
        rest_size_ = 0;
    }
    std::array<uint64_t, kLanes> lanes = lanes_;  // in registers: the bytes might be those of lanes_
    for (; size >= kBlock; data += kBlock, size -= kBlock) {
        std::array<uint64_t, kLanes> words;
        std::memcpy(words.data(), data, kBlock);
        for (size_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] = step(lanes[lane], words[lane]);
        }
    }
    lanes_ = lanes;
    std::memcpy(rest_.data(), data, size);
    rest_size_ = size;
}

uint64_t ContentHash::digest() const {
    ContentHash end = *this;
    if (rest_size_ > 0) {
        std::fill(end.rest_.begin() + static_cast<std::ptrdiff_t>(rest_size_), end.rest_.end(), uint8_t{0});
        end.take(end.rest_.data());
    }
    uint64_t digest = size_;
    for (const uint64_t lane : end.lanes_) {
        digest = step(digest, lane);
    }
    return digest;
}

}  // namespace tmac
