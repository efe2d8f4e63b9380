/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/bench/bench.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/error.h"

#define ROUNDS_MAX 64

volatile sig_atomic_t bench_stop;

double bench_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double bench_cpu_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int compare_doubles(const void *a, const void *b)
{
    const double *x = a;
    const double *y = b;
    return (*x > *y) - (*x < *y);
}

static int check_stop(void)
{
    return bench_stop ? larder_fail(-EINTR, "stopped by a signal") : 0;
}

double bench_median(double *values, size_t count)
{
    assert(count > 0);
    qsort(values, count, sizeof(*values), compare_doubles);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static int run_rounds(const struct bench *bench, double *values, double *plains, bench_side ours,
                      bench_side plain, void *context)
{
    assert(bench->rounds > 0);
    assert(bench->rounds <= ROUNDS_MAX);
    for (uint32_t i = 0; i < bench->rounds; i++) {
        LARDER_TRY(check_stop());
        /* Whoever comes second finds the caches, the clock and the disk as the first left them. */
        if (i % 2 == 0)
            LARDER_TRY(ours(context, &values[i]));
        LARDER_TRY(plain(context, &plains[i]));
        if (i % 2 != 0)
            LARDER_TRY(ours(context, &values[i]));
        bench_say(bench, "round %u: %.4g, plain %.4g", i + 1, values[i], plains[i]);
    }
    return 0;
}

int bench_compare(const struct bench *bench, struct bench_result *out, bench_side ours,
                  bench_side plain, void *context)
{
    double values[ROUNDS_MAX];
    double plains[ROUNDS_MAX];
    double ratios[ROUNDS_MAX];
    LARDER_TRY(run_rounds(bench, values, plains, ours, plain, context));
    for (uint32_t i = 0; i < bench->rounds; i++)
        ratios[i] = values[i] / plains[i];
    out->value = bench_median(values, bench->rounds);
    out->plain = bench_median(plains, bench->rounds);
    out->ratio = bench_median(ratios, bench->rounds);
    return 0;
}

int bench_compare_worst(const struct bench *bench, struct bench_result *out, bench_side ours,
                        bench_side plain, void *context)
{
    double values[ROUNDS_MAX];
    double plains[ROUNDS_MAX];
    LARDER_TRY(run_rounds(bench, values, plains, ours, plain, context));
    out->value = out->plain = 0;
    for (uint32_t i = 0; i < bench->rounds; i++) {
        out->value = values[i] > out->value ? values[i] : out->value;
        out->plain = plains[i] > out->plain ? plains[i] : out->plain;
    }
    out->ratio = out->value / out->plain;
    return 0;
}

int bench_measure(const struct bench *bench, struct bench_result *out, bench_side ours,
                  void *context)
{
    double values[ROUNDS_MAX];
    assert(bench->rounds <= ROUNDS_MAX);
    for (uint32_t i = 0; i < bench->rounds; i++) {
        LARDER_TRY(check_stop());
        LARDER_TRY(ours(context, &values[i]));
        bench_say(bench, "round %u: %.4g", i + 1, values[i]);
    }
    out->value = bench_median(values, bench->rounds);
    return 0;
}

void bench_note(struct bench_result *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out->note, sizeof(out->note), format, args);
    va_end(args);
}

void bench_say(const struct bench *bench, const char *format, ...)
{
    if (!bench->verbose)
        return;
    va_list args;
    va_start(args, format);
    fputs("  ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

int bench_map(void **out, uint64_t bytes)
{
    *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
                0);
    if (*out == MAP_FAILED) {
        int err = -errno;
        *out = NULL;
        return larder_fail(err, "%llu MiB of memory: %s; --quick needs an eighth",
                           (unsigned long long)(bytes >> 20), strerror(-err));
    }
    return 0;
}

void bench_unmap(void *memory, uint64_t bytes)
{
    if (memory)
        munmap(memory, bytes);
}
