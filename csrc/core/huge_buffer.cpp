#include "core/huge_buffer.h"

#include <cstring>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define TMAC_HAS_MMAP 1
#endif

namespace tmac {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr std::align_val_t kAlignment{64};

#ifdef TMAC_HAS_MMAP
/// Whole huge pages at a huge page's boundary, asked for before the first touch.
uint8_t* map_huge(size_t size) {
    const size_t reserved = size + kHugePage;
    void* raw = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
        throw std::bad_alloc();
    }
    auto* begin = static_cast<uint8_t*>(raw);
    const size_t lead = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (lead != 0) {
        munmap(begin, lead);
    }
    munmap(begin + lead + size, reserved - lead - size);
#ifdef MADV_HUGEPAGE
    madvise(begin + lead, size, MADV_HUGEPAGE);  // a hint: refused, the memory is as good, only slower
#endif
    return begin + lead;
}
#endif

}  // namespace

HugeBuffer::HugeBuffer(size_t size) : size_(size) {
    if (size == 0) {
        return;
    }
#ifdef TMAC_HAS_MMAP
    if (size >= kHugePage) {
        mapped_ = (size + kHugePage - 1) / kHugePage * kHugePage;
        data_ = map_huge(mapped_);
        return;
    }
#endif
    data_ = static_cast<uint8_t*>(::operator new(size, kAlignment));
    std::memset(data_, 0, size);
}

HugeBuffer::~HugeBuffer() {
    if (data_ == nullptr) {
        return;
    }
#ifdef TMAC_HAS_MMAP
    if (mapped_ != 0) {
        munmap(data_, mapped_);
        return;
    }
#endif
    ::operator delete(data_, kAlignment);
}

}  // namespace tmac
