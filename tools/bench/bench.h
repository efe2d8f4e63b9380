/* SPDX-License-Identifier: Apache-2.0 */
/* bench.h - what the rows of larder-bench share: settings, clocks, medians, and comparing two sides
 * in one run.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_BENCH_BENCH_H
#define LARDER_TOOLS_BENCH_BENCH_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bench {
    uint32_t rounds;       /* of each side of a row */
    double seconds;        /* of sampling, for a round of a latency row */
    uint64_t corpus_bytes; /* of KV, for a bandwidth row */
    char directory[256];   /* ours, on the disk to measure; removed at the end */
    char sockets[64];      /* ours too; short, for socket paths are */
    char programs[256];    /* where larderd is */
    bool verbose;          /* say what is being done, on stderr */
    const char *recipe;    /* of the row, where it is about one */
};

struct bench_result {
    double value;
    double plain; /* the counterpart's; 0: none */
    double ratio; /* median of value / plain of each round; 0: no counterpart */
    char note[160];
};

/* Set by a signal: the row in progress ends with -EINTR, and everything is cleaned up. */
extern volatile sig_atomic_t bench_stop;

/* One side of a comparison: does its work once and says how it went, as a rate or as a time. 0 or a
 * negative code with a message. */
typedef int (*bench_side)(void *context, double *measure);

/* Both sides `rounds` times, the order alternated; medians. */
int bench_compare(const struct bench *bench, struct bench_result *out, bench_side ours,
                  bench_side plain, void *context);
/* The same with the largest of each side, and their ratio: for times that must never be long. */
int bench_compare_worst(const struct bench *bench, struct bench_result *out, bench_side ours,
                        bench_side plain, void *context);
/* One side alone. */
int bench_measure(const struct bench *bench, struct bench_result *out, bench_side ours,
                  void *context);

double bench_now_s(void);
/* Of the processor, for this thread: what work on one core takes, whoever else runs. */
double bench_cpu_s(void);
/* Sorts the values. */
double bench_median(double *values, size_t count);

void bench_note(struct bench_result *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Progress, when wanted. */
void bench_say(const struct bench *bench, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Anonymous memory, already touched; bench_unmap() gives it back. */
int bench_map(void **out, uint64_t bytes);
void bench_unmap(void *memory, uint64_t bytes);

#endif
