// What a layer does to each row beside products and attention, float32, one pass through memory each: rotation, gates,
// and writing keys and values to their slots. Threads share rows; no result depends on other rows. What
// `engine.kernels.native` loads.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codes.h"
#include "vectors.h"

namespace {

constexpr int64_t WORTH_A_THREAD = 32768; // numbers below which a second thread starts too late; torch's own bound

// The first `count` numbers, or as many as a vector has; 0 in other lanes. A copy of a fixed size is one instruction.
inline Vector load(const float *x, int64_t count) {
    Vector vector = {};
    if (count >= LANES)
        std::memcpy(&vector, x, sizeof vector);
    else
        std::memcpy(&vector, x, count * sizeof(float));
    return vector;
}

inline void store(float *x, const Vector vector, int64_t count) {
    if (count >= LANES)
        std::memcpy(x, &vector, sizeof vector);
    else
        std::memcpy(x, &vector, count * sizeof(float));
}

// x / (1 + e^-x). `exponential` has nothing above e^88: below -87 the result is x / e^87, which is as good as 0.
inline Vector silu(const Vector x) {
    return x / (exponential(-(x < -87.0f ? Vector{} - 87.0f : x)) + 1.0f);
}

// x [dim] as codes -> their scale, as `engine.kernels.kv.formats.quantised` has both.
template <typename Number> float code(Number *codes, const float *x, int64_t dim, float prune) {
    Floats8 peaks = {}, others = {};
    for (int64_t d = 0; d < dim; d += AT_ONCE) {
        Floats8 some;
        std::memcpy(&some, x + d, sizeof some);
        const Floats8 magnitude = (Floats8)((Ints8)some & 0x7FFFFFFF);
        peaks = magnitude > peaks ? magnitude : peaks;
        others += some * 0.0f; // NaN where a number is not finite
    }
    float peak = 0.0f;
    for (int i = 0; i < AT_ONCE; i++)
        peak = others[i] == 0.0f ? (peaks[i] > peak ? peaks[i] : peak) : NAN;
    const float scale = peak / Number::LARGEST;
    if (!(scale > 0.0f)) {
        std::memset(codes, 0, dim);
        return scale;
    }
    const float least = peak * prune;
    for (int64_t d = 0; d < dim; d += AT_ONCE) {
        Floats8 some;
        std::memcpy(&some, x + d, sizeof some);
        const Floats8 magnitude = (Floats8)((Ints8)some & 0x7FFFFFFF);
        some = magnitude < least ? Floats8{} : some;
        some /= scale;
        some = some > Number::LARGEST ? Floats8{} + Number::LARGEST : some;
        some = some < -Number::LARGEST ? Floats8{} - Number::LARGEST : some;
        encode(codes + d, some);
    }
    return scale;
}

template <typename Number>
void code_rows(Number *kept, int64_t head, float *scales, int64_t scale_head, const float *new_ones, int64_t row,
               const int64_t *slots, int64_t first, int64_t rows, int64_t heads, int64_t dim, int threads,
               float prune) {
#pragma omp parallel for num_threads(threads) if (rows * heads * dim > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t slot = slots ? slots[r] : first + r;
        for (int64_t h = 0; h < heads; h++)
            scales[h * scale_head + slot] = code(kept + h * head + slot * dim, new_ones + r * row + h * dim, dim, prune);
    }
}

} // namespace

// gate_up [rows, 2 * width], gates first -> out [rows, width]: silu(gate) * up.
extern "C" void gated(float *out, const float *gate_up, int64_t row, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++) {
        const float *gate = gate_up + r * row, *up = gate + width;
        for (int64_t i = 0; i < width; i += LANES)
            store(out + r * width + i, silu(load(gate + i, width - i)) * load(up + i, width - i), width - i);
    }
}

// x [rows, heads, dim], heads of a row contiguous -> out [rows, heads, dim]. cos and sin [rows, half]: the first 2 * half
// numbers of a head are rotated, the others are copied. Each product is rounded before the sum, as torch rounds it:
// results are torch's, bit by bit.
extern "C" void rotated(float *out, const float *x, int64_t row, const float *cos, const float *sin, int64_t rows,
                        int64_t heads, int64_t dim, int64_t half, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * heads * half > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++) {
        const float *c = cos + r * half, *s = sin + r * half;
        for (int64_t h = 0; h < heads; h++) {
            const float *low = x + r * row + h * dim, *high = low + half;
            float *to = out + (r * heads + h) * dim;
            for (int64_t i = 0; i < half; i += LANES) {
                const int64_t left = half - i;
                const Vector a = load(low + i, left), b = load(high + i, left);
                const Vector by = load(c + i, left), across = load(s + i, left);
                const Vector products[4] = {a * by, b * across, b * by, a * across};
                Vector rounded[4];
                for (int n = 0; n < 4; n++) {
                    rounded[n] = products[n];
                    __asm__("" : "+m"(rounded[n])); // the compiler cannot make one instruction of product and sum
                }
                store(to + i, rounded[0] - rounded[1], left);
                store(to + half + i, rounded[2] + rounded[3], left);
            }
            std::memcpy(to + 2 * half, low + 2 * half, (dim - 2 * half) * sizeof(float));
        }
    }
}

// new_ones [rows, heads, dim], heads of a row contiguous -> kept [heads, slots, dim], heads `head` floats apart: row r
// goes to slots[r], or to first + r without them.
extern "C" void written(float *kept, int64_t head, const float *new_ones, int64_t row, const int64_t *slots,
                        int64_t first, int64_t rows, int64_t heads, int64_t dim, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * heads * dim > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++) {
        float *to = kept + (slots ? slots[r] : first + r) * dim;
        for (int64_t h = 0; h < heads; h++)
            std::memcpy(to + h * head, new_ones + r * row + h * dim, dim * sizeof(float));
    }
}

// As `written`, to codes of int8 or of e4m3, and their scales [heads, slots], heads `scale_head` apart. dim is a multiple
// of 8. Numbers below `prune` times their row's largest magnitude become 0.
extern "C" void written_as_codes(void *kept, int64_t head, float *scales, int64_t scale_head, const float *new_ones,
                                 int64_t row, const int64_t *slots, int64_t first, int64_t rows, int64_t heads,
                                 int64_t dim, int threads, int is_int8, float prune) {
    if (is_int8)
        code_rows((Int8 *)kept, head, scales, scale_head, new_ones, row, slots, first, rows, heads, dim, threads, prune);
    else
        code_rows((E4m3 *)kept, head, scales, scale_head, new_ones, row, slots, first, rows, heads, dim, threads, prune);
}
