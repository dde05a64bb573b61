// What scoring asks of logits [rows, vocab], in one pass over them, float32, for whatever vectors the CPU has: the best
// token, log-odds, draws with Gumbel noise, and the product of hidden rows and the head that makes logits.
//
// Threads share rows and parts of the vocabulary. Parts have a fixed length and are put together in their order, so
// that no result depends on threads or on other rows. What `engine.kernels.native_proposals` loads.

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

extern "C" int omp_get_thread_num() noexcept;

namespace {

typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

constexpr int PART = 4096; // logits of a row that a thread takes at once: they stay in its first cache
constexpr int GLANCE = 8;  // vectors between two looks at whether any number in them matters

// Of the product of hidden rows [rows, dim] and the head [vocab, dim]: rows stand in the lanes of up to two vectors.
constexpr int GROUP = 2 * LANES;
constexpr int BLOCK = LANES == 16 ? 12 : 6; // tokens that are multiplied at once: their sums fill the registers
constexpr int TILE = 192;                   // tokens whose logits wait in a cache until they are reduced
constexpr int TILES = 4;                    // of a part of the vocabulary that one thread takes
constexpr int DEPTH = 256;                  // numbers of a row that are multiplied before the next tokens come

// Of a part of a row.
struct Partial {
    float best;    // the largest logit of a token that may be proposed,
    int32_t token; // and the lowest id of those that have it
    float peak;    // the largest of all other logits,
    float sum;     // and the sum of e^(logit - peak) over these

    // Of two, the larger best and what is next to it; no sums.
    void meet(const Partial &other) {
        const bool leads = other.best > best;
        const float beaten = leads ? best : other.best, behind = leads ? other.peak : peak;
        best = leads ? other.best : best;
        token = leads ? other.token : token;
        peak = beaten > behind ? beaten : behind;
    }
};

inline Vector greater(Vector a, Vector b) { return a > b ? a : b; } // b if a is NaN

inline Vector load(const float *x) {
    Vector vector;
    std::memcpy(&vector, x, sizeof vector);
    return vector;
}

// The first `count` of fewer than LANES numbers; -inf in other lanes.
inline Vector load(const float *x, int64_t count) {
    Vector vector = Vector{} - INFINITY;
    std::memcpy(&vector, x, count * sizeof(float));
    return vector;
}

// Cephes' logf of positive, normal numbers.
inline Vector logarithm(Vector x) {
    Integers bits = (Integers)x;
    const Integers above = (bits & 0x007fffff) > 0x003504f3; // the fraction is above the root of 2
    const Vector power = __builtin_convertvector((bits >> 23) - 127 - above, Vector);
    const Vector rest = (Vector)((bits & 0x007fffff) | ((127 << 23) + (above & -(1 << 23)))) - 1.0f;
    const Vector square = rest * rest;
    Vector sum = rest * 7.0376836292e-2f - 1.1514610310e-1f;
    sum = sum * rest + 1.1676998740e-1f;
    sum = sum * rest - 1.2420140846e-1f;
    sum = sum * rest + 1.4249322787e-1f;
    sum = sum * rest - 1.6668057665e-1f;
    sum = sum * rest + 2.0000714765e-1f;
    sum = sum * rest - 2.4999993993e-1f;
    sum = sum * rest + 3.3333331174e-1f;
    sum = sum * rest * square - power * 2.12194440e-4f - square * 0.5f;
    return rest + sum + power * 0.693359375f;
}

float largest(const float *x, int64_t count) {
    Vector peaks[4];
    for (int n = 0; n < 4; n++)
        peaks[n] = Vector{} - INFINITY;
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int n = 0; n < 4; n++)
            peaks[n] = greater(load(x + i + n * LANES), peaks[n]);
    for (; i < count; i += LANES)
        peaks[0] = greater(count - i < LANES ? load(x + i, count - i) : load(x + i), peaks[0]);
    const Vector all = greater(greater(peaks[0], peaks[1]), greater(peaks[2], peaks[3]));
    float peak = -INFINITY;
    for (int lane = 0; lane < LANES; lane++)
        peak = all[lane] > peak ? all[lane] : peak;
    return peak;
}

inline bool is_any(Integers lanes) {
    int32_t any = 0;
    for (int lane = 0; lane < LANES; lane++)
        any |= lanes[lane];
    return any;
}

