#pragma once

#include <cstdint>
#include <vector>

#include "ops/attention.h"
#include "ops/linear.h"
#include "runtime/model.h"

// What the products of a layer read: rows that are made while they are encoded.

namespace tmac {

/// f32 [tokens, columns] somewhere, rows `stride` apart.
struct Floats2d {
    float* data;
    int64_t stride;
    int64_t columns;

    float* row(int64_t token) const { return data + token * stride; }
    Tensor tensor(int64_t tokens) const { return {data, DType::f32, tokens, columns, stride}; }
    /// Columns [first, first + count).
    Floats2d part(int64_t first, int64_t count) const { return {data + first, stride, count}; }
};

/// Rows in a buffer that grows and is used again.
Floats2d make_rows(std::vector<float>& buffer, int64_t rows, int64_t columns);

enum class NormKind : uint8_t { rms, layer };

/// y = norm(x), in place where the pointers are equal.
void apply_norm(NormKind kind, const Norm& norm, float eps, const float* x, int64_t n, float* y);

/// The norm of rows that lie in memory.
class NormRows final : public InputRows {
public:
    NormRows(NormKind kind, const Norm& norm, float eps, const Floats2d& x)
        : kind_(kind), norm_(norm), eps_(eps), x_(x) {}
    const float* row(int64_t token, float* scratch) const override;

private:
    NormKind kind_;
    const Norm& norm_;
    float eps_;
    Floats2d x_;
};

/// fn(gate) * up, or fn(up) where there is no gate; then an RMS norm, where one is given.
class GatedRows final : public InputRows {
public:
    GatedRows(ActivationFn fn, const Floats2d& gate_up, bool has_gate, const Norm* sub_norm, float eps)
        : fn_(fn), gate_up_(gate_up), has_gate_(has_gate), sub_norm_(sub_norm), eps_(eps) {}
    const float* row(int64_t token, float* scratch) const override;

private:
    ActivationFn fn_;
    Floats2d gate_up_;
    bool has_gate_;
    const Norm* sub_norm_;
    float eps_;
};

/// The result of attention, all heads of a row; then an RMS norm, where one is given.
class AttentionRows final : public InputRows {
public:
    AttentionRows(const AttentionScratch& attention, const Norm* sub_norm, float eps, int64_t columns)
        : attention_(attention), sub_norm_(sub_norm), eps_(eps), columns_(columns) {}
    const float* row(int64_t token, float* scratch) const override;

private:
    const AttentionScratch& attention_;
    const Norm* sub_norm_;
    float eps_;
    int64_t columns_;
};

/// Some rows of a matrix in memory: row i is its row `indices[i]`.
class PickedRows final : public InputRows {
public:
    PickedRows(const Floats2d& x, const int64_t* indices) : x_(x), indices_(indices) {}
    const float* row(int64_t token, float*) const override { return x_.row(indices_[token]); }

private:
    Floats2d x_;
    const int64_t* indices_;
};

}  // namespace tmac
