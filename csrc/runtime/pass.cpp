#include "runtime/pass.h"

#include <algorithm>
#include <utility>

#include "core/thread_pool.h"
#include "kernels/registry.h"

namespace tmac {
namespace {

/// Floats of a region under which several threads cost more than they save.
constexpr int64_t kMinWork = 1 << 15;

}  // namespace

Pass::Pass(const Model& model, KvCache& cache, const PassRows& rows, Phase phase, int num_threads, Workspace& workspace,
           Profile& profile)
    : model_(model),
      cache_(cache),
      rows_(rows),
      phase_(phase),
      num_threads_(num_threads),
      workspace_(workspace),
      profile_(profile) {
    const ModelConfig& config = model.config;
    const int64_t count = rows.count();
    hidden_ = make_rows(workspace.hidden, count, config.hidden_size);
    branch_ = make_rows(workspace.branch, count, config.hidden_size);
    qkv_ = make_rows(workspace.qkv, count, config.query_columns() + 2 * config.key_columns());
    gate_up_ = make_rows(workspace.gate_up, count, 2 * config.intermediate_size);
    workspace.ropes.resize(config.ropes.size());
    for (size_t i = 0; i < config.ropes.size(); ++i) {
        make_rope_table(config.ropes[i], rows.positions, rows.rope_lengths, workspace.ropes[i]);
    }
    workspace.paths.resize(static_cast<size_t>(count));
    workspace.tails.find(rows.parents, rows.first_node,
                         rows.parents.empty() ? 0 : cache.length(rows.sequences.front()));
}

NormRows Pass::normed(const Norm& norm, NormKind kind) const { return {kind, norm, config().norm_eps, hidden_}; }

GatedRows Pass::gated(const Mlp& mlp, const Norm* sub_norm) const {
    const bool has_gate = mlp.gate.exists() || mlp.gate_up.exists();
    const int64_t inner = mlp.down.k();
    return {config().activation, gate_up_.part(0, has_gate ? 2 * inner : inner), has_gate, sub_norm, config().norm_eps};
}

AttentionRows Pass::attended(const Norm* sub_norm) const {
    return {workspace_.attention, sub_norm, config().norm_eps, config().query_columns()};
}

std::vector<Projection> Pass::to_qkv(const Layer& layer) const {
    if (layer.qkv.exists()) {
        return {layer.qkv.to(qkv_.tensor(tokens()))};
    }
    const int64_t q = config().query_columns();
    const int64_t kv = config().key_columns();
    return {layer.q.to(qkv_.part(0, q).tensor(tokens())), layer.k.to(qkv_.part(q, kv).tensor(tokens())),
            layer.v.to(qkv_.part(q + kv, kv).tensor(tokens()))};
}

std::vector<Projection> Pass::to_gate_up(const Mlp& mlp) const {
    const int64_t inner = mlp.down.k();
    if (mlp.gate_up.exists()) {
        return {mlp.gate_up.to(gate_up_.part(0, 2 * inner).tensor(tokens()))};
    }
    if (!mlp.gate.exists()) {
        return {mlp.up.to(gate_up_.part(0, inner).tensor(tokens()))};
    }
    return {mlp.gate.to(gate_up_.part(0, inner).tensor(tokens())),
            mlp.up.to(gate_up_.part(inner, inner).tensor(tokens()))};
}

std::vector<Projection> Pass::to_hidden(const Matrix& matrix) const {
    return {matrix.to(hidden_.tensor(tokens()), Store::add, config().residual_scale)};
}

std::vector<Projection> Pass::to_branch(const Matrix& matrix) const { return {matrix.to(branch_.tensor(tokens()))}; }

Job Pass::job(const InputRows& input, int64_t columns, std::vector<Projection> projections) const {
    return {&input, tokens(), columns, std::move(projections)};
}

void Pass::multiply(Stage stage, const InputRows& input, std::vector<Projection> projections) {
    const int64_t columns = projections.front().k();
    multiply(stage, {job(input, columns, std::move(projections))});
}

void Pass::multiply(Stage stage, const std::vector<Job>& jobs) {
    if (!profile_.on) {
        linear(jobs, phase_, num_threads_);
        return;
    }
    const StageTimer timer(profile_, stage);
    double input_seconds = 0;
    linear(jobs, phase_, num_threads_, &input_seconds);
    profile_.seconds[static_cast<size_t>(Stage::input)] += input_seconds;
    profile_.seconds[static_cast<size_t>(stage)] -= input_seconds;
}

void Pass::for_each_row(int64_t work, const std::function<void(int64_t)>& body, int64_t grain) const {
    const int threads = tokens() * work < kMinWork ? 1 : num_threads_;
    parallel_for(tokens(), grain, threads, [&body](Range range) {
        for (int64_t token = range.begin; token < range.end; ++token) {
            body(token);
        }
    });
}

void Pass::attend(const Layer& layer, bool interleaved) {
    const StageTimer timer(profile_, Stage::attention);
    const int64_t dim = config().head_dim;
    const int64_t step = interleaved ? 3 * dim : dim;
    const int64_t k_begin = interleaved ? dim : config().query_columns();
    const int64_t v_begin = interleaved ? 2 * dim : config().query_columns() + config().key_columns();
    const Heads q{qkv_, step};
    const Heads k{qkv_.part(k_begin, qkv_.columns - k_begin), step};
    const Heads v{qkv_.part(v_begin, qkv_.columns - v_begin), step};
    // Neighbouring positions share cache lines of the keys: a thread takes whole groups of a prompt.
    const int64_t grain = phase_ == Phase::prompt ? kKeyGroup : 1;
    for_each_row(qkv_.columns, [&](int64_t token) { keep_row(layer, token, q, k, v); }, grain);
    find_paths(layer);
    const AttentionInput input{qkv_.data,
                               qkv_.stride,
                               step,
                               config().num_heads,
                               config().num_kv_heads,
                               config().head_dim,
                               config().attention_scale,
                               config().attention_softcap,
                               cache_.layout(layer.index),
                               workspace_.paths.data(),
                               tokens()};
    tmac::attend(input, num_threads_, workspace_.attention);
}

/// One row's query, key and value on their way to attention.
void Pass::keep_row(const Layer& layer, int64_t token, const Heads& q, const Heads& k, const Heads& v) {
    const VectorOps& ops = vector_ops();
    const int32_t dim = config().head_dim;
    const int32_t rope = config().layer_rope[static_cast<size_t>(layer.index)];
    const auto prepare = [&](float* head, const Norm& norm) {
        if (norm.exists()) {
            apply_norm(NormKind::rms, norm, config().norm_eps, head, dim, head);
        }
        if (rope >= 0) {
            const RopeTable& table = workspace_.ropes[static_cast<size_t>(rope)];
            ops.rope(head, table.cos_row(token), table.sin_row(token), table.pairs);
        }
    };
    for (int32_t head = 0; head < config().num_heads; ++head) {
        prepare(q.head(token, head), layer.q_norm);
    }
    const CacheLayout& layout = cache_.layout(layer.index);
    const int64_t slot = rows_.slots[static_cast<size_t>(token)];
    const int64_t group = slot % kPagePositions / kKeyGroup;
    const auto lane = static_cast<int32_t>(slot % kKeyGroup);
    uint8_t* page = cache_.page(rows_.sequences[static_cast<size_t>(token)], layer.index, slot / kPagePositions);
    for (int32_t head = 0; head < config().num_kv_heads; ++head) {
        float* key = k.head(token, head);
        prepare(key, layer.k_norm);
        uint8_t* place = page + head * layout.head_bytes();
        const auto scale_at = [&](int64_t offset) {
            return layout.has_scales() ? reinterpret_cast<float*>(place + offset) + lane : nullptr;
        };
        ops.store_key(layout.type, key, dim, place + layout.key_offset(group), lane,
                      scale_at(layout.key_scale_offset(group)));
        ops.store_value(layout.type, v.head(token, head), dim, place + layout.value_offset(group), lane,
                        scale_at(layout.value_scale_offset(group)));
    }
}

/// What every row attends to in this layer.
void Pass::find_paths(const Layer& layer) {
    const int64_t window = config().windows[static_cast<size_t>(layer.index)];
    for (size_t row = 0; row < workspace_.paths.size(); ++row) {
        const int64_t end = rows_.positions[row] + 1;
        CachedPath& path = workspace_.paths[row];
        path = {};
        path.pages = cache_.pages(rows_.sequences[row], layer.index);
        path.begin = window > 0 ? std::max<int64_t>(0, end - window) : 0;
        path.end = end;
    }
    workspace_.tails.gather(cache_.layout(layer.index), config().num_kv_heads, workspace_.paths.data());
}

void Pass::add_normed(const Norm& norm) {
    for_each_row(hidden_.columns, [&](int64_t token) {
        float* row = branch_.row(token);
        apply_norm(NormKind::rms, norm, config().norm_eps, row, hidden_.columns, row);
        if (config().residual_scale == 1.0F) {
            vector_ops().add(hidden_.row(token), row, hidden_.columns);
        } else {
            vector_ops().add_scaled(hidden_.row(token), config().residual_scale, row, hidden_.columns);
        }
    });
}

void Pass::add_branch() {
    for_each_row(hidden_.columns,
                 [&](int64_t token) { vector_ops().add(hidden_.row(token), branch_.row(token), hidden_.columns); });
}

}  // namespace tmac