// Where `wanted` stands first; `count` if it does nowhere.
int64_t place(const float *x, int64_t count, float wanted) {
    int64_t i = 0;
    for (; i + GLANCE * LANES <= count; i += GLANCE * LANES) {
        Integers met = {};
        for (int n = 0; n < GLANCE; n++)
            met |= load(x + i + n * LANES) == wanted;
        if (is_any(met))
            break;
    }
    while (i < count && x[i] != wanted)
        i++;
    return i;
}

// Adds logits x [count] to the others of `part`.
void add(Partial &part, const float *x, int64_t count) {
    const float peak = largest(x, count);
    float sum = 0;
    if (std::fabs(peak) < INFINITY) {
        Vector sums = {};
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            sums += exponential(load(x + i) - peak);
        for (int lane = 0; lane < LANES; lane++)
            sum += sums[lane];
        for (; i < count; i++)
            sum += std::exp(x[i] - peak);
    } else { // no differences of infinities: e^-inf is 0, and e^inf outweighs all but NaN
        for (int64_t i = 0; i < count; i++)
            sum = x[i] != x[i] ? NAN : sum;
        sum += peak > 0 ? 1.0f : 0.0f;
    }
    if (part.peak >= peak) {
        part.sum += peak == part.peak ? sum : sum * std::exp(peak - part.peak);
    } else {
        part.sum = part.sum * std::exp(part.peak - peak) + sum;
        part.peak = peak;
    }
}

// What is left of [first, last) without `skipped`, which may lie outside.
void add_others(Partial &part, const float *row, int64_t first, int64_t last, int64_t skipped) {
    if (skipped < first || skipped >= last)
        skipped = last;
    add(part, row + first, skipped - first);
    if (skipped + 1 < last)
        add(part, row + skipped + 1, last - skipped - 1);
}

// part(i), in order -> log-sum-exp of a row's logits without the best of the part `taken`; if it is none, of all.
template <typename Part> double log_of_others(const Part &part, int64_t num_parts, int64_t taken) {
    double peak = -INFINITY, sum = 0;
    for (int64_t i = 0; i < num_parts; i++) {
        const Partial one = part(i);
        peak = one.peak > peak ? one.peak : peak;
        peak = i != taken && one.best > peak ? one.best : peak;
    }
    for (int64_t i = 0; i < num_parts; i++) {
        const Partial one = part(i);
        sum += one.peak == peak ? one.sum : one.sum * std::exp(one.peak - peak);
        if (i != taken && one.best > -INFINITY)
            sum += one.best == peak ? 1.0 : std::exp(one.best - peak);
    }
    return peak + std::log(sum);
}

// part(i), in order -> the best token of a row, of equals the first, and its log-odds.
template <typename Part> void put_together(const Part &part, int64_t num_parts, int64_t *token, float *log_odds) {
    int64_t taken = 0;
    for (int64_t i = 1; i < num_parts; i++)
        taken = part(i).best > part(taken).best ? i : taken;
    const Partial best = part(taken);
    *token = best.best > -INFINITY ? best.token : 0;
    *log_odds = (float)(best.best - log_of_others(part, num_parts, taken));
}

