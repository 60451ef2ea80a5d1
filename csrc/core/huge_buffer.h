#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace tmac {

/// Zeroed memory for weights: 2 MiB pages where the system gives them (12-17 % on every streamed kernel), 64-byte
/// aligned always. Buffers of less than 16 MiB share such pages: on pages of its own, each would waste half of one.
/// Throws std::bad_alloc.
class HugeBuffer {
public:
    HugeBuffer() = default;
    explicit HugeBuffer(size_t size);
    ~HugeBuffer();
    HugeBuffer(HugeBuffer&& other) noexcept { swap(other); }
    HugeBuffer& operator=(HugeBuffer&& other) noexcept {
        swap(other);
        return *this;
    }
    HugeBuffer(const HugeBuffer&) = delete;
    HugeBuffer& operator=(const HugeBuffer&) = delete;

    uint8_t* data() { return data_; }
    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

private:
    void swap(HugeBuffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(mapped_, other.mapped_);
        std::swap(slab_, other.slab_);
    }

    uint8_t* data_ = nullptr;
    size_t size_ = 0;
    size_t mapped_ = 0;     ///< bytes to unmap, 0 when the memory came from elsewhere
    void* slab_ = nullptr;  ///< what it is a part of
};

}  // namespace tmac
