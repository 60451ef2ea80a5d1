"""The rounding of activations that docs/numerics.md describes, in torch."""

import torch
from torch.nn.functional import pad


def act_groups(columns, group_size, longest):
    group_size = columns if group_size == -1 else group_size
    for begin in range(0, columns, group_size):
        end = min(columns, begin + group_size)
        yield from ((begin // group_size, at, min(end, at + longest)) for at in range(begin, end, longest))


def to_nearest(steps, reach):
    """The default of `emulated`. `reach`: how many steps a value moves, at most, if all activations move by one."""
    return steps.round()


def inverse_of(largest):
    """127 / largest, divided: torch takes `127 / tensor` as 127 times the rounded reciprocal."""
    return torch.full_like(largest, 127) / largest


def lut_sums(a, codes, bits, rounded=to_nearest):
    """One act group f32 `[m, k]` -> (isum `[m, n]`, act_scale `[m, 1]`, act_sum `[m, 1]`, centre), f64."""
    total = a.double().sum(1, keepdim=True)
    a, codes = pad(a, (0, -a.shape[1] % 4)), pad(codes, (0, -a.shape[1] % 4))
    quads = a.reshape(len(a), 1, -1, 4)
    size = quads.abs()
    largest = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).amax(-1)
    isum = torch.zeros(len(a), len(codes), dtype=torch.float64)
    inverse = inverse_of(largest)[..., None]
    for plane in range(bits):
        signed = ((codes >> plane & 1) * 2.0 - 1).float().reshape(1, len(codes), -1, 4) * quads
        sums = (signed[..., 0] + signed[..., 1]) + (signed[..., 2] + signed[..., 3])
        isum += rounded(sums * inverse, 4 * inverse).double().sum(-1) * 2**plane
    return isum, largest.double() / 127 / 2, total, (2**bits - 1) / 2


def lut_fast_sums(a, codes, bits, rounded=to_nearest):
    """The same, aggregated by averages: trees of 2, 4 or 8 leaves in four lanes, two of which hold complements."""
    _, act_scale, total, centre = lut_sums(a, codes, bits)
    leaves = 2 if a.shape[1] <= 32 else 4 if a.shape[1] <= 64 else 8
    missing = 16 * leaves - a.shape[1]
    quads, codes = pad(a, (0, missing)).reshape(len(a), 1, -1, 4), pad(codes, (0, missing))
    size = quads.abs()
    largest = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).amax(-1)
    isum = torch.zeros(len(a), len(codes), dtype=torch.float64)
    inverse = inverse_of(largest)[..., None]
    for plane in range(bits):
        signed = ((codes >> plane & 1) * 2.0 - 1).float().reshape(1, len(codes), -1, 4) * quads
        sums = (signed[..., 0] + signed[..., 1]) + (signed[..., 2] + signed[..., 3])
        entries = rounded(sums * inverse, 4 * inverse).int().unflatten(-1, (leaves, 4))
        nodes = torch.cat([entries[..., :2] + 128, 127 - entries[..., 2:]], -1)
        while nodes.shape[-2] > 1:
            nodes = (nodes[..., 0::2, :] + nodes[..., 1::2, :] + 1) >> 1
        a0, a1, a2, a3 = nodes[..., 0, :].double().unbind(-1)
        isum += leaves * (a0 + a1 - a2 - a3 - 2) * 2**plane
    return isum, act_scale, total, centre


def mad_sums(a, codes, bits, rounded=to_nearest, largest=None):
    """The same; `largest` `[m, 1]` is that of the whole row where a row has one scale."""
    largest = a.abs().amax(1, keepdim=True) if largest is None else largest
    inverse, step, centre = inverse_of(largest), largest.double() / 127, 2 ** (bits - 1)
    q = rounded(a * inverse, inverse).double()
    return q @ (codes.double() - centre).T, step, step * q.sum(1, keepdim=True), centre


def emulated(x, codes, kernel, rounded=to_nearest):
    """f32 `[m, k]` and Codes -> f64 `[m, n]`: activations are rounded as in the kernels, sums are not.

    `rounded(steps, reach)` rounds them, see `to_nearest`.
    """
    spec, values = codes.spec, torch.from_numpy(codes.codes).int()
    scales, offsets = torch.from_numpy(codes.scales).double(), _offsets(codes)
    if codes.perm is not None:
        x = x[:, torch.from_numpy(codes.perm).long()]
    y = torch.zeros(len(x), codes.out_features, dtype=torch.float64)
    method = lut_fast_sums if "_lut_fast_" in kernel else lut_sums if "_lut_" in kernel else mad_sums
    options, longest = {"rounded": rounded}, 128
    if spec.activation == "token":
        options["largest"], longest = x.abs().amax(1, keepdim=True).clamp(min=1e-5), 65536
    for group, begin, end in act_groups(codes.in_features, spec.group_size, longest):
        isum, act_scale, act_sum, centre = method(x[:, begin:end], values[:, begin:end], spec.bits, **options)
        scale = scales[:, group]
        y += isum * act_scale * scale + act_sum * (scale * centre + offsets[:, group])
    return y


def _offsets(codes):
    """What is added to `code * scale`, f64 `[n, groups]`."""
    scales = torch.from_numpy(codes.scales).double()
    if codes.spec.zero_point == "offset":
        return torch.from_numpy(codes.zeros).double()
    zeros = codes.spec.fixed_zero if codes.zeros is None else torch.from_numpy(codes.zeros).double()
    return -zeros * scales
