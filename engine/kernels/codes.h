// Codes of 8 bits for floats, int8 and e4m3 (fp8): `engine.kernels.kv.formats` defines both. All rows are multiples of 8.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

struct Int8 {
    static constexpr float LARGEST = 127.0f;
    int8_t code;
};

// A sign, 4 bits of an exponent that is 7 too large, 3 bits of a fraction.
struct E4m3 {
    static constexpr float LARGEST = 448.0f;
    uint8_t code;
};

constexpr int AT_ONCE = 8;
typedef float Floats8 __attribute__((vector_size(AT_ONCE * 4)));
typedef int32_t Ints8 __attribute__((vector_size(AT_ONCE * 4)));
typedef int16_t Shorts8 __attribute__((vector_size(AT_ONCE * 2)));
typedef int8_t Signed8 __attribute__((vector_size(AT_ONCE)));
typedef uint8_t Bytes8 __attribute__((vector_size(AT_ONCE)));

constexpr int SHIFT = 20;            // bits of a float's fraction that e4m3 lacks
constexpr int32_t BIAS = 120 << 23;  // by which the exponents of both differ
constexpr int32_t LEAST_NORMAL = 8;  // below it, codes are multiples of 2^-9
constexpr float HALVES = 12582912.0f; // a sum with it is rounded to a whole number, halves to the even one

// GCC and clang make eight moves of each such conversion, where the processor has one instruction.
#if defined(__AVX2__)
inline Ints8 widened(const Int8 *codes) { return (Ints8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)); }
inline Ints8 widened(const E4m3 *codes) { return (Ints8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes)); }
#else
template <typename Bytes, typename Number> inline Ints8 widened_by_halves(const Number *codes) {
    Bytes some;
    std::memcpy(&some, codes, sizeof some);
    return __builtin_convertvector(__builtin_convertvector(some, Shorts8), Ints8);
}
inline Ints8 widened(const Int8 *codes) { return widened_by_halves<Signed8>(codes); }
inline Ints8 widened(const E4m3 *codes) { return widened_by_halves<Bytes8>(codes); }
#endif

inline Floats8 value_of(const Int8 *codes) { return __builtin_convertvector(widened(codes), Floats8); }

inline Floats8 value_of(const E4m3 *codes) {
    const Ints8 bits = widened(codes), magnitude = bits & 0x7F;
    const Ints8 normal = (magnitude << SHIFT) + BIAS;
    const Ints8 small = (Ints8)(__builtin_convertvector(magnitude, Floats8) * 0x1p-9f);
    return (Floats8)((magnitude < LEAST_NORMAL ? small : normal) | (bits & 0x80) << 24);
}

// codes [dim] and their scale -> floats [dim].
template <typename Number> inline void widen(float *floats, const Number *codes, int64_t dim, float scale) {
    for (int64_t d = 0; d < dim; d += AT_ONCE) {
        const Floats8 some = value_of(codes + d) * scale;
        std::memcpy(floats + d, &some, sizeof some);
    }
}

// The lowest byte of each.
template <typename Number> inline void store(Number *codes, const Ints8 bits) {
    const Bytes8 some = __builtin_convertvector(__builtin_convertvector(bits, Shorts8), Bytes8);
    std::memcpy(codes, &some, sizeof some);
}

// Numbers whose magnitude is at most LARGEST -> their codes, the nearest ones, halves to even ones.
inline void encode(Int8 *codes, const Floats8 x) { store(codes, (Ints8)(x + HALVES)); }

inline void encode(E4m3 *codes, const Floats8 x) {
    const Ints8 bits = (Ints8)x, magnitude = bits & 0x7FFFFFFF;
    const Ints8 normal = (magnitude + ((1 << (SHIFT - 1)) - 1) + (magnitude >> SHIFT & 1) - BIAS) >> SHIFT;
    const Ints8 small = (Ints8)((Floats8)magnitude * 0x1p9f + HALVES) & 0xF;
    store(codes, (normal < LEAST_NORMAL ? small : normal) | (bits >> 24 & 0x80));
}

} // namespace
