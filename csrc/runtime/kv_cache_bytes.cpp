#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/check.h"
#include "runtime/cache_rows.h"
#include "runtime/kv_cache.h"
#include "runtime/kv_cache_parts.h"

// A sequence as bytes (docs/runtime.md): a header of little-endian numbers, then the pages of every group. In a page
// the layers of the group follow each other, and so do their heads, as in memory.

namespace tmac {
namespace {

constexpr char kMagic[8] = {'t', 'm', 'a', 'c', 'k', 'v', '0', '2'};
constexpr int64_t kFixedHeader = 8 + 4 + 4 + 8;  // magic, type, layers, length
constexpr int64_t kLayerHeader = 4 + 4 + 8;      // heads, head_dim, window
constexpr int64_t kGroupHeader = 8;              // first page

const char* name_of(CacheType type) {
    switch (type) {
        case CacheType::f32:
            return "f32";
        case CacheType::f16:
            return "f16";
        case CacheType::i8:
            break;
    }
    return "i8";
}

template <class T>
void put(std::vector<uint8_t>& bytes, T value) {
    for (size_t i = 0; i < sizeof(T); ++i) {
        bytes.push_back(static_cast<uint8_t>(static_cast<std::make_unsigned_t<T>>(value) >> (8 * i)));
    }
}

template <class T>
T get(const uint8_t*& bytes) {
    std::make_unsigned_t<T> value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
        value |= static_cast<std::make_unsigned_t<T>>(static_cast<std::make_unsigned_t<T>>(*bytes++) << (8 * i));
    }
    return static_cast<T>(value);
}

template <class Bytes, class Move>
void in_pieces(Bytes* data, int64_t size, const Move& move) {
    for (int64_t begin = 0; begin < size; begin += kSavePiece) {
        move(data + begin, std::min(kSavePiece, size - begin));
    }
}

}  // namespace

/// A sequence that was cut back may hold more pages than it needs: those are not saved.
int64_t KvCache::saved_first_page(const Sequence& sequence, size_t group) const {
    return std::max(sequence.tables[group].first, groups_[group].first_needed(sequence.length, kRollbackPositions));
}

std::vector<uint8_t> KvCache::saved_header(const Sequence& sequence) const {
    std::vector<uint8_t> bytes(kMagic, kMagic + sizeof(kMagic));
    put(bytes, static_cast<uint32_t>(type_));
    put(bytes, static_cast<uint32_t>(layers_.size()));
    put(bytes, sequence.length);
    for (const CacheLayer& layer : layers_) {
        put(bytes, layer.kv_heads);
        put(bytes, layer.head_dim);
        put(bytes, layer.window);
    }
    for (size_t i = 0; i < groups_.size(); ++i) {
        put(bytes, saved_first_page(sequence, i));
    }
    return bytes;
}

int64_t KvCache::header_bytes() const {
    return kFixedHeader + kLayerHeader * static_cast<int64_t>(layers_.size()) +
           kGroupHeader * static_cast<int64_t>(groups_.size());
}

int64_t KvCache::saved_bytes(int64_t id) const {
    const Sequence& found = sequence(id);
    int64_t sum = header_bytes();
    for (size_t i = 0; i < groups_.size(); ++i) {
        sum += (pages_of(found.length) - saved_first_page(found, i)) * groups_[i].pool.page_bytes();
    }
    return sum;
}

void KvCache::save(int64_t id, const std::function<void(const uint8_t*, int64_t)>& write) const {
    const Sequence& found = sequence(id);
    const std::vector<uint8_t> header = saved_header(found);
    in_pieces(header.data(), static_cast<int64_t>(header.size()), write);
    const int64_t full_pages = found.length / kPagePositions;
    const auto in_last_page = static_cast<int32_t>(found.length % kPagePositions);
    std::vector<uint8_t> head;
    for (size_t i = 0; i < groups_.size(); ++i) {
        const std::vector<Page*>& pages = found.tables[i].pages;
        for (int64_t index = saved_first_page(found, i); index < full_pages; ++index) {
            in_pieces(static_cast<const uint8_t*>(pages[static_cast<size_t>(index)]->data),
                      groups_[i].pool.page_bytes(), write);
        }
        if (in_last_page == 0) {
            continue;
        }
        const uint8_t* from = pages[static_cast<size_t>(full_pages)]->data;
        for (const int32_t layer : groups_[i].layers) {
            const CacheLayout& layout = layouts_[static_cast<size_t>(layer)];
            for (int32_t j = 0; j < layers_[static_cast<size_t>(layer)].kv_heads; ++j) {
                head.assign(from, from + layout.head_bytes());
                clear_rows(layout, head.data(), in_last_page);
                in_pieces(static_cast<const uint8_t*>(head.data()), layout.head_bytes(), write);
                from += layout.head_bytes();
            }
        }
    }
}

std::vector<uint8_t> KvCache::save(int64_t id) const {
    std::vector<uint8_t> bytes;
    bytes.reserve(static_cast<size_t>(saved_bytes(id)));
    save(id, [&](const uint8_t* data, int64_t size) { bytes.insert(bytes.end(), data, data + size); });
    return bytes;
}

