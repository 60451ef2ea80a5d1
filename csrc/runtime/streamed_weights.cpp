#include "runtime/streamed_weights.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "core/check.h"
#include "core/packed_regions.h"
#include "core/thread_pool.h"
#include "runtime/disk_rows.h"

namespace tmac {
namespace {

constexpr int64_t kReadBytes = int64_t{1} << 20;    // at once, by one thread
constexpr int64_t kBatchBytes = int64_t{64} << 20;  // between two checkpoints
constexpr int64_t kAlignment = 64;                  // of parts
constexpr std::chrono::milliseconds kPatience{20};

void check_range(const StreamedRange& range, int64_t file_size) {
    TMAC_CHECK(range.resident <= range.pieces.size(), "[StreamedWeights] ", range.resident, " of ", range.pieces.size(),
               " pieces cannot be resident");
    check_pieces(range.pieces, file_size);
}

}  // namespace

StreamedWeights::StreamedWeights(const std::string& path, const DirectFile::State& state, StreamedRange top,
                                 std::vector<StreamedRange> layers, const StreamOptions& options,
                                 const Checkpoint& checkpoint)
    : file_(std::make_shared<const DirectFile>(path)), state_(state) {
    if (file_->state() != state) {
        throw std::runtime_error(path + ": was changed while a model was loaded from it");
    }
    check_range(top, state.size);
    layers.insert(layers.begin(), std::move(top));
    std::vector<FilePart> streamed;
    int64_t resident = 0;
    for (StreamedRange& range : layers) {
        check_range(range, state.size);
        resident += range.split() - range.begin();
        if (!ranges_.empty() && range.split() < range.end()) {
            const auto first = range.pieces.begin() + static_cast<std::ptrdiff_t>(range.resident);
            streamed.emplace_back(first, range.pieces.end());
            bytes_per_pass_ += range.end() - range.split();
        }
        ranges_.push_back({std::move(range), nullptr, {}});
    }
    memory_ = BlockBuffer(resident, BlockBuffer::Pages::huge);
    uint8_t* at = memory_.data();
    for (LayerBytes& range : ranges_) {
        range.resident = at;
        at += range.file.split() - range.file.begin();
    }
    read_resident(checkpoint);
    verify_rows(checkpoint);
    if (!streamed.empty()) {
        stream_ = std::make_unique<WeightStream>(file_, state, std::move(streamed), options);
    }
}

void StreamedWeights::read_resident(const Checkpoint& checkpoint) {
    struct Block {
        int64_t offset, size;
        uint8_t* to;
    };
    std::vector<Block> blocks;
    std::vector<std::pair<const FilePiece*, const uint8_t*>> pieces;
    for (const LayerBytes& range : ranges_) {
        const int64_t begin = range.file.begin();
        for (int64_t at = begin; at < range.file.split(); at += kReadBytes) {
            blocks.push_back({at, std::min(kReadBytes, range.file.split() - at), range.resident + (at - begin)});
        }
        for (size_t i = 0; i < range.file.resident; ++i) {
            const FilePiece& piece = range.file.pieces[i];
            pieces.emplace_back(&piece, range.resident + (piece.begin - begin));
        }
    }
    const auto in_batches = [&](size_t count, size_t batch, const std::function<void(size_t)>& body) {
        for (size_t first = 0; first < count; first += batch) {
            checkpoint();
            parallel_for(static_cast<int64_t>(std::min(batch, count - first)), 1, 0, [&](Range part) {
                for (int64_t i = part.begin; i < part.end; ++i) {
                    body(first + static_cast<size_t>(i));
                }
            });
        }
    };
    in_batches(blocks.size(), kBatchBytes / kReadBytes,
               [&](size_t i) { file_->read(blocks[i].offset, blocks[i].size, blocks[i].to); });
    in_batches(pieces.size(), 4, [&](size_t i) {
        const auto& [piece, data] = pieces[i];
        check_bytes(data, *piece, file_->path());
    });
}

/// Of what is outside of the layers and stays on the disk, some rows are read at a time, never all.
void StreamedWeights::verify_rows(const Checkpoint& checkpoint) const {
    const StreamedRange& top = ranges_.front().file;
    BlockBuffer block(kReadBytes, BlockBuffer::Pages::plain);
    for (size_t i = top.resident; i < top.pieces.size(); ++i) {
        ContentHash hash;
        for (int64_t at = top.pieces[i].begin; at < top.pieces[i].end; at += kReadBytes) {
            const int64_t size = std::min(kReadBytes, top.pieces[i].end - at);
            checkpoint();
            file_->read(at, size, block.data());
            hash.update(block.data(), static_cast<size_t>(size));
        }
        check_hash(hash, top.pieces[i], file_->path());
    }
}

void StreamedWeights::check_place(const StreamedPlace& place) const {
    TMAC_CHECK(place.layer >= kOutside && place.layer + 1 < static_cast<int64_t>(ranges_.size()),
               "[StreamedWeights] there is no layer ", place.layer);
}

/// Inside of the layer, and wholly on one side of where what is resident ends.
void StreamedWeights::check_part(const StreamedPlace& place, int64_t offset, int64_t bytes) const {
    const StreamedRange& range = range_of(place.layer).file;
    const int64_t split = range.split();
    const bool resident = offset >= range.begin() && offset < split && bytes <= split - offset;
    const bool streamed = offset >= split && offset < range.end() && bytes <= range.end() - offset;
    TMAC_CHECK(offset % kAlignment == 0 && (resident || streamed), "[StreamedWeights] ", bytes, " bytes at ", offset,
               " are not a part of layer ", place.layer);
}

Matrix StreamedWeights::packed_matrix(const std::vector<uint8_t>& header, StreamedPlace place) {
    check_place(place);
    Matrix matrix;
    WeightView view = view_header(header.data(), static_cast<int64_t>(header.size()));
    const std::vector<PackedRegion> regions = packed_regions(view.header, view.parts);
    TMAC_CHECK(place.regions.size() == regions.size(), "[StreamedWeights] a weight of ", regions.size(),
               " regions has ", place.regions.size());
    check_part(place, place.offset, view.parts.codes);
    for (size_t i = 0; i < regions.size(); ++i) {
        check_part(place, place.regions[i], regions[i].end - regions[i].begin);
    }
    matrix.bytes = view.parts.bytes;
    matrix.packed = view;
    matrix.owner = shared_from_this();
    matrix.place = static_cast<int32_t>(places_.size());
    places_.push_back(std::move(place));
    point(matrix, nullptr);
    if (matrix.packed->data != nullptr) {
        check_perm(*matrix.packed);
    }
    const StreamedPlace& where = places_.back();
    if (where.layer == kOutside && !is_resident(where)) {
        matrix.rows = std::make_shared<DiskRows>(file_, state_, *matrix.packed, where.offset, where.regions);
    }
    return matrix;
}

Matrix StreamedWeights::float_matrix(FloatMatrix shape, StreamedPlace place) {
    check_place(place);
    TMAC_CHECK(place.regions.empty(), "[StreamedWeights] floats have no regions");
    TMAC_CHECK(shape.n >= 1 && shape.n <= kMaxRows && shape.k >= 1 && shape.k <= kMaxColumns,
               "[StreamedWeights] a float matrix cannot be [", shape.n, ", ", shape.k, "]");
    Matrix matrix;
    matrix.floats = shape;
    matrix.bytes = shape.n * shape.k * (shape.type == DType::f32 ? 4 : 2);
    check_part(place, place.offset, matrix.bytes);
    matrix.owner = shared_from_this();
    matrix.place = static_cast<int32_t>(places_.size());
    places_.push_back(std::move(place));
    point(matrix, nullptr);
    if (places_.back().layer == kOutside && !is_resident(places_.back())) {
        matrix.rows = std::make_shared<DiskRows>(file_, state_, matrix.floats, places_.back().offset);
    }
    return matrix;
}

const uint8_t* StreamedWeights::find(const LayerBytes& range, int64_t offset, const uint8_t* streamed) const {
    if (offset < range.file.split()) {
        return range.resident + (offset - range.file.begin());
    }
    return streamed == nullptr ? nullptr : streamed + (offset - range.file.split());
}

/// `streamed`: the bytes of its layer that are not resident, or null.
void StreamedWeights::point(Matrix& matrix, const uint8_t* streamed) const {
    const StreamedPlace& place = places_[static_cast<size_t>(matrix.place)];
    const LayerBytes& range = range_of(place.layer);
    if (!matrix.packed) {
        matrix.floats.data = find(range, place.offset, streamed);
        return;
    }
    matrix.packed->data = find(range, place.offset, streamed);
    for (size_t i = 0; i < place.regions.size(); ++i) {
        matrix.packed->regions[i] = find(range, place.regions[i], streamed);
    }
}

bool StreamedWeights::is_resident(const StreamedPlace& place) const {
    const int64_t split = range_of(place.layer).file.split();
    return place.offset < split &&
           std::all_of(place.regions.begin(), place.regions.end(), [split](int64_t offset) { return offset < split; });
}

void StreamedWeights::require_resident(const Matrix& matrix) const {
    const auto check = [this](const void* data) {
        const auto* byte = static_cast<const uint8_t*>(data);
        TMAC_CHECK(byte >= memory_.data() && byte < memory_.data() + memory_.allocated(),
                   "[Model] a draft needs planes that are not in memory: load the model with so many that are");
    };
    if (matrix.place < 0) {
        return;
    }
    if (!matrix.packed) {
        check(matrix.floats.data);
        return;
    }
    check(matrix.packed->data);
    for (int32_t region = 0; region < matrix.packed->parts.num_regions; ++region) {
        check(matrix.packed->regions[region]);
    }
}

void StreamedWeights::attach(Model& model) {
    TMAC_CHECK(model.layers.size() + 1 == ranges_.size(), "[StreamedWeights] the model has ", model.layers.size(),
               " layers, the file ", ranges_.size() - 1);
    const auto check = [this](const Matrix& matrix, int32_t layer) {
        if (matrix.place < 0) {
            return;
        }
        const auto place = static_cast<size_t>(matrix.place);
        TMAC_CHECK(matrix.owner.get() == this && place < places_.size(), "[StreamedWeights] a matrix of layer ", layer,
                   " lies in another file");
        TMAC_CHECK(places_[place].layer == layer, "[StreamedWeights] a matrix of layer ", layer,
                   " lies in that of another one");
    };
    check(model.embedding, kOutside);
    check(model.head, kOutside);
    TMAC_CHECK(!model.head.rows, "[StreamedWeights] the head must be resident");
    for (Layer& layer : model.layers) {
        LayerBytes& range = range_of(layer.index);
        for_each_matrix(layer, [&](Matrix& matrix) {
            check(matrix, layer.index);
            if (matrix.place >= 0 && !is_resident(places_[static_cast<size_t>(matrix.place)])) {
                range.matrices.push_back(&matrix);
            }
        });
    }
}

StreamedWeights::Pass::Pass(StreamedWeights* weights, const Checkpoint& checkpoint)
    : weights_(weights != nullptr && weights->stream_ ? weights : nullptr), checkpoint_(checkpoint) {
    if (weights_ == nullptr) {
        return;
    }
    weights_->stream_->check_process();  // in a forked child, nobody ends the pass that went on at the fork
    turn_ = std::unique_lock<std::timed_mutex>(weights_->turn_, std::defer_lock);
    // Until a time of the system's clock: a thread sanitizer of gcc 12 does not see locks by the steady one.
    while (!turn_.try_lock_until(std::chrono::system_clock::now() + kPatience)) {
        checkpoint_();
        weights_->stream_->check_process();
    }
    weights_->stream_->begin(checkpoint_);
}

StreamedWeights::Pass::~Pass() {
    if (entered_ != kOutside) {  // an exception: the stream begins anew with the next pass
        point(entered_, nullptr);
    }
}

bool StreamedWeights::Pass::reads(int32_t layer) const {
    return weights_ != nullptr && weights_->range_of(layer).file.split() < weights_->range_of(layer).file.end();
}

void StreamedWeights::Pass::point(int32_t layer, const uint8_t* streamed) {
    for (Matrix* matrix : weights_->range_of(layer).matrices) {
        weights_->point(*matrix, streamed);
        if (streamed != nullptr && matrix->packed) {
            check_perm(*matrix->packed);
        }
    }
}

void StreamedWeights::Pass::enter(int32_t layer) {
    if (reads(layer)) {
        const uint8_t* streamed = weights_->stream_->acquire(checkpoint_);
        entered_ = layer;
        point(layer, streamed);
    }
}

void StreamedWeights::Pass::leave(int32_t layer) {
    if (reads(layer)) {
        point(layer, nullptr);
        entered_ = kOutside;
        weights_->stream_->release();
    }
}

}  // namespace tmac
