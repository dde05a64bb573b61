// Vectors of whatever width the CPU has, in GCC's vector types, and what all sources compute with them.

#pragma once

#include <cstdint>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

namespace {

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));

constexpr int LINE = 16; // floats that a prefetch brings

// Cephes' expf down to -87, and no less than e^-87 below. NaN stays NaN.
inline Vector exponential(Vector x) {
    x = x < -87.0f ? Vector{} - 87.0f : x;
    const Vector rounded = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    const Vector rest = x - rounded * 0.693359375f + rounded * 2.12194440e-4f;
    Vector sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Integers power = (__builtin_convertvector(rounded, Integers) + 127) << 23;
    return sum * (Vector)power;
}

} // namespace
