#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/direct_file.h"
#include "ops/linear.h"
#include "ops/weight_view.h"
#include "runtime/row_source.h"

namespace tmac {

/// An embedding that stays in its file: what a row needs is read when it is looked up. Throws std::runtime_error where
/// the file cannot be read or has changed. From any number of threads.
class DiskRows final : public RowSource {
public:
    /// `offset`: of what stands before the codes, `regions` of the codes.
    DiskRows(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, const WeightView& view,
             int64_t offset, std::vector<int64_t> regions);
    DiskRows(std::shared_ptr<const DirectFile> file, const DirectFile::State& state, const FloatMatrix& shape,
             int64_t offset);

    void read(const int64_t* ids, const Tensor& y, int num_threads) const override;

private:
    class Bytes;

    void read_packed(const int64_t* ids, const std::vector<int64_t>& rows, const Tensor& y, Bytes& bytes) const;
    void read_floats(int64_t id, float* out, Bytes& bytes) const;

    std::shared_ptr<const DirectFile> file_;
    DirectFile::State state_;
    bool packed_;
    WeightView view_{};
    FloatMatrix floats_{};
    int64_t offset_;
    std::vector<int64_t> regions_;
};

}  // namespace tmac
