#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
    tmac::bind_core(module);
    tmac::bind_weights(module);
    tmac::bind_ops(module);
    tmac::bind_rounding(module);
    tmac::bind_streams(module);
    tmac::bind_model(module);
    tmac::bind_decoder(module);
    tmac::bind_sampler(module);
    tmac::bind_packed_file(module);
    module.attr("__version__") = TMAC_VERSION;
}
