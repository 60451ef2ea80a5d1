#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/layout.h"
#include "core/quant_spec.h"

namespace tmac {

namespace py = pybind11;

/// Lets other Python threads run while it lives. Unlike pybind11's guard, its end may unwind the thread: so Python
/// before 3.14 ends a daemon thread that comes back while the interpreter shuts down, and a `noexcept` on the way would
/// abort the process.
class ReleasedGil {
public:
    ReleasedGil() : state(PyEval_SaveThread()) {}
    ReleasedGil(const ReleasedGil&) = delete;
    ReleasedGil& operator=(const ReleasedGil&) = delete;
    ~ReleasedGil() noexcept(false) { PyEval_RestoreThread(state); }

private:
    PyThreadState* state;
};

void bind_core(py::module_& module);
void bind_weights(py::module_& module);
void bind_ops(py::module_& module);
void bind_streams(py::module_& module);
void bind_model(py::module_& module);
void bind_decoder(py::module_& module);
void bind_sampler(py::module_& module);

/// Reads the attributes of tmac.QuantSpec and validates them.
QuantSpec spec_from_python(const py::handle& object);
py::dict spec_to_python(const QuantSpec& spec);

/// `array` itself, when it is C-contiguous with this dtype and rank; else std::invalid_argument naming `name`.
template <class T>
const T* require_array(const py::array& array, const char* name, py::ssize_t rank) {
    TMAC_CHECK(py::dtype::of<T>().equal(array.dtype()), "[", name, "] expected dtype ",
               py::str(py::dtype::of<T>()).cast<std::string>(), ", got ", py::str(array.dtype()).cast<std::string>());
    TMAC_CHECK(array.ndim() == rank, "[", name, "] expected ", rank, " dimensions, got ", array.ndim());
    TMAC_CHECK((array.flags() & py::array::c_style) != 0, "[", name, "] must be C-contiguous");
    return static_cast<const T*>(array.data());
}

/// An array that owns `values`, of any dtype of the same element size in bytes.
py::array adopt(std::vector<uint8_t>&& values, const py::dtype& dtype, std::vector<py::ssize_t> shape);

/// f2, f4, u1 or i1.
py::dtype dtype_of(GroupType type);

}  // namespace tmac
