/* SPDX-License-Identifier: Apache-2.0 */
/* bits.c - bits for K and V of each layer under a budget.
 *
 * KVTuner searches pairs for groups of layers with a genetic algorithm against a task's score. Here
 * the costs of layers are taken to add up, and for that model dynamic programming over the bits
 * spent finds the very best choice; how far the costs of a real model add up shows when the recipe
 * is measured (larder-eval).
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/calibrate.h"

/* Each item is K or V of one run of layers. */
struct items {
    const struct calibration_cost *costs;
    uint32_t layers;
    uint32_t run;
    uint32_t count;
};

static double item_cost(const struct items *items, uint32_t item, uint32_t width)
{
    double sum = 0;
    uint32_t first = item / 2 * items->run;
    for (uint32_t layer = first; layer < items->layers && layer < first + items->run; layer++)
        sum += fmax(
            0,
            (double)items->costs[((uint64_t)layer * 2 + item % 2) * CALIBRATION_WIDTHS + width].kl);
    return sum;
}

static uint32_t item_bits(const struct items *items, uint32_t item, uint32_t width)
{
    uint32_t first = item / 2 * items->run;
    uint32_t left = items->layers - first;
    return calibration_widths[width] * (left < items->run ? left : items->run);
}

int calibration_choose_bits(uint8_t *choice, double *kl, const struct calibration_cost *costs,
                            uint32_t layers, uint32_t run, double budget_bits)
{
    struct items items = {
        .costs = costs, .layers = layers, .run = run, .count = 2 * ((layers + run - 1) / run)};
    if (!(budget_bits >= calibration_widths[0]))
        return larder_fail(-EINVAL, "--budget %g; the smallest width is %u bits", budget_bits,
                           calibration_widths[0]);
    uint64_t budget = (uint64_t)fmin(budget_bits * 2 * layers,
                                     2.0 * layers * calibration_widths[CALIBRATION_WIDTHS - 1]);
    /* best[b]: the least cost of the items so far within b bits; from[item][b]: its last width. */
    double *best = larder_alloc((budget + 1) * sizeof(*best));
    double *next = larder_alloc((budget + 1) * sizeof(*next));
    uint8_t *from = larder_alloc((budget + 1) * items.count);
    int err = best && next && from ? 0 : larder_fail(-ENOMEM, "no memory for a bit map");
    for (uint64_t b = 0; b <= budget && err == 0; b++)
        best[b] = 0;
    for (uint32_t item = 0; item < items.count && err == 0; item++) {
        for (uint64_t b = 0; b <= budget; b++) {
            next[b] = INFINITY;
            for (uint32_t width = 0; width < CALIBRATION_WIDTHS; width++) {
                uint64_t bits = item_bits(&items, item, width);
                if (bits > b)
                    continue;
                double cost = best[b - bits] + item_cost(&items, item, width);
                if (cost < next[b]) {
                    next[b] = cost;
                    from[item * (budget + 1) + b] = (uint8_t)width;
                }
            }
        }
        double *swap = best;
        best = next;
        next = swap;
    }
    uint64_t left = budget;
    for (uint32_t item = items.count; item-- > 0 && err == 0;) {
        uint8_t width = from[item * (budget + 1) + left];
        left -= item_bits(&items, item, width);
        uint32_t first = item / 2 * run;
        for (uint32_t layer = first; layer < layers && layer < first + run; layer++)
            choice[2 * layer + item % 2] = width;
    }
    if (err == 0)
        *kl = best[budget];
    larder_free(from);
    larder_free(next);
    larder_free(best);
    return err;
}

int calibration_bits_recipe(char *out, size_t out_bytes, const uint8_t *choice, uint32_t layers)
{
    size_t used = 0;
    for (uint32_t first = 0; first < layers;) {
        uint32_t end = first + 1;
        while (end < layers && memcmp(choice + 2 * first, choice + 2 * end, 2) == 0)
            end++;
        char where[40];
        if (end == layers)
            snprintf(where, sizeof(where), first == 0 ? "" : "else{");
        else if (end == first + 1)
            snprintf(where, sizeof(where), "layers(%u){", first);
        else
            snprintf(where, sizeof(where), "layers(%u-%u){", first, end - 1);
        int wrote = snprintf(out + used, out_bytes - used, "%sk{kivi%u}v{kivi%u}%s", where,
                             calibration_widths[choice[2 * first]],
                             calibration_widths[choice[2 * first + 1]], where[0] ? "}" : "");
        if (wrote < 0 || (size_t)wrote >= out_bytes - used)
            return larder_fail(-ENOSPC, "the recipe is longer than %zu bytes", out_bytes);
        used += (size_t)wrote;
        first = end;
    }
    return 0;
}
