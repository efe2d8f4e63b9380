/* SPDX-License-Identifier: Apache-2.0 */
/* larder_eval.h - what the commands of larder-eval(1) share: options, files, threads.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_LARDER_EVAL_H
#define LARDER_TOOLS_LARDER_EVAL_H

#include <argp.h>
#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "codec/profile.h"

#define EVAL_MODEL_DEFAULT "tests/models/tiny"

/* `larder-eval blend`; an exit code. */
int eval_blend_command(int argc, char **argv);

/* 1..most, or the end of the program with a message. */
uint32_t eval_option_number(struct argp_state *state, const char *name, const char *argument,
                            uint32_t most);
/* Threads: as many as there are cores, of those that a crew may have. */
uint32_t eval_jobs_default(void);

enum eval_need {
    EVAL_IS_NEEDED,
    EVAL_IF_THERE, /* NULL when it is not */
};
/* `named`, or the file of that name in the model's directory; `out` is PATH_MAX bytes. */
const char *eval_choose_file(char *out, const char *model, const char *named, const char *name,
                             enum eval_need need);

/* A profile and the bytes that it reads from. */
struct eval_profile {
    struct larder_profile *profile; /* NULL: none */
    void *bytes;
    size_t byte_count;
};
/* `path` NULL: none. Closing takes what a failed open left. */
int eval_profile_open(struct eval_profile *out, const char *path);
void eval_profile_close(struct eval_profile *file);

/* A file to be written, and whether it was. */
int eval_create(FILE **out, const char *path);
int eval_finish(FILE *file, const char *path);

/* Indented; takes the reference. -ENOMEM for NULL. */
int eval_print_json(json_t *json);

#endif
