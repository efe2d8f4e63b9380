/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/blend_claims.h"

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "tools/eval/blend_methods.h"

#define POINT .01 /* of accuracy */
/* Up to here the project's own is compared with CacheBlend: what blending is used for. */
#define OWN_SHARE .3

struct maker {
    struct eval_claim_list *out;
    const struct eval_blend_rows *rows;
    int64_t check_layer;
    /* at that layer */
    char nothing[EVAL_BLEND_TEXT_MAX];
    char chosen[EVAL_BLEND_TEXT_MAX];
    char more[EVAL_BLEND_TEXT_MAX];
};

/* By method and recipe; NULL: not measured. */
static const struct eval_blend_row *find(const struct maker *maker, const char *method,
                                         const char *chunks)
{
    for (uint32_t i = 0; i < maker->rows->count; i++) {
        const struct eval_blend_row *row = &maker->rows->list[i];
        if (row->people == EVAL_BLEND_PEOPLE && row->trial &&
            strcmp(row->trial->method, method) == 0 &&
            strcmp(row->trial->chunks->text, chunks) == 0)
            return row;
    }
    return NULL;
}

/* Of a family, over raw chunks. */
static bool is_of(const struct eval_blend_row *row, const char *family)
{
    return row->people == EVAL_BLEND_PEOPLE && row->trial &&
           strcmp(row->trial->family, family) == 0 &&
           strcmp(row->trial->chunks->text, EVAL_BLEND_RAW) == 0;
}

static const struct eval_blend_row *find_prefill(const struct maker *maker)
{
    for (uint32_t i = 0; i < maker->rows->count; i++)
        if (maker->rows->list[i].people == EVAL_BLEND_PEOPLE && !maker->rows->list[i].trial)
            return &maker->rows->list[i];
    return NULL;
}

static void judge(struct eval_claim *claim, double value, bool holds)
{
    claim->value = value;
    claim->verdict = holds ? EVAL_HOLDS : EVAL_FAILS;
}

static double cross(const struct eval_blend_row *row)
{
    return row->right[EVAL_CROSS].value;
}

/* A baseline that guesses: otherwise there is nothing to mend. */
static void claim_baseline(struct maker *maker)
{
    struct eval_claim *claim = eval_claim_add(
        maker->out, "none_is_a_guess", "%s: cross at most 15 points above chance", EVAL_BLEND_NONE);
    const struct eval_blend_row *none = find(maker, EVAL_BLEND_NONE, EVAL_BLEND_RAW);
    if (!none)
        return;
    claim->limit = eval_blend_row_chance(none) + 15 * POINT;
    judge(claim, cross(none), cross(none) <= claim->limit);
}

static void claim_regained(struct maker *maker, const char *name, const char *method, double limit)
{
    struct eval_claim *claim =
        eval_claim_add(maker->out, name, "%s regains %.0f %% of what %s loses in cross", method,
                       100 * limit, EVAL_BLEND_NONE);
    const struct eval_blend_row *full = find_prefill(maker);
    const struct eval_blend_row *none = find(maker, EVAL_BLEND_NONE, EVAL_BLEND_RAW);
    const struct eval_blend_row *row = find(maker, method, EVAL_BLEND_RAW);
    claim->limit = limit;
    if (!full || !none || !row || cross(full) <= cross(none))
        return;
    double value = (cross(row) - cross(none)) / (cross(full) - cross(none));
    judge(claim, value, value >= limit);
    snprintf(claim->note, sizeof(claim->note), "%.3f of prefill's %.3f, %s %.3f; share %.3f",
             cross(row), cross(full), EVAL_BLEND_NONE, cross(none), row->share);
}

/* The worst of all methods over raw chunks. */
static void claim_direct(struct maker *maker)
{
    struct eval_claim *claim =
        eval_claim_add(maker->out, "direct_kept", "direct: no method below prefill by 2 points");
    const struct eval_blend_row *full = find_prefill(maker);
    const struct eval_blend_row *worst = NULL;
    for (uint32_t i = 0; i < maker->rows->count; i++) {
        const struct eval_blend_row *row = &maker->rows->list[i];
        if (row->people == EVAL_BLEND_PEOPLE && row->trial &&
            strcmp(row->trial->chunks->text, EVAL_BLEND_RAW) == 0 &&
            (!worst || row->right[EVAL_DIRECT].value < worst->right[EVAL_DIRECT].value))
            worst = row;
    }
    claim->limit = 2 * POINT;
    if (!full || !worst)
        return;
    double value = full->right[EVAL_DIRECT].value - worst->right[EVAL_DIRECT].value;
    judge(claim, value, value <= claim->limit);
    snprintf(claim->note, sizeof(claim->note), "%s: %.3f, prefill %.3f", worst->trial->method,
             worst->right[EVAL_DIRECT].value, full->right[EVAL_DIRECT].value);
}

