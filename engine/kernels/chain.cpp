// Passes over the ways through an automaton's open positions: which can be taken, what they weigh, the best one. float64,
// in logarithms, for one request at a time. Nothing is kept for each edge and position, so that memory is of states and
// positions alone. What `engine.scoring.constrained.native` loads.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

typedef double Doubles __attribute__((vector_size(LANES * 4)));
typedef int64_t Longs __attribute__((vector_size(LANES * 4)));
constexpr int WIDE = LANES / 2;

constexpr double NOTHING = -1e9;  // logarithm of the weight of a class whose tokens the model gives none
constexpr double LEAST = 1e-300;  // the least posterior probability
constexpr double FAINT = 1e-280;  // a sum below is summed up once more, beside the largest of its own terms
constexpr int64_t UNSCORED = -1;  // in place of a row
constexpr int64_t OPEN = -1;      // in place of a class

// e^x of numbers that are not far above 0; 0 below -708. Cephes' exp.
inline Doubles exponential(Doubles x) {
    constexpr double SHIFT = 6755399441055744.0; // the integer is in the low bits of a sum with it
    const Longs is_nothing = x < -708.0;
    x = is_nothing ? Doubles{} : x;
    const Doubles shifted = x * 1.4426950408889634073599 + SHIFT, rounded = shifted - SHIFT;
    const Doubles rest = x - rounded * 6.93145751953125e-1 - rounded * 1.42860682030941723212e-6;
    const Doubles square = rest * rest;
    const Doubles odd =
        rest * ((square * 1.26177193074810590878e-4 + 3.02994407707441961300e-2) * square + 9.99999999999999999910e-1);
    const Doubles even = ((square * 3.00198505138664455042e-6 + 2.52448340349684104192e-3) * square +
                          2.27265548208155028766e-1) *
                             square +
                         2.0;
    const Doubles power = 1.0 + 2.0 * odd / (even - odd);
    const Longs bits = (Longs)power + ((Longs)shifted << 52);
    return is_nothing ? Doubles{} : (Doubles)bits;
}

// log(x) of positive, normal numbers. Cephes' log.
inline Doubles logarithm(Doubles x) {
    constexpr double SHIFT = 6755399441055744.0;
    constexpr int64_t FRACTION = (1LL << 52) - 1, ONE = 1023LL << 52, ROOT_OF_2 = 0x6a09e667f3bcdLL;
    const Longs bits = (Longs)x, above = (bits & FRACTION) > ROOT_OF_2; // the fraction is above the root of 2
    const Doubles shift = Doubles{} + SHIFT;
    const Doubles power = (Doubles)((Longs)shift + ((bits >> 52) - 1023 - above)) - SHIFT;
    const Doubles rest = (Doubles)((bits & FRACTION) | (ONE + (above & -(1LL << 52)))) - 1.0;
    const Doubles square = rest * rest;
    Doubles over = rest * 1.01875663804580931796e-4 + 4.97494994976747001425e-1, under = rest + 1.12873587189167450590e1;
    over = over * rest + 4.70579119878881725854e0;
    over = over * rest + 1.44989225341610930846e1;
    over = over * rest + 1.79368678507819816313e1;
    over = over * rest + 7.70838733755885391666e0;
    under = under * rest + 4.52279145837532221105e1;
    under = under * rest + 8.29875266912776603211e1;
    under = under * rest + 7.11544750618563894466e1;
    under = under * rest + 2.31251620126765340583e1;
    const Doubles sum = rest * square * over / under - power * 2.121944400546905827679e-4 - square * 0.5;
    return rest + sum + power * 0.693359375;
}

// Calls `each` with the numbers of x [count], as many at once as a vector has.
template <typename Each> void in_vectors(double *x, int64_t count, const Each &each) {
    Doubles some;
    int64_t i = 0;
    for (; i + WIDE <= count; i += WIDE) { // a copy of a fixed size is one instruction
        std::memcpy(&some, x + i, sizeof some);
        some = each(some);
        std::memcpy(x + i, &some, sizeof some);
    }
    some = Doubles{} + 1.0;
    std::memcpy(&some, x + i, (count - i) * sizeof(double));
    some = each(some);
    std::memcpy(x + i, &some, (count - i) * sizeof(double));
}

