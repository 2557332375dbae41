"""From optical depth to a 12-bit image: beam, scatter, quanta, detector and processing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_pipeline.phantom.exactmath import exp, exp_of_minus, interpolate, log, log_of, square_root

# Published. Mass attenuation coefficients, cm2/g, at these photon energies, and densities, g/cm3:
# Hubbell and Seltzer, X-Ray Mass Attenuation Coefficients (NIST), for tissues of ICRU Report 44
# and for elements. Lung is soft tissue at the density of inflated lung.
_ENERGIES_KEV = (30.0, 40.0, 50.0, 60.0, 80.0)
_MATERIALS = {
    "soft": (1.06, (0.3790, 0.2688, 0.2264, 0.2048, 0.1823)),
    "lung": (0.26, (0.3790, 0.2688, 0.2264, 0.2048, 0.1823)),
    "fat": (0.95, (0.3063, 0.2396, 0.2123, 0.1974, 0.1800)),
    "bone": (1.92, (1.331, 0.6655, 0.4242, 0.3148, 0.2229)),
    "aluminium": (2.699, (1.128, 0.5685, 0.3681, 0.2778, 0.2018)),
    "iron": (7.874, (8.176, 3.629, 1.958, 1.205, 0.5952)),
    "lead": (11.35, (30.32, 14.36, 8.041, 5.021, 2.419)),
}


@dataclasses.dataclass(frozen=True)
class Attenuation:
    """Linear attenuation coefficients at the beam's effective energy, 1/mm; gas counts as 0."""

    soft: float
    lung: float
    fat: float
    bone: float
    aluminium: float
    iron: float
    lead: float


def attenuation(energy_kev: float) -> Attenuation:
    """Coefficients at one energy, interpolated on logarithmic scales between those of NIST."""
    at = [log(e) for e in _ENERGIES_KEV]
    return Attenuation(
        **{
            name: density / 10 * exp(interpolate(log(energy_kev), at, [log(v) for v in values]))
            for name, (density, values) in _MATERIALS.items()
        }
    )


@dataclasses.dataclass(frozen=True)
class Site:
    """A hospital's detector and habits. All figures approximate, within the usual range.

    Attributes:
      quanta: detected in the whole image at the usual dose.
      scatter: scattered over primary radiation behind 20 cm of tissue.
      blur: standard deviation of the detector's blur, mm.
      electronic: standard deviation of the electronic noise, relative to the mean signal.
      heel: change of the beam from edge to edge, along columns or rows.
      contrast: grey values per unit of optical depth.
      sharpening: weight of the unsharp mask that the processing adds.
      shutter: grey value of what the collimator hides.
      noise_correlation: share of neighbouring pixels that a quantum spreads to.
    """

    quanta: float
    scatter: float
    blur: float
    electronic: float
    heel: float
    heel_along_rows: bool
    contrast: float
    sharpening: float
    shutter: float
    noise_correlation: float


# Quanta: 2.5 µGy at the detector (a usual target), 3.0e4 quanta per mm2 and µGy (IEC 62220-1,
# quality RQA5), efficiency 0.65 and 0.35, over a field of 300 mm x 300 mm.
SITES = {
    "a": Site(2.5 * 3.0e4 * 0.65 * 9e4, 0.5, 0.15, 0.002, 0.12, False, 1500, 0.0, 0.0, 0.0),
    "b": Site(2.5 * 3.0e4 * 0.35 * 9e4, 0.8, 0.28, 0.004, 0.2, True, 1250, 0.6, 3500.0, 0.12),
}
_MID_GREY = 2100.0
_COMPRESSION = 0.6
_CHAMBER = (slice(12, 25), slice(11, 21))  # of the samples below
_SAMPLES = 32  # the scatter and the exposure are computed on a grid of this many points a side


def _smooth(image: np.ndarray, weight: float) -> np.ndarray:
    """Each pixel gives `weight` of itself to either neighbour, along both axes."""
    side, centre = np.float32(weight), np.float32(1 - 2 * weight)
    out = image * centre
    out[1:] += image[:-1] * side
    out[:-1] += image[1:] * side
    out[0] += image[0] * side
    out[-1] += image[-1] * side
    image, out = out, out * centre
    out[:, 1:] += image[:, :-1] * side
    out[:, :-1] += image[:, 1:] * side
    out[:, 0] += image[:, 0] * side
    out[:, -1] += image[:, -1] * side
    return out


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear from a small square grid to `[size, size]`."""
    n = len(grid)
    at = np.clip((np.arange(size) + 0.5) * (n / size) - 0.5, 0, n - 1).astype(np.float32)
    low = np.minimum(at.astype(np.int32), n - 2)
    weight = at - low.astype(np.float32)
    rows = grid[low] + (grid[low + 1] - grid[low]) * weight[:, None]
    rows = np.ascontiguousarray(rows)
    left = rows[:, low]
    enlarged: np.ndarray = left + (rows[:, low + 1] - left) * weight[None, :]
    return enlarged


def _normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Nearly normal noise `[size, size]`: the sum of four uniform bytes, exact on any machine."""
    random = np.frombuffer(rng.bytes(4 * size * size), np.uint8).reshape(4, size, size)
    total = random[0].astype(np.int32)
    for k in range(1, 4):
        total += random[k]
    noise = total.astype(np.float32)
    noise -= np.float32(510)
    noise *= np.float32(1 / 147.8)  # 2 sqrt((256**2 - 1) / 12)
    return np.asarray(noise)


