/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_backend.h - the table of the CPU backend; its contract is kernels/kernels.h. */
#ifndef LARDER_KERNELS_CPU_BACKEND_H
#define LARDER_KERNELS_CPU_BACKEND_H

#include "kernels/kernels.h"

extern const struct larder_backend larder_cpu_backend;

#endif
