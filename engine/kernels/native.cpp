// softmax(q k / sqrt(head_dim)) v in one pass over keys and values, float32, for whatever vectors the CPU has.
//
// Queries stand side by side in a vector's lanes, each with a horizon of its own: the number of keys that it sees. So
// each number of a key or a value is read once, where it lies, for up to 2 * LANES of them. Keys come in tiles; sums are
// scaled down whenever a tile brings a larger score (online softmax: Milakov and Gimelshein, arXiv 1805.02867;
// FlashAttention, 2205.14135). What `engine.kernels.native` loads.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int TILE = 64;     // keys between two looks at the largest score
constexpr int BLOCK = 8;     // of a tile's keys, and of the values' numbers, summed up at once: they fill the registers
constexpr int MAX_DIM = 256; // of a head; its sums live on the stack

struct Head {
    const float *keys, *values; // [slots, dim]
    int64_t first;              // slot of the first key that is seen; the others follow it,
    const int64_t *slots;       // unless these are theirs
    int64_t visible, dim;       // visible: the largest horizon of the queries at hand

    int64_t offset(int64_t number) const { return (slots ? slots[number] : first + number) * dim; }
};

// Which queries see this key.
inline Integers sees(const Integers horizons, int64_t key) { return horizons > (int32_t)key; }

// Where weights are wanted: adds those of a head to `mean`, with room for what is known only at the end.
template <int N> struct Watch {
    Vector (*mean)[N], (*weights)[N]; // [visible]
    Vector (*peaks)[N];               // [tiles]
};

// How many keys each query sees, from the first one on: at least 1.
template <int N> struct Horizons {
    Integers each[N];
    int64_t least; // up to here, all queries see every key
};

// N vectors of queries, turned round to [dim][N], against one head -> sums [dim][N], softmax'ed.
template <int N>
void attend(const Head &head, const Vector (*turned)[N], const Horizons<N> &horizons, Vector (*sums)[N],
            const Watch<N> *watch) {
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
            const bool is_cut = begin + first + BLOCK > horizons.least;
            for (int b = 0; b < BLOCK; b++)
                for (int n = 0; n < N; n++) {
                    if (is_cut)
                        scores[b][n] = sees(horizons.each[n], begin + first + b) ? scores[b][n] : Vector{} - INFINITY;
                    weights[first + b][n] = scores[b][n];
                    peak[n] = scores[b][n] > peak[n] ? scores[b][n] : peak[n];
                }
        }
        for (int n = 0; n < N; n++) {
            shrink[n] = exponential(best[n] - peak[n]);
            best[n] = peak[n];
            Vector part = {};
            const bool is_cut = begin + count > horizons.least;
            for (int j = 0; j < count; j++) {
                weights[j][n] = exponential(weights[j][n] - peak[n]);
                if (is_cut) // `exponential` has no 0
                    weights[j][n] = sees(horizons.each[n], begin + j) ? weights[j][n] : Vector{};
                part += weights[j][n];
            }
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
    const int64_t *horizons; // [rows], or none: then all see `Head::visible` keys
};

template <int N> Horizons<N> horizons_of(const Queries &queries, Head &head) {
    Horizons<N> horizons;
    int64_t most = horizons.least = queries.horizons ? queries.horizons[queries.first / queries.group] : head.visible;
    for (int n = 0; n < N; n++)
        horizons.each[n] = Integers{} + (int32_t)most;
    for (int64_t i = 0; queries.horizons && i < queries.last - queries.first; i++) {
        const int64_t horizon = queries.horizons[(queries.first + i) / queries.group];
        ((int32_t *)horizons.each)[i] = (int32_t)horizon;
        most = horizon > most ? horizon : most;
        horizons.least = horizon < horizons.least ? horizon : horizons.least;
    }
    head.visible = most;
    return horizons;
}

template <int N> void attend(const Queries &queries, Head head, const Watch<N> *watch = nullptr) {
    Vector turned[MAX_DIM][N], sums[MAX_DIM][N];
    const int64_t count = queries.last - queries.first;
    const Horizons<N> horizons = horizons_of<N>(queries, head);
    const float scale = 1.0f / std::sqrt((float)head.dim);
    std::memset(turned, 0, head.dim * sizeof(*turned));
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = (queries.first + i) / queries.group, member = (queries.first + i) % queries.group;
        const float *q = queries.q + row * queries.q_row + member * head.dim;
        for (int64_t d = 0; d < head.dim; d++)
            ((float *)turned[d])[i] = q[d] * scale;
    }
    attend<N>(head, turned, horizons, sums, watch);
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
        attend<N>({q + h * head.dim, out + h * head.dim, q_row, out_row, 1, first, last, nullptr}, head, &watch);
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

// Rows [start, stop) of q, all of one sequence, whose keys are `first` or `slots`: see Head.
struct SpanAddress {
    int64_t start, stop, first;
    const int64_t *slots;

    int64_t parts(int64_t group) const { return ((stop - start) * group + 2 * LANES - 1) / (2 * LANES); }
};

// q and out [rows, kv_heads * group, dim], rows q_row and out_row floats apart; keys and values [kv_heads, slots, dim],
// heads kv_head floats apart; horizons [rows], at least 1. dim is a multiple of 8, at most 256. Rows of no span are left
// as they are.
extern "C" void attention(float *out, int64_t out_row, const float *q, int64_t q_row, const float *keys,
                          const float *values, int64_t kv_head, int64_t kv_heads, int64_t group, int64_t dim,
                          const SpanAddress *spans, int64_t num_spans, const int64_t *horizons, int threads) {
    int64_t items = 0;
    for (int64_t i = 0; i < num_spans; i++)
        items += spans[i].parts(group) * kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; item++) {
        const SpanAddress *span = spans;
        int64_t number = item;
        for (; number >= span->parts(group) * kv_heads; span++)
            number -= span->parts(group) * kv_heads;
        const int64_t kv = number / span->parts(group), part = number % span->parts(group);
        const int64_t first = span->start * group + part * 2 * LANES, end = span->stop * group;
        const int64_t last = first + 2 * LANES < end ? first + 2 * LANES : end;
        const Queries queries = {q + kv * group * dim, out + kv * group * dim, q_row, out_row, group, first, last, horizons};
        const Head head = {keys + kv * kv_head, values + kv * kv_head, span->first, span->slots, 0, dim};
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
