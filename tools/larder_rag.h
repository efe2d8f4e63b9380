/* SPDX-License-Identifier: Apache-2.0 */
/* larder_rag.h - what the parts of `larder rag` know of each other: a file for the chunks, one for
 * the questions.
 */
#ifndef LARDER_TOOLS_LARDER_RAG_H
#define LARDER_TOOLS_LARDER_RAG_H

#include "tools/larder_commands.h"
#include "tools/run_engine.h"

/* How the model is run, as the options say. The socket is that of larderd's clients. */
struct run_options rag_run_options(const struct command_options *options);
/* Prints and frees; -ENOMEM for NULL. */
int rag_print_json(json_t *json);
/* Arguments and file names need not be UTF-8, as run_text_json() says. */
json_t *rag_string_json(const char *text);

int rag_ask(const struct command_options *options, const char *question);

#endif
