#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "ops/attention.h"
#include "ops/linear.h"
#include "runtime/kv_cache.h"
#include "runtime/model.h"
#include "runtime/profile.h"
#include "runtime/rope.h"
#include "runtime/rows.h"
#include "runtime/tree_tails.h"

namespace tmac {

/// The rows of one forward pass: tokens of one or several sequences.
struct PassRows {
    std::vector<int64_t> sequences;     ///< id in the cache
    std::vector<int64_t> slots;         ///< where the row's key and value go
    std::vector<int64_t> positions;     ///< the same, but in a token tree, where it is the place along the path
    std::vector<int64_t> rope_lengths;  ///< of the sequence, for frequencies that depend on it
    std::vector<int32_t> parents;       ///< of all nodes of a token tree: the one before, -1: the sequence's end
    int64_t first_node = 0;             ///< of the first row; nodes before it are in the cache already

    int64_t count() const { return static_cast<int64_t>(slots.size()); }
};

/// Heads of queries, keys or values in a buffer: head h of a row is at row + h * head_stride.
struct Heads {
    Floats2d rows;
    int64_t head_stride;

    float* head(int64_t token, int64_t index) const { return rows.row(token) + index * head_stride; }
};

/// Buffers of passes; they grow and are used again.
struct Workspace {
    std::vector<float> hidden, qkv, gate_up, branch, normed;
    std::vector<RopeTable> ropes;
    std::vector<CachedPath> paths;
    AttentionScratch attention;
    TreeTails tails;
    std::vector<float> router, expert_gate_up, expert_out, shared_gate_up, shared_out, shared_gate;
};

/// One forward pass through the layers: what the files in models/ are written in. A method that multiplies or attends
/// is one parallel region with one token (and one barrier), two where many rows have to be made first.
class Pass {
public:
    Pass(const Model& model, KvCache& cache, const PassRows& rows, Phase phase, int num_threads, Workspace& workspace,
         Profile& profile);

    const ModelConfig& config() const { return model_.config; }
    int64_t tokens() const { return rows_.count(); }
    int num_threads() const { return num_threads_; }
    Phase phase() const { return phase_; }
    Workspace& workspace() { return workspace_; }

    // Buffers, f32 [tokens, columns].
    Floats2d hidden() const { return hidden_; }    ///< the residual stream
    Floats2d branch() const { return branch_; }    ///< [hidden_size]
    Floats2d gate_up() const { return gate_up_; }  ///< [2 * intermediate_size]

    // What products read.
    NormRows normed(const Norm& norm, NormKind kind = NormKind::rms) const;
    GatedRows gated(const Mlp& mlp, const Norm* sub_norm = nullptr) const;
    AttentionRows attended(const Norm* sub_norm = nullptr) const;

    // What products store.
    std::vector<Projection> to_qkv(const Layer& layer) const;
    std::vector<Projection> to_gate_up(const Mlp& mlp) const;
    /// hidden += residual_scale * result
    std::vector<Projection> to_hidden(const Matrix& matrix) const;
    std::vector<Projection> to_branch(const Matrix& matrix) const;

    Job job(const InputRows& input, int64_t columns, std::vector<Projection> projections) const;
    void multiply(Stage stage, const InputRows& input, std::vector<Projection> projections);
    void multiply(Stage stage, const std::vector<Job>& jobs);

    /// Normalizes and rotates queries and keys, keeps keys and values, and lets the queries attend: attended() reads
    /// the result. `interleaved`: qkv() holds query, key and value of one head after the other.
    void attend(const Layer& layer, bool interleaved = false);

    /// hidden += residual_scale * norm(branch)
    void add_normed(const Norm& norm);
    /// hidden += branch
    void add_branch();

    /// Calls body(token) for every row, on several threads where that is worth it. `work`: floats per row.
    void for_each_row(int64_t work, const std::function<void(int64_t)>& body, int64_t grain = 1) const;

private:
    void keep_row(const Layer& layer, int64_t token, const Heads& q, const Heads& k, const Heads& v);
    void find_paths(const Layer& layer);

    const Model& model_;
    KvCache& cache_;
    const PassRows& rows_;
    Phase phase_;
    int num_threads_;
    Workspace& workspace_;
    Profile& profile_;
    Floats2d hidden_, qkv_, gate_up_, branch_;
};

}  // namespace tmac