// lowbias32, as `engine.core.noise` has it.
inline Words mixed(Words x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

// In (0, 1 - 2^-24], from hashes.
inline Vector uniform(Words hash) {
    const Vector high = __builtin_convertvector((Integers)(hash >> 16), Vector);
    const Vector low = __builtin_convertvector((Integers)(hash & 0xffffu), Vector);
    const Vector u = (high * 65536.0f + low + 0.5f) * 0x1p-32f;
    return u > 1.0f - 0x1p-24f ? Vector{} + (1.0f - 0x1p-24f) : u;
}

// -log(-log(1 - u)) of uniform numbers.
inline Vector gumbel(Vector u) {
    const Vector other = 1.0f - u;
    // log1p(-u), as Kahan has it: what is rounded off 1 - u is made good by the quotient.
    const Vector exponential_variate = other == 1.0f ? u : -logarithm(other) * u / (1.0f - other);
    return -logarithm(exponential_variate);
}

// No less than the Gumbel noise: -log(u), with the bits of u, read as an integer, for its logarithm.
inline Vector noise_bound(Vector u) {
    return 127 * 0.693147181f + 0.001f - __builtin_convertvector((Integers)u, Vector) * (0.693147181f * 0x1p-23f);
}

// The two largest numbers met, in each lane.
struct Leaders {
    Vector best, second;
    Integers token; // of the best

    void meet(Vector x, Integers tokens) {
        const Integers leads = x > best;
        second = greater(leads ? best : x, second);
        best = leads ? x : best;
        token = leads ? tokens : token;
    }
};

// hidden [depth][N] times weight [count, depth], tokens `dim` floats apart -> logits [count rounded up to BLOCK][N].
template <int N>
void multiply(Vector (*logits)[N], const Vector (*hidden)[N], const float *weight, int64_t dim, int64_t depth,
              int64_t count, bool is_sum) {
    for (int64_t t = 0; t < count; t += BLOCK) {
        const float *token[BLOCK]; // the last one again where there are fewer
        for (int b = 0; b < BLOCK; b++)
            token[b] = weight + (t + b < count ? t + b : count - 1) * dim;
        // The hardware follows one stream to memory, but here are as many as tokens: without this, weights are waited for.
        if (t + 2 * BLOCK <= count)
            for (int b = 0; b < BLOCK; b++)
                for (int64_t d = 0; d < depth; d += LINE)
                    __builtin_prefetch(token[b] + BLOCK * dim + d);
        Vector sums[BLOCK][N] = {};
        for (int64_t d = 0; d < depth; d++)
            for (int b = 0; b < BLOCK; b++)
                for (int n = 0; n < N; n++)
                    sums[b][n] += hidden[d][n] * token[b][d];
        for (int b = 0; b < BLOCK; b++)
            for (int n = 0; n < N; n++)
                logits[t + b][n] = is_sum ? logits[t + b][n] + sums[b][n] : sums[b][n];
    }
}

// Partials of as many rows as a vector has lanes, over the tokens of a part of a product.
struct Partials {
    Vector best, peak, sum;
    Integers token;

    Partial of(int lane) const { return {best[lane], token[lane], peak[lane], sum[lane]}; }

    // Adds those of the tokens behind.
    void add(const Partials &behind) {
        const Integers leads = behind.best > best;
        const Vector beaten = leads ? best : behind.best, highest = greater(greater(beaten, behind.peak), peak);
        sum = sum * exponential(peak - highest) + behind.sum * exponential(behind.peak - highest) +
              exponential(beaten - highest);
        peak = highest;
        best = leads ? behind.best : best;
        token = leads ? behind.token : token;
    }
};

// Of one vector of rows and a tile's logits [count], `apart` vectors apart, of tokens `first` and on.
Partials partials_of(const Vector *logits, int64_t apart, int32_t first, int32_t count, int64_t mask_id) {
    Leaders leaders = {Vector{} - INFINITY, Vector{} - INFINITY, Integers{} - 1};
    for (int32_t t = 0; t < count; t++)
        if (first + t == mask_id)
            leaders.second = greater(logits[t * apart], leaders.second);
        else
            leaders.meet(logits[t * apart], Integers{} + (first + t));
    const Vector peak = greater(leaders.second, Vector{} - FLT_MAX); // differences of infinities would be NaN
    Vector sum = {};
    for (int32_t t = 0; t < count; t++)
        sum += leaders.token == first + t ? Vector{} : exponential(logits[t * apart] - peak);
    return {leaders.best, peak, sum, leaders.token};
}

// Calls work(first row, number of vectors as a type) for rows in groups that fill as many vectors.
template <typename Work> void each_group(int64_t rows, const Work &work) {
    for (int64_t first = 0; first < rows; first += GROUP)
        if (rows - first <= LANES)
            work(first, std::integral_constant<int, 1>());
        else
            work(first, std::integral_constant<int, 2>());
}

} // namespace

extern "C" int64_t parts_of(int64_t vocab) { return (vocab + PART - 1) / PART; }

