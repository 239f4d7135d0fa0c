"""Fourier transforms and what goes with them."""

from __future__ import annotations

import math

import numpy as np
import torch

from onnx_obd.mirror.registry import DType, Floats, Ints, Like, op


def _complex(x):
    """[..., 1] or [..., 2] (real, imaginary) as real or complex [...], in single precision at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())


def _transform(values, length, dim, inverse):
    """The discrete Fourier transform of real or complex ``values`` along ``dim``, cut or filled up to ``length``.

    ONNX takes numpy's for the truth, down to the rounding of what cancels out; torch's rounds otherwise. So numpy
    computes single precision where it can: on the host, where no derivative is wanted.
    """
    single = values.dtype in (torch.float32, torch.complex64) and values.device.type == "cpu"
    derived = (values.requires_grad and torch.is_grad_enabled()) or torch._C._are_functorch_transforms_active()
    if single and not derived:
        result = (np.fft.ifft if inverse else np.fft.fft)(values.detach().resolve_conj().numpy(), length, dim)
        return torch.from_numpy(result.astype(np.complex64, copy=False))
    return (torch.fft.ifft if inverse else torch.fft.fft)(values, length, dim)


@op("DFT", 20)
def dft(input, dft_length: Ints | None = None, axis: Ints | None = None, *, inverse=0, onesided=0):
    dim = axis[0] if axis else -2
    dim += input.dim() * (dim < 0)  # the last axis holds real and imaginary parts
    length, values = dft_length[0] if dft_length else None, _complex(input)
    if inverse and onesided:
        return torch.fft.irfft(values, length, dim).unsqueeze(-1).to(input.dtype)
    result = _transform(values, length, dim, inverse)
    if onesided:
        result = result.narrow(dim, 0, result.shape[dim] // 2 + 1)
    return torch.view_as_real(result).to(input.dtype)


@op("DFT", 17)
def dft_17(input, dft_length: Ints | None = None, *, axis=1, inverse=0, onesided=0):
    return dft(input, dft_length, (axis,), inverse=inverse, onesided=onesided)


@op("STFT", 17)
def stft(signal, frame_step: Ints, window=None, frame_length: Ints | None = None, *, onesided=1):
    """Frames of the signal [N, L, 1 or 2], windowed and transformed: [N, frames, frequencies, 2]."""
    length = frame_length[0] if frame_length else window.shape[0]
    values = _complex(signal if signal.dim() == 3 else signal.unsqueeze(-1))
    frames = values.unfold(1, length, frame_step[0])
    result = _transform(frames if window is None else frames * window, None, -1, inverse=0)
    return torch.view_as_real(result[..., : length // 2 + 1] if onesided else result).to(signal.dtype)


@op("MelWeightMatrix", 17, differentiable=False)
def mel_weight_matrix(
    num_mel_bins: Ints, dft_length: Ints, sample_rate: Ints, lower_edge_hertz: Floats, upper_edge_hertz: Floats, *,
    output_datatype: DType = torch.float32, like: Like,
):  # fmt: skip
    """Triangular filters, evenly spaced in mel, over the frequencies of a one-sided DFT: [frequencies, filters]."""
    (filters,), (length,), (rate,) = num_mel_bins, dft_length, sample_rate
    low, high = (2595 * math.log10(1 + edge / 700) for (edge,) in (lower_edge_hertz, upper_edge_hertz))
    mel = torch.arange(filters + 2, dtype=torch.float64, device=like.device) * ((high - low) / (filters + 2)) + low
    edges = ((length + 1) * (700 * (10 ** (mel / 2595) - 1)) / rate).floor()
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = torch.arange(length // 2 + 1, dtype=torch.float64, device=like.device)[:, None]
    rising = torch.where(centre > left, (at - left) / (centre - left), (at == centre).double())
    falling = (right - at) / (right - centre)
    weights = torch.where((at <= centre) | (right <= centre), rising, falling)
    support = (at >= left) & ((at <= centre) | (at < right))
    return torch.where(support, weights, 0).to(output_datatype)
