#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/layout.h"
#include "core/quant_spec.h"

namespace tmac {

namespace py = pybind11;

/// Lets other Python threads run while it lives. Where a daemon thread comes back while the interpreter shuts down,
/// Python before 3.14 ends it by unwinding its stack: destructors would touch Python's objects, or abort the process.
/// Here such a thread sleeps until the process has ended, as Python does itself from 3.14 on.
class ReleasedGil {
public:
    ReleasedGil() : state_(PyEval_SaveThread()) {}
    ReleasedGil(const ReleasedGil&) = delete;
    ReleasedGil& operator=(const ReleasedGil&) = delete;
    ~ReleasedGil() { take_back(); }

    /// Runs Python's handlers of the signals that have come; throws what they raise.
    void check_signals() {
        take_back();
        std::exception_ptr raised;
        if (PyErr_CheckSignals() != 0) {
            raised = std::make_exception_ptr(py::error_already_set());
        }
        state_ = PyEval_SaveThread();
        if (raised) {
            std::rethrow_exception(raised);
        }
    }

private:
    void take_back() noexcept {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) {
                std::this_thread::sleep_for(std::chrono::hours(1));
            }
        }
    }

    PyThreadState* state_;
};

void bind_core(py::module_& module);
void bind_weights(py::module_& module);
void bind_ops(py::module_& module);
void bind_rounding(py::module_& module);
void bind_streams(py::module_& module);
void bind_model(py::module_& module);
void bind_decoder(py::module_& module);
void bind_sampler(py::module_& module);
void bind_packed_file(py::module_& module);

/// Reads the attributes of tmac.QuantSpec and validates them.
QuantSpec spec_from_python(const py::handle& object);
py::dict spec_to_python(const QuantSpec& spec);

/// Throws std::invalid_argument naming `name` unless the elements follow each other and lie at multiples of their size.
void require_plain(const py::array& array, const std::string& name);

/// `array` itself, when it is plain and has this dtype and rank; else std::invalid_argument naming `name`.
template <class T>
const T* require_array(const py::array& array, const char* name, py::ssize_t rank) {
    TMAC_CHECK(py::dtype::of<T>().equal(array.dtype()), "[", name, "] expected dtype ",
               py::str(py::dtype::of<T>()).cast<std::string>(), ", got ", py::str(array.dtype()).cast<std::string>());
    TMAC_CHECK(array.ndim() == rank, "[", name, "] expected ", rank, " dimensions, got ", array.ndim());
    require_plain(array, name);
    return static_cast<const T*>(array.data());
}

/// An array that owns `values`, of any dtype of the same element size in bytes.
py::array adopt(std::vector<uint8_t>&& values, const py::dtype& dtype, std::vector<py::ssize_t> shape);

/// f2, f4, u1 or i1.
py::dtype dtype_of(GroupType type);

}  // namespace tmac
