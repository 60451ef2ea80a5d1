#include "runtime/rows.h"

#include "kernels/registry.h"

namespace tmac {
namespace {

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

Floats2d make_rows(std::vector<float>& buffer, int64_t rows, int64_t columns) {
    const auto size = static_cast<size_t>(rows * columns);
    if (buffer.size() < size) {
        buffer.resize(size);
    }
    return {buffer.data(), columns, columns};
}

void apply_norm(NormKind kind, const Norm& norm, float eps, const float* x, int64_t n, float* y) {
    const VectorOps& ops = vector_ops();
    if (kind == NormKind::rms) {
        ops.rms_norm(x, data_or_null(norm.weight), eps, n, y);
    } else {
        ops.layer_norm(x, data_or_null(norm.weight), data_or_null(norm.bias), eps, n, y);
    }
}

const float* NormRows::row(int64_t token, float* scratch) const {
    apply_norm(kind_, norm_, eps_, x_.row(token), x_.columns, scratch);
    return scratch;
}

const float* GatedRows::row(int64_t token, float* scratch) const {
    const VectorOps& ops = vector_ops();
    const float* first = gate_up_.row(token);
    const int64_t n = has_gate_ ? gate_up_.columns / 2 : gate_up_.columns;
    ops.activate(fn_, first, has_gate_ ? first + n : nullptr, n, scratch);
    if (sub_norm_ != nullptr && sub_norm_->exists()) {
        ops.rms_norm(scratch, sub_norm_->weight.data(), eps_, n, scratch);
    }
    return scratch;
}

const float* AttentionRows::row(int64_t token, float* scratch) const {
    attention_row(attention_, token, scratch);
    if (sub_norm_ != nullptr && sub_norm_->exists()) {
        vector_ops().rms_norm(scratch, sub_norm_->weight.data(), eps_, columns_, scratch);
    }
    return scratch;
}

}  // namespace tmac