void exponentials(double *x, int64_t count) {
    in_vectors(x, count, [](Doubles some) { return exponential(some); });
}

void logarithms(double *x, int64_t count) {
    in_vectors(x, count, [](Doubles some) { return logarithm(some); });
}

double sum_of_exponentials(double *x, int64_t count) {
    double sum = 0.0;
    exponentials(x, count);
    for (int64_t i = 0; i < count; i++)
        sum += x[i];
    return sum;
}

inline double greater(double a, double b) { return a > b ? a : b; }

// lowbias32, as `engine.core.noise` has it.
inline uint32_t mixed(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

inline double gumbel(uint32_t hash) { return -std::log(-std::log1p(-(hash + 0.5) * 0x1p-32)); }

} // namespace

// The struct of the same name of `engine.scoring.constrained.native`.
struct Span {
    const int32_t *step;         // [states + 1, classes]
    const int32_t *edge_start;   // [states + 1] of the edges that leave each state
    const int32_t *edge_src;     // [edges]
    const int32_t *edge_dst;     // [edges]
    const int32_t *edge_label;   // [edges]
    const int32_t *label_start;  // [labels + 1]
    const int32_t *label_classes;
    const int64_t *fixed;        // [places] a class, or OPEN
    const int64_t *rows;         // [places] a row, or UNSCORED
    uint8_t *viable;             // [places + 1, states]
    uint8_t *used;               // [rows, labels]
    double *scratch;             // [2, room]
    int64_t states, classes, labels, places, num_rows; // states: END, the last one, among them
    int64_t room, start;         // of the scratch's halves; the state before the first place

    int64_t end() const { return states - 1; }

    // Behind a token that stands there; the dead state is `states`. Behind the answer, any token may stand.
    int64_t behind_token(int64_t state, int64_t token_class) const {
        return state == end() ? state : step[state * classes + token_class];
    }

    // Calls work(number) for those of `count` that are marked, ascending.
    template <typename Work> void each(const uint8_t *marks, int64_t count, const Work &work) const {
        for (int64_t number = 0; number < count; number++) {
            uint64_t eight;
            if (number + 8 <= count && (std::memcpy(&eight, marks + number, 8), !eight))
                number += 7;
            else if (marks[number])
                work(number);
        }
    }

    // The same for states.
    template <typename Work> void each(const uint8_t *marks, const Work &work) const { each(marks, states, work); }

    // Whether an edge into a state that is marked `onwards` leaves this one; calls work(edge) for each of them.
    template <typename Work> bool each_edge(int64_t state, const uint8_t *onwards, const Work &work) const {
        bool is_any = false;
        for (int32_t edge = edge_start[state]; edge < edge_start[state + 1]; edge++)
            if (onwards[edge_dst[edge]]) {
                is_any = true;
                work(edge);
            }
        return is_any;
    }

    // Calls work(class) for a label's classes.
    template <typename Work> void each_class(int32_t label, const Work &work) const {
        for (int32_t at = label_start[label]; at < label_start[label + 1]; at++)
            work(label_classes[at], at - label_start[label]);
    }

    double largest(int32_t label, const double *columns) const {
        double most = NOTHING;
        each_class(label, [&](int32_t token_class, int64_t) { most = greater(columns[token_class], most); });
        return most;
    }

    int64_t count_edges(int64_t state, const uint8_t *onwards) const {
        int64_t count = 0;
        each_edge(state, onwards, [&](int32_t) { count++; });
        return count;
    }
};

// The struct of the same name of `engine.scoring.constrained.native`: of the live edges of all open places, the last
// place's first.
struct Kept {
    double *probabilities; // [total] that the way goes on through the edge, if it comes to the state that it leaves
    int32_t *edges;        // [total]
    int64_t *counts;       // [places]
    int64_t total;
};

