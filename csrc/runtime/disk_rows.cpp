#include "runtime/disk_rows.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

#include "core/block_buffer.h"
#include "core/check.h"
#include "core/layout.h"
#include "core/thread_pool.h"
#include "ops/convert.h"
#include "ops/dequantize.h"
#include "ops/row_block.h"

namespace tmac {

namespace {

constexpr int64_t kChunk = int64_t{1} << 16;  // bytes of a read
// Each has a chunk and a block of up to 256 rows, of 4096 columns and 4 bits 0.6 MiB: no plan counts them.
constexpr int kThreads = 2;

}  // namespace

/// Reads any bytes of the file by the blocks that they are in.
class DiskRows::Bytes {
public:
    explicit Bytes(const DirectFile& file) : file_(file), chunk_(kChunk, BlockBuffer::Pages::plain) {}

    void read(int64_t offset, int64_t bytes, uint8_t* to) {
        constexpr int64_t kBlock = DirectFile::kBlock;
        const int64_t end = offset + bytes;
        while (offset < end) {
            const int64_t begin = offset / kBlock * kBlock;
            const int64_t size = std::min(kChunk, round_up(end, kBlock) - begin);
            file_.read(begin, size, chunk_.data());
            const int64_t count = std::min(end, begin + size) - offset;
            std::memcpy(to, chunk_.data() + (offset - begin), static_cast<size_t>(count));
            offset += count;
            to += count;
        }
    }

private:
    const DirectFile& file_;
    BlockBuffer chunk_;
};

DiskRows::DiskRows(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, const WeightView& view,
                   int64_t offset, std::vector<int64_t> regions)
    : file_(std::move(file)),
      state_(state),
      packed_(true),
      view_(view),
      offset_(offset),
      regions_(std::move(regions)) {}

DiskRows::DiskRows(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, const FloatMatrix& shape,
                   int64_t offset)
    : file_(std::move(file)), state_(state), packed_(false), floats_(shape), offset_(offset) {}

void DiskRows::read(const int64_t* ids, const Tensor& y, int num_threads) const {
    const int64_t together = packed_ ? rows_together(view_.header.layout, view_.header.spec.bits) : 1;
    std::map<int64_t, std::vector<int64_t>> by_block;  // rows of y
    for (int64_t i = 0; i < y.rows; ++i) {
        TMAC_CHECK(ids[i] >= 0 && ids[i] < (packed_ ? view_.header.n : floats_.n), "[DiskRows] there is no row ",
                   ids[i]);
        by_block[ids[i] / together].push_back(i);
    }
    std::vector<const std::vector<int64_t>*> blocks;
    for (const auto& [block, rows] : by_block) {
        blocks.push_back(&rows);
    }
    const int threads = std::min(kThreads, num_threads > 0 ? num_threads : get_num_threads());
    parallel_for(static_cast<int64_t>(blocks.size()), 1, threads, [&](Range range) {
        Bytes bytes(*file_);
        for (int64_t i = range.begin; i < range.end; ++i) {
            const std::vector<int64_t>& rows = *blocks[static_cast<size_t>(i)];
            if (packed_) {
                read_packed(ids, rows, y, bytes);
            } else {
                for (const int64_t row : rows) {
                    read_floats(ids[row], static_cast<float*>(y.data) + row * y.stride, bytes);
                }
            }
        }
    });
    if (file_->state() != state_) {
        throw std::runtime_error(file_->path() + ": was changed while a model read from it: load the model again");
    }
}

/// `rows` of y, whose ids are in one block.
void DiskRows::read_packed(const int64_t* ids, const std::vector<int64_t>& rows, const Tensor& y, Bytes& bytes) const {
    const RowBlock block = row_block(view_, ids[rows.front()]);
    BlockBuffer memory(block.parts.bytes, BlockBuffer::Pages::plain);
    for (const RowBlock::Piece& piece : block.pieces) {
        const int64_t begin = piece.region < 0 ? offset_ : regions_[static_cast<size_t>(piece.region)];
        bytes.read(begin + piece.from, piece.bytes, memory.data() + piece.to);
    }
    const WeightView view = view_in_place(block.header, block.parts, view_.kernels, memory.data());
    check_perm(view);
    RowDequantizer dequantizer(view);
    for (const int64_t row : rows) {
        dequantizer.run(ids[row] - block.first, static_cast<float*>(y.data) + row * y.stride);
    }
}

void DiskRows::read_floats(int64_t id, float* out, Bytes& bytes) const {
    const int64_t size = floats_.k * (floats_.type == DType::f32 ? 4 : 2);
    std::vector<uint8_t> row(static_cast<size_t>(size));
    bytes.read(offset_ + id * size, size, row.data());
    load_row({row.data(), floats_.type, 1, floats_.k, floats_.k}, 0, out);
}

}  // namespace tmac
