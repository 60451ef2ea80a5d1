#include "runtime/page_pool.h"

#include <algorithm>

#include "core/range.h"

namespace tmac {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

PagePool::PagePool(int64_t page_bytes, int64_t max_pages) : page_bytes_(page_bytes), max_pages_(max_pages) {}

int64_t PagePool::bytes() const {
    int64_t sum = 0;
    for (const Slab& slab : slabs_) {
        sum += static_cast<int64_t>(slab.memory.size());
    }
    return sum;
}

void PagePool::prepare(int64_t count) {
    while (total_ - used_ < count) {
        grow();
    }
}

void PagePool::grow() {
    int64_t bytes = std::max(std::clamp(total_ * page_bytes_, kMinSlab, kMaxSlab), page_bytes_);
    if (bytes > kHugePage / 2) {
        bytes = round_up(bytes, kHugePage);
    }
    int64_t count = bytes / page_bytes_;
    if (max_pages_ != 0) {
        count = std::min(count, max_pages_ - total_);
    }
    Slab slab;
    slab.memory = HugeBuffer(static_cast<size_t>(count * page_bytes_));
    slab.pages.resize(static_cast<size_t>(count));
    slab.free.reserve(static_cast<size_t>(count));
    const auto empty = std::find_if(slabs_.begin(), slabs_.end(), [](const Slab& old) { return old.pages.empty(); });
    const auto index = static_cast<int32_t>(empty - slabs_.begin());
    for (int64_t i = count - 1; i >= 0; --i) {  // the first is on top
        Page& page = slab.pages[static_cast<size_t>(i)];
        page = {.data = slab.memory.data() + i * page_bytes_, .references = 0, .slab = index};
        slab.free.push_back(&page);
    }
    if (empty == slabs_.end()) {
        slabs_.push_back(std::move(slab));
    } else {
        *empty = std::move(slab);
    }
    total_ += count;
}

Page* PagePool::take() noexcept {
    // The first slab that has one: what is in use moves to the front, and the last slabs can be given back.
    const auto slab = std::find_if(slabs_.begin(), slabs_.end(), [](const Slab& one) { return !one.free.empty(); });
    Page* page = slab->free.back();
    slab->free.pop_back();
    page->references = 1;
    ++used_;
    return page;
}

void PagePool::drop(Page* page) noexcept {
    if (--page->references == 0) {
        slabs_[static_cast<size_t>(page->slab)].free.push_back(page);
        --used_;
    }
}

void PagePool::trim() noexcept {
    for (Slab& slab : slabs_) {
        if (slab.free.size() == slab.pages.size()) {
            total_ -= static_cast<int64_t>(slab.pages.size());
            slab = Slab();
        }
    }
}

}  // namespace tmac
