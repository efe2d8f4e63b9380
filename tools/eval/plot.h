/* SPDX-License-Identifier: Apache-2.0 */
/* plot.h - the rows as a picture: size against KL, a colour and a hull for each family.
 * Threads: one. Runs gnuplot.
 */
#ifndef LARDER_TOOLS_EVAL_PLOT_H
#define LARDER_TOOLS_EVAL_PLOT_H

#include "tools/eval/report.h"

/* A PNG. LARDER_EUNSUPPORTED when gnuplot is not there. */
int eval_plot(const struct eval_report *report, const char *path);

#endif