// ends [states]: in which the span may end. Fills `viable` and `used` -> the number of live edges at all open places
// together; -1 if there is no way through.
extern "C" int64_t reach(const Span *span, const uint8_t *ends) {
    const Span &s = *span;
    int64_t count = 0;
    std::memset(s.viable, 0, (s.places + 1) * s.states);
    std::memset(s.used, 0, s.num_rows * s.labels);
    s.viable[s.start] = 1;
    for (int64_t place = 0; place < s.places; place++) {
        const uint8_t *here = s.viable + place * s.states;
        uint8_t *onwards = s.viable + (place + 1) * s.states;
        s.each(here, [&](int64_t state) {
            if (s.fixed[place] != OPEN) {
                const int64_t to = s.behind_token(state, s.fixed[place]);
                if (to < s.states)
                    onwards[to] = 1;
            } else
                for (int32_t edge = s.edge_start[state]; edge < s.edge_start[state + 1]; edge++)
                    onwards[s.edge_dst[edge]] = 1;
        });
    }
    for (int64_t state = 0; state < s.states; state++)
        s.viable[s.places * s.states + state] &= ends[state];
    for (int64_t place = s.places - 1; place >= 0; place--) {
        uint8_t *here = s.viable + place * s.states;
        const uint8_t *onwards = here + s.states;
        uint8_t *used = s.rows[place] == UNSCORED ? nullptr : s.used + s.rows[place] * s.labels;
        s.each(here, [&](int64_t state) {
            if (s.fixed[place] != OPEN) {
                const int64_t to = s.behind_token(state, s.fixed[place]);
                here[state] = to < s.states && onwards[to];
            } else
                here[state] = s.each_edge(state, onwards, [&](int32_t edge) {
                    count++;
                    if (used)
                        used[s.edge_label[edge]] = 1;
                });
        });
    }
    return s.viable[s.start] ? count : -1;
}

// columns [rows, classes] -> values [rows, labels] of labels that are used: the log-sum-exp of their classes' numbers, or
// the largest.
extern "C" void weigh_labels(const Span *span, double *values, const double *columns, int is_best) {
    const Span &s = *span;
    double *weights = s.scratch, *exact = s.scratch + s.room, *peaks = exact + s.classes;
    for (int64_t row = 0; row < s.num_rows; row++) {
        const double *own = columns + row * s.classes;
        const uint8_t *used = s.used + row * s.labels;
        double *value = values + row * s.labels;
        if (is_best) {
            s.each(used, s.labels, [&](int64_t label) { value[label] = s.largest(label, own); });
            continue;
        }
        // Weights are relative to the largest of the row, so that each class has one exponential, not each member.
        double peak = NOTHING;
        for (int64_t token_class = 1; token_class < s.classes; token_class++)
            peak = greater(own[token_class], peak);
        for (int64_t token_class = 0; token_class < s.classes; token_class++)
            weights[token_class] = greater(own[token_class], NOTHING) - peak;
        weights[0] = 0.0; // fits nowhere
        exponentials(weights, s.classes);
        s.each(used, s.labels, [&](int64_t label) {
            double sum = 0.0;
            s.each_class(label, [&](int32_t token_class, int64_t) { sum += weights[token_class]; });
            double most = peak;
            if (sum < FAINT) {
                most = s.largest(label, own);
                s.each_class(label, [&](int32_t token_class, int64_t at) {
                    exact[at] = greater(own[token_class], NOTHING) - most;
                });
                sum = sum_of_exponentials(exact, s.label_start[label + 1] - s.label_start[label]);
            }
            value[label] = sum;
            peaks[label] = most;
        });
        for (int64_t label = 0; label < s.labels; label++)
            value[label] = used[label] ? value[label] : 1.0;
        logarithms(value, s.labels);
        s.each(used, s.labels, [&](int64_t label) { value[label] += peaks[label]; });
    }
}

