#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/direct_file.h"
#include "core/huge_buffer.h"

namespace tmac {

/// Bytes of a packed file that are not those that were written.
struct DamagedFile : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Bytes [begin, end) of a file and the ContentHash of all of them.
struct FilePiece {
    int64_t begin;
    int64_t end;
    uint64_t checksum;
};

/// Pieces that follow each other and are read together.
using FilePart = std::vector<FilePiece>;

struct StreamOptions {
    int32_t slots = 2;                       ///< parts that are in memory: one in use, the others read ahead
    int32_t readers = 4;                     ///< reads at a time
    int64_t block_bytes = int64_t{1} << 20;  ///< of a read
};

/// What a stream has done since it was made.
struct StreamStatistics {
    int64_t bytes = 0;     ///< that were read
    int64_t passes = 0;    ///< that were begun
    double reading = 0.0;  ///< seconds in which something was being read, or held back by the limit
    double waiting = 0.0;  ///< seconds in which acquire() waited
};

/// Parts of a file, one after the other and round again, read ahead by threads of its own into a ring of slots: pass
/// after pass needs them in the same order, and while one part is used, or a pass ends and the next one begins, the
/// following ones are read.
///
/// One thread uses it at a time. Everything that is wrong with the file is a std::runtime_error that names it, of an
/// acquire() of the pass that needs what cannot be read, at the latest of that part's; the next begin() tries again. A
/// part's first reading is compared with its checksums, and every reading with the file's state.
class WeightStream {
public:
    using Checkpoint = std::function<void()>;

    /// No thread is started and nothing read before begin(). `state`: of the file for which the parts were found.
    WeightStream(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, std::vector<FilePart> parts,
                 const StreamOptions& options);
    ~WeightStream();
    WeightStream(const WeightStream&) = delete;
    WeightStream& operator=(const WeightStream&) = delete;

    /// A pass that begins with part 0. What an earlier pass that did not reach its end has left is dropped. Throws in a
    /// child of the process that made the stream: threads do not survive a fork.
    void begin();

    /// The bytes of the next part, which stand until release(). Waits for them; `checkpoint` is called while it does,
    /// and may throw: the pass is over then.
    const uint8_t* acquire(const Checkpoint& checkpoint);
    void release();

    /// Reads no more than so many bytes a second, to stand for a slower disk; 0: no limit.
    void set_limit(double bytes_per_second);

    StreamStatistics statistics() const;
    int64_t ring_bytes() const;

private:
    using Clock = std::chrono::steady_clock;

    struct Slot {
        HugeBuffer memory;
        uint8_t* data = nullptr;  ///< aligned
        int64_t left = 0;         ///< bytes that are still to be read
        bool ready = false;
    };
    struct Block {
        size_t part;
        Slot* slot;
        int64_t offset;  ///< within the part
        int64_t size;
    };

    const FilePart& part_of(int64_t turn) const { return parts_[static_cast<size_t>(turn) % parts_.size()]; }
    Slot& slot_of(int64_t turn) { return slots_[static_cast<size_t>(turn) % slots_.size()]; }
    void restart(std::unique_lock<std::mutex>& lock);
    void start_readers();
    void run_reader();
    bool has_work() const;
    Block take_block();
    void read_block(const Block& block, std::unique_lock<std::mutex>& lock);
    void hold_back(int64_t bytes, std::unique_lock<std::mutex>& lock);
    void finish_part(const Block& block, std::unique_lock<std::mutex>& lock);
    void verify(const Block& block) const;
    void count_reader(int change);

    const std::shared_ptr<const DirectFile> file_;
    const DirectFile::State state_;
    const std::vector<FilePart> parts_;
    const StreamOptions options_;
    const int64_t process_;
    std::vector<Slot> slots_;
    std::vector<std::thread> readers_;

    mutable std::mutex mutex_;       ///< of everything below
    std::condition_variable work_;   ///< readers wait for a free slot, or are held back
    std::condition_variable ready_;  ///< the user waits for a part, or for readers to come to rest
    int64_t used_ = 0;               ///< turns that were released: turn t is part t % parts, in slot t % slots
    int64_t next_ = 0;               ///< turn of the next block to read
    int64_t next_offset_ = 0;        ///< within its part
    int32_t active_ = 0;             ///< readers that have a block
    int32_t reading_ = 0;            ///< of them, those that read or are held back
    bool held_ = false;              ///< the part of turn used_ is in use
    bool paused_ = false;
    bool stopped_ = false;
    std::exception_ptr error_;
    std::vector<bool> verified_;  ///< parts
    double limit_ = 0.0;
    Clock::time_point free_at_{};  ///< when the limit lets the next byte in
    Clock::time_point reading_since_{};
    StreamStatistics statistics_;
};

}  // namespace tmac
