#include "core/huge_buffer.h"

#include <cstring>
#include <mutex>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
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

/// Memory of several buffers, given away from front to back and never twice: so it is zero. It goes when the last of
/// them has gone; before that, the system gets the whole pages of those that have.
struct Slab {
    uint8_t* data;
    size_t used = 0;
    size_t buffers = 0;
};

constexpr size_t kSlab = size_t{32} << 20;        // reserved; what no buffer has is never touched
constexpr size_t kLeastShared = size_t{1} << 16;  // smaller ones are malloc's business
constexpr size_t kLeastOwn = size_t{16} << 20;

std::mutex slab_mutex;
Slab* newest_slab = nullptr;  // the one with room

size_t round_up_to(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

Slab* take_from_slab(size_t size, uint8_t*& data) {
    const size_t room = round_up_to(size, static_cast<size_t>(kAlignment));
    const std::lock_guard<std::mutex> lock(slab_mutex);
    if (newest_slab == nullptr || newest_slab->used + room > kSlab) {
        newest_slab = new Slab{map_huge(kSlab)};
    }
    data = newest_slab->data + newest_slab->used;
    newest_slab->used += room;
    ++newest_slab->buffers;
    return newest_slab;
}

void give_back(Slab* slab, uint8_t* data, size_t size) {
    const std::lock_guard<std::mutex> lock(slab_mutex);
    if (--slab->buffers == 0) {
        munmap(slab->data, kSlab);
        newest_slab = newest_slab == slab ? nullptr : newest_slab;
        delete slab;
        return;
    }
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t begin = round_up_to(static_cast<size_t>(data - slab->data), page);
    const size_t end = static_cast<size_t>(data - slab->data + static_cast<ptrdiff_t>(size)) / page * page;
    if (end > begin) {
        madvise(slab->data + begin, end - begin, MADV_DONTNEED);
    }
}
#endif

}  // namespace

HugeBuffer::HugeBuffer(size_t size) : size_(size) {
    if (size == 0) {
        return;
    }
#ifdef TMAC_HAS_MMAP
    if (size >= kLeastShared && size < kLeastOwn) {
        slab_ = take_from_slab(size, data_);
        return;
    }
    if (size >= kLeastOwn) {
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
    if (slab_ != nullptr) {
        give_back(static_cast<Slab*>(slab_), data_, size_);
        return;
    }
    if (mapped_ != 0) {
        munmap(data_, mapped_);
        return;
    }
#endif
    ::operator delete(data_, kAlignment);
}

}  // namespace tmac
