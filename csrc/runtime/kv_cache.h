#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "core/cache_layout.h"
#include "runtime/page_pool.h"

namespace tmac {

/// What one layer keeps of a position: keys and values of `kv_heads` heads of `head_dim` elements.
struct CacheLayer {
    int32_t kv_heads;
    int32_t head_dim;
    int64_t window;  ///< a position attends to itself and the window - 1 before it; 0: to all before it

    friend bool operator==(const CacheLayer&, const CacheLayer&) = default;
};

/// The cache may not hold what was asked for. Nothing has changed: the same call works once others have been released.
struct CacheFull : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A sequence may be no longer: bounds what the bytes of a hostile file can make restore() allocate.
inline constexpr int64_t kMaxSequenceLength = int64_t{1} << 22;

/// A layer with a window keeps this many positions more than it attends to, so that a sequence can always be cut back
/// by as many.
inline constexpr int64_t kRollbackPositions = kPagePositions;

/// save() writes pieces of at most so many bytes, and restore() asks for such.
inline constexpr int64_t kSavePiece = int64_t{1} << 20;

/// Keys and values of several sequences, in pages of kPagePositions positions.
///
/// Layers with the same window are a group; a page of a group holds its positions for all layers of the group. Pages
/// are counted, not owned: sequences that were forked share them, and who writes into a shared one first takes a copy.
/// Pages of a group with a window that no position will attend to again are used for others.
///
/// Not thread-safe, but what pages() and page() return may be used from any thread until the sequence changes. An id
/// that is not of a live sequence is a std::invalid_argument everywhere; ids are not used again.
class KvCache {
public:
    /// Space for `max_positions` positions of all sequences together, rounded up to whole pages: a page counts as a
    /// whole, and once, however many sequences share it. 0: no limit.
    KvCache(CacheType type, std::vector<CacheLayer> layers, int64_t max_positions = 0);
    ~KvCache();
    KvCache(const KvCache&) = delete;
    KvCache& operator=(const KvCache&) = delete;

    CacheType type() const { return type_; }
    const std::vector<CacheLayer>& layers() const { return layers_; }
    const CacheLayout& layout(int32_t layer) const;
    int64_t max_positions() const { return max_positions_; }

    /// An empty sequence.
    int64_t create();

    /// A sequence with the first `length` positions of `id`; takes no page until one of the two grows. Throws
    /// std::invalid_argument unless holds(id, length).
    int64_t fork(int64_t id, int64_t length);
    void release(int64_t id);

    /// Positions that have been committed.
    int64_t length(int64_t id) const;
    /// Positions that there is memory for: at least the committed ones.
    int64_t reserved(int64_t id) const;
    int64_t num_sequences() const { return static_cast<int64_t>(sequences_.size()); }

    /// Whether a sequence could go on from `length`, which is at most its own: no window has dropped what that needs.
    bool holds(int64_t id, int64_t length) const;

    /// Forgets positions from `length` on, and what was reserved. False, and nothing has changed, unless
    /// holds(id, length), which it does for the last kRollbackPositions positions of the longest that it has been.
    bool truncate(int64_t id, int64_t length);

    /// Memory that is this sequence's own for positions [length, length + count). All or nothing: throws CacheFull or
    /// std::bad_alloc, std::invalid_argument above kMaxSequenceLength.
    void reserve(int64_t id, int64_t count);

    /// The next `count` positions, which have been reserved, are there now; the rest of the reserved ones is given
    /// back, and so are pages that fell out of their windows.
    void commit(int64_t id, int64_t count);

    /// Of a token tree in the reserved positions, row `slots[i]` (position length + slots[i]) becomes position
    /// length + i in every layer; then commits them. `slots` ascends.
    void keep(int64_t id, const std::vector<int64_t>& slots);

    /// The pages of a layer, also the reserved ones: entry i is where the layer's first head is in page i, null where
    /// the window has dropped the page. The table has num_pages(id) entries and stands until the sequence changes.
    const uint8_t* const* pages(int64_t id, int32_t layer) const;
    int64_t num_pages(int64_t id) const;

    /// Page `index` of a layer for writing, which is right in reserved positions only; null where it has been dropped.
    uint8_t* page(int64_t id, int32_t layer, int64_t index);

    /// Bytes that are taken from the system, whether or not a sequence uses them now.
    int64_t bytes() const;
    /// Bytes of the pages that sequences hold.
    int64_t used_bytes() const;
    /// What max_positions limits: positions of the pages that sequences hold, in the group that has most.
    int64_t held_positions() const;
    /// Gives memory that no sequence uses back to the system.
    void trim();

    /// The sequence as bytes, in pieces of at most kSavePiece bytes: see docs/runtime.md. Of reserved positions
    /// nothing is written. Equal sequences give equal bytes.
    void save(int64_t id, const std::function<void(const uint8_t*, int64_t)>& write) const;
    std::vector<uint8_t> save(int64_t id) const;
    int64_t saved_bytes(int64_t id) const;

    /// A new sequence from `size` saved bytes, which `read` hands out in order: exactly as many as it is asked for, or
    /// it throws. Throws std::invalid_argument where the bytes are not those of a sequence of a cache with the same
    /// type and layers, before anything is allocated for them; CacheFull as reserve() does.
    int64_t restore(int64_t size, const std::function<void(uint8_t*, int64_t)>& read);
    int64_t restore(const uint8_t* data, int64_t size);

private:
    struct Group;
    struct Sequence;

    Sequence& sequence(int64_t id) const;
    void check_layer(int32_t layer) const;
    bool holds(const Sequence& sequence, int64_t length) const;
    int64_t pages_to_take(const Sequence& sequence, size_t group, int64_t count) const;
    void reserve(Sequence& sequence, int64_t count);
    void place(Sequence& sequence, size_t group, int64_t index, Page* page) noexcept;
    void own_last_page(Sequence& sequence, size_t group) noexcept;
    void cut(Sequence& sequence, int64_t num_pages) noexcept;
    void drop_before_windows(Sequence& sequence) noexcept;
    int64_t insert(std::unique_ptr<Sequence> sequence);
    int64_t saved_first_page(const Sequence& sequence, size_t group) const;
    std::vector<uint8_t> saved_header(const Sequence& sequence) const;
    int64_t header_bytes() const;
    std::unique_ptr<Sequence> read_header(int64_t size, const std::function<void(uint8_t*, int64_t)>& read,
                                          int64_t& length) const;
    void clear_padding(const Sequence& sequence, int64_t length);

    CacheType type_;
    std::vector<CacheLayer> layers_;
    std::vector<CacheLayout> layouts_;  ///< [layers]
    std::vector<size_t> group_of_;      ///< [layers]
    std::vector<int64_t> offset_of_;    ///< [layers]: of the layer in a page of its group
    std::vector<Group> groups_;
    std::unordered_map<int64_t, std::unique_ptr<Sequence>> sequences_;
    int64_t max_positions_;
    int64_t next_id_ = 0;
};

}  // namespace tmac
