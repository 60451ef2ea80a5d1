#include "runtime/draft.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/check.h"
#include "kernels/registry.h"
#include "ops/prefix.h"
#include "runtime/streamed_weights.h"

namespace tmac {
namespace {

struct NamedMatrix {
    std::string name;
    Matrix* matrix;

    const WeightView& view() const { return *matrix->packed; }
};

/// A matrix that is to be cut, and how many of its planes are left.
struct Cut {
    NamedMatrix of;
    int32_t planes;

    bool like(const Cut& other) const {
        return planes == other.planes && of.view().header.spec.bits == other.of.view().header.spec.bits;
    }
};

class DraftMaker {
public:
    DraftMaker(int32_t planes, int num_threads) : planes_(planes), num_threads_(num_threads) {}

    /// Matrices that multiply the same input.
    void cut(const std::vector<NamedMatrix>& matrices) {
        std::vector<Cut> cuts;
        for (const NamedMatrix& each : matrices) {
            if (each.matrix->packed && each.view().header.spec.bits > planes_ &&
                each.view().header.spec.codebook == Codebook::uniform) {
                TMAC_CHECK(!is_prefix(each.view()), "[Model] ", each.name,
                           " is that of a draft: a draft is made of the model itself");
                cuts.push_back({each, planes_of(each)});
            }
        }
        while (!cuts.empty()) {
            const auto others = std::stable_partition(cuts.begin(), cuts.end(),
                                                      [&](const Cut& each) { return !each.like(cuts.front()); });
            cut_alike({others, cuts.end()});
            cuts.erase(others, cuts.end());
        }
    }

    bool any() const { return any_; }

private:
    int32_t planes_of(const NamedMatrix& named) const {
        const std::vector<int32_t> possible = prefixes_of(named.view(), selection());
        const auto found = std::lower_bound(possible.begin(), possible.end(), planes_);
        if (found == possible.end()) {
            std::string list;
            for (const int32_t each : possible) {
                list += (list.empty() ? "" : ", ") + std::to_string(each);
            }
            fail("[Model] ", named.name, " of ", int{named.view().header.spec.bits}, " bits is packed as ",
                 name_of(named.view().header.layout), " and has no prefix of ", planes_, " planes or more",
                 list.empty() ? ": plane_layout packs it so that it has" : "; it has prefixes of ", list);
        }
        return *found;
    }

    void cut_alike(const std::vector<Cut>& cuts) {
        const Cut& first = cuts.front();
        const PrefixFit middle = middle_fit(first.of.view(), first.planes);
        std::vector<PrefixMoments> moments;
        for (const Cut& each : cuts) {
            moments.push_back(prefix_moments(each.of.view(), each.planes, num_threads_));
        }
        const std::vector<PrefixFit> fits = fit_together(moments, middle);
        for (size_t i = 0; i < cuts.size(); ++i) {
            Matrix& matrix = *cuts[i].of.matrix;
            matrix.packed = make_prefix(*matrix.packed, cuts[i].planes, fits[i], selection());
            matrix.bytes = bytes_read(*matrix.packed);
        }
        any_ = true;
    }

    int32_t planes_;
    int num_threads_;
    bool any_ = false;
};

void cut_mlp(DraftMaker& maker, const std::string& prefix, Mlp& mlp) {
    maker.cut({{prefix + "gate", &mlp.gate}, {prefix + "up", &mlp.up}});
    maker.cut({{prefix + "gate_up", &mlp.gate_up}});
    maker.cut({{prefix + "down", &mlp.down}});
}

void cut_layer(DraftMaker& maker, Layer& layer) {
    const std::string prefix = "layers." + std::to_string(layer.index) + ".";
    maker.cut({{prefix + "q", &layer.q}, {prefix + "k", &layer.k}, {prefix + "v", &layer.v}});
    maker.cut({{prefix + "qkv", &layer.qkv}});
    maker.cut({{prefix + "o", &layer.o}});
    cut_mlp(maker, prefix, layer.mlp);
    maker.cut({{prefix + "router", &layer.router}, {prefix + "shared_gate", &layer.shared_gate}});
    for (size_t i = 0; i < layer.experts.size(); ++i) {
        cut_mlp(maker, prefix + "experts." + std::to_string(i) + ".", layer.experts[i]);
    }
    cut_mlp(maker, prefix + "shared.", layer.shared);
}

}  // namespace

std::shared_ptr<const Model> make_draft(const Model& model, int32_t planes, int num_threads,
                                        const std::function<void()>& checkpoint) {
    TMAC_CHECK(planes >= 1 && planes <= 7, "[Model] a draft has 1 to 7 planes, not ", planes);
    auto draft = std::make_shared<Model>();
    draft->config = model.config;
    draft->embedding = model.embedding;
    draft->head = model.output_head();
    draft->final_norm = model.final_norm;
    DraftMaker maker(planes, num_threads);
    maker.cut({{"head", &draft->head}});
    StreamedWeights::Pass weights(model.streamed.get(), checkpoint);
    for (const Layer& layer : model.layers) {
        checkpoint();
        weights.enter(layer.index);  // all planes are there while the leading ones are fitted
        Layer& cut = draft->layers.emplace_back(layer);
        cut_layer(maker, cut);
        weights.leave(layer.index);
        for_each_matrix(cut, [&](const Matrix& matrix) {
            if (model.streamed) {
                model.streamed->require_resident(matrix);
            }
        });
    }
    TMAC_CHECK(maker.any(), "[Model] no matrix has more than ", planes, " planes");
    return draft;
}

}  // namespace tmac