/* From each ratio of the family to the next: not above by more than two standard errors of the
 * difference, sample by sample. */
static void claim_monotone(struct maker *maker)
{
    struct eval_claim *claim = eval_claim_add(
        maker->out, "kl_falls", "%s: KL does not rise with r, within 2 paired standard errors",
        EVAL_BLEND_CACHEBLEND);
    const struct eval_blend_row *before = NULL;
    double worst = -INFINITY; /* rise, in standard errors */
    uint32_t steps = 0;
    claim->limit = 2;
    for (uint32_t i = 0; i < eval_blend_method_count; i++) {
        if (strcmp(eval_blend_methods[i].family, EVAL_BLEND_CACHEBLEND) != 0)
            continue;
        char method[EVAL_BLEND_TEXT_MAX];
        eval_blend_fill(method, eval_blend_methods[i].text, maker->check_layer);
        const struct eval_blend_row *row = find(maker, method, EVAL_BLEND_RAW);
        if (!row)
            return;
        if (before) {
            struct eval_mean rise = eval_blend_kl_difference(row, before);
            double in_errors = rise.value <= 0 ? fmax(rise.value / rise.error, -99)
                                               : rise.value / fmax(rise.error, 1e-12);
            if (in_errors > worst) {
                worst = in_errors;
                snprintf(claim->note, sizeof(claim->note),
                         "the least fall, to %s: %+.5f +- %.5f, from %.5f", row->trial->method,
                         rise.value, rise.error, before->kl.value);
            }
            steps++;
        }
        before = row;
    }
    if (steps > 0)
        judge(claim, worst, worst <= claim->limit);
}

static void claim_beats(struct maker *maker, const char *name, const char *method,
                        const char *other)
{
    struct eval_claim *claim =
        eval_claim_add(maker->out, name, "cross: %s is better than %s by 10 points", method, other);
    const struct eval_blend_row *a = find(maker, method, EVAL_BLEND_RAW);
    const struct eval_blend_row *b = find(maker, other, EVAL_BLEND_RAW);
    claim->limit = 10 * POINT;
    if (!a || !b)
        return;
    struct eval_mean gain = eval_blend_right_difference(a, b, EVAL_CROSS);
    judge(claim, gain.value, gain.value >= claim->limit);
    snprintf(claim->note, sizeof(claim->note), "%.3f, share %.3f; %.3f, share %.3f; +- %.3f",
             cross(a), a->share, cross(b), b->share, gain.error);
}

/* The control with as much computed again as the chosen tokens and the layers before them take. */
static void claim_beats_share(struct maker *maker)
{
    struct eval_claim *claim = eval_claim_add(maker->out, "beats_random_at_share",
                                              "cross: %s is better than %s at no smaller a share",
                                              maker->chosen, EVAL_BLEND_CONTROL);
    const struct eval_blend_row *chosen = find(maker, maker->chosen, EVAL_BLEND_RAW);
    const struct eval_blend_row *control = NULL;
    for (uint32_t i = 0; i < maker->rows->count && chosen; i++) {
        const struct eval_blend_row *row = &maker->rows->list[i];
        if (is_of(row, EVAL_BLEND_CONTROL) && row->share >= chosen->share &&
            (!control || row->share < control->share))
            control = row;
    }
    if (!control)
        return;
    struct eval_mean gain = eval_blend_right_difference(chosen, control, EVAL_CROSS);
    judge(claim, gain.value, gain.value > 0);
    snprintf(claim->note, sizeof(claim->note), "%.3f, share %.3f; %s: %.3f, share %.3f; +- %.3f",
             cross(chosen), chosen->share, control->trial->method, cross(control), control->share,
             gain.error);
}

static void claim_lossy(struct maker *maker, const char *name, const char *method, double limit)
{
    struct eval_claim *claim =
        eval_claim_add(maker->out, name, "cross: %s over chunks of %s within %.0f points of raw",
                       method, EVAL_BLEND_LOSSY, 100 * limit);
    const struct eval_blend_row *raw = find(maker, method, EVAL_BLEND_RAW);
    const struct eval_blend_row *lossy = find(maker, method, EVAL_BLEND_LOSSY);
    claim->limit = limit;
    if (!raw || !lossy)
        return;
    struct eval_mean loss = eval_blend_right_difference(raw, lossy, EVAL_CROSS);
    judge(claim, loss.value, loss.value <= limit);
    snprintf(claim->note, sizeof(claim->note), "%.3f, raw %.3f; +- %.3f", cross(lossy), cross(raw),
             loss.error);
}