// logits [rows, vocab], rows `stride` floats apart; partials [rows, parts_of(vocab)] -> tokens and log_odds [rows]. The
// token is the best one but mask_id, of equals the first.
extern "C" void best_tokens(int64_t *tokens, float *log_odds, const float *logits, int64_t stride, int64_t rows,
                            int64_t vocab, int64_t mask_id, Partial *partials, int threads) {
    const int64_t parts = parts_of(vocab);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < rows * parts; item++) {
        const float *row = logits + item / parts * stride;
        const int64_t first = item % parts * PART, last = first + PART < vocab ? first + PART : vocab;
        const int64_t mask = mask_id < first || mask_id >= last ? last : mask_id;
        const float before = largest(row + first, mask - first);
        const float behind = mask + 1 < last ? largest(row + mask + 1, last - mask - 1) : -INFINITY;
        const int64_t from = before >= behind ? first : mask + 1, to = before >= behind ? mask : last;
        Partial part = {before >= behind ? before : behind, 0, -INFINITY, 0};
        part.token = (int32_t)(from + place(row + from, to - from, part.best));
        add_others(part, row, first, last, part.best > -INFINITY ? part.token : last);
        partials[item] = part;
    }
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        put_together([=](int64_t i) { return partials[row * parts + i]; }, parts, tokens + row, log_odds + row);
}

// As `best_tokens`, for tokens that are given.
extern "C" void token_log_odds(float *log_odds, const int64_t *tokens, const float *logits, int64_t stride, int64_t rows,
                               int64_t vocab, Partial *partials, int threads) {
    const int64_t parts = parts_of(vocab);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < rows * parts; item++) {
        const int64_t first = item % parts * PART, last = first + PART < vocab ? first + PART : vocab;
        Partial part = {-INFINITY, 0, -INFINITY, 0};
        add_others(part, logits + item / parts * stride, first, last, tokens[item / parts]);
        partials[item] = part;
    }
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const double others = log_of_others([=](int64_t i) { return partials[row * parts + i]; }, parts, -1);
        log_odds[row] = (float)(logits[row * stride + tokens[row]] - others);
    }
}

// The largest logit + temperature * noise of each row but that of mask_id: its token, itself, and the next largest.
// states [rows] are hashes of all that the noise depends on but the token.
extern "C" void draws(int64_t *tokens, float *best, float *second, const float *logits, int64_t stride, int64_t rows,
                      int64_t vocab, int64_t mask_id, const float *temperatures, const int64_t *states,
                      Partial *partials, int threads) {
    const int64_t parts = parts_of(vocab);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < rows * parts; item++) {
        const int64_t row = item / parts, first = item % parts * PART, last = first + PART < vocab ? first + PART : vocab;
        const float *x = logits + row * stride;
        const Words state = Words{} + ((uint32_t)states[row] + 0x9E3779B9u);
        Integers ids;
        for (int lane = 0; lane < LANES; lane++)
            ids[lane] = (int32_t)first + lane;
        Partial part = {-INFINITY, 0, -INFINITY, 0};
        for (int64_t i = first; i < last; i += GLANCE * LANES) {
            Vector u[GLANCE], logit[GLANCE];
            Integers may_lead = {};
            for (int n = 0; n < GLANCE; n++) {
                const int64_t at = i + n * LANES, left = last - at;
                logit[n] = left >= LANES ? load(x + at) : load(x + (left > 0 ? at : first), left > 0 ? left : 0);
                u[n] = uniform(mixed(state ^ (Words)(ids + n * LANES)));
                may_lead |= logit[n] + noise_bound(u[n]) * temperatures[row] > part.peak;
            }
            if (is_any(may_lead)) // few do: logarithms of all would take most of the time
                for (int n = 0; n < GLANCE; n++) {
                    const Vector noisy = logit[n] + gumbel(u[n]) * temperatures[row];
                    for (int lane = 0; lane < LANES; lane++)
                        if (ids[lane] + n * LANES != mask_id)
                            part.meet({noisy[lane], ids[lane] + n * LANES, -INFINITY, 0});
                }
            ids += GLANCE * LANES;
        }
        partials[item] = part;
    }
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        Partial all = partials[row * parts];
        for (int64_t i = 1; i < parts; i++)
            all.meet(partials[row * parts + i]);
        tokens[row] = all.token;
        best[row] = all.best;
        second[row] = all.peak;
    }
}

namespace {

// hidden [rows, dim], rows `stride` floats apart, times weight [vocab, dim].
struct Product {
    const float *hidden, *weight;
    int64_t stride, rows, dim, vocab;
    float *room; // [rows in whole groups, dim + threads * TILE]
    int threads;

    int64_t whole() const { return (rows + GROUP - 1) / GROUP * GROUP; }

