// softmax(q k / sqrt(head_dim)) v in one pass over keys and values, float32, for whatever vectors the CPU has.
//
// Queries stand side by side in a vector's lanes, so that each number of a key or a value is read once, where it lies,
// for up to 2 * LANES of them. Keys come in tiles; sums are scaled down whenever a tile brings a larger score
// (online softmax: Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, 2205.14135). What `engine.native` loads.

#include <cmath>
#include <cstdint>
#include <cstring>

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

constexpr int TILE = 64;     // keys between two looks at the largest score
constexpr int BLOCK = 8;     // of a tile's keys, and of the values' numbers, summed up at once: they fill the registers
constexpr int LINE = 16;     // floats that a prefetch brings
constexpr int MAX_DIM = 256; // of a head; its sums live on the stack

struct Head {
    const float *keys, *values; // [slots, dim]
    int64_t first;              // slot of the first key that is seen; the others follow it,
    const int64_t *slots;       // unless these are theirs
    int64_t visible, dim;

    int64_t offset(int64_t number) const { return (slots ? slots[number] : first + number) * dim; }
};

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

// Where weights are wanted: adds those of a head to `mean`, with room for what is known only at the end.
template <int N> struct Watch {
    Vector (*mean)[N], (*weights)[N]; // [visible]
    Vector (*peaks)[N];               // [tiles]
};

// N vectors of queries, turned round to [dim][N], against one head -> sums [dim][N], softmax'ed.
template <int N>
void attend(const Head &head, const Vector (*turned)[N], Vector (*sums)[N], const Watch<N> *watch) {
    Vector weights[TILE][N], best[N], total[N];
    std::memset(sums, 0, head.dim * sizeof(*sums));
    for (int n = 0; n < N; n++) {
        best[n] = Vector{} - INFINITY;
        total[n] = Vector{};
    }
    for (int64_t begin = 0; begin < head.visible; begin += TILE) {
        const int64_t left = head.visible - begin;
        const int count = left < TILE ? (int)left : TILE;
        const float *value[TILE];
        for (int j = 0; j < count; j++)
            value[j] = head.values + head.offset(begin + j);
        Vector peak[N], shrink[N];
        for (int n = 0; n < N; n++)
            peak[n] = best[n];
        for (int first = 0; first < count; first += BLOCK) {
            const float *key[BLOCK]; // the last one again where there are fewer: it changes no maximum
            for (int b = 0; b < BLOCK; b++)
                key[b] = head.keys + head.offset(begin + (first + b < count ? first + b : count - 1));
            // The hardware sees no pattern in so many streams: without this, keys and values are waited for.
            if (left >= 2 * TILE)
                for (int b = 0; b < BLOCK; b++)
                    for (int64_t at = head.offset(begin + TILE + first + b), end = at + head.dim; at < end; at += LINE) {
                        __builtin_prefetch(head.keys + at);
                        __builtin_prefetch(head.values + at);
                    }
            Vector scores[BLOCK][N] = {};
            for (int64_t d = 0; d < head.dim; d++)
                for (int b = 0; b < BLOCK; b++)
                    for (int n = 0; n < N; n++)
                        scores[b][n] += turned[d][n] * key[b][d];
            for (int b = 0; b < BLOCK; b++)
                for (int n = 0; n < N; n++) {
                    weights[first + b][n] = scores[b][n];
                    peak[n] = scores[b][n] > peak[n] ? scores[b][n] : peak[n];
                }
        }
        for (int n = 0; n < N; n++) {
            shrink[n] = exponential(best[n] - peak[n]);
            best[n] = peak[n];
            Vector part = {};
            for (int j = 0; j < count; j++)
                part += weights[j][n] = exponential(weights[j][n] - peak[n]);
            total[n] = total[n] * shrink[n] + part;
        }
        if (watch) {
            std::memcpy(watch->weights + begin, weights, count * sizeof(*weights));
            std::memcpy(watch->peaks + begin / TILE, peak, sizeof peak);
        }
        // A tile's own sums first: thousands of terms in one row would each be rounded to the size of their sum.
        for (int64_t first = 0; first < head.dim; first += BLOCK) {
            Vector part[BLOCK][N] = {};
            for (int j = 0; j < count; j++)
                for (int b = 0; b < BLOCK; b++)
                    for (int n = 0; n < N; n++)
                        part[b][n] += weights[j][n] * value[j][first + b];
            for (int b = 0; b < BLOCK; b++)
                for (int n = 0; n < N; n++)
                    sums[first + b][n] = sums[first + b][n] * shrink[n] + part[b][n];
        }
    }
    for (int64_t d = 0; d < head.dim; d++)
        for (int n = 0; n < N; n++)
            sums[d][n] /= total[n];
    for (int64_t j = 0; watch && j < head.visible; j += TILE)
        for (int n = 0; n < N; n++) {
            const Vector share = exponential(watch->peaks[j / TILE][n] - best[n]) / total[n];
            const int64_t end = j + TILE < head.visible ? j + TILE : head.visible;
            for (int64_t key = j; key < end; key++)
                watch->mean[key][n] += watch->weights[key][n] * share;
        }
}

// Queries [first, last) of one head of the keys, counted over all rows: a row has `group` of them.
struct Queries {
    const float *q;
    float *out;
    int64_t q_row, out_row, group, first, last;
};

