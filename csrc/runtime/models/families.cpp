#include "runtime/models/families.h"

#include <iterator>

#include "core/check.h"

namespace tmac {
namespace {

const Family* const kFamilies[] = {&kLlama,  &kQwen2,   &kQwen3,  &kPhi3,    &kGemma,    &kGemma2,
                                   &kGemma3, &kGptNeox, &kBitnet, &kMixtral, &kQwen2Moe, &kQwen3Moe};

void require(const Layer& layer, const std::string& name, bool there) {
    TMAC_CHECK(there, "[Model] weight 'layers.", layer.index, ".", name, "' is missing");
}

}  // namespace

const Family& find_family(const std::string& name) {
    std::string known;
    for (const Family* family : kFamilies) {
        if (name == family->name) {
            return *family;
        }
        known += known.empty() ? family->name : std::string(", ") + family->name;
    }
    fail("[Model] unknown family '", name, "'; known are ", known);
}

void check_layer(const Family& family, const ModelConfig& config, const Layer& layer) { family.check(config, layer); }

void require(const Layer& layer, const char* name, const Matrix& matrix) { require(layer, name, matrix.exists()); }
void require(const Layer& layer, const char* name, const Norm& norm) { require(layer, name, norm.exists()); }

void require_attention(const Layer& layer) {
    if (!layer.qkv.exists()) {
        require(layer, "q", layer.q);
        require(layer, "k", layer.k);
        require(layer, "v", layer.v);
    }
    require(layer, "o", layer.o);
}

void require_mlp(const Layer& layer, const Mlp& mlp, const std::string& prefix) {
    if (!mlp.gate_up.exists()) {
        require(layer, prefix + "gate", mlp.gate.exists());
        require(layer, prefix + "up", mlp.up.exists());
    }
    require(layer, prefix + "down", mlp.down.exists());
}

void require_experts(const Layer& layer) {
    require(layer, "router", layer.router);
    for (size_t i = 0; i < layer.experts.size(); ++i) {
        require_mlp(layer, layer.experts[i], "experts." + std::to_string(i) + ".");
    }
}

}  // namespace tmac