static bool is_own(const struct eval_blend_row *row)
{
    return is_of(row, EVAL_BLEND_OWN);
}

/* In any form, at any check layer. */
static bool is_peer(const struct eval_blend_row *row)
{
    size_t bytes = strlen(EVAL_BLEND_CACHEBLEND);
    return row->trial && is_of(row, row->trial->family) &&
           strncmp(row->trial->method, EVAL_BLEND_CACHEBLEND, bytes) == 0;
}

/* The best cross that so large a share gets. */
static const struct eval_blend_row *
find_best(const struct maker *maker, bool (*is_one)(const struct eval_blend_row *row), double share)
{
    const struct eval_blend_row *best = NULL;
    for (uint32_t i = 0; i < maker->rows->count; i++) {
        const struct eval_blend_row *row = &maker->rows->list[i];
        if (is_one(row) && row->share <= share && (!best || cross(row) > cross(best)))
            best = row;
    }
    return best;
}

static void claim_own(struct maker *maker)
{
    struct eval_claim *claim =
        eval_claim_add(maker->out, "own_beats_cacheblend",
                       "cross: the best %s is better than all forms of %s, of what computes at "
                       "most %.0f %% again",
                       EVAL_BLEND_OWN, EVAL_BLEND_CACHEBLEND, 100 * OWN_SHARE);
    const struct eval_blend_row *own = find_best(maker, is_own, OWN_SHARE);
    const struct eval_blend_row *peer = find_best(maker, is_peer, OWN_SHARE);
    if (!own || !peer)
        return;
    struct eval_mean gain = eval_blend_right_difference(own, peer, EVAL_CROSS);
    judge(claim, gain.value, gain.value > 2 * gain.error);
    snprintf(claim->note, sizeof(claim->note),
             "%s: %.3f, share %.3f; %s: %.3f, share %.3f; +- %.3f", own->trial->method, cross(own),
             own->share, peer->trial->method, cross(peer), peer->share, gain.error);
}

/* As good as the chosen tokens of CacheBlend at its best layer, and how much less it computes. */
static void claim_own_share(struct maker *maker)
{
    struct eval_claim *claim = eval_claim_add(
        maker->out, "own_share", "%s comes within 2 points of %s in cross with half the share",
        EVAL_BLEND_OWN, maker->chosen);
    const struct eval_blend_row *peer = find(maker, maker->chosen, EVAL_BLEND_RAW);
    claim->limit = .5;
    if (!peer)
        return;
    const struct eval_blend_row *own = find_best(maker, is_own, .5 * peer->share);
    if (!own)
        return;
    struct eval_mean loss = eval_blend_right_difference(peer, own, EVAL_CROSS);
    judge(claim, own->share / peer->share, loss.value <= 2 * POINT);
    snprintf(claim->note, sizeof(claim->note), "%s: %.3f, share %.3f; %.3f, share %.3f; +- %.3f",
             own->trial->method, cross(own), own->share, cross(peer), peer->share, loss.error);
}

void eval_blend_claims_make(struct eval_claim_list *out, const struct eval_blend_rows *rows,
                            int64_t check_layer)
{
    *out = (struct eval_claim_list){0};
    struct maker maker = {.out = out, .rows = rows, .check_layer = check_layer};
    eval_blend_fill(maker.nothing, EVAL_BLEND_CACHEBLEND " r=0%", check_layer);
    eval_blend_fill(maker.chosen, EVAL_BLEND_CACHEBLEND " r=.15%", check_layer);
    eval_blend_fill(maker.more, EVAL_BLEND_CACHEBLEND " r=.3%", check_layer);
    claim_baseline(&maker);
    claim_regained(&maker, "regained_at_.15", maker.chosen, .80);
    claim_regained(&maker, "regained_at_.30", maker.more, .95);
    claim_direct(&maker);
    claim_monotone(&maker);
    claim_beats(&maker, "beats_r_0", maker.chosen, maker.nothing);
    claim_beats(&maker, "beats_random", maker.chosen, EVAL_BLEND_CONTROL " r=.15");
    claim_beats_share(&maker);
    claim_lossy(&maker, "lossy_chunks", maker.chosen, 3 * POINT);
    claim_lossy(&maker, "own_lossy_chunks", EVAL_BLEND_OWN " r=.15", 3 * POINT);
    claim_own(&maker);
    claim_own_share(&maker);
}
