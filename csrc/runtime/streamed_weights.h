#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/block_buffer.h"
#include "core/direct_file.h"
#include "runtime/file_piece.h"
#include "runtime/model.h"
#include "runtime/weight_stream.h"

namespace tmac {

/// A layer's part of a packed file (docs/packed_file.md), or that of everything outside of the layers. Its first pieces
/// stay in memory, the others are read in every pass.
struct StreamedRange {
    FilePart pieces;
    size_t resident;  ///< how many

    int64_t begin() const { return pieces.empty() ? 0 : pieces.front().begin; }
    int64_t end() const { return pieces.empty() ? 0 : pieces.back().end; }
    /// Where what stays ends.
    int64_t split() const { return resident == 0 ? begin() : pieces[resident - 1].end; }
};

/// The layer of what is outside of the layers.
inline constexpr int32_t kOutside = -1;

/// Where a matrix lies in the file.
struct StreamedPlace {
    int32_t layer;                 ///< or kOutside
    int64_t offset;                ///< of a float matrix, or of what stands before the codes of a packed one
    std::vector<int64_t> regions;  ///< of a packed one
};

/// The weights of a model that does not fit into memory: the bytes that are resident, and a stream of the others.
/// Everything that the file says of places is checked before it is used.
class StreamedWeights : public std::enable_shared_from_this<StreamedWeights> {
public:
    using Checkpoint = std::function<void()>;

    /// Reads what is resident. `layers`: of each layer its range. What is not resident of `top`, an embedding, stays on
    /// the disk, and its rows are read one at a time. `checkpoint` is called meanwhile. Throws
    /// std::runtime_error where the file cannot be read or has another state, DamagedFile, and std::invalid_argument
    /// where the ranges cannot be.
    StreamedWeights(const std::string& path, const DirectFile::State& state, StreamedRange top,
                    std::vector<StreamedRange> layers, const StreamOptions& options, const Checkpoint& checkpoint);

    /// A matrix at a place of the file: `header` of a packed weight, or the shape and type of floats. Pointers to what
    /// is not resident are null until attach() and a Pass. The matrix keeps this object. Throws std::invalid_argument.
    Matrix packed_matrix(const std::vector<uint8_t>& header, StreamedPlace place);
    Matrix float_matrix(FloatMatrix shape, StreamedPlace place);

    /// Throws std::invalid_argument unless everything that the matrix points to is resident, as those of a draft must.
    void require_resident(const Matrix& matrix) const;

    /// From now on a Pass sets the pointers of this model's matrices, which stays where it is.
    void attach(Model& model);

    int64_t resident_bytes() const { return memory_.allocated(); }
    int64_t ring_bytes() const { return stream_ ? stream_->ring_bytes() : 0; }
    /// That a pass reads.
    int64_t bytes_per_pass() const { return bytes_per_pass_; }
    bool is_direct() const { return file_->is_direct(); }
    /// Null where everything is resident.
    WeightStream* stream() const { return stream_.get(); }

    /// One pass through the layers of the model, in order; there is one at a time, the next one waits.
    class Pass {
    public:
        /// `weights` may be null: then everything is there anyway.
        Pass(StreamedWeights* weights, const Checkpoint& checkpoint);
        ~Pass();
        Pass(const Pass&) = delete;
        Pass& operator=(const Pass&) = delete;

        /// The layer's weights are there until leave(), then the pointers to what is not resident are null again.
        void enter(int32_t layer);
        void leave(int32_t layer);

    private:
        bool reads(int32_t layer) const;
        void point(int32_t layer, const uint8_t* streamed);

        StreamedWeights* weights_;
        const Checkpoint& checkpoint_;
        std::unique_lock<std::timed_mutex> turn_;
        int32_t entered_ = kOutside;
    };

private:
    struct LayerBytes {
        StreamedRange file;
        uint8_t* resident;              ///< where its first byte is
        std::vector<Matrix*> matrices;  ///< that are not wholly resident
    };

    LayerBytes& range_of(int32_t layer) { return ranges_[static_cast<size_t>(layer + 1)]; }
    const LayerBytes& range_of(int32_t layer) const { return ranges_[static_cast<size_t>(layer + 1)]; }
    void read_resident(const Checkpoint& checkpoint);
    void verify_rows(const Checkpoint& checkpoint) const;
    void check_place(const StreamedPlace& place) const;
    void check_part(const StreamedPlace& place, int64_t offset, int64_t bytes) const;
    bool is_resident(const StreamedPlace& place) const;
    const uint8_t* find(const LayerBytes& range, int64_t offset, const uint8_t* streamed) const;
    void point(Matrix& matrix, const uint8_t* streamed) const;

    std::shared_ptr<const DirectFile> file_;
    DirectFile::State state_;
    std::vector<LayerBytes> ranges_;  ///< [1 + layers]
    BlockBuffer memory_;
    std::vector<StreamedPlace> places_;  ///< of the matrices, by Matrix::place
    std::unique_ptr<WeightStream> stream_;
    int64_t bytes_per_pass_ = 0;
    std::timed_mutex turn_;
};

}  // namespace tmac
