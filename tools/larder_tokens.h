/* SPDX-License-Identifier: Apache-2.0 */
/* larder_tokens.h - token ids from a text file, and which tenant and model an option means.
 * Errors: 0 or negative with a message.
 */
#ifndef LARDER_TOOLS_LARDER_TOKENS_H
#define LARDER_TOOLS_LARDER_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#include "tools/larder_link.h"

/* Decimal numbers with spaces, commas, brackets or line ends between them, so that a JSON array of
 * numbers is such a file, too; "-" is standard input. At least one; free with larder_free(). */
int tokens_read(const char *path, uint32_t **out, size_t *count);

/* `name` NULL: the only one there is. */
int tokens_tenant(struct link *link, struct wire_admin_tenant_ok *out, const char *name);
/* By name, or by the first digits of the fingerprint. */
int tokens_model(struct link *link, struct wire_admin_model_ok *out, const char *name);

#endif