// values [rows, labels] -> behind [places + 1, states]: the logarithm of what all ways from there to the end weigh
// together, or of what the best one does; -inf from states that are not viable. For `weigh_classes` it keeps, in `kept`,
// how probable each live edge is behind its state.
extern "C" void weigh_behind(const Span *span, double *behind, const double *values, int is_best, const Kept *kept) {
    const Span &s = *span;
    for (int64_t at = 0; at < (s.places + 1) * s.states; at++)
        behind[at] = at < s.places * s.states || !s.viable[at] ? -INFINITY : 0.0;
    double *through = kept ? kept->probabilities : s.scratch, *sums = s.scratch + s.room;
    int32_t *edges = kept ? kept->edges : nullptr;
    for (int64_t place = s.places - 1; place >= 0; place--) {
        double *here = behind + place * s.states;
        const double *onwards = here + s.states;
        const uint8_t *viable = s.viable + place * s.states, *next = viable + s.states;
        if (s.fixed[place] != OPEN) {
            s.each(viable, [&](int64_t state) { here[state] = onwards[s.behind_token(state, s.fixed[place])]; });
            continue;
        }
        const double *own = s.rows[place] == UNSCORED ? nullptr : values + s.rows[place] * s.labels;
        int64_t count = 0, number = 0;
        s.each(viable, [&](int64_t state) {
            const double even = own || is_best ? 0.0 : -std::log((double)s.count_edges(state, next));
            const int64_t first = count;
            double most = -INFINITY;
            s.each_edge(state, next, [&](int32_t edge) {
                const double weight = onwards[s.edge_dst[edge]] + (own ? own[s.edge_label[edge]] : even);
                most = greater(weight, most);
                through[count] = weight;
                if (edges)
                    edges[count] = edge;
                count++;
            });
            here[state] = most;
            for (int64_t i = first; i < count; i++)
                through[i] -= most;
            sums[number++] = count - first;
        });
        if (is_best)
            continue;
        exponentials(through, count);
        double *share = through;
        for (int64_t i = 0; i < number; i++) {
            double *last = share + (int64_t)sums[i], sum = 0.0;
            for (const double *one = share; one < last; one++)
                sum += *one;
            sums[i] = sum;
            sum = 1.0 / sum;
            for (; share < last; share++)
                *share *= sum;
        }
        logarithms(sums, number);
        number = 0;
        s.each(viable, [&](int64_t state) { here[state] += sums[number++]; });
        if (kept) {
            kept->counts[place] = count;
            through += count;
            edges += count;
        }
    }
}

// values [rows, labels] and what `weigh_behind` kept of them -> gains [rows, classes]: the logarithm of what a token's
// probability is to be multiplied by; -inf for what may not stand there.
extern "C" void weigh_classes(const Span *span, double *gains, const double *values, const Kept *kept) {
    const Span &s = *span;
    double *ahead = s.scratch, *shares = s.scratch + s.room;
    double *weights = shares + s.labels, *sums = weights + s.labels, *most = sums + s.classes;
    std::memset(ahead, 0, s.states * sizeof(double));
    ahead[s.start] = 1.0;
    int64_t end = kept->total;
    for (int64_t place = 0; place < s.places; place++) {
        double *here = ahead + place % 2 * s.states, *then = ahead + (place + 1) % 2 * s.states;
        std::memset(then, 0, s.states * sizeof(double));
        if (s.fixed[place] != OPEN) {
            s.each(s.viable + place * s.states,
                   [&](int64_t state) { then[s.behind_token(state, s.fixed[place])] += here[state]; });
            continue;
        }
        const int64_t row = s.rows[place];
        std::memset(shares, 0, s.labels * sizeof(double));
        for (int64_t i = end - kept->counts[place]; i < end; i++) {
            const int32_t edge = kept->edges[i];
            const double probable = here[s.edge_src[edge]] * kept->probabilities[i];
            then[s.edge_dst[edge]] += probable;
            shares[s.edge_label[edge]] += probable;
        }
        end -= kept->counts[place];
        if (row == UNSCORED)
            continue;
        const double *own = values + row * s.labels;
        const uint8_t *used = s.used + row * s.labels;
        double *gain = gains + row * s.classes, peak = -INFINITY;
        for (int64_t label = 0; label < s.labels; label++)
            shares[label] = used[label] ? greater(shares[label], LEAST) : 1.0;
        logarithms(shares, s.labels);
        s.each(used, s.labels, [&](int64_t label) {
            shares[label] -= own[label];
            peak = greater(shares[label], peak);
        });
        // As in `weigh_labels`. What is too little is no nothing: that is for classes that no label has.
        for (int64_t label = 0; label < s.labels; label++)
            weights[label] = used[label] ? shares[label] - peak : 0.0;
        exponentials(weights, s.labels);
        std::memset(sums, 0, s.classes * sizeof(double));
        s.each(used, s.labels, [&](int64_t label) {
            const double weight = greater(weights[label], LEAST);
            s.each_class(label, [&](int32_t token_class, int64_t) { sums[token_class] += weight; });
        });
        bool is_faint = false;
        for (int64_t token_class = 0; token_class < s.classes; token_class++) {
            gain[token_class] = sums[token_class] > 0.0 ? peak : -INFINITY;
            most[token_class] = -INFINITY;
            is_faint |= sums[token_class] > 0.0 && sums[token_class] < FAINT;
        }
        if (is_faint) {
            s.each(used, s.labels, [&](int64_t label) {
                s.each_class(label, [&](int32_t token_class, int64_t) {
                    most[token_class] = greater(shares[label], most[token_class]);
                });
            });
            for (int64_t token_class = 0; token_class < s.classes; token_class++)
                if (sums[token_class] < FAINT) {
                    gain[token_class] = most[token_class];
                    sums[token_class] = 0.0;
                } else
                    most[token_class] = -INFINITY; // it is right already
            s.each(used, s.labels, [&](int64_t label) {
                s.each_class(label, [&](int32_t token_class, int64_t) {
                    if (most[token_class] > -INFINITY)
                        sums[token_class] += std::exp(shares[label] - most[token_class]);
                });
            });
        }
        for (int64_t token_class = 0; token_class < s.classes; token_class++)
            sums[token_class] = sums[token_class] > 0.0 ? sums[token_class] : 1.0;
        logarithms(sums, s.classes);
        for (int64_t token_class = 0; token_class < s.classes; token_class++)
            gain[token_class] += sums[token_class];
    }
}

