"""Sounds made of a formula that a detector of speech takes for a voice, in part."""

import numpy as np


def draw_speech(pitch, samples, rate=16_000):
    """Harmonics of a moving pitch under two moving formants, in syllables: (samples,) float32 in [-1, 1]."""
    t = np.arange(samples) / rate
    turns = 2 * np.pi * (pitch * t + 0.1 * pitch * np.sin(2 * np.pi * 0.9 * t))
    first, second = 500 + 250 * np.sin(2 * np.pi * 2.3 * t), 1500 + 600 * np.sin(2 * np.pi * 1.7 * t)
    x = np.zeros(samples)
    for k in range(1, 20):
        near = np.exp(-(((k * pitch - first) / 150) ** 2)) + 0.5 * np.exp(
            -(((k * pitch - second) / 200) ** 2)
        )
        x += near * np.sin(k * turns)
    syllables = np.clip(2 * np.sin(2 * np.pi * 4 * t), 0, 1) * (np.sin(2 * np.pi * 0.6 * t) > -0.5)
    return (0.2 * x * syllables).astype(np.float32)