/// An empty sequence whose dropped pages are those of the saved one, and the length of that. Checks all of the header.
std::unique_ptr<KvCache::Sequence> KvCache::read_header(int64_t size,
                                                        const std::function<void(uint8_t*, int64_t)>& read,
                                                        int64_t& length) const {
    TMAC_CHECK(size >= kFixedHeader, "a saved sequence has at least ", kFixedHeader, " bytes, not ", size);
    std::vector<uint8_t> header(static_cast<size_t>(kFixedHeader));
    read(header.data(), kFixedHeader);
    TMAC_CHECK(std::memcmp(header.data(), kMagic, sizeof(kMagic)) == 0, "these are not the bytes of a saved sequence");
    const uint8_t* at = header.data() + sizeof(kMagic);
    const auto type = get<uint32_t>(at);
    TMAC_CHECK(type == static_cast<uint32_t>(type_), "a sequence saved with cache type number ", type,
               ", this cache has ", static_cast<uint32_t>(type_), " (", name_of(type_), ")");
    const auto num_layers = get<uint32_t>(at);
    TMAC_CHECK(num_layers == layers_.size(), "a saved sequence of ", num_layers, " layers, this cache has ",
               layers_.size());
    length = get<int64_t>(at);
    TMAC_CHECK(length >= 0 && length <= kMaxSequenceLength, "a saved sequence of ", length, " positions: 0 to ",
               kMaxSequenceLength, " are possible");
    TMAC_CHECK(size >= header_bytes(), "the header of a saved sequence of this cache has ", header_bytes(),
               " bytes, there are ", size);
    header.resize(static_cast<size_t>(header_bytes() - kFixedHeader));
    in_pieces(header.data(), static_cast<int64_t>(header.size()), read);
    at = header.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
        CacheLayer layer{};
        layer.kv_heads = get<int32_t>(at);
        layer.head_dim = get<int32_t>(at);
        layer.window = get<int64_t>(at);
        TMAC_CHECK(layer == layers_[i], "layer ", i, " of a saved sequence has ", layer.kv_heads, " key heads of ",
                   layer.head_dim, " with a window of ", layer.window, ", this cache ", layers_[i].kv_heads, " of ",
                   layers_[i].head_dim, " with ", layers_[i].window);
    }
    auto made = std::make_unique<Sequence>(groups_.size(), layers_.size());
    int64_t expected = header_bytes();
    for (size_t i = 0; i < groups_.size(); ++i) {
        const auto first = get<int64_t>(at);
        TMAC_CHECK(first >= 0 && first <= groups_[i].first_needed(length, 0), "a saved sequence of ", length,
                   " positions starts at page ", first, " of layers with a window of ", groups_[i].window);
        made->tables[i].first = first;
        expected += (pages_of(length) - first) * groups_[i].pool.page_bytes();
    }
    TMAC_CHECK(size == expected, "a saved sequence of ", length, " positions has ", expected, " bytes, not ", size);
    return made;
}

int64_t KvCache::restore(int64_t size, const std::function<void(uint8_t*, int64_t)>& read) {
    int64_t length = 0;
    std::unique_ptr<Sequence> made = read_header(size, read, length);
    for (size_t i = 0; i < groups_.size(); ++i) {
        const auto dropped = static_cast<size_t>(made->tables[i].first);
        made->tables[i].pages.assign(dropped, nullptr);
        for (const int32_t layer : groups_[i].layers) {
            made->pointers[static_cast<size_t>(layer)].assign(dropped, nullptr);
        }
    }
    Sequence& restored = *made;
    const int64_t id = insert(std::move(made));
    try {
        reserve(restored, length);
        for (size_t i = 0; i < groups_.size(); ++i) {
            const Sequence::Table& table = restored.tables[i];
            for (auto page = table.pages.begin() + table.first; page != table.pages.end(); ++page) {
                in_pieces((*page)->data, groups_[i].pool.page_bytes(), read);
            }
        }
    } catch (...) {
        release(id);
        throw;
    }
    clear_padding(restored, length);
    restored.length = length;
    return id;
}

/// What the bytes may hold beyond the positions and beyond head_dim goes: equal sequences give equal bytes.
void KvCache::clear_padding(const Sequence& sequence, int64_t length) {
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
        const Sequence::Table& table = sequence.tables[group_of_[layer]];
        for (auto index = table.first; index < static_cast<int64_t>(table.pages.size()); ++index) {
            const int64_t valid = std::min<int64_t>(length - index * kPagePositions, kPagePositions);
            if (valid == kPagePositions && layouts_[layer].padded_dim() == layouts_[layer].head_dim) {
                continue;
            }
            uint8_t* head = table.pages[static_cast<size_t>(index)]->data + offset_of_[layer];
            for (int32_t j = 0; j < layers_[layer].kv_heads; ++j) {
                clear_rows(layouts_[layer], head, static_cast<int32_t>(valid));
                head += layouts_[layer].head_bytes();
            }
        }
    }
}

int64_t KvCache::restore(const uint8_t* data, int64_t size) {
    return restore(size, [&](uint8_t* to, int64_t count) {
        std::memcpy(to, data, static_cast<size_t>(count));
        data += count;
    });
}

}  // namespace tmac
