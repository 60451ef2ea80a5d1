#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/huge_buffer.h"

namespace tmac {

/// Memory that several owners may share.
struct Page {
    uint8_t* data;
    int32_t references;  ///< 0: free
    int32_t slab;
};

/// Pages of one size out of slabs of many: slabs grow with the pool, from kMinSlab to kMaxSlab bytes, so that a small
/// pool is small and a large one has few mappings. Memory of a slab is the process's only once a page is written.
class PagePool {
public:
    static constexpr int64_t kMinSlab = int64_t{64} << 10;
    static constexpr int64_t kMaxSlab = int64_t{32} << 20;

    /// `max_pages` 0: no limit.
    PagePool(int64_t page_bytes, int64_t max_pages);

    int64_t page_bytes() const { return page_bytes_; }
    int64_t max_pages() const { return max_pages_; }
    int64_t used() const { return used_; }
    int64_t bytes() const;

    /// Whether `count` pages more are within the limit.
    bool may_take(int64_t count) const { return max_pages_ == 0 || count <= max_pages_ - used_; }

    /// Makes sure that the next `count` calls of take() find a page. Throws std::bad_alloc.
    void prepare(int64_t count);

    /// A free page with one reference; its bytes are what its last owner left, zero at first. After prepare() only.
    Page* take() noexcept;

    static void share(Page* page) noexcept { ++page->references; }
    void drop(Page* page) noexcept;

    /// Gives slabs back of which no page is used.
    void trim() noexcept;

private:
    struct Slab {
        HugeBuffer memory;
        std::vector<Page> pages;
        std::vector<Page*> free;
    };

    void grow();

    int64_t page_bytes_;
    int64_t max_pages_;
    int64_t total_ = 0;
    int64_t used_ = 0;
    std::vector<Slab> slabs_;  ///< those given back stay as empty ones, so that Page::slab stands
};

}  // namespace tmac