def expose(
    depth: np.ndarray,
    field: np.ndarray,
    pixel: float,
    site: Site,
    *,
    dose: float,
    thickness: float,
    gridded: bool,
    brightness: float,
    contrast: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The image as the detector's computer stores it: uint16 `[size, size]`, 12 bits.

    Args:
      depth: optical depth, float32 `[size, size]`.
      field: 1 inside of the collimation, 0 outside, float32 `[size, size]`.
      pixel: mm.
      site: the detector.
      dose: relative to the usual one. The automatic exposure makes the detected quanta per image
        independent of the patient's thickness and of the field's size, so that neither age nor
        condition can be read from the noise.
      thickness: of the patient, mm: makes scatter.
      gridded: an anti-scatter grid was used.
      brightness: grey values added, because exposures and processing differ from image to image.
      contrast: factor on the site's usual contrast.
      rng: of this image at this size.
    """
    size = len(depth)
    primary = exp_of_minus(depth)
    ramp = (np.arange(size) * (1 / size) - 0.5).astype(np.float32)
    beam = np.float32(1) + np.float32(site.heel) * ramp
    primary *= beam[None, :] if site.heel_along_rows else beam[:, None]
    primary *= field
    # Scatter: a broad blur of the primary, on a coarse grid.
    points = ((np.arange(_SAMPLES) * 2 + 1) * size) // (2 * _SAMPLES)
    coarse = primary[points][:, points]
    # Only radiation attenuated by the patient scatters; the open beam beside it does not.
    broad = np.minimum(coarse, np.float32(0.25))
    for _ in range(8):
        broad = _smooth(broad, 0.25)
    amount = site.scatter * thickness / 200 * (1.0 if gridded else 1.8)
    signal = primary + _enlarge(broad * np.float32(amount), size)
    # Automatic exposure: the geometric mean over the chamber, which lies behind the middle of the
    # abdomen, becomes 1. fsum is exact, in any order.
    chamber = log_of(np.maximum(coarse + broad * np.float32(amount), np.float32(1e-4))[_CHAMBER])
    mean = exp(math.fsum(chamber.ravel().tolist()) / chamber.size)
    inside = field[points][:, points]
    behind = (coarse < np.float32(0.6)) & (inside > 0)
    signal *= np.float32(1 / mean)
    quanta = site.quanta * dose / (size * size)
    noise = np.sqrt(signal * np.float32(1 / quanta))
    noise *= _normal(rng, size)
    if site.noise_correlation:
        noise = _smooth(noise, site.noise_correlation)
    signal += noise
    if site.electronic:
        relative = site.electronic / square_root(dose) * 0.3
        signal += _normal(rng, size) * np.float32(relative)
    # Aperture of the pixel, and the detector's blur where the pixels are small enough.
    sigma = site.blur / pixel
    weight = min(0.08 + sigma * sigma / 2, 0.25)
    signal = _smooth(signal, weight)
    grey = log_of(signal)
    # The processing centres the grey values of the patient, as every manufacturer's does.
    reference = grey[points][:, points][behind if behind.any() else inside >= 0]
    centre = math.fsum(reference.tolist()) / len(reference)
    grey -= np.float32(centre)
    # Dynamic range compression: part of the slow changes, such as the patient's thickness, is
    # taken out, so that fine detail can be shown with more contrast.
    slow = np.clip(grey[points][:, points], np.float32(-1.5), np.float32(1.2))
    for _ in range(6):
        slow = _smooth(slow, 0.25)
    grey -= _enlarge(slow * np.float32(_COMPRESSION), size)
    grey *= np.float32(-site.contrast * contrast)
    if site.sharpening:
        soft = _smooth(_smooth(grey, 0.25), 0.25)
        soft -= grey
        soft *= np.float32(-site.sharpening)
        grey += soft
    grey += np.float32(_MID_GREY + brightness)
    grey = _shoulder(grey)
    grey *= field
    grey += (np.float32(1) - field) * np.float32(site.shutter)
    np.clip(grey, 0, 4095, out=grey)
    grey += np.float32(0.5)
    return grey.astype(np.uint16)


def _shoulder(grey: np.ndarray) -> np.ndarray:
    """The S of a characteristic curve: linear in the middle, bent towards 0 and 4095."""
    t = (grey - np.float32(2048)) * np.float32(1 / 2048)
    return np.float32(2048) + np.float32(2048) * t / np.sqrt(
        np.float32(1) + np.float32(0.45) * t * t
    )
