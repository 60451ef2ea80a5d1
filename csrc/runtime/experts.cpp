#include "runtime/experts.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/registry.h"

namespace tmac {
namespace {

/// A token's way through one expert. Ways of the same expert have neighbouring slots.
struct Way {
    int64_t token;
    int32_t expert;
    float weight;
    int64_t slot;  ///< row in the experts' buffers
};

/// The experts with the highest probabilities, the lower number first among equals.
void choose(const ModelConfig& config, float* scores, int64_t token, Way* ways) {
    const VectorOps& ops = vector_ops();
    const int64_t count = config.num_experts;
    const auto sum = static_cast<float>(ops.sum_exp(scores, ops.max(scores, count), count));
    ops.exp(scores, ops.max(scores, count), 1.0F, count, scores);
    std::vector<int32_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    const auto chosen = order.begin() + config.experts_per_token;
    std::partial_sort(order.begin(), chosen, order.end(), [scores](int32_t a, int32_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    float total = 0.0F;
    for (int32_t i = 0; i < config.experts_per_token; ++i) {
        const int32_t expert = order[static_cast<size_t>(i)];
        ways[i] = {token, expert, scores[expert] / sum, 0};
        total += ways[i].weight;
    }
    for (int32_t i = 0; config.normalize_experts && i < config.experts_per_token; ++i) {
        ways[i].weight /= total;
    }
}

/// Ways of one expert: their slots are first, first + 1, ...
struct Group {
    int32_t expert;
    int64_t first;
    std::vector<int64_t> tokens;
};

std::vector<Group> group_by_expert(std::vector<Way>& ways, int32_t num_experts) {
    std::vector<Group> groups;
    std::vector<std::vector<Way*>> by_expert(static_cast<size_t>(num_experts));
    for (Way& way : ways) {
        by_expert[static_cast<size_t>(way.expert)].push_back(&way);
    }
    int64_t slot = 0;
    for (int32_t expert = 0; expert < num_experts; ++expert) {
        const std::vector<Way*>& own = by_expert[static_cast<size_t>(expert)];
        if (own.empty()) {
            continue;
        }
        Group& group = groups.emplace_back(Group{expert, slot, {}});
        for (Way* way : own) {
            way->slot = slot++;
            group.tokens.push_back(way->token);
        }
    }
    return groups;
}

/// Columns of gate and up, or of both in one.
void project_gate_up(const Mlp& mlp, const Floats2d& rows, int64_t tokens, std::vector<Projection>& out) {
    const int64_t inner = mlp.down.k();
    if (mlp.gate_up.exists()) {
        out.push_back(mlp.gate_up.to(rows.tensor(tokens)));
    } else {
        out.push_back(mlp.gate.to(rows.part(0, inner).tensor(tokens)));
        out.push_back(mlp.up.to(rows.part(inner, inner).tensor(tokens)));
    }
}

/// One layer's mixture in one pass.
class Mixture {
public:
    Mixture(const Layer& layer, Pass& pass)
        : layer_(layer),
          pass_(pass),
          config_(pass.config()),
          tokens_(pass.tokens()),
          ways_(static_cast<size_t>(pass.tokens() * config_.experts_per_token)) {
        Workspace& space = pass.workspace();
        const auto slots = static_cast<int64_t>(ways_.size());
        normed_ = make_rows(space.normed, tokens_, config_.hidden_size);
        scores_ = make_rows(space.router, tokens_, config_.num_experts);
        gate_up_ = make_rows(space.expert_gate_up, slots, 2 * config_.moe_intermediate_size);
        out_ = make_rows(space.expert_out, slots, config_.hidden_size);
        shared_gate_up_ = make_rows(space.shared_gate_up, tokens_, 2 * config_.shared_intermediate_size);
        shared_out_ = make_rows(space.shared_out, tokens_, config_.hidden_size);
        shared_gate_ = make_rows(space.shared_gate, tokens_, 1);
    }

    void run() {
        pass_.for_each_row(config_.hidden_size, [this](int64_t token) {
            apply_norm(NormKind::rms, layer_.pre_mlp_norm, config_.norm_eps, pass_.hidden().row(token),
                       config_.hidden_size, normed_.row(token));
        });
        route();
        groups_ = group_by_expert(ways_, config_.num_experts);
        gate_and_up();
        down();
        pass_.for_each_row(config_.hidden_size * config_.experts_per_token, [this](int64_t token) { combine(token); });
    }

private:
    bool has_shared() const { return config_.shared_intermediate_size > 0; }

    /// The router's scores, and all of the shared expert that reads the same rows.
    void route() {
        const TensorRows rows(normed_.tensor(tokens_));
        std::vector<Projection> projections{layer_.router.to(scores_.tensor(tokens_))};
        if (has_shared()) {
            projections.push_back(layer_.shared_gate.to(shared_gate_.tensor(tokens_)));
            project_gate_up(layer_.shared, shared_gate_up_, tokens_, projections);
        }
        pass_.multiply(Stage::experts, rows, std::move(projections));
        for (int64_t token = 0; token < tokens_; ++token) {
            choose(config_, scores_.row(token), token, ways_.data() + token * config_.experts_per_token);
        }
    }

    void gate_and_up() {
        std::deque<PickedRows> inputs;
        std::vector<Job> jobs;
        for (const Group& group : groups_) {
            const auto count = static_cast<int64_t>(group.tokens.size());
            if (jobs.empty() || tokens_ > 1) {  // one token: all experts share its encoding
                inputs.emplace_back(normed_, group.tokens.data());
                jobs.push_back({&inputs.back(), count, config_.hidden_size, {}});
            }
            project_gate_up(layer_.experts[static_cast<size_t>(group.expert)], rows_of(gate_up_, group.first), count,
                            jobs.back().projections);
        }
        pass_.multiply(Stage::experts, jobs);
    }

    void down() {
        std::deque<GatedRows> inputs;
        std::vector<Job> jobs;
        for (const Group& group : groups_) {
            const auto count = static_cast<int64_t>(group.tokens.size());
            inputs.emplace_back(config_.activation, rows_of(gate_up_, group.first), true, nullptr, 0.0F);
            jobs.push_back({&inputs.back(),
                            count,
                            config_.moe_intermediate_size,
                            {layer_.experts[static_cast<size_t>(group.expert)].down.to(
                                rows_of(out_, group.first).tensor(count))}});
        }
        if (has_shared()) {
            inputs.emplace_back(config_.activation, shared_gate_up_, true, nullptr, 0.0F);
            jobs.push_back({&inputs.back(),
                            tokens_,
                            config_.shared_intermediate_size,
                            {layer_.shared.down.to(shared_out_.tensor(tokens_))}});
        }
        pass_.multiply(Stage::experts, jobs);
    }

    static Floats2d rows_of(const Floats2d& all, int64_t first) { return {all.row(first), all.stride, all.columns}; }

    /// The weighted sum of what a token's experts gave, the best one first.
    void combine(int64_t token) {
        const VectorOps& ops = vector_ops();
        const int64_t n = config_.hidden_size;
        float* sum = normed_.row(token);
        std::fill_n(sum, n, 0.0F);
        for (int32_t i = 0; i < config_.experts_per_token; ++i) {
            const Way& way = ways_[static_cast<size_t>(token * config_.experts_per_token + i)];
            ops.add_scaled(sum, way.weight, out_.row(way.slot), n);
        }
        if (has_shared()) {
            float score = -shared_gate_.row(token)[0];
            ops.exp(&score, 0.0F, 1.0F, 1, &score);
            ops.add_scaled(sum, 1.0F / (1.0F + score), shared_out_.row(token), n);
        }
        ops.add_scaled(pass_.hidden().row(token), config_.residual_scale, sum, n);
    }

    const Layer& layer_;
    Pass& pass_;
    const ModelConfig& config_;
    const int64_t tokens_;
    std::vector<Way> ways_;
    std::vector<Group> groups_;
    Floats2d normed_, scores_, gate_up_, out_, shared_gate_up_, shared_out_, shared_gate_;
};

}  // namespace

void run_experts(const Layer& layer, Pass& pass) { Mixture(layer, pass).run(); }

}  // namespace tmac
