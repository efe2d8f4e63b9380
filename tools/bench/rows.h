/* SPDX-License-Identifier: Apache-2.0 */
/* rows.h - the rows of larder-bench. Each measures one path of docs and its plain counterpart. */
#ifndef LARDER_TOOLS_BENCH_ROWS_H
#define LARDER_TOOLS_BENCH_ROWS_H

#include "tools/bench/bench.h"

/* rows_codec.c; the recipe is bench->recipe */
int row_codec_encode(const struct bench *bench, struct bench_result *out);
int row_codec_decode(const struct bench *bench, struct bench_result *out);
int row_exact_size(const struct bench *bench, struct bench_result *out);

/* rows_rans.c */
int row_rans_scalar(const struct bench *bench, struct bench_result *out);
int row_rans_avx2(const struct bench *bench, struct bench_result *out);
int row_rans_avx512(const struct bench *bench, struct bench_result *out);

/* rows_host.c */
int row_get_host(const struct bench *bench, struct bench_result *out);
int row_get_host_first(const struct bench *bench, struct bench_result *out);
int row_get_host_exact(const struct bench *bench, struct bench_result *out);

/* rows_ssd.c */
int row_get_ssd(const struct bench *bench, struct bench_result *out);
int row_put_durable(const struct bench *bench, struct bench_result *out);
int row_get_ssd_encrypted(const struct bench *bench, struct bench_result *out);
int row_put_durable_encrypted(const struct bench *bench, struct bench_result *out);
int row_put_small(const struct bench *bench, struct bench_result *out);

/* rows_request.c */
int row_lookup(const struct bench *bench, struct bench_result *out);
int row_round_trip(const struct bench *bench, struct bench_result *out);

/* rows_clients.c */
int row_clients_8(const struct bench *bench, struct bench_result *out);
int row_clients_64(const struct bench *bench, struct bench_result *out);
int row_lookups_8(const struct bench *bench, struct bench_result *out);
int row_lookups_64(const struct bench *bench, struct bench_result *out);

/* rows_stall.c */
int row_stall(const struct bench *bench, struct bench_result *out);

/* rows_blend.c */
int row_blend_link(const struct bench *bench, struct bench_result *out);
int row_blend_cacheblend(const struct bench *bench, struct bench_result *out);

/* rows_start.c */
int row_start(const struct bench *bench, struct bench_result *out);

#endif