// columns [rows, classes] of best or noisy logits, and what is behind -> classes [rows] along the way of the largest sum.
// `heat` is the temperature of the draw, 0 for the best way; `hashes` [places] are of all that noise depends on but
// the state that an edge without logits leads to.
extern "C" void walk(const Span *span, int64_t *classes, const double *columns, const double *behind, double heat,
                     const int64_t *hashes) {
    const Span &s = *span;
    int64_t state = s.start;
    for (int64_t place = 0; place < s.places; place++) {
        if (s.fixed[place] != OPEN) {
            state = s.behind_token(state, s.fixed[place]);
            continue;
        }
        const uint8_t *next = s.viable + (place + 1) * s.states;
        const double *onwards = behind + (place + 1) * s.states;
        const double *own = s.rows[place] == UNSCORED ? nullptr : columns + s.rows[place] * s.classes;
        const double even = own ? 0.0 : -std::log((double)s.count_edges(state, next));
        double most = -INFINITY;
        int32_t taken = -1;
        s.each_edge(state, next, [&](int32_t edge) {
            double sum = (heat ? heat : 1.0) * onwards[s.edge_dst[edge]];
            if (own)
                sum += s.largest(s.edge_label[edge], own);
            else if (heat)
                sum += heat * (gumbel(mixed(((uint32_t)hashes[place] + 0x9E3779B9u) ^ (uint32_t)s.edge_dst[edge])) + even);
            if (taken < 0 || sum > most) {
                most = sum;
                taken = edge;
            }
        });
        if (own) {
            const double peak = s.largest(s.edge_label[taken], own);
            int64_t chosen = -1;
            s.each_class(s.edge_label[taken], [&](int32_t token_class, int64_t) {
                if (chosen < 0 && greater(own[token_class], NOTHING) == peak)
                    chosen = token_class;
            });
            classes[s.rows[place]] = chosen;
        }
        state = s.edge_dst[taken];
    }
}

// values [rows, columns] -> their log-sum-exp [rows]; -inf where all are. Overwrites the values.
extern "C" void log_sums(double *sums, double *values, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++) {
        double *own = values + row * columns, most = -1e300;
        for (int64_t i = 0; i < columns; i++)
            most = greater(own[i], most);
        for (int64_t i = 0; i < columns; i++)
            own[i] -= most;
        sums[row] = most + std::log(sum_of_exponentials(own, columns));
    }
}
