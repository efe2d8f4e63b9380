/* SPDX-License-Identifier: Apache-2.0 */
/* steps.h - what a profile says to the leaf `steps` (steps.c), for those who make profiles. */
#ifndef LARDER_CODEC_STEPS_H
#define LARDER_CODEC_STEPS_H

#include <stdint.h>

/* Tables by the ratio of a coefficient's standard deviation to the step: table STEPS_TABLE_OF_ONE
 * is for 1, each after it for an octave's half more. */
#define STEPS_TABLES       24u
#define STEPS_TABLE_OF_ONE 10
/* Symbols are whole numbers of steps plus this; 0 is an escape. */
#define STEPS_ZERO   128
#define STEPS_ESCAPE 0
/* Scales and steps are powers of two, in quarters of octaves: so many at most. */
#define STEPS_QUARTERS_MAX 400

/* 2^(quarters / 4) */
float steps_power_of(int quarters);
uint8_t steps_table_of(int scale_quarters, int step_quarters);

#endif
