#include "runtime/weight_stream.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "core/block_buffer.h"
#include "core/check.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace tmac {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPatience{20};  // between two checkpoints
constexpr double kLongest = 1e6;                    // seconds that a limit holds back: what a Clock can count

int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;
#endif
}

int64_t bytes_of(const FilePart& part) { return part.back().end - part.front().begin; }

Clock::duration clock_time(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

/// All of a stream: on the heap, so that a forked child can leave it there.
class WeightStream::Ring {
public:
    Ring(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, std::vector<FilePart> parts,
         const StreamOptions& options);
    ~Ring();
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;

    bool is_of_this_process() const { return process_ == process_id(); }
    void check_process() const;
    void begin(const Checkpoint& checkpoint);
    const uint8_t* acquire(const Checkpoint& checkpoint);
    void release();
    void set_limit(double bytes_per_second);
    StreamStatistics statistics() const;
    int64_t bytes() const;

private:
    struct Slot {
        BlockBuffer memory;
        int64_t left = 0;  ///< bytes that are still to be read
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
    template <class Done>
    void wait(std::unique_lock<std::mutex>& lock, const Checkpoint& checkpoint, Done done);
    void restart(std::unique_lock<std::mutex>& lock, const Checkpoint& checkpoint);
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

WeightStream::Ring::Ring(std::shared_ptr<const DirectFile> file, const DirectFile::State& state,
                         std::vector<FilePart> parts, const StreamOptions& options)
    : file_(std::move(file)),
      state_(state),
      parts_(std::move(parts)),
      options_(options),
      process_(process_id()),
      verified_(parts_.size()) {
    TMAC_CHECK(!parts_.empty() && options_.slots >= 1 && options_.readers >= 1 &&
                   options_.block_bytes >= DirectFile::kBlock && options_.block_bytes % DirectFile::kBlock == 0,
               "[WeightStream] parts, slots, readers and whole blocks are wanted");
    int64_t largest = 0;
    for (const FilePart& part : parts_) {
        check_pieces(part, state_.size);
        TMAC_CHECK(!part.empty() && bytes_of(part) > 0, "[WeightStream] a part is empty");
        largest = std::max(largest, bytes_of(part));
    }
    for (int32_t i = 0; i < options_.slots; ++i) {
        slots_.emplace_back().memory = BlockBuffer(largest, BlockBuffer::Pages::huge);
    }
}

WeightStream::Ring::~Ring() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopped_ = true;
    }
    work_.notify_all();
    for (std::thread& reader : readers_) {
        reader.join();
    }
}

void WeightStream::Ring::check_process() const {
    if (!is_of_this_process()) {
        throw std::runtime_error(file_->path() +
                                 ": a forked child cannot read from it: load the model in the process that uses it");
    }
}

void WeightStream::Ring::begin(const Checkpoint& checkpoint) {
    if (readers_.empty()) {
        start_readers();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    if (held_ || error_ || paused_ || used_ % static_cast<int64_t>(parts_.size()) != 0) {
        restart(lock, checkpoint);
    }
    statistics_.passes += 1;
}

/// Until done(); without the lock at checkpoints, whose signal handlers may fork.
template <class Done>
void WeightStream::Ring::wait(std::unique_lock<std::mutex>& lock, const Checkpoint& checkpoint, Done done) {
    while (!ready_.wait_for(lock, kPatience, done)) {
        lock.unlock();
        checkpoint();
        check_process();
        lock.lock();
    }
}

/// Waits until the readers have put down what they have, and begins anew. Left by a checkpoint, it stays paused.
void WeightStream::Ring::restart(std::unique_lock<std::mutex>& lock, const Checkpoint& checkpoint) {
    paused_ = true;
    work_.notify_all();
    wait(lock, checkpoint, [this] { return active_ == 0; });
    paused_ = held_ = false;
    used_ = next_ = next_offset_ = 0;
    error_ = nullptr;
    for (Slot& slot : slots_) {
        slot.ready = false;
    }
    work_.notify_all();
}

void WeightStream::Ring::start_readers() {
    for (int32_t i = 0; i < options_.readers; ++i) {
        readers_.emplace_back([this] { run_reader(); });
    }
}

const uint8_t* WeightStream::Ring::acquire(const Checkpoint& checkpoint) {
    std::unique_lock<std::mutex> lock(mutex_);
    TMAC_CHECK(!held_, "[WeightStream] the part before is still in use");
    Slot& slot = slot_of(used_);
    const Clock::time_point since = Clock::now();
    wait(lock, checkpoint, [&] { return slot.ready || error_; });
    statistics_.waiting += seconds(Clock::now() - since);
    if (!slot.ready) {
        std::rethrow_exception(error_);
    }
    held_ = true;
    return slot.memory.data();
}

void WeightStream::Ring::release() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        held_ = false;
        slot_of(used_).ready = false;
        used_ += 1;
    }
    work_.notify_all();
}

void WeightStream::Ring::set_limit(double bytes_per_second) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        limit_ = bytes_per_second;
        free_at_ = {};
    }
    work_.notify_all();  // who is held back by the old one
}

