// softmax(q k / sqrt(head_dim)) v in one pass over keys and values, float32, for whatever vectors the CPU has. Keys and
// values are floats, read where they lie, or codes, of which a tile at a time becomes floats for all queries at hand.
//
// Queries stand side by side in a vector's lanes, each with a horizon of its own: the number of keys that it sees. So
// each number of a key or a value is read once, where it lies, for up to 2 * LANES of them. Keys come in tiles; sums are
// scaled down whenever a tile brings a larger score (online softmax: Milakov and Gimelshein, arXiv 1805.02867;
// FlashAttention, 2205.14135). What `engine.kernels.native` loads.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codes.h"
#include "vectors.h"

namespace {

constexpr int TILE = 64;     // keys between two looks at the largest score
constexpr int BLOCK = 8;     // of a tile's keys, and of the values' numbers, summed up at once: they fill the registers
constexpr int MAX_DIM = 256; // of a head; its sums live on the stack

// Keys and values of one head in one sequence.
template <typename Number> struct Head {
    const Number *keys, *values;            // [slots, dim]
    const float *key_scales, *value_scales; // [slots] of codes; floats have none
    int64_t first;                          // slot of the first key that is seen; the others follow it,
    const int64_t *slots;                   // unless these are theirs
    int64_t dim;

    int64_t slot(int64_t number) const { return slots ? slots[number] : first + number; }
    int64_t offset(int64_t number) const { return slot(number) * dim; }
};

// Up to TILE keys and values as floats.
template <typename Number> struct Tile {
    const float *keys[TILE], *values[TILE];
    float room[2][TILE * MAX_DIM];

    // has_next: whether a whole tile comes behind it.
    void turn_to(const Head<Number> &head, int64_t begin, int count, bool has_next) {
        for (int j = 0; j < count; j++) {
            const int64_t slot = head.slot(begin + j), at = slot * head.dim;
            float *key = room[0] + j * head.dim, *value = room[1] + j * head.dim;
            widen(key, head.keys + at, head.dim, head.key_scales[slot]);
            widen(value, head.values + at, head.dim, head.value_scales[slot]);
            keys[j] = key;
            values[j] = value;
            if (has_next) {
                const int64_t next = head.slot(begin + TILE + j);
                for (int64_t d = 0; d < head.dim; d += LINE * (int64_t)sizeof(float)) {
                    __builtin_prefetch(head.keys + next * head.dim + d);
                    __builtin_prefetch(head.values + next * head.dim + d);
                }
                __builtin_prefetch(head.key_scales + next);
                __builtin_prefetch(head.value_scales + next);
            }
        }
    }
    void look_ahead(const Head<Number> &, int64_t) const {}
};
template <> struct Tile<float> {
    const float *keys[TILE], *values[TILE];

    void turn_to(const Head<float> &head, int64_t begin, int count, bool) {
        for (int j = 0; j < count; j++) {
            keys[j] = head.keys + head.offset(begin + j);
            values[j] = head.values + head.offset(begin + j);
        }
    }
    // The hardware sees no pattern in so many streams: without this, keys and values are waited for.
    void look_ahead(const Head<float> &head, int64_t number) const {
        for (int b = 0; b < BLOCK; b++)
            for (int64_t at = head.offset(number + b), end = at + head.dim; at < end; at += LINE) {
                __builtin_prefetch(head.keys + at);
                __builtin_prefetch(head.values + at);
            }
    }
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

// N vectors of queries, turned round to [dim][N], and what they have attended to so far.
template <int N> struct Group {
    Vector turned[MAX_DIM][N], sums[MAX_DIM][N], best[N], total[N];
    Horizons<N> horizons;
    int64_t visible; // the largest of their horizons

    void begin(int64_t dim) {
        std::memset(sums, 0, dim * sizeof(*sums));
        for (int n = 0; n < N; n++) {
            best[n] = Vector{} - INFINITY;
            total[n] = Vector{};
        }
    }

    // Keys [begin, begin + TILE), as far as they are visible. Calls ahead(first) for each BLOCK of them.
    template <typename Number, typename Ahead>
    void add(const Tile<Number> &tile, int64_t begin, int64_t dim, const Watch<N> *watch, const Ahead &ahead) {
        const int count = visible - begin < TILE ? (int)(visible - begin) : TILE;
        Vector weights[TILE][N], peak[N], shrink[N];
        for (int n = 0; n < N; n++)
            peak[n] = best[n];
        for (int first = 0; first < count; first += BLOCK) {
            const float *key[BLOCK]; // the last one again where there are fewer: it changes no maximum
            for (int b = 0; b < BLOCK; b++)
                key[b] = tile.keys[first + b < count ? first + b : count - 1];
            ahead(first);
            Vector scores[BLOCK][N] = {};
            for (int64_t d = 0; d < dim; d++)
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
        for (int64_t first = 0; first < dim; first += BLOCK) {
            Vector part[BLOCK][N] = {};
            for (int j = 0; j < count; j++)
                for (int b = 0; b < BLOCK; b++)
                    for (int n = 0; n < N; n++)
                        part[b][n] += weights[j][n] * tile.values[j][first + b];
            for (int b = 0; b < BLOCK; b++)
                for (int n = 0; n < N; n++)
                    sums[first + b][n] = sums[first + b][n] * shrink[n] + part[b][n];
        }
    }

    // After the last tile: the softmax.
    void end(int64_t dim, const Watch<N> *watch) {
        for (int64_t d = 0; d < dim; d++)
            for (int n = 0; n < N; n++)
                sums[d][n] /= total[n];
        for (int64_t j = 0; watch && j < visible; j += TILE)
            for (int n = 0; n < N; n++) {
                const Vector share = exponential(watch->peaks[j / TILE][n] - best[n]) / total[n];
                const int64_t last = j + TILE < visible ? j + TILE : visible;
                for (int64_t key = j; key < last; key++)
                    watch->mean[key][n] += watch->weights[key][n] * share;
            }
    }
};

// Queries [first, last) of one head of the keys, counted over all rows: a row has `group` of them.
struct Queries {
    const float *q;
    float *out;
    int64_t q_row, out_row, group, first, last;
    const int64_t *horizons; // [rows], or none: then all see `visible` keys
    int64_t visible, dim;

    int64_t offset(int64_t number, int64_t row_size) const {
        return (first + number) / group * row_size + (first + number) % group * dim;
    }

    template <int N> void read(Group<N> &into) const {
        const float scale = 1.0f / std::sqrt((float)dim);
        std::memset(into.turned, 0, dim * sizeof(*into.turned));
        for (int64_t i = 0; i < last - first; i++)
            for (int64_t d = 0; d < dim; d++)
                ((float *)into.turned[d])[i] = q[offset(i, q_row) + d] * scale;
        Horizons<N> &seen = into.horizons;
        int64_t most = seen.least = horizons ? horizons[first / group] : visible;
        for (int n = 0; n < N; n++)
            seen.each[n] = Integers{} + (int32_t)most;
        for (int64_t i = 0; horizons && i < last - first; i++) {
            const int64_t horizon = horizons[(first + i) / group];
            ((int32_t *)seen.each)[i] = (int32_t)horizon;
            most = horizon > most ? horizon : most;
            seen.least = horizon < seen.least ? horizon : seen.least;
        }
        into.visible = most;
        into.begin(dim);
    }

    template <int N> void write(const Group<N> &from) const {
        for (int64_t i = 0; i < last - first; i++)
            for (int64_t d = 0; d < dim; d++)
                out[offset(i, out_row) + d] = ((const float *)from.sums[d])[i];
    }
};

// All queries at hand, N vectors of them at a time, against one head: each tile is made of it once.
template <int N, int GROUPS, typename Number>
void attend(const Queries &queries, const Head<Number> &head, const Watch<N> *watch = nullptr) {
    Group<N> groups[GROUPS];
    Queries parts[GROUPS];
    int used = 0;
    int64_t visible = 0;
    for (int64_t first = queries.first; first < queries.last; first += N * LANES, used++) {
        parts[used] = queries;
        parts[used].first = first;
        parts[used].last = first + N * LANES < queries.last ? first + N * LANES : queries.last;
        parts[used].read(groups[used]);
        visible = groups[used].visible > visible ? groups[used].visible : visible;
    }
    Tile<Number> tile;
    for (int64_t begin = 0; begin < visible; begin += TILE) {
        const int64_t left = visible - begin;
        const bool has_next = left >= 2 * TILE;
        tile.turn_to(head, begin, left < TILE ? (int)left : TILE, has_next);
        for (int g = 0; g < used; g++)
            if (begin < groups[g].visible)
                groups[g].add(tile, begin, head.dim, watch, [&](int64_t first) {
                    if (has_next)
                        tile.look_ahead(head, begin + TILE + first);
                });
    }
    for (int g = 0; g < used; g++) {
        groups[g].end(head.dim, watch);
        parts[g].write(groups[g]);
    }
}

// Rows [first, last), for all heads one after the other, so that their weights add up: to mean [rows][visible].
template <int N>
void watch(float *out, int64_t out_row, const float *q, int64_t q_row, Head<float> head, int64_t visible, int64_t kv_head,
           int64_t heads, int64_t group, int64_t first, int64_t last, float *mean, Vector *room) {
    Vector(*sums)[N] = (Vector(*)[N])room;
    const Watch<N> watch = {sums, sums + visible, sums + 2 * visible};
    std::memset(sums, 0, visible * sizeof(*sums));
    const Head<float> of_first = head;
    for (int64_t h = 0; h < heads; h++) {
        head.keys = of_first.keys + h / group * kv_head;
        head.values = of_first.values + h / group * kv_head;
        const Queries queries = {q + h * head.dim, out + h * head.dim, q_row, out_row, 1, first, last, nullptr, visible, head.dim};
        attend<N, 1, float>(queries, head, &watch);
    }
    for (int64_t begin = 0; begin < visible; begin += TILE) {
        const int64_t end = begin + TILE < visible ? begin + TILE : visible;
        for (int64_t row = first; row < last; row++)
            for (int64_t key = begin; key < end; key++)
                mean[row * visible + key] = ((const float *)sums[key])[row - first] / (float)heads;
    }
}

} // namespace

extern "C" int omp_get_thread_num() noexcept;

// Rows [start, stop) of q, all of one sequence, whose keys are `first` or `slots`: see Head.
struct SpanAddress {
    int64_t start, stop, first;
    const int64_t *slots;

    int64_t parts(int64_t group, int64_t size) const { return ((stop - start) * group + size - 1) / size; }
};

namespace {

// Keys and values [kv_heads, slots, dim], heads `head` numbers apart, and of codes scales [kv_heads, slots], heads
// `scale_head` apart.
template <typename Number> struct Stored {
    const Number *keys, *values;
    int64_t head;
    const float *key_scales, *value_scales;
    int64_t scale_head;
};

// The more queries of a head are one piece of work, up to GROUPS * 2 * LANES, the less often a tile is made of codes.
template <int GROUPS, typename Number>
void attend_spans(float *out, int64_t out_row, const float *q, int64_t q_row, const Stored<Number> &stored,
                  int64_t kv_heads, int64_t group, int64_t dim, const SpanAddress *spans, int64_t num_spans,
                  const int64_t *horizons, int threads) {
    int64_t size = GROUPS * 4 * LANES, items = 0;
    do { // until no thread has to wait for another one's large piece
        size /= 2;
        items = 0;
        for (int64_t i = 0; i < num_spans; i++)
            items += spans[i].parts(group, size) * kv_heads;
    } while (size > 2 * LANES && items < 2 * threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; item++) {
        const SpanAddress *span = spans;
        int64_t number = item;
        for (; number >= span->parts(group, size) * kv_heads; span++)
            number -= span->parts(group, size) * kv_heads;
        const int64_t kv = number / span->parts(group, size), part = number % span->parts(group, size);
        const int64_t first = span->start * group + part * size, end = span->stop * group;
        const int64_t last = first + size < end ? first + size : end, skip = kv * group * dim;
        const Queries queries = {q + skip, out + skip, q_row, out_row, group, first, last, horizons, 0, dim};
        const Head<Number> head = {stored.keys + kv * stored.head,
                                   stored.values + kv * stored.head,
                                   stored.key_scales + kv * stored.scale_head,
                                   stored.value_scales + kv * stored.scale_head,
                                   span->first,
                                   span->slots,
                                   dim};
        if (last - first > LANES)
            attend<2, GROUPS, Number>(queries, head);
        else
            attend<1, 1, Number>(queries, head);
    }
}

} // namespace

// q and out [rows, kv_heads * group, dim], rows q_row and out_row floats apart; keys and values [kv_heads, slots, dim],
// heads kv_head floats apart; horizons [rows], at least 1. dim is a multiple of 8, at most 256. Rows of no span are left
// as they are.
extern "C" void attention(float *out, int64_t out_row, const float *q, int64_t q_row, const float *keys,
                          const float *values, int64_t kv_head, int64_t kv_heads, int64_t group, int64_t dim,
                          const SpanAddress *spans, int64_t num_spans, const int64_t *horizons, int threads) {
    const Stored<float> stored = {keys, values, kv_head, nullptr, nullptr, 0};
    attend_spans<1>(out, out_row, q, q_row, stored, kv_heads, group, dim, spans, num_spans, horizons, threads);
}

// As `attention` over codes, which are those of int8 or of e4m3, with scales [kv_heads, slots], heads scale_head apart.
extern "C" void coded_attention(float *out, int64_t out_row, const float *q, int64_t q_row, const void *keys,
                                const void *values, int64_t kv_head, int64_t kv_heads, int64_t group, int64_t dim,
                                const SpanAddress *spans, int64_t num_spans, const int64_t *horizons, int threads,
                                const float *key_scales, const float *value_scales, int64_t scale_head, int is_int8) {
    const auto attend = [=](auto number) {
        typedef decltype(number) Number;
        const Stored<Number> stored = {(const Number *)keys, (const Number *)values, kv_head,
                                       key_scales,           value_scales,           scale_head};
        attend_spans<4>(out, out_row, q, q_row, stored, kv_heads, group, dim, spans, num_spans, horizons, threads);
    };
    if (is_int8)
        attend(Int8());
    else
        attend(E4m3());
}

// As `attention` for rows that all see [kv_heads, visible, dim], and mean [rows, visible] of their weights over heads.
// room: for each thread (2 * visible + visible / TILE + 1) * 32 floats; 2 * LANES are no more than 32.
extern "C" void watched_attention(float *out, int64_t out_row, const float *q, int64_t q_row, const float *keys,
                                  const float *values, int64_t kv_head, int64_t kv_heads, int64_t group, int64_t dim,
                                  int64_t rows, int64_t visible, float *mean, float *room, int threads) {
    const Head<float> head = {keys, values, nullptr, nullptr, 0, nullptr, dim};
    const int64_t heads = kv_heads * group, room_size = (2 * visible + visible / TILE + 1) * 32;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < rows; first += 2 * LANES) {
        const int64_t last = first + 2 * LANES < rows ? first + 2 * LANES : rows;
        Vector *own = (Vector *)(room + omp_get_thread_num() * room_size);
        if (last - first > LANES)
            watch<2>(out, out_row, q, q_row, head, visible, kv_head, heads, group, first, last, mean, own);
        else
            watch<1>(out, out_row, q, q_row, head, visible, kv_head, heads, group, first, last, mean, own);
    }
}
