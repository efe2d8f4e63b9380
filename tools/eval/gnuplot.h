/* SPDX-License-Identifier: Apache-2.0 */
/* gnuplot.h - pictures are drawn by gnuplot(1), which reads its commands from a pipe.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_GNUPLOT_H
#define LARDER_TOOLS_EVAL_GNUPLOT_H

#include <stdio.h>

/* -EINVAL for a path that gnuplot cannot be told of. */
int eval_gnuplot_open(FILE **out, const char *path);
/* Waits for it. LARDER_EUNSUPPORTED when it is not there; -EIO when it could not write `path`. */
int eval_gnuplot_close(FILE *file, const char *path);

#endif