StreamStatistics WeightStream::Ring::statistics() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    StreamStatistics found = statistics_;
    found.reading += reading_ > 0 ? seconds(Clock::now() - reading_since_) : 0.0;
    return found;
}

int64_t WeightStream::Ring::bytes() const {
    int64_t sum = 0;
    for (const Slot& slot : slots_) {
        sum += slot.memory.allocated();
    }
    return sum;
}

void WeightStream::Ring::run_reader() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        work_.wait(lock, [this] { return stopped_ || has_work(); });
        if (stopped_) {
            return;
        }
        const Block block = take_block();
        ++active_;
        try {
            read_block(block, lock);
        } catch (...) {
            if (!lock.owns_lock()) {
                lock.lock();
            }
            error_ = error_ ? error_ : std::current_exception();
        }
        --active_;
        ready_.notify_all();
    }
}

bool WeightStream::Ring::has_work() const {
    return !paused_ && !error_ && next_ < used_ + static_cast<int64_t>(slots_.size());
}

WeightStream::Ring::Block WeightStream::Ring::take_block() {
    const FilePart& part = part_of(next_);
    Slot& slot = slot_of(next_);
    if (next_offset_ == 0) {
        slot.left = bytes_of(part);
        slot.ready = false;
    }
    const int64_t size = std::min(options_.block_bytes, bytes_of(part) - next_offset_);
    const Block block{static_cast<size_t>(next_) % parts_.size(), &slot, next_offset_, size};
    next_offset_ += size;
    if (next_offset_ == bytes_of(part)) {
        next_ += 1;
        next_offset_ = 0;
    }
    return block;
}

void WeightStream::Ring::read_block(const Block& block, std::unique_lock<std::mutex>& lock) {
    count_reader(1);
    lock.unlock();
    std::exception_ptr failed;
    try {
        file_->read(parts_[block.part].front().begin + block.offset, block.size,
                    block.slot->memory.data() + block.offset);
    } catch (...) {
        failed = std::current_exception();
    }
    lock.lock();
    if (!failed) {
        statistics_.bytes += block.size;
        hold_back(block.size, lock);
    }
    count_reader(-1);
    if (failed) {
        std::rethrow_exception(failed);
    }
    block.slot->left -= block.size;
    if (block.slot->left == 0 && !paused_) {
        finish_part(block, lock);
    }
}

/// Waits until a disk of the limit's speed would have read the bytes.
void WeightStream::Ring::hold_back(int64_t bytes, std::unique_lock<std::mutex>& lock) {
    if (limit_ <= 0.0) {
        return;
    }
    const Clock::time_point now = Clock::now();
    const Clock::duration time = clock_time(std::min(static_cast<double>(bytes) / limit_, kLongest));
    free_at_ = std::min(std::max(free_at_, now) + time, now + clock_time(kLongest));
    const Clock::time_point until = free_at_;
    const double limit = limit_;
    work_.wait_until(lock, until, [this, limit] { return stopped_ || paused_ || limit_ != limit; });
}

/// The last block of a part has come.
void WeightStream::Ring::finish_part(const Block& block, std::unique_lock<std::mutex>& lock) {
    const bool known = verified_[block.part];
    lock.unlock();
    if (!known) {
        verify(block);
    }
    if (file_->state() != state_) {
        throw std::runtime_error(file_->path() + ": was changed while a model read from it: load the model again");
    }
    lock.lock();
    verified_[block.part] = true;
    block.slot->ready = true;
}

void WeightStream::Ring::verify(const Block& block) const {
    const FilePart& part = parts_[block.part];
    for (const FilePiece& piece : part) {
        check_bytes(block.slot->memory.data() + (piece.begin - part.front().begin), piece, file_->path());
    }
}

void WeightStream::Ring::count_reader(int change) {
    if (reading_ == 0) {
        reading_since_ = Clock::now();
    }
    reading_ += change;
    if (reading_ == 0) {
        statistics_.reading += seconds(Clock::now() - reading_since_);
    }
}

WeightStream::WeightStream(std::shared_ptr<const DirectFile> file, const DirectFile::State& state,
                           std::vector<FilePart> parts, const StreamOptions& options)
    : ring_(std::make_unique<Ring>(std::move(file), state, std::move(parts), options)) {}

WeightStream::~WeightStream() {
    if (!ring_->is_of_this_process()) {  // to destroy what its threads wait on would wait for them
        static_cast<void>(ring_.release());
    }
}

WeightStream::Ring& WeightStream::ring() const {
    ring_->check_process();
    return *ring_;
}

void WeightStream::check_process() const { ring_->check_process(); }

void WeightStream::begin(const Checkpoint& checkpoint) { ring().begin(checkpoint); }

const uint8_t* WeightStream::acquire(const Checkpoint& checkpoint) { return ring().acquire(checkpoint); }

void WeightStream::release() { ring().release(); }

void WeightStream::set_limit(double bytes_per_second) { ring().set_limit(bytes_per_second); }

StreamStatistics WeightStream::statistics() const { return ring().statistics(); }

int64_t WeightStream::ring_bytes() const { return ring_->bytes(); }

}  // namespace tmac
