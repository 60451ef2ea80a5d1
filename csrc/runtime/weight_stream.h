#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/direct_file.h"
#include "runtime/file_piece.h"

namespace tmac {

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
///
/// Threads do not survive a fork, and one of them may hold a lock for ever in the child: there everything but the
/// destructor throws std::runtime_error, and the destructor leaves the ring where it is.
class WeightStream {
public:
    using Checkpoint = std::function<void()>;

    /// No thread is started and nothing read before begin(). `state`: of the file for which the parts were found.
    WeightStream(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, std::vector<FilePart> parts,
                 const StreamOptions& options);
    ~WeightStream();
    WeightStream(const WeightStream&) = delete;
    WeightStream& operator=(const WeightStream&) = delete;

    /// Throws in a child of the process that made the stream.
    void check_process() const;

    /// A pass that begins with part 0. What an earlier pass that did not reach its end has left is dropped: waits for
    /// the reads that go on. `checkpoint` is called while it does, and may throw.
    void begin(const Checkpoint& checkpoint);

    /// The bytes of the next part, which stand until release(). Waits for them; `checkpoint` is called while it does,
    /// and may throw: the pass is over then.
    const uint8_t* acquire(const Checkpoint& checkpoint);
    void release();

    /// Reads no more than so many bytes a second, to stand for a slower disk; 0: no limit.
    void set_limit(double bytes_per_second);

    StreamStatistics statistics() const;
    int64_t ring_bytes() const;

private:
    class Ring;

    /// Never without check_process().
    Ring& ring() const;

    std::unique_ptr<Ring> ring_;
};

}  // namespace tmac
