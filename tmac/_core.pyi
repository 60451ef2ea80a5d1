"""The compiled core. Arrays are C-contiguous; a wrong dtype or shape raises ValueError, never a silent copy."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

class KernelRow(TypedDict):
    name: str
    isa: str
    method: str
    bits: int
    codebook: str
    activations: list[str]
    layout: str  # what it packs weights into
    layouts: list[str]  # what it can read
    features: list[str]
    runnable: bool  # this CPU (with TMAC_CPU_FEATURES applied) can execute it
    selectable: bool  # runnable and admitted by TMAC_ISA and TMAC_KERNEL

class UnsupportedSpecError(RuntimeError): ...

class PackedWeight:
    """One weight in the memory order of one kernel: a self-describing u8 buffer."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def kernel(self) -> str: ...
    @property
    def prompt_kernel(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def spec(self) -> dict[str, Any]:
        """Keyword arguments of `tmac.QuantSpec`."""

    def buffer(self) -> NDArray[np.uint8]:
        """The bytes, shared, not copied: [nbytes]."""

# `spec` below is any object with the attributes of tmac.QuantSpec.

def check_spec(spec: object) -> None: ...
def select_kernel(spec: object) -> str:
    """Name of the kernel that decodes `spec` here; UnsupportedSpecError when there is none."""

def candidate_kernels(spec: object) -> list[tuple[str, str]]:
    """(decoding kernel, prompt kernel) of every choice that the environment leaves for `spec`, the default first."""

def pack(
    spec: object,
    planes: NDArray[np.uint8],
    in_features: int,
    scales: NDArray[Any],
    zeros: NDArray[Any] | None = None,
    perm: NDArray[np.int32] | None = None,
    kernel: str = "",
    num_threads: int = 0,
    super_scales: NDArray[np.float16] | None = None,
    super_offsets: NDArray[np.float16] | None = None,
    plane_layout: bool = False,
) -> PackedWeight:
    """Canonical planes [bits, n, ceil(k/8)] (most significant first), scales [n, groups] f16/f32, zeros (or offsets)
    [n, groups] u8/f16/f32 -> packed for `kernel` ("decode" or "decode,prompt"), by default the first of
    `candidate_kernels(spec)`. Two-level scales and offsets are i8, their super values f16 [n, ceil(k/256)].
    `plane_layout`: in a layout of these kernels whose leading planes can be read alone (`Model.make_draft`)."""

class Packer:
    """Packs a weight some rows at a time: no more than these need be held in another form.

    `zeros` is the dtype of zeros or offsets, None for a fixed zero; the rest as in `pack`."""

    def __init__(
        self,
        spec: object,
        out_features: int,
        in_features: int,
        zeros: np.dtype[Any] | None = None,
        perm: NDArray[np.int32] | None = None,
        kernel: str = "",
        plane_layout: bool = False,
    ) -> None: ...
    def add(
        self,
        first: int,
        weight: NDArray[np.uint8],
        scales: NDArray[Any],
        zeros: NDArray[Any] | None = None,
        super_scales: NDArray[np.float16] | None = None,
        super_offsets: NDArray[np.float16] | None = None,
        num_threads: int = 0,
    ) -> None:
        """Rows from `first` on, as planes [bits, rows, ceil(k/8)] or codes [rows, k]. Several threads may add rows at
        once that share no 64 rows of the weight (0 to 63, 64 to 127, ...)."""

    def add_blocks(self, first: int, type_name: str, blocks: NDArray[np.uint8], num_threads: int = 0) -> None:
        """The same from rows of whole blocks of a type of ggml, [rows, bytes], whose scales (and offsets) are the
        spec's f16. NaN and Inf in these are a ValueError, too."""

    def finish(self) -> PackedWeight:
        """The weight; ValueError where rows are missing."""

def all_finite(array: NDArray[Any], /) -> bool:
    """Whether an f16 or f32 array holds neither NaN nor Inf."""

def unpack(buffer: NDArray[np.uint8], num_threads: int = 0) -> dict[str, Any]:
    """The inverse: {"spec": dict, "in_features", "out_features", "kernel", "prompt_kernel", "layout", "planes",
    "scales", "zeros": array | None, "perm": array | None, "super_scales": array | None,
    "super_offsets": array | None}."""

def describe(buffer: NDArray[np.uint8]) -> dict[str, Any]:
    """{"spec": dict, "in_features", "out_features", "kernel", "prompt_kernel", "layout", "nbytes"}; ValueError for
    bytes that this CPU cannot read."""

PACKED_HEADER_BYTES: int  # of a packed weight, which begins with its header

def packed_regions(buffer: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """[(begin, end, first plane)] of the codes, in bytes from the start of the weight that begins with `buffer` (its
    header, or more). ValueError as `describe`."""

class ContentHash:
    """64 bits that tell whether bytes are those that were written; no protection against intent."""

    def __init__(self) -> None: ...
    def update(self, data: bytes | bytearray | memoryview | NDArray[Any]) -> None: ...
    def digest(self) -> int: ...

def dequantize(buffer: NDArray[np.uint8], num_threads: int = 0) -> NDArray[np.float32]:
    """[out_features, in_features] in the checkpoint's column order (perm undone)."""

def dequantize_rows(buffer: NDArray[np.uint8], ids: NDArray[np.int64], num_threads: int = 0) -> NDArray[np.float32]:
    """ids [m] -> [m, in_features], exactly `dequantize(buffer)[ids]`, from these rows' bytes alone. ValueError for an
    id outside 0..out_features - 1."""

def embedding_pointers(
    ids: int,
    count: int,
    buffer: int,
    buffer_bytes: int,
    y: int,
    y_type: int,
    y_stride: int,
    in_features: int,
    num_threads: int,
) -> None:
    """The same over raw addresses: ids i64 [count], y [count, in_features] of type 0 f32, 1 f16 or 2 bf16 (the f32
    value rounded), y_stride elements between rows. in_features is what y has; it is compared with the buffer. Releases
    the GIL."""

def linear(
    x: NDArray[np.float32],
    buffer: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    num_threads: int = 0,
    phase: str = "by_tokens",
) -> NDArray[np.float32]:
    """x [tokens, in_features] -> [tokens, out_features]. `phase` "decode" or "prompt" takes that class of the weight;
    "by_tokens" decodes up to 16 tokens."""

def linear_shared(
    x: NDArray[np.float32], buffers: list[NDArray[np.uint8]], num_threads: int = 0, phase: str = "by_tokens"
) -> list[NDArray[np.float32]]:
    """The same for several weights of one input, whose activations are encoded once."""

def linear_pointers(
    x: int,
    x_type: int,
    x_stride: int,
    tokens: int,
    buffer: int,
    buffer_bytes: int,
    bias: int,
    y: int,
    y_type: int,
    y_stride: int,
    in_features: int,
    out_features: int,
    num_threads: int,
    planes: int = 0,
    code_scale: float = 1.0,
    code_base: float = 0.0,
) -> None:
    """The same over raw addresses (0 = no bias): types 0 f32, 1 f16, 2 bf16; strides in elements between tokens, the
    last dimension has stride 1; bias is f32 [out_features]. in_features and out_features are what x and y have; they
    are compared with the buffer. `planes`: with so many leading planes of the codes alone (one of `prefixes`; 0: all),
    which stand for the codes `code_scale * top + code_base`. Releases the GIL."""

def prefixes(buffer: NDArray[np.uint8]) -> list[int]:
    """How many leading planes of a packed weight are a weight of their own in the same memory; [] where none are."""

def prefix_fit(buffer: NDArray[np.uint8], planes: int, num_threads: int = 0) -> tuple[float, float]:
    """The `code_scale` and `code_base` of so many leading planes with the least squared error of the weights."""

def time_kernels(
    spec: object,
    out_features: int,
    in_features: int,
    tokens: Sequence[int] = (1, 8, 128),
    num_threads: int = 0,
    runs: int = 7,
) -> list[tuple[str, str, list[list[float]]]]:
    """(decoding kernel, prompt kernel, seconds [tokens][samples]) of every choice of `candidate_kernels(spec)`, over
    weights that do not fit into the cache. A choice over four times as slow as the best has one sample instead of
    `runs`. in_features at most 2^18, tokens at most 512. Releases the GIL; Ctrl-C ends it."""

def read_pass(buffer: NDArray[np.uint8], num_threads: int = 0, streams: int = 1) -> int:
    """Reads every byte once and nothing else, for benchmarks; the exclusive or of the 64-bit words. Which of 1 or 4
    streams is faster depends on the CPU."""

def dot_peak(isa: str, num_threads: int = 0) -> float:
    """Operations per second (a multiply-add is two) of a register-only loop of the int8 dot products of "scalar",
    "avx2", "avx2_vnni" (AVX-VNNI) or "avx512", for benchmarks: the fastest of eight
    runs, a millisecond together. ValueError where this CPU or build has none."""

def prepare_seconds(x: NDArray[np.float32], buffer: NDArray[np.uint8], repeats: int, num_threads: int = 0) -> float:
    """Seconds that encoding x [tokens, in_features] for the weight takes, without the product: for benchmarks, the mean
    of `repeats` calls."""

def barrier_seconds(repeats: int, num_threads: int = 0) -> float:
    """Seconds that starting and joining the threads costs: the mean of `repeats` regions in which each thread waits
    until all have come. For benchmarks."""

def codes_to_planes(codes: NDArray[np.uint8], bits: int, num_threads: int = 0) -> NDArray[np.uint8]: ...
def planes_to_codes(planes: NDArray[np.uint8], in_features: int, num_threads: int = 0) -> NDArray[np.uint8]: ...
def codes_to_trits(codes: NDArray[np.uint8], num_threads: int = 0) -> NDArray[np.uint8]: ...
def trits_to_codes(trits: NDArray[np.uint8], in_features: int, num_threads: int = 0) -> NDArray[np.uint8]: ...
def trits_to_planes(trits: NDArray[np.uint8], in_features: int, num_threads: int = 0) -> NDArray[np.uint8]: ...
def split_blocks(
    type_name: str, blocks: NDArray[np.uint8], num_threads: int = 0
) -> tuple[
    NDArray[np.uint8],
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[np.float16] | None,
    NDArray[np.float16] | None,
]:
    """Blocks of a type of ggml, [blocks, block_bytes] -> codes [blocks, elements], and one row for each block of
    scales, zeros, super_scales and super_offsets, None where the type has none."""

def unpack_stream(stream: NDArray[np.uint8], bits: int, count: int, num_threads: int = 0) -> NDArray[np.uint8]:
    """Bytes [rows, nbytes], each row a stream of codes from the least significant bit on -> codes [rows, count]."""

def unpack_down(words: NDArray[np.int32], bits: int, count: int, num_threads: int = 0) -> NDArray[np.uint8]:
    """Words [height, columns] whose columns are such streams, going down the rows -> codes [columns, count]."""

def unpack_across(
    words: NDArray[np.int32], bits: int, count: int, lanes: Sequence[int], num_threads: int = 0
) -> NDArray[np.uint8]:
    """Words [rows, width] whose rows are such streams, the i-th of eight codes being that of column lanes[i] of eight
    -> codes [count, rows]. count is a multiple of 8."""

def round_to_nearest(
    weight: NDArray[np.float32], spec: object, num_threads: int = 0, importance: NDArray[np.float32] | None = None
) -> tuple[
    NDArray[np.uint8], NDArray[Any], NDArray[Any] | None, NDArray[np.float16] | None, NDArray[np.float16] | None
]:
    """(codes [n, k], scales [n, groups] f16 (f32 if spec.scale_format == "f32", i8 with two levels), zeros or offsets
    [n, groups] or None, super_scales and super_offsets [n, super groups] or None) with the scale and zero of every
    group searched for the least squared error, that of each column times importance [k]; without it symmetric grids of
    3 bits and more are weighted by magnitude. NaN, Inf and weights too small or large for the scales raise ValueError.
    """

def factor_hessian(
    hessian: NDArray[np.float32],
    order: NDArray[np.int64],
    extra: NDArray[np.float64],
    least: float,
    num_threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """(strips, pivots) as round_with_feedback takes them, of hessian[order][:, order] with extra[order] added to its
    diagonal, factored in double precision. None where a pivot is not above `least`. The same bits for any number of
    threads and every instruction set."""

def round_with_feedback(
    weight: NDArray[np.float32],
    order: NDArray[np.int64],
    strips: NDArray[np.float32],
    pivots: NDArray[np.float32],
    spec: object,
    num_threads: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any] | None]:
    """Columns of a weight [n, k], rounded one after the other in the given order, which takes groups as they
    stand; what one loses is fed back to those after it by U, upper triangular with ones on its diagonal, in strips
    [ceil(k / 8), k, 8]. The grid of a group is searched when it is reached, the squared error of a column counted
    pivots [k] times; U and pivots are in the order of the visits, codes as the weight. Returns what round_to_nearest
    does; no two levels. The same bits for any number of threads and every instruction set."""

def kernels() -> list[KernelRow]: ...
def cpu_features() -> dict[str, bool]: ...
def cpu_model() -> str: ...
def release_memory() -> None:
    """Gives memory that has been freed, but is kept for later, back to the system, where the C library can."""

def set_num_threads(num_threads: int) -> None:
    """0: back to the default, the CPUs that this process may use."""

def get_num_threads() -> int: ...
def thread_backend() -> Literal["own", "openmp"]:
    """What runs the next operation of more than one thread: our own workers, or, where torch is loaded, the OpenMP
    runtime that torch uses."""

class CacheFullError(RuntimeError): ...

class Model:
    """The weights of a model in their places. Shared by any number of decoders."""

    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one generated token reads: no embedding, of the experts those it is sent to."""

    def stream_statistics(self) -> dict[str, Any] | None:
        """What a model that reads weights while it runs has done: {"bytes_read", "passes", "seconds_reading",
        "seconds_waiting": of a pass for weights, "bytes_per_pass", "resident_bytes", "ring_bytes", "direct": past the
        page cache}. None where everything is in memory. From any thread. Raises RuntimeError in a forked child."""

    def limit_stream(self, bytes_per_second: float) -> None:
        """Reads no faster from now on, to stand for a slower disk; 0: as fast as it goes. RuntimeError as above."""

    @property
    def draft(self) -> Model | None:
        """What `make_draft` has made: a model of its own in the same memory, for decoders of its own too."""

    def make_draft(self, bits: int, num_threads: int = 0) -> None:
        """Lets the leading `bits` planes of every matrix draft (`Decoder.forward_tree(draft=True)`), in the memory of
        the model: of a matrix whose layout has no such prefix the next wider one, of narrower ones all planes. What
        the planes stand for is fitted by least squares, with one scale for matrices of the same input (q, k and v,
        gate and up) and an offset for each. A model that reads weights while it runs is read once. Where it fails or
        is interrupted, the draft is as before.

        Raises:
            ValueError: a matrix has no such prefix, as it names, or none has more planes; the model is a draft itself;
                the planes are not in memory.
            RuntimeError, DamagedFileError: as `Decoder.forward`.
        """

class DamagedFileError(RuntimeError):
    """A packed file holds other bytes than were written. Deleted, it is made again when the model is loaded."""

class ModelBuilder:
    """Collects the weights of a model by name (docs/runtime.md). Matrices are not copied and must not change as long as
    the model lives."""

    def __init__(self, config: Mapping[str, Any]) -> None: ...
    def add_packed(self, name: str, buffer: NDArray[np.uint8], bias: NDArray[np.float32] | None = None) -> None:
        """The bytes of a PackedWeight."""

    def add_floats(self, name: str, array: NDArray[Any], dtype: str, bias: NDArray[np.float32] | None = None) -> None:
        """A matrix [n, k] of "F32", "F16" or "BF16" (as uint16), or a vector [n] of "F32"."""

    def open_packed(
        self,
        path: str,
        size: int,
        modified_ns: int,
        ranges: Sequence[tuple[Sequence[tuple[int, int, int]], int]],
        slots: int = 2,
        readers: int = 4,
        block_bytes: int = 1 << 20,
    ) -> None:
        """A packed file of this state. `ranges`: of everything outside of the layers, then of each layer, its sections
        [(begin, end, checksum)] and how many of them, from the first on, are resident; these are read now. `slots`
        layers are in memory at a time of what is not; `readers` threads read blocks of `block_bytes`. DamagedFileError,
        RuntimeError where it was changed or cannot be read, ValueError where the ranges cannot be or a file is open
        already: a model has one."""

    def add_placed(
        self,
        name: str,
        layer: int,
        offset: int,
        header: bytes,
        regions: Sequence[int],
        bias: NDArray[np.float32] | None = None,
    ) -> None:
        """A packed matrix in the file, in `layer` (-1: in none); what stands before its codes is at `offset`."""

    def add_placed_floats(
        self,
        name: str,
        layer: int,
        offset: int,
        dtype: str,
        shape: tuple[int, int],
        bias: NDArray[np.float32] | None = None,
    ) -> None:
        """A matrix of "F32", "F16" or "BF16" and `shape` (n, k) in the file, at `offset`, in `layer` (-1: in none)."""

    def build(self) -> Model:
        """Raises ValueError naming the weight that is missing, unknown, or of another shape than the config says."""

class Decoder:
    """Runs a model over sequences in a KV cache. One thread at a time: another one gets a RuntimeError."""

    def __init__(
        self, model: Model, cache_type: Literal["f32", "f16", "int8"] = "f16", max_positions: int = 0
    ) -> None: ...
    def create(self) -> int: ...
    def fork(self, sequence: int, length: int) -> int:
        """A sequence with the first `length` positions of another; they share memory until one of them grows."""

    def release(self, sequence: int) -> None: ...
    def truncate(self, sequence: int, length: int) -> bool:
        """False, and nothing has changed, where a sliding window has dropped what the shorter sequence needs."""

    def length(self, sequence: int) -> int: ...
    def trim(self) -> None:
        """Gives memory of released sequences back to the system."""

    def forward(
        self,
        ids: Sequence[int],
        tokens: Sequence[NDArray[np.int32]],
        phase: Literal["prompt", "decode"],
        wanted: Sequence[NDArray[np.int32]],
        rope_lengths: Sequence[int] | None = None,
        num_threads: int = 0,
    ) -> NDArray[np.float32]:
        """Appends tokens to sequences and gives the logits [rows, vocab_size] of the wanted rows of each chunk.

        `rope_lengths`: the length of each prompt as a whole, for rotary frequencies that depend on it. Where it fails
        or is interrupted, the sequences are as before. Raises CacheFullError above `max_positions`; of a model
        that reads weights while it runs RuntimeError (its file was changed or cannot be read, or this is a forked
        child) and DamagedFileError."""

    def forward_tree(
        self,
        sequence: int,
        tokens: NDArray[np.int32],
        parents: NDArray[np.int32],
        num_threads: int = 0,
        first: int = 0,
        draft: bool = False,
    ) -> NDArray[np.float32]:
        """Logits [nodes - first, vocab_size] of a token tree behind the sequence, which stays as it is until keep().

        Nodes before `first` keep what earlier calls have computed; their tokens and parents must be the same, and
        nothing else may have been run or done with the sequence since. `draft`: with the weights of
        `Model.make_draft`, over the same cache; a call with first=0 and without `draft` overwrites such nodes. Raises
        what forward() does."""

    def keep(self, sequence: int, nodes: Sequence[int]) -> None:
        """The sequence goes on with these nodes of its last tree, a path from a root, none of them of the draft."""

    def save(self, sequence: int) -> bytes: ...
    def restore(self, data: bytes | bytearray | memoryview) -> int: ...
    def profile(self, on: bool) -> None: ...
    def take_profile(self) -> dict[str, float]:
        """Seconds by stage since the last call, "total" seconds, and how many "passes" and "rows"."""

    @property
    def cache_bytes(self) -> int: ...

class Sampler:
    """Chooses tokens: docs/runtime.md. The n-th choice depends on the seed, n, the logits and the history alone."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        logit_bias: Sequence[tuple[int, float]] = (),
    ) -> None: ...
    def sample(
        self,
        logits: NDArray[np.float32],
        history: NDArray[np.int32],
        mask: NDArray[np.uint32] | None = None,
        prompt_size: int = 0,
    ) -> int:
        """One token id. `logits` [vocab]; of `mask` bit i % 32 of word i / 32 allows token i; the first `prompt_size`
        tokens of the history are the prompt, which presence and frequency penalties do not count."""
    draws: int

def log_probabilities(logits: NDArray[np.float32], ids: NDArray[np.int32], num_threads: int = 0) -> NDArray[np.float32]:
    """Log-probability of ids[i] by row i of logits [rows, vocab]."""

def top_log_probabilities(logits: NDArray[np.float32], count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(ids, log-probabilities) of the most probable tokens of one row, most probable first."""

__version__: str