template <int N> void attend(const Queries &queries, const Head &head, const Watch<N> *watch = nullptr) {
    Vector turned[MAX_DIM][N], sums[MAX_DIM][N];
    const int64_t count = queries.last - queries.first;
    const float scale = 1.0f / std::sqrt((float)head.dim);
    std::memset(turned, 0, head.dim * sizeof(*turned));
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = (queries.first + i) / queries.group, member = (queries.first + i) % queries.group;
        const float *q = queries.q + row * queries.q_row + member * head.dim;
        for (int64_t d = 0; d < head.dim; d++)
            ((float *)turned[d])[i] = q[d] * scale;
    }
    attend<N>(head, turned, sums, watch);
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = (queries.first + i) / queries.group, member = (queries.first + i) % queries.group;
        float *out = queries.out + row * queries.out_row + member * head.dim;
        for (int64_t d = 0; d < head.dim; d++)
            out[d] = ((const float *)sums[d])[i];
    }
}

// Rows [first, last), for all heads one after the other, so that their weights add up: to mean [rows][visible].
template <int N>
void watch(float *out, int64_t out_row, const float *q, int64_t q_row, Head head, int64_t kv_head, int64_t heads,
           int64_t group, int64_t first, int64_t last, float *mean, Vector *room) {
    Vector(*sums)[N] = (Vector(*)[N])room;
    const Watch<N> watch = {sums, sums + head.visible, sums + 2 * head.visible};
    std::memset(sums, 0, head.visible * sizeof(*sums));
    const Head of_first = head;
    for (int64_t h = 0; h < heads; h++) {
        head.keys = of_first.keys + h / group * kv_head;
        head.values = of_first.values + h / group * kv_head;
        attend<N>({q + h * head.dim, out + h * head.dim, q_row, out_row, 1, first, last}, head, &watch);
    }
    for (int64_t begin = 0; begin < head.visible; begin += TILE) {
        const int64_t end = begin + TILE < head.visible ? begin + TILE : head.visible;
        for (int64_t row = first; row < last; row++)
            for (int64_t key = begin; key < end; key++)
                mean[row * head.visible + key] = ((const float *)sums[key])[row - first] / (float)heads;
    }
}

} // namespace

extern "C" int omp_get_thread_num() noexcept;

// Rows [start, stop) of q, which see `visible` keys: see Head.
struct Segment {
    int64_t start, stop, visible, first;
    const int64_t *slots;

    int64_t parts(int64_t group) const { return ((stop - start) * group + 2 * LANES - 1) / (2 * LANES); }
};

// q and out [rows, kv_heads * group, dim], rows q_row and out_row floats apart; keys and values [kv_heads, slots, dim],
// heads kv_head floats apart. dim is a multiple of 8, at most 256. Rows of no segment are left as they are.
extern "C" void attention(float *out, int64_t out_row, const float *q, int64_t q_row, const float *keys,
                          const float *values, int64_t kv_head, int64_t kv_heads, int64_t group, int64_t dim,
                          const Segment *segments, int64_t num_segments, int threads) {
    int64_t items = 0;
    for (int64_t i = 0; i < num_segments; i++)
        items += segments[i].parts(group) * kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; item++) {
        const Segment *segment = segments;
        int64_t number = item;
        for (; number >= segment->parts(group) * kv_heads; segment++)
            number -= segment->parts(group) * kv_heads;
        const int64_t kv = number / segment->parts(group), part = number % segment->parts(group);
        const int64_t first = segment->start * group + part * 2 * LANES, end = segment->stop * group;
        const int64_t last = first + 2 * LANES < end ? first + 2 * LANES : end;
        const Queries queries = {q + kv * group * dim, out + kv * group * dim, q_row, out_row, group, first, last};
        const Head head = {keys + kv * kv_head, values + kv * kv_head, segment->first,
                           segment->slots,      segment->visible,      dim};
        if (last - first > LANES)
            attend<2>(queries, head);
        else
            attend<1>(queries, head);
    }
}

// As `attention` for rows that all see [kv_heads, visible, dim], and mean [rows, visible] of their weights over heads.
// room: for each thread (2 * visible + visible / TILE + 1) * 32 floats; 2 * LANES are no more than 32.
extern "C" void watched_attention(float *out, int64_t out_row, const float *q, int64_t q_row, const float *keys,
                                  const float *values, int64_t kv_head, int64_t kv_heads, int64_t group, int64_t dim,
                                  int64_t rows, int64_t visible, float *mean, float *room, int threads) {
    const Head head = {keys, values, 0, nullptr, visible, dim};
    const int64_t heads = kv_heads * group, room_size = (2 * visible + visible / TILE + 1) * 32;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < rows; first += 2 * LANES) {
        const int64_t last = first + 2 * LANES < rows ? first + 2 * LANES : rows;
        Vector *own = (Vector *)(room + omp_get_thread_num() * room_size);
        if (last - first > LANES)
            watch<2>(out, out_row, q, q_row, head, kv_head, heads, group, first, last, mean, own);
        else
            watch<1>(out, out_row, q, q_row, head, kv_head, heads, group, first, last, mean, own);
    }
}
