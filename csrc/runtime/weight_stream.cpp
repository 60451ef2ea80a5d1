#include "runtime/weight_stream.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "core/check.h"
#include "core/content_hash.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace tmac {
namespace {

constexpr std::chrono::milliseconds kPatience{20};  // between two checkpoints

int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;
#endif
}

int64_t bytes_of(const FilePart& part) { return part.back().end - part.front().begin; }

void check_part(const FilePart& part, int64_t file_size) {
    TMAC_CHECK(!part.empty(), "[WeightStream] a part has no pieces");
    int64_t at = part.front().begin;
    for (const FilePiece& piece : part) {
        TMAC_CHECK(piece.begin == at && piece.begin >= 0 && piece.end >= piece.begin && piece.end <= file_size &&
                       piece.begin % DirectFile::kBlock == 0 && piece.end % DirectFile::kBlock == 0,
                   "[WeightStream] a piece at ", piece.begin, " to ", piece.end, " of a file of ", file_size,
                   " bytes does not follow the one before it in whole blocks");
        at = piece.end;
    }
    TMAC_CHECK(bytes_of(part) > 0, "[WeightStream] a part is empty");
}

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

WeightStream::WeightStream(std::shared_ptr<const DirectFile> file, const DirectFile::State& state,
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
        check_part(part, state_.size);
        largest = std::max(largest, bytes_of(part));
    }
    for (int32_t i = 0; i < options_.slots; ++i) {
        Slot& slot = slots_.emplace_back();
        slot.memory = HugeBuffer(static_cast<size_t>(largest + DirectFile::kBlock));
        const auto address = reinterpret_cast<intptr_t>(slot.memory.data());
        slot.data = slot.memory.data() + (DirectFile::kBlock - address % DirectFile::kBlock) % DirectFile::kBlock;
    }
}

WeightStream::~WeightStream() {
    if (process_ != process_id()) {  // a fork: the threads are not here, and one of them may hold the mutex
        for (std::thread& reader : readers_) {
            reader.detach();
        }
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopped_ = true;
    }
    work_.notify_all();
    for (std::thread& reader : readers_) {
        reader.join();
    }
}

void WeightStream::begin() {
    if (process_ != process_id()) {
        throw std::runtime_error(file_->path() +
                                 ": a forked child cannot read from it: load the model in the process that uses it");
    }
    if (readers_.empty()) {
        start_readers();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    if (held_ || error_ || used_ % static_cast<int64_t>(parts_.size()) != 0) {
        restart(lock);
    }
    statistics_.passes += 1;
}

/// Waits until the readers have put down what they have, and begins anew.
void WeightStream::restart(std::unique_lock<std::mutex>& lock) {
    paused_ = true;
    work_.notify_all();
    ready_.wait(lock, [this] { return active_ == 0; });
    paused_ = held_ = false;
    used_ = next_ = next_offset_ = 0;
    error_ = nullptr;
    for (Slot& slot : slots_) {
        slot.ready = false;
    }
    work_.notify_all();
}

void WeightStream::start_readers() {
    for (int32_t i = 0; i < options_.readers; ++i) {
        readers_.emplace_back([this] { run_reader(); });
    }
}

const uint8_t* WeightStream::acquire(const Checkpoint& checkpoint) {
    std::unique_lock<std::mutex> lock(mutex_);
    TMAC_CHECK(!held_, "[WeightStream] the part before is still in use");
    Slot& slot = slot_of(used_);
    const Clock::time_point since = Clock::now();
    while (!slot.ready && !error_) {
        if (!ready_.wait_for(lock, kPatience, [&] { return slot.ready || error_; })) {
            lock.unlock();
            checkpoint();
            lock.lock();
        }
    }
    statistics_.waiting += seconds(Clock::now() - since);
    if (!slot.ready) {
        std::rethrow_exception(error_);
    }
    held_ = true;
    return slot.data;
}

void WeightStream::release() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        held_ = false;
        slot_of(used_).ready = false;
        used_ += 1;
    }
    work_.notify_all();
}

void WeightStream::set_limit(double bytes_per_second) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        limit_ = bytes_per_second;
        free_at_ = {};
    }
    work_.notify_all();  // who is held back by the old one
}

StreamStatistics WeightStream::statistics() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    StreamStatistics found = statistics_;
    found.reading += reading_ > 0 ? seconds(Clock::now() - reading_since_) : 0.0;
    return found;
}

int64_t WeightStream::ring_bytes() const {
    int64_t sum = 0;
    for (const Slot& slot : slots_) {
        sum += static_cast<int64_t>(slot.memory.size());
    }
    return sum;
}

void WeightStream::run_reader() {
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

bool WeightStream::has_work() const {
    return !paused_ && !error_ && next_ < used_ + static_cast<int64_t>(slots_.size());
}

WeightStream::Block WeightStream::take_block() {
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

void WeightStream::read_block(const Block& block, std::unique_lock<std::mutex>& lock) {
    count_reader(1);
    lock.unlock();
    std::exception_ptr failed;
    try {
        file_->read(parts_[block.part].front().begin + block.offset, block.size, block.slot->data + block.offset);
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
void WeightStream::hold_back(int64_t bytes, std::unique_lock<std::mutex>& lock) {
    if (limit_ <= 0.0) {
        return;
    }
    const auto time = std::chrono::duration<double>(static_cast<double>(bytes) / limit_);
    free_at_ = std::max(free_at_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(time);
    const Clock::time_point until = free_at_;
    const double limit = limit_;
    work_.wait_until(lock, until, [this, limit] { return stopped_ || paused_ || limit_ != limit; });
}

/// The last block of a part has come.
void WeightStream::finish_part(const Block& block, std::unique_lock<std::mutex>& lock) {
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

void WeightStream::verify(const Block& block) const {
    const FilePart& part = parts_[block.part];
    for (const FilePiece& piece : part) {
        ContentHash hash;
        hash.update(block.slot->data + (piece.begin - part.front().begin),
                    static_cast<size_t>(piece.end - piece.begin));
        if (hash.digest() != piece.checksum) {
            throw DamagedFile(file_->path() + ": bytes " + std::to_string(piece.begin) + " to " +
                              std::to_string(piece.end) +
                              " are damaged: delete the file, it is made again when the model is loaded");
        }
    }
}

void WeightStream::count_reader(int change) {
    if (reading_ == 0) {
        reading_since_ = Clock::now();
    }
    reading_ += change;
    if (reading_ == 0) {
        statistics_.reading += seconds(Clock::now() - reading_since_);
    }
}

}  // namespace tmac
