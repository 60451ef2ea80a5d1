#pragma once

#include <cstdint>
#include <memory>

#include "core/direct_file.h"
#include "core/huge_buffer.h"

namespace tmac {

/// Zeroed memory that a DirectFile can read into: it begins at a block.
class BlockBuffer {
public:
    enum class Pages : uint8_t {
        huge,   ///< for weights (HugeBuffer)
        plain,  ///< for what is needed for a moment: huge pages would have to be made each time
    };

    BlockBuffer() = default;
    BlockBuffer(int64_t size, Pages pages) : size_(size + DirectFile::kBlock) {
        if (pages == Pages::huge) {
            huge_ = HugeBuffer(static_cast<size_t>(size_));
        } else {
            plain_ = std::make_unique<uint8_t[]>(static_cast<size_t>(size_));
        }
        uint8_t* memory = pages == Pages::huge ? huge_.data() : plain_.get();
        const auto address = reinterpret_cast<intptr_t>(memory);
        data_ = memory + (DirectFile::kBlock - address % DirectFile::kBlock) % DirectFile::kBlock;
    }

    uint8_t* data() { return data_; }
    const uint8_t* data() const { return data_; }

    /// Bytes of memory, with those before the block.
    int64_t allocated() const { return size_; }

private:
    HugeBuffer huge_;
    std::unique_ptr<uint8_t[]> plain_;
    uint8_t* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace tmac
