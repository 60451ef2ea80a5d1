"""A quantized weight whose rounding can be learned: what signed gradients move."""

from __future__ import annotations

import torch
from torch import Tensor

from tmac.codes import Codes

_REACH = 0.5  # a code may move to the next one, as in AutoRound
_CLIPS = (0.75, 1.25)


class _Round(torch.autograd.Function):
    """Rounds; the gradient passes as if it did not."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient


class LearnedRounding:
    """`round(w / (scale * clip) + zero + start + offset)`, with `offset` and `clip` to be learned (arXiv 2309.05516).

    `start` is a constant that makes the codes those of the start where nothing has been learned yet.

    Args:
        weight: f32 `[out_features, in_features]`.
        start: its codes to begin with, in the order of its columns.

    Raises:
        ValueError: the codes are of another shape, or permuted; the weight holds NaN or Inf.
    """

    def __init__(self, weight: Tensor, start: Codes) -> None:
        if tuple(weight.shape) != start.codes.shape or start.perm is not None:
            raise ValueError(
                f"[signround] codes {list(start.codes.shape)} (in order) were expected to fit a weight "
                f"{list(weight.shape)}"
            )
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("[signround] the weight holds NaN or Inf")
        self.start = start
        self._weight = weight.detach().to("cpu", torch.float32)
        spec, k = start.spec, start.in_features
        self._group = torch.arange(k) // (spec.group_size if spec.group_size > 0 else k)
        scales, zeros = start.group_values()
        self._scales = torch.from_numpy(scales)
        self._zeros = torch.full_like(self._scales, spec.fixed_zero or 0.0) if zeros is None else torch.tensor(zeros)
        self._top = 2.0 if spec.codebook == "ternary" else float(2**spec.bits - 1)
        codes = torch.from_numpy(start.codes).float()
        self.offset = torch.zeros_like(codes, requires_grad=True)
        self.clip = torch.ones_like(self._scales, requires_grad=spec.scale_format != "two_level")
        with torch.no_grad():
            exact = self._position(self._scales)
            self._shift = (codes + (exact - codes).clamp(-0.499, 0.499)) - exact

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What is learned; the scales of two levels are not."""
        return (self.offset,) if self.start.spec.scale_format == "two_level" else (self.offset, self.clip)

    def values(self) -> Tensor:
        """The weight that the codes stand for now, with gradients."""
        scales = self._scales * self.clip
        codes = self._codes(scales)
        scales, zeros = scales[:, self._group], self._zeros[:, self._group]
        return codes * scales + zeros if self._offsets else (codes - zeros) * scales

    @torch.no_grad()
    def step(self, rate: float, clip_rate: float) -> None:
        """One step of signed gradients, which are forgotten."""
        for parameter, by in zip(self.parameters, (rate, clip_rate), strict=False):
            if parameter.grad is not None:
                parameter -= by * parameter.grad.sign()
                parameter.grad = None
        self.offset.clamp_(-_REACH, _REACH)
        self.clip.clamp_(*_CLIPS)

    @torch.no_grad()
    def codes(self) -> Codes:
        """What has been learned so far; scales are rounded to what the spec stores."""
        scales = self._scales * self.clip
        codes = self._codes(scales).to(torch.uint8).numpy()
        start, spec = self.start, self.start.spec
        stored = start.scales if spec.scale_format == "two_level" else scales.numpy().astype(start.scales.dtype)
        return Codes(
            spec,
            codes,
            stored,
            start.zeros,
            super_scales=start.super_scales,
            super_offsets=start.super_offsets,
        )

    @property
    def _offsets(self) -> bool:
        return self.start.spec.zero_point == "offset"

    def _position(self, scales: Tensor) -> Tensor:
        scales, zeros = scales[:, self._group], self._zeros[:, self._group]
        inverse = torch.where(scales == 0, torch.zeros_like(scales), 1.0 / scales)
        return (self._weight - zeros) * inverse if self._offsets else self._weight * inverse + zeros

    def _codes(self, scales: Tensor) -> Tensor:
        position = self._position(scales) + self._shift + self.offset
        rounded: Tensor = _Round.apply(position)  # type: ignore[no-untyped-call]
        return rounded.clamp(0.0, self._top)