    // Calls use(first, count, logits) for tiles of `count` tokens, those of a part one after the other by one thread.
    // logits [groups][TILE][GROUP], or [TILE][LANES] of a last group that fits into one vector.
    template <typename Use> void each_tile(const Use &use) const {
        float *turned = room, *tiles = room + whole() * dim; // turned as logits are: [groups][dim][GROUP or LANES]
#pragma omp parallel num_threads(threads)
        {
#pragma omp for
            for (int64_t first = 0; first < rows; first += GROUP) {
                const int64_t left = rows - first, count = left < GROUP ? left : GROUP, wide = left > LANES ? GROUP : LANES;
                for (int64_t row = 0; row < wide; row++)
                    for (int64_t d = 0; d < dim; d++)
                        turned[first * dim + d * wide + row] = row < count ? hidden[(first + row) * stride + d] : 0.0f;
            }
#pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < vocab; part += TILES * TILE) {
                float *logits = tiles + omp_get_thread_num() * whole() * TILE;
                for (int64_t first = part; first < part + TILES * TILE && first < vocab; first += TILE) {
                    const int64_t count = vocab - first < TILE ? vocab - first : TILE;
                    for (int64_t d = 0; d < dim; d += DEPTH)
                        each_group(rows, [&](int64_t row, auto vectors) {
                            typedef Vector Row[decltype(vectors)::value];
                            multiply<decltype(vectors)::value>((Row *)(logits + row * TILE),
                                                               (const Row *)(turned + row * dim) + d,
                                                               weight + first * dim + d, dim,
                                                               dim - d < DEPTH ? dim - d : DEPTH, count, d > 0);
                        });
                    use(first, count, logits);
                }
            }
        }
    }
};

} // namespace

// Floats of the room that the product of `rows` rows needs.
extern "C" int64_t room_of(int64_t rows, int64_t dim, int64_t threads) {
    return (rows + GROUP - 1) / GROUP * GROUP * (dim + threads * TILE);
}

// logits [rows, vocab] of hidden [rows, dim], rows `stride` floats apart, and weight [vocab, dim].
extern "C" void product(float *logits, const float *hidden, int64_t stride, int64_t rows, const float *weight, int64_t dim,
                        int64_t vocab, float *room, int threads) {
    const Product product = {hidden, weight, stride, rows, dim, vocab, room, threads};
    product.each_tile([=](int64_t first, int64_t count, const float *tile) {
        each_group(rows, [=](int64_t begin, auto vectors) {
            constexpr int wide = decltype(vectors)::value * LANES;
            for (int64_t row = begin; row < begin + wide && row < rows; row++)
                for (int64_t t = 0; t < count; t++)
                    logits[row * vocab + first + t] = tile[begin * TILE + t * wide + row - begin];
        });
    });
}

// Partials that `propose` needs beside that room.
extern "C" int64_t partials_of_product(int64_t rows, int64_t vocab) {
    return (rows + LANES - 1) / LANES * ((vocab + TILES * TILE - 1) / (TILES * TILE));
}

// `best_tokens` of the logits of `product`, which are written nowhere. room [room_of(...)], partials
// [partials_of_product(...)].
extern "C" void propose(int64_t *tokens, float *log_odds, const float *hidden, int64_t stride, int64_t rows,
                        const float *weight, int64_t dim, int64_t vocab, int64_t mask_id, float *room, Partials *partials,
                        int threads) {
    const Product product = {hidden, weight, stride, rows, dim, vocab, room, threads};
    const int64_t parts = partials_of_product(1, vocab);
    product.each_tile([=](int64_t first, int64_t count, const float *tile) {
        each_group(rows, [=](int64_t begin, auto vectors) {
            for (int n = 0; n < vectors && begin + n * LANES < rows; n++) {
                const Vector *logits = (const Vector *)(tile + begin * TILE) + n;
                const Partials own = partials_of(logits, vectors, (int32_t)first, (int32_t)count, mask_id);
                Partials &all = partials[(begin / LANES + n) * parts + first / (TILES * TILE)];
                if (first % (TILES * TILE))
                    all.add(own);
                else
                    all = own;
            }
        });
    });
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const Partials *own = partials + row / LANES * parts;
        put_together([=](int64_t i) { return own[i].of(row % LANES); }, parts, tokens + row, log_odds + row);
    }
}
